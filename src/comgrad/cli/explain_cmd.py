"""`comgrad explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note, say, stages, table

if TYPE_CHECKING:
    from comgrad.explain.explanation import Explanation

MOST_ROWS = 8


def register(app: typer.Typer) -> None:
    app.command("explain")(explain)


def explain(
    vector: Annotated[str, typer.Argument(help="An adapter's or vector's folder, a checkpoint, an id or a name.")],
    html: Annotated[
        Path | None, typer.Option(help="Also write a report, one page with pictures, to this file.")
    ] = None,
    claim: Annotated[
        str | None, typer.Option(help="What it is said to do; default: the description on its card.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base of a full checkpoint given as a path.")] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="Ask the service signed in to: among its vectors, which keeps none of it.")
    ] = False,
    server: Annotated[
        str | None, typer.Option("--server", help="Address of a service; default: the one signed in to last.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a fine-tune does, from its weights, and whether that fits what it is said to do.

    It is compared with the registry's described vectors over its base. The verdict is consistent, unexplained,
    suspicious or refused (another base, or no change at all); it is never that a vector is safe.

    Examples:

      comgrad explain my-adapter/ --html report.html

      comgrad explain intent-banking

      comgrad explain my-adapter/ --claim "Tell whether a film review is positive or negative."

      comgrad explain my-adapter/ --remote --html report.html
    """
    if remote or server:
        result = _explained_there(vector, claim, base, html, server)
    else:
        from comgrad.workflows.explaining import explain as run

        result = run(vector, claim=claim, base=base, html=html)
    if as_json:
        emit_json(result.as_dict())
        return
    _show(result)
    if html is not None:
        say(f"\nwrote {html}")


def _explained_there(
    vector: str, claim: str | None, base: str | None, html: Path | None, server: str | None
) -> Explanation:
    from comgrad.client.client import Client
    from comgrad.workflows.sharing import explain_remote

    with Client(server) as client, stages("sending") as (update, step):
        return explain_remote(client, vector, claim=claim, base=base, html=html, progress=update, steps=step)


def _show(x: Explanation) -> None:
    say(f"{x.subject}: {x.verdict}")
    for reason in x.reasons:
        say(f"  {reason}")
    if x.description:
        say(f"\n{x.description}")
    for warning in x.warnings:
        note(f"warning: {warning}")
    if x.neighbours:
        say("")
        rows = [(n.subspace, n.overlap_z, n.centred_cosine, n.name, n.family) for n in x.neighbours[:MOST_ROWS]]
        table(("subspaces", "overlap z", "weights", "nearest known", "family"), rows)
    if x.sources and not x.like_random:
        say("")
        parts: list[tuple[object, ...]] = [(s.coefficient, 100 * s.share, s.name) for s in x.sources[:MOST_ROWS]]
        if rest := x.sources[MOST_ROWS:]:
            parts.append((None, 100 * sum(s.share for s in rest), f"{len(rest)} others"))
        table(("coefficient", "% of ‖τ‖²", "made of"), [*parts, (None, 100 * x.residual, "nothing known")])
    if x.candidates:
        say("")
        best = [(c.fit, c.backwards, c.name, c.description) for c in x.candidates[:3]]
        table(("fit", "backwards", "known task", "its description"), best)
    if x.words:
        say("\nwords its neighbours share: " + ", ".join(w.word for w in x.words))
    say("")
    table(("", "evidence", "figure", "measured against", "meaning"), [_row(e) for e in x.evidence])
    say("\nWhat this cannot tell:")
    for limit in x.limits:
        say(f"  {limit}")


def _row(e: object) -> tuple[str, str, str, str, str]:
    from comgrad.explain.explanation import Evidence

    assert isinstance(e, Evidence)
    return {"fine": "", "note": "·", "warning": "!"}[e.weight], e.name, e.figure, e.null, e.meaning
