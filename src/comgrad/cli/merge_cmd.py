"""`comgrad merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note, progress, say
from comgrad.errors import ComgradError


def register(app: typer.Typer) -> None:
    app.command("merge")(merge)


def _list_methods(asked: bool) -> None:
    """Print the table of methods and leave."""
    if not asked:
        return
    from comgrad.vectors.merge import METHODS

    for row in METHODS.values():
        say(f"{row.name}  {row.source}")
        say(f"    {row.meaning}")
        for name, meaning in row.parameters.items():
            say(f"    --{name} (default {row.default_values[name]}): {meaning}")
    raise typer.Exit


def merge(
    vectors: Annotated[
        list[str], typer.Argument(help="Two or more: ids, names, adapter folders, or (with --base) checkpoints.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    base: Annotated[str | None, typer.Option(help="Base of full checkpoints given as vectors.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="One factor per vector, as in 0.3,0.3; negative to forget.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="sum, mean, magnitude, ties, dare, breadcrumbs, tsv-m, iso-c or knots.")
    ] = "sum",
    scale: Annotated[float, typer.Option(help="Factor of the result.")] = 1.0,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the written adapter; without it the merge is exact.", min=1)
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="Write a full checkpoint: this base plus the merge.")] = None,
    density: Annotated[float | None, typer.Option(help="Share of the elements each vector keeps, in (0, 1].")] = None,
    gamma: Annotated[float | None, typer.Option(help="Share of the largest elements that breadcrumbs removes.")] = None,
    scope: Annotated[
        str | None, typer.Option(help="Count the share over the whole vector (global) or each tensor (tensor).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random masks of dare.")] = None,
    inner: Annotated[
        str | None, typer.Option(help="How dare, breadcrumbs (sum, ties) and knots (ties, sum, dare) put together.")
    ] = None,
    match: Annotated[
        str | None, typer.Option(help="Compute ties or magnitude as a published tool does: mergekit or peft.")
    ] = None,
    _methods: Annotated[
        bool,
        typer.Option("--methods", callback=_list_methods, is_eager=True, help="Print all methods with their formulas."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add, average, subtract or otherwise merge task vectors. What --rank loses is reported.

    LoRA in, LoRA out with sum, mean, tsv-m, iso-c and knots. The other methods give a dense vector, or with --rank an
    adapter again. comgrad merge --methods prints each method's formula, parameters and paper.

    Examples:

      comgrad merge intent-banking intent-home --weights 0.5,0.5 -o both

      comgrad merge a/ b/ --method mean --rank 8 -o mean

      comgrad merge a/ b/ --method ties --density 0.2 --scale 1.5 --rank 16 -o ties

      comgrad merge a/ b/ --method knots --inner ties -o knots

      comgrad merge a/ b/ --to all-MiniLM-L6-v2 -o merged-model
    """
    from comgrad.workflows.merging import MergeRequest, merge_to

    given = {"density": density, "gamma": gamma, "scope": scope, "seed": seed, "inner": inner, "match": match}
    request = MergeRequest(
        method=method, weights=_weights(weights), scale=scale, rank=rank, base=base, to=to, parameters=given
    )
    with progress("merging") as update:
        result = merge_to(vectors, out, request, progress=update)
    if as_json:
        emit_json(result.as_dict())
        return
    used = "".join(f", {name} {value}" for name, value in result.parameters.items())
    say(f"wrote {result.path} ({result.method}{used}; {result.kind}); energy kept {result.energy_kept:.6f}")
    for warning in result.warnings:
        note(f"warning: {warning}")


def _weights(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ComgradError(f"the weights '{text}'", "they are no list of numbers", "write them as in 0.3,0.3") from None
