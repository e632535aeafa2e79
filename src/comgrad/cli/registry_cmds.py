"""`comgrad list`, `show`, `search`, `remove`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from comgrad.cli.output import AsJson, cell, emit_json, say, table

if TYPE_CHECKING:
    from comgrad.registry.gradients import GradientRecord


def register(app: typer.Typer) -> None:
    app.command("list")(list_vectors)
    app.command("show")(show)
    app.command("search")(search)
    app.command("remove")(remove)


def list_vectors(as_json: AsJson = False) -> None:
    """List the registry's vectors.

    Example: comgrad list --json
    """
    from comgrad.workflows.registry import Registry

    entries = Registry().list()
    if as_json:
        emit_json([e.as_dict() for e in entries])
        return
    if not entries:
        say("The registry is empty. Add adapters with: comgrad add PATH")
        return
    rows = [(e.id, e.name, e.kind, e.rank, float(e.norm), e.base, _short(e.description)) for e in entries]
    table(("id", "name", "kind", "rank", "norm", "base", "description"), rows)


def show(
    ref: Annotated[str, typer.Argument(metavar="ID", help="Id, name, or a unique start of the id.")],
    as_json: AsJson = False,
) -> None:
    """Show one vector: its card and its measured facts.

    Example: comgrad show intent-banking
    """
    from comgrad.workflows.registry import Registry

    entry = Registry().get(ref)
    if as_json:
        emit_json(entry.as_dict(full=True))
        return
    for key, value in entry.as_dict(full=True).items():
        if key not in {"card", "gradient"}:
            say(f"{key:18} {_one_line(cell(value))}")
    found = entry.gradient()
    say(f"{'gradient':18} {_gradient(found) if found else 'none; add it again with --examples TASK_DIR'}")
    for key, value in entry.card_dict().items():
        if key not in {"name", "description"}:
            say(f"card.{key:13} {_one_line(str(value))}")


def search(
    text: Annotated[str, typer.Argument(help="What you look for, in words.")],
    limit: Annotated[int, typer.Option(help="How many to show.", min=1)] = 10,
    words: Annotated[bool, typer.Option(help="Match words only; do not load the text encoder.")] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="Search the service signed in to, not the registry.")
    ] = False,
    server: Annotated[str | None, typer.Option("--server", help="Address of the service; means --remote.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find vectors by what their descriptions mean.

    Examples:

      comgrad search "requests to a bank"

      comgrad search "requests to a bank" --remote
    """
    if remote or server:
        _search_remote(text, limit, words, server, as_json)
        return
    from comgrad.workflows.searching import search as run

    hits = run(text, limit=limit, words_only=words)
    if as_json:
        emit_json([h.as_dict() for h in hits])
        return
    table(
        ("score", "id", "name", "description"),
        [(h.score, h.entry.id, h.entry.name, _short(h.entry.description)) for h in hits],
    )


def _search_remote(text: str, limit: int, words: bool, server: str | None, as_json: bool) -> None:
    from comgrad.client.client import Client

    with Client(server) as client:
        found = client.search(text, limit=limit, words=words)
    if as_json:
        emit_json(found)
        return
    rows = [(h.get("score"), h.get("id"), h.get("full_name"), _short(str(h.get("description", "")))) for h in found]
    table(("score", "id", "name", "description"), rows)


def remove(
    ref: Annotated[str, typer.Argument(metavar="ID", help="Id or name.")],
    reason: Annotated[str, typer.Option(help="Kept with the tombstone.")] = "",
    as_json: AsJson = False,
) -> None:
    """Remove a vector. Its name stays taken, so that it can never come to mean another one.

    Example: comgrad remove intent-banking --reason "licence withdrawn"
    """
    from comgrad.workflows.registry import Registry

    entry = Registry().remove(ref, reason=reason)
    if as_json:
        emit_json({**entry.as_dict(), "status": "removed"})
    else:
        say(f"removed {entry.id} '{entry.name}'; the name stays taken")


def _gradient(found: GradientRecord) -> str:
    facts = found.facts
    how = f"of {facts.examples} examples, rank {facts.rank} with {facts.energy_kept:.1%} of its energy"
    damage = f"; DAMAGED ({found.damage}): add it again with --examples" if found.damage else ""
    return f"{how}; the base's loss on them is {facts.loss:.3f} nats, its accuracy {facts.accuracy:.1%}{damage}"


def _one_line(text: str) -> str:
    """So that a description cannot pretend to be the next line."""
    return " ".join(text.split())


def _short(text: str, length: int = 70) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
