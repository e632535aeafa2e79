"""`comgrad compare`, `matrix`, `map`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note, progress, say, table


def register(app: typer.Typer) -> None:
    app.command("compare")(compare)
    app.command("matrix")(matrix)
    app.command("map")(draw_map)


def compare(
    a: Annotated[str, typer.Argument(help="Id, name, adapter folder or vector's folder.")],
    b: Annotated[str, typer.Argument(help="The other one.")],
    base: Annotated[str | None, typer.Option(help="Base of full checkpoints given as A or B.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two task vectors by every measure, in total and per tensor.

    Example: comgrad compare intent-banking intent-home
    """
    from comgrad.workflows.comparing import compare as run

    result = run(a, b, base=base)
    if as_json:
        emit_json(result)
        return
    skip = {"tensors", "spectral", "norms", "notes", "a", "b"}
    rows = [(k, v) for k, v in result.items() if k not in skip]
    rows += [(f"norm of {ref}", n) for ref, n in zip((a, b), result["norms"], strict=True)]
    for way, values in result["spectral"].items():
        rows += [(f"spectral {way}: {k}", v) for k, v in values.items()]
    say(f"{a} against {b}, over {len(result['tensors'])} tensors\n")
    table(("measure", "value"), rows)
    for line in result["notes"]:
        note(f"note: {line}")


def matrix(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .npz (with per-tensor values) or .csv.")],
    measure: Annotated[
        str, typer.Option(help="cosine, centred_cosine, l2, grassmann_l1, overlap, …; a wrong name lists them all.")
    ] = "cosine",
    base: Annotated[str | None, typer.Option(help="Base model, when the registry holds several.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compute one measure for all pairs of the registry.

    Example: comgrad matrix --measure grassmann_l1 -o grassmann.npz
    """
    from comgrad.workflows.comparing import matrix as run

    with progress("comparing") as update:
        result = run(measure, out, base=base, progress=update)
    if as_json:
        emit_json(result)
    else:
        say(f"wrote {result['path']}: {result['measure']} of {len(result['ids'])} vectors")


def draw_map(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .html (interactive), .png or .svg.")],
    measure: Annotated[str, typer.Option(help="Similarity the map is drawn from.")] = "centred_cosine",
    base: Annotated[str | None, typer.Option(help="Base model, when the registry holds several.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the layout.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw the map of the registry's tasks, with clusters.

    Example: comgrad map -o tasks.html
    """
    from comgrad.workflows.mapping import draw_map as run

    result = run(out, measure=measure, base=base, seed=seed)
    if as_json:
        emit_json(result)
    else:
        say(
            f"wrote {result['path']}: {len(result['points'])} tasks, {len(result['clusters'])} clusters, stress {result['stress']:.3f}"
        )
