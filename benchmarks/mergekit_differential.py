"""sum, mean and ties against mergekit on a small random Llama, in one run.

    pip install mergekit
    python benchmarks/mergekit_differential.py [--json FILE] [--seed S] [--program mergekit-yaml]

mergekit is no dependency of comgrad; only its command `mergekit-yaml` is used, as a user would use it. A base and two
fine-tuned checkpoints are made, both tools merge them, and the written checkpoints are compared element by element, in
units in the last place of the output dtype, at the size of the largest number that was added. Without the command the
program says so and exits with code 2.

For `sum` and `mean` both are also compared with the exact result (fp64, no rounding on the way): where the two tools differ,
that tells which one rounded more. mergekit computes in the dtype its recipe names; comgrad adds in fp64 and
rounds the vector and the result once each, so bfloat16 checkpoints are merged by mergekit in bfloat16 and, in rows of
their own, in float32.

Where bf16 deltas have equal magnitudes at the threshold of `ties`, comgrad keeps all of them and a top-k some of them:
such elements differ by more than rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from comgrad.vectors.checkpoints import apply
from comgrad.vectors.merge import merge
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.reader import open_checkpoint

WEIGHTS = (0.75, 0.5)
DENSITY = 0.3
# name → (comgrad's method and parameters, mergekit's merge_method and its settings for all models)
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, bool]]] = {
    "sum": ("sum", {}, "task_arithmetic", {"normalize": False}),
    "mean": ("mean", {}, "linear", {"normalize": True}),
    "ties": ("ties", {"density": DENSITY, "match": "mergekit"}, "ties", {"normalize": True}),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPUTED = {"float32": ("float32",), "bfloat16": ("bfloat16", "float32")}  # dtype of files → what mergekit computes in


@dataclass(frozen=True)
class Row:
    """Differences of one method in one dtype, in units of the output dtype; NaN where no exact result is formed."""

    method: str
    dtype: str
    computed_in: str
    elements: int
    differing: float
    within_one_unit: float
    largest_units: float
    relative_error_of_vector: float
    comgrad_from_exact: float
    mergekit_from_exact: float


def make(folder: Path, seed: int, dtype: torch.dtype) -> tuple[Path, list[Path]]:
    """A random base and two checkpoints a little away from it."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder / "base")
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    tuned = []
    for i in range(2):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_((start[n].float() + 0.01 * torch.randn(p.shape)).to(dtype))
        tuned.append(folder / f"tuned{i}")
        model.save_pretrained(tuned[-1])
    return folder / "base", tuned


def by_mergekit(
    program: str,
    method: str,
    settings: dict[str, bool],
    dtypes: tuple[str, str],
    base: Path,
    tuned: list[Path],
    out: Path,
) -> None:
    """Run mergekit's command line on a YAML file (JSON is YAML). `dtypes`: computed in, written in."""
    models = []
    for path, weight in zip(tuned, WEIGHTS, strict=True):
        parameters = {"weight": weight} | ({"density": DENSITY} if method == "ties" else {})
        models.append({"model": str(path), "parameters": parameters})
    config = {"models": models, "merge_method": method, "parameters": settings}
    config |= {"dtype": dtypes[0], "out_dtype": dtypes[1]}
    if method != "linear":
        config["base_model"] = str(base)
    recipe = out.with_suffix(".yml")
    recipe.write_text(json.dumps(config))
    subprocess.run([program, str(recipe), str(out), "--no-copy-tokenizer"], check=True, capture_output=True, text=True)


def units(a: torch.Tensor, b: torch.Tensor, terms: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """|a − b| in units in the last place of the largest of a, b and the terms they were added up from."""
    size = torch.stack([x.abs().double() for x in (a, b, *terms)]).amax(0).clamp(min=torch.finfo(dtype).tiny)
    unit = torch.exp2(torch.floor(torch.log2(size))) * torch.finfo(dtype).eps
    return (a.double() - b.double()).abs() / unit


def exact(case: str, base: torch.Tensor, tuned: list[torch.Tensor]) -> torch.Tensor | None:
    """The result in fp64, where it is a plain sum."""
    if case not in ("sum", "mean"):
        return None
    share = sum(WEIGHTS) if case == "mean" else 1.0
    return base.double() + sum(w / share * (t.double() - base.double()) for w, t in zip(WEIGHTS, tuned, strict=True))


def compare(case: str, dtypes: tuple[str, str], ours: Path, theirs: Path, base: Path, tuned: list[Path]) -> Row:
    files = [open_checkpoint(p) for p in (ours, theirs, base, *tuned)]
    kind = DTYPES[dtypes[1]]
    different = near = total = 0
    largest = error = size = 0.0
    off = [0.0, 0.0]
    for n in files[2].names:
        a, b, start, *others = (f.get(n) for f in files)
        u = units(a, b, [start, *others], kind)
        total += u.numel()
        different += int((u > 0).sum())
        near += int((u <= 1).sum())
        largest = max(largest, float(u.max()))
        error += float((a.double() - b.double()).square().sum())
        size += float((b.double() - start.double()).square().sum())
        true = exact(case, start, others)
        for i, made in enumerate((a, b)):
            off[i] = (
                max(off[i], float(units(made, true, [start, *others], kind).max())) if true is not None else math.nan
            )
    for f in files:
        f.close()
    return Row(case, dtypes[1], dtypes[0], total, different / total, near / total, largest, (error / size) ** 0.5, *off)


def run(program: str, seed: int) -> list[Row]:
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for dtype, kind in DTYPES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            base, tuned = make(folder, seed, kind)
            vectors = [TaskVector.from_checkpoints(base, t) for t in tuned]
            for case, (ours, parameters, theirs, settings) in CASES.items():
                apply(merge(vectors, ours, WEIGHTS, **parameters), base, folder / f"ours-{case}", dtype=kind)
                for computed in COMPUTED[dtype]:
                    made = folder / f"theirs-{case}-{computed}"
                    by_mergekit(program, theirs, settings, (computed, dtype), base, tuned, made)
                    rows.append(compare(case, (computed, dtype), folder / f"ours-{case}", made, base, tuned))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--program", default="mergekit-yaml")
    arguments = parser.parse_args()
    if shutil.which(arguments.program) is None:
        print(f"'{arguments.program}' is not installed: nothing was compared (pip install mergekit)", file=sys.stderr)
        return 2
    rows = run(arguments.program, arguments.seed)
    head = (
        "method",
        "files",
        "mergekit in",
        "differing",
        "<= 1 unit",
        "largest",
        "of vector",
        "comgrad off",
        "mergekit off",
    )
    print(" ".join(f"{h:>12}" for h in head))
    for r in rows:
        shares = (f"{r.differing:.3%}", f"{r.within_one_unit:.3%}", f"{r.largest_units:.1f}")
        errors = (f"{r.relative_error_of_vector:.1e}", f"{r.comgrad_from_exact:.2f}", f"{r.mergekit_from_exact:.2f}")
        print(" ".join(f"{x:>12}" for x in (r.method, r.dtype, r.computed_in, *shares, *errors)))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
