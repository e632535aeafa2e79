"""BERT sentence encoders with mean pooling (MiniLM and its kin), without a training framework's seconds of imports."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from comgrad.describe.packed import Layer
from comgrad.errors import FileRefused
from comgrad.weights.reader import open_checkpoint

MODULES = ("Transformer", "Pooling", "Normalize")
PLAIN = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
FURTHER = "config_sentence_transformers.json"
LONGEST = 512
BATCH = 64


class MeanPooledBert:
    """A sentence-transformers folder of the commonest build, without that library.

    Rows are mean_t(h_t)/‖·‖ over a text's tokens, as sentence-transformers gives them (to 1e-6). Texts of one length go
    through together, so no padding enters anything.

    Args:
        path: a folder for which `reads` is true.

    Raises:
        FileRefused, NotFound: weights that cannot be read.
    """

    def __init__(self, name: str, path: Path, *, digest: str = "") -> None:
        from tokenizers import Tokenizer

        self.name, self.digest = name, digest
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the library has no class of its own for it
            raise _damaged(path / "tokenizer.json", "it is no tokenizer") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_longest(path))
        self._model = _Bert.load(path).eval().to(self._device).settled()

    @staticmethod
    def reads(path: Path) -> bool:
        """Whether the folder says that it is of this build; everything else is for sentence-transformers itself.

        Raises:
            FileRefused: (`encoder-damaged`) one of its files is no JSON, or of another form.
        """
        parts = _json(path / "modules.json", list)
        pooling = _json(path / "1_Pooling" / "config.json")
        config = _json(path / "config.json")
        if parts is None or pooling is None or config is None:
            return False
        if not all(isinstance(p, dict) for p in parts):
            raise _damaged(path / "modules.json", "it is no list of modules")
        said = {**(_json(path / "sentence_bert_config.json") or {}), **(_json(path / FURTHER) or {})}
        modes = {k for k, v in pooling.items() if k.startswith("pooling_mode") and v not in (False, None)}
        return (
            tuple(str(p.get("type", "")).rsplit(".", 1)[-1] for p in parts) == MODULES
            and (modes == {"pooling_mode_mean_tokens"} or pooling.get("pooling_mode") == "mean")
            and pooling.get("include_prompt", True) is True
            and all(config.get(k, v) == v for k, v in PLAIN.items())
            and not said.get("do_lower_case")
            and not said.get("default_prompt_name")
            and (path / "tokenizer.json").is_file()
        )

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> Float[np.ndarray, "n d"]:
        """(n, d) fp32 rows of norm 1."""
        by_length: dict[int, list[int]] = defaultdict(list)
        ids = [e.ids for e in self._tokenizer.encode_batch(texts)]
        for i, tokens in enumerate(ids):
            by_length[len(tokens)].append(i)
        rows = np.empty((len(texts), self._model.width), dtype=np.float32)
        for same in by_length.values():
            for at in range(0, len(same), BATCH):
                part = same[at : at + BATCH]
                rows[part] = self._model(torch.tensor([ids[i] for i in part], device=self._device)).cpu().numpy()
        return rows


class _Bert(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.width, eps = config["hidden_size"], config.get("layer_norm_eps", 1e-12)
        self.words = nn.Embedding(config["vocab_size"], self.width)
        self.places = nn.Embedding(config["max_position_embeddings"], self.width)
        self.kinds = nn.Embedding(config.get("type_vocab_size", 2), self.width)
        self.norm = nn.LayerNorm(self.width, eps=eps)
        layer = nn.TransformerEncoderLayer(
            self.width,
            config["num_attention_heads"],
            config["intermediate_size"],
            activation="gelu",
            layer_norm_eps=eps,
            batch_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, config["num_hidden_layers"], enable_nested_tensor=False)
        self._settled: list[Layer] = []

    def settled(self) -> _Bert:
        """The same with its layers as they run fastest; nothing is loaded into it or moved afterwards."""
        self._settled = [Layer(cast(nn.TransformerEncoderLayer, x)) for x in self.layers.layers]
        del self.layers
        return self

    def forward(self, ids: Tensor) -> Tensor:
        at = torch.arange(ids.shape[1], device=ids.device)
        h = self.norm(self.words(ids) + self.places(at) + self.kinds.weight[0])
        for layer in self._settled:
            h = layer(h)
        return nn.functional.normalize(h.mean(dim=1), dim=1)

    @classmethod
    def load(cls, path: Path) -> _Bert:
        """The model with the folder's weights, in fp32."""
        config = _json(path / "config.json") or {}
        try:
            model = cls(config)
        except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise _damaged(
                path / "config.json", f"no model can be made of it ({type(error).__name__}: {error})"
            ) from error
        with open_checkpoint(path) as held:
            prefix = "" if "embeddings.word_embeddings.weight" in held.names else "bert."
            state = _renamed(lambda n: held.get(prefix + n).float(), config["num_hidden_layers"])
        model.load_state_dict(state, assign=True)
        return model


def _renamed(get: Any, layers: int) -> dict[str, Tensor]:
    """A BERT checkpoint's tensors under the names of torch's encoder layers."""
    out = {
        "words.weight": get("embeddings.word_embeddings.weight"),
        "places.weight": get("embeddings.position_embeddings.weight"),
        "kinds.weight": get("embeddings.token_type_embeddings.weight"),
    }
    out |= {f"norm.{k}": get(f"embeddings.LayerNorm.{k}") for k in ("weight", "bias")}
    parts = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for i in range(layers):
        theirs, ours = f"encoder.layer.{i}", f"layers.layers.{i}"
        for k in ("weight", "bias"):
            three = [get(f"{theirs}.attention.self.{part}.{k}") for part in ("query", "key", "value")]
            out[f"{ours}.self_attn.in_proj_{k}"] = torch.cat(three)
            out |= {f"{ours}.{mine}.{k}": get(f"{theirs}.{their}.{k}") for mine, their in parts.items()}
    return out


def _longest(path: Path) -> int:
    length = (_json(path / "sentence_bert_config.json") or {}).get("max_seq_length")
    positions = (_json(path / "config.json") or {}).get("max_position_embeddings", LONGEST)
    try:
        return min(int(length or LONGEST), int(positions))
    except (TypeError, ValueError) as error:
        raise _damaged(path, "the lengths that it names are no numbers") from error


def _json(path: Path, kind: type = dict) -> Any:
    """What the JSON file holds, None where there is none. Raises FileRefused (`encoder-damaged`)."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _damaged(path, "it cannot be read as JSON") from error
    if not isinstance(found, kind):
        raise _damaged(path, f"it holds no {'object' if kind is dict else 'list'}")
    return found


def _damaged(path: Path, why: str) -> FileRefused:
    remedy = "the model's download is damaged: delete its folder and fetch the model again"
    return FileRefused(f"the text encoder's '{path}'", why, remedy, code="encoder-damaged")
