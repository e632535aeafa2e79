"""`comgrad merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note, progress, say
from comgrad.errors import ComgradError


def register(app: typer.Typer) -> None:
    app.command("merge")(merge)


def merge(
    vectors: Annotated[
        list[str], typer.Argument(help="Two or more: ids, names, adapter folders, or (with --base) checkpoints.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    base: Annotated[str | None, typer.Option(help="Base of full checkpoints given as vectors.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="One factor per vector, as in 0.3,0.3; negative to forget.")
    ] = None,
    method: Annotated[str, typer.Option(help="sum or mean.")] = "sum",
    scale: Annotated[float, typer.Option(help="Factor of the result.")] = 1.0,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the written adapter; without it the merge is exact.", min=1)
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="Write a full checkpoint: this base plus the merge.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add, average or subtract task vectors. LoRA in, LoRA out, with the energy lost by --rank reported.

    Examples:

      comgrad merge intent-banking intent-home --weights 0.5,0.5 -o both

      comgrad merge a/ b/ --method mean --rank 8 -o mean

      comgrad merge a/ b/ --to all-MiniLM-L6-v2 -o merged-model
    """
    from comgrad.workflows.merging import MergeRequest, merge_to

    request = MergeRequest(method=method, weights=_weights(weights), scale=scale, rank=rank, base=base, to=to)
    with progress("merging") as update:
        result = merge_to(vectors, out, request, progress=update)
    if as_json:
        emit_json(result.as_dict())
        return
    say(f"wrote {result.path} ({result.method}); energy kept {result.energy_kept:.6f}")
    for warning in result.warnings:
        note(f"warning: {warning}")


def _weights(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ComgradError(f"the weights '{text}'", "they are no list of numbers", "write them as in 0.3,0.3") from None
