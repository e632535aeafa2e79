"""The quick encoder gives what sentence-transformers gives, and only claims folders of its own build."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comgrad.describe.encoder import SentenceEncoder, load_encoder
from comgrad.describe.mean_pooled import MeanPooledBert
from comgrad.errors import FileRefused
from comgrad.weights.bases import resolve_base

TEXTS = [
    "Say which of fifteen things a user asks about a bank account.",
    "Is this tweet ironic?",
    "",
    "A",
    "Ünïcode Straße, 漢字 and 🙂 [SEP] twice",
    "one two three " * 300,  # longer than it reads
    "Is this tweet ironic?",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_base("sentence-transformers/all-MiniLM-L6-v2").path


def test_the_same_vectors_as_sentence_transformers(folder: Path) -> None:
    ours, theirs = load_encoder(), SentenceEncoder("theirs", str(folder))
    assert isinstance(ours, MeanPooledBert)
    a, b = ours.encode(TEXTS), theirs.encode(TEXTS)
    assert a.dtype == np.float32 and a.shape == b.shape
    assert np.abs(a - b).max() < 1e-6
    assert np.array_equal(a[1], a[6])
    assert ours.encode([]).shape == (0, a.shape[1])


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "model_type", "mpnet"),
        ("config.json", "hidden_act", "relu"),
        ("1_Pooling/config.json", "pooling_mode_cls_token", True),
        ("sentence_bert_config.json", "do_lower_case", True),
        ("config_sentence_transformers.json", "default_prompt_name", "query"),
    ],
)
def test_other_builds_are_left_to_sentence_transformers(
    folder: Path, tmp_path: Path, file: str, key: str, value: object
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    assert MeanPooledBert.reads(copy)
    said = json.loads((copy / file).read_text())
    (copy / file).chmod(0o644)
    (copy / file).write_text(json.dumps({**said, key: value}))
    assert not MeanPooledBert.reads(copy)


def test_a_folder_with_another_module_is_not_claimed(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    parts = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").chmod(0o644)
    (copy / "modules.json").write_text(json.dumps([*parts, {"idx": 3, "type": "sentence_transformers.models.Dense"}]))
    assert not MeanPooledBert.reads(copy)
    (copy / "modules.json").unlink()
    assert not MeanPooledBert.reads(copy)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("modules.json", "{"),
        ("modules.json", '{"not": "a list"}'),
        ("modules.json", '["no module"]'),
        ("modules.json", "[" * 100_000),
        ("config.json", ""),
        ("config.json", "[]"),
        ("1_Pooling/config.json", "3"),
        ("sentence_bert_config.json", "[1]"),
        ("config_sentence_transformers.json", "\x00"),
    ],
)
def test_a_damaged_file_is_one_clear_refusal(folder: Path, tmp_path: Path, file: str, text: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / file).chmod(0o644)
    (copy / file).write_text(text)
    with pytest.raises(FileRefused, match="download is damaged") as caught:
        MeanPooledBert.reads(copy)
    assert caught.value.code == "encoder-damaged"
    assert file in caught.value.given


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.json", {"hidden_size": None}),
        ("config.json", {"num_attention_heads": 7}),
        ("config.json", {"max_position_embeddings": "many"}),
        ("sentence_bert_config.json", {"max_seq_length": "long"}),
        ("tokenizer.json", {"version": 9}),
    ],
)
def test_so_is_one_that_no_model_can_be_made_of(
    folder: Path, tmp_path: Path, file: str, said: dict[str, object]
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    changed = {**json.loads((copy / file).read_text()), **said}
    (copy / file).chmod(0o644)
    (copy / file).write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))
    with pytest.raises(FileRefused, match="download is damaged"):
        MeanPooledBert("it", copy)


def test_threads_that_ask_at_once_share_one_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would hold a whole model in memory, and all would wait for all."""
    from concurrent.futures import ThreadPoolExecutor

    from comgrad.describe import encoder

    made: list[object] = []
    real = MeanPooledBert.__init__

    def counted(self: MeanPooledBert, *arguments: Any, **more: Any) -> None:
        made.append(self)
        real(self, *arguments, **more)

    monkeypatch.setattr(MeanPooledBert, "__init__", counted)
    encoder._loaded.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: encoder.load_encoder(), range(8)))
    assert len(made) == 1
    assert all(f is found[0] for f in found)
