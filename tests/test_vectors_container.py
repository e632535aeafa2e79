"""comgrad's own file: identity, one vector one digest, the golden file of schema 1, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from comgrad.errors import FileRefused
from comgrad.types import BaseRef
from comgrad.vectors import container
from comgrad.vectors.container import load, save
from comgrad.vectors.delta import Delta, Dense, LowRank, Pinned
from comgrad.vectors.task_vector import Deferred, TaskVector
from comgrad.weights.reader import open_strict

GOLDEN = Path(__file__).parent / "golden" / "vector-schema-1.safetensors"
GOLDEN_SHA256 = "0008f4feb812087e9e7a470f280a8e5b121bf92c860856555c21e9e295d267f9"
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def golden_vector() -> TaskVector:
    """Every entry of schema 1, with numbers that need no generator."""

    def count(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        n = torch.Size(shape).numel()
        return ((torch.arange(n, dtype=torch.float64) - n / 3) / 8).reshape(shape).to(dtype)

    pinned = Pinned(torch.tensor([0, 5]), torch.tensor([-0.0, 3.0], dtype=torch.bfloat16))
    tensors: dict[str, Delta] = {
        "a.weight": LowRank(count(3, 2, dtype=torch.float16), count(2, 4, dtype=torch.float16), 2.0, torch.float16),
        "b.weight": LowRank(count(4, 1), count(1, 3), 0.1, torch.float32, transposed=True),
        "c.weight": LowRank(count(2, 2), count(2, 12), 2.0, torch.bfloat16, weight_shape=(2, 3, 2, 2)),
        "d.weight": Dense(count(2, 3), torch.bfloat16, transposed=True, pinned=pinned),
        "e.bias": Dense(count(3), torch.bfloat16),
        "f": Dense(count(dtype=torch.float64), torch.float64),
    }
    return TaskVector(BaseRef("some/base", "ab" * 32), tensors, ("ein Hinweis: ½ — ok",))


def assert_same(a: TaskVector, b: TaskVector) -> None:
    assert (a.base, a.warnings, list(a.tensors)) == (b.base, b.warnings, list(b.tensors))
    for name, x in a.tensors.items():
        y = b.tensors[name]
        assert (type(x), x.stored, x.transposed) == (type(y), y.stored, y.transposed)
        if isinstance(x, LowRank) and isinstance(y, LowRank):
            assert (x.scale, x.weight_shape, x.A.dtype, x.B.dtype) == (y.scale, y.weight_shape, y.A.dtype, y.B.dtype)
            assert torch.equal(x.A, y.A) and torch.equal(x.B, y.B)
        elif isinstance(x, Dense) and isinstance(y, Dense):
            assert x.W.dtype == y.W.dtype and torch.equal(x.W, y.W)
            assert (x.pinned is None) == (y.pinned is None)
            if x.pinned is not None and y.pinned is not None:
                assert torch.equal(x.pinned.index, y.pinned.index)
                assert torch.equal(x.pinned.value.view(torch.int16), y.pinned.value.view(torch.int16))


def test_the_golden_file_of_schema_1_loads_for_ever(tmp_path: Path) -> None:
    assert_same(load(GOLDEN), golden_vector())
    assert save(golden_vector(), tmp_path / "again") == GOLDEN_SHA256
    assert (tmp_path / "again").read_bytes() == GOLDEN.read_bytes()


names = st.text("abxyz._-019", min_size=1, max_size=8).filter(lambda s: not s.startswith("."))
# name → (low-rank?, m, n, r, kernel?, dtype, stored, scale, transposed?); built in the test, because the run-time type
# checker draws random numbers, which a strategy must not.
recipes = st.dictionaries(
    names,
    st.tuples(
        st.booleans(),
        *[st.integers(1, 5)] * 3,
        st.booleans(),
        *[st.sampled_from(DTYPES)] * 2,
        st.sampled_from([1.0, 2.0, 0.1, -3.0]),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def build(recipe: dict[str, Any], fingerprint: str | None, warnings: list[str]) -> TaskVector:
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    tensors: dict[str, Delta] = {}
    for name, (low, m, n, r, kernel, dtype, stored, scale, turned) in recipe.items():
        if low:
            shape = (m, n, 2, 1) if kernel else None
            A, B = rand(r, n * 2 if kernel else n, dtype=dtype), rand(m, r, dtype=dtype)
            tensors[name] = LowRank(B, A, scale, stored, turned and not kernel, shape)
        else:
            wide = torch.float64 if kernel else torch.float32
            tensors[name] = Dense(rand(m, n, dtype=wide), stored, turned)
    return TaskVector(BaseRef("some/base", fingerprint), tensors, tuple(warnings))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=recipes, fingerprint=st.sampled_from([None, "0f" * 32]), warnings=st.lists(st.text("äb c"), max_size=2))
def test_save_then_load_is_the_identity_and_the_bytes_are_canonical(
    recipe: dict[str, Any], fingerprint: str | None, warnings: list[str], tmp_path: Path
) -> None:
    tau = build(recipe, fingerprint, warnings)
    digest = save(tau, tmp_path / "v")
    again = load(tmp_path / "v")
    assert_same(tau, again)
    shuffled = TaskVector(tau.base, dict(reversed(list(tau.tensors.items()))), tau.warnings)
    deferred = TaskVector(tau.base, Deferred(tuple(tau.tensors), tau.tensors.__getitem__), tau.warnings)
    for same in (again, shuffled, deferred):
        assert save(same, tmp_path / "w") == digest
    with open_strict(tmp_path / "v", refuse_zero=False) as file:
        assert file.metadata["comgrad_schema"] == "1" and file.metadata["format"] == "pt"


def test_defaults_are_not_written(tmp_path: Path) -> None:
    one = LowRank(torch.ones(2, 1, dtype=torch.float16), torch.ones(1, 2, dtype=torch.float16), 2.0, torch.float16)
    save(TaskVector(BaseRef("b"), {"x": one, "y": one, "z": one.scaled(2.0)}), tmp_path / "v")
    held = load_file(tmp_path / "v")
    assert set(held) == {"x.lora_A", "x.lora_B", "y.lora_A", "y.lora_B", "z.lora_A", "z.lora_B", "z.scale"}
    assert held["x.lora_A"].dtype == torch.float16


def test_large_files_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(golden_vector(), tmp_path / "v")
    monkeypatch.setattr(container, "_IN_MEMORY", 10)
    tau = load(tmp_path / "v")
    assert isinstance(tau.tensors, Deferred)
    assert_same(tau, golden_vector())
    assert not isinstance(load(tmp_path / "v", lazy=False).tensors, Deferred)
    assert isinstance((tau + tau).tensors, Deferred)


def test_many_warnings_are_cut_to_fit(tmp_path: Path) -> None:
    tau = TaskVector(BaseRef("b"), {"x": Dense(torch.ones(2))}, tuple(f"{i} " + "w" * 500 for i in range(200)))
    save(tau, tmp_path / "v")
    kept = load(tmp_path / "v").warnings
    assert 0 < len(kept) < 200 and kept == tau.warnings[: len(kept)]


GOOD = {"format": "pt", "comgrad_schema": "1", "base_name": "b", "scale": "1.0", "stored": "F32"}
X = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("tensors", "metadata", "code", "words"),
    [
        ({"x.delta": X}, {"comgrad_schema": None}, "not-a-vector", "comgrad_schema"),
        ({"x.delta": X}, {"comgrad_schema": "2"}, "schema", "newer comgrad"),
        ({"x.delta": X}, {"scale": "nan"}, "vector-layout", "finite"),
        ({"x.delta": X}, {"scale": "one"}, "vector-layout", "no meaning"),
        ({"x.delta": X}, {"stored": "F8"}, "vector-layout", "no meaning"),
        ({"x.delta": X}, {"warnings": "{}"}, "vector-layout", "list of texts"),
        ({"x": X}, {}, "vector-layout", "belongs to no delta"),
        ({"x.lora_A": X}, {}, "vector-layout", "make no delta"),
        ({"x.lora_A": X, "x.lora_B": X, "x.delta": X}, {}, "vector-layout", "make no delta"),
        ({"x.delta": X, "x.pinned_index": torch.tensor([0])}, {}, "vector-layout", "make no delta"),
        ({"x.lora_A": X, "x.lora_B": torch.ones(2, 3)}, {}, "vector-layout", "factors of 'x'"),
        ({"x.delta": X.half()}, {}, "vector-layout", "dtype F16"),
        ({"x.delta": X, "x.flags": torch.tensor([2, 32])}, {}, "vector-layout", "no meaning"),
        ({"x.delta": X, "x.flags": torch.tensor([0])}, {}, "vector-layout", "wrong length"),
        ({"x.delta": torch.ones(2), "x.flags": torch.tensor([1, 32])}, {}, "vector-layout", "no transpose"),
        ({"x.lora_A": X, "x.lora_B": X, "x.flags": torch.tensor([0, 32, 2, 3])}, {}, "vector-layout", "kernel"),
        (
            {"x.delta": X, "x.pinned_index": torch.tensor([4]), "x.pinned_value": torch.ones(1)},
            {},
            "vector-layout",
            "outside",
        ),
        (
            {"x.lora_A": X, "x.lora_B": X, "x.scale": torch.ones(2, dtype=torch.float64)},
            {},
            "vector-layout",
            "one number",
        ),
    ],
)
def test_what_is_no_vector_is_refused(
    tensors: dict[str, torch.Tensor], metadata: dict[str, Any], code: str, words: str, tmp_path: Path
) -> None:
    given_metadata = {k: v for k, v in (GOOD | metadata).items() if v is not None}
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "v.safetensors", given_metadata)
    with pytest.raises(FileRefused) as e:
        load(tmp_path / "v.safetensors")
    assert e.value.code == code and words in str(e.value), e.value


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="NaN"):
        save(TaskVector(BaseRef("b"), {"x": Dense(torch.tensor([float("nan")]))}), tmp_path / "v")
    assert not list(tmp_path.iterdir())


def test_names_outside_the_profile_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="name"):
        save(TaskVector(BaseRef("b"), {"../x": Dense(torch.ones(1))}), tmp_path / "v")


def test_metadata_is_small_and_readable(tmp_path: Path) -> None:
    save(golden_vector(), tmp_path / "v")
    with open_strict(tmp_path / "v") as file:
        assert json.loads(file.metadata["warnings"]) == list(golden_vector().warnings)
        assert file.metadata["base_fingerprint"] == "ab" * 32
