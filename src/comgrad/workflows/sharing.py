"""Journey: share. What is in the registry or in a folder goes to a service; what is on a service comes here."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comgrad.client.client import Client, Pulled
from comgrad.client.errors import Unreachable
from comgrad.client.parcel import CARD, CONTAINER, GRADIENT, GRADIENT_FACTS, Part, parcel
from comgrad.errors import ComgradError, NotFound
from comgrad.weights.storage import check_free

if TYPE_CHECKING:
    from comgrad.explain.explanation import Explanation
    from comgrad.workflows.registry import Registry

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PushRequest:
    """How fine-tunes are shared; `None` and empty leave it to their cards and the account."""

    name: str = ""
    description: str = ""
    public: bool = False
    org: str | None = None
    base: str | None = None
    gradient: bool = True


@dataclass(frozen=True)
class PushResult:
    """What became of one: `added`, `exists`, or `refused` with the error."""

    given: str
    status: str
    name: str
    id: str | None = None
    digest: str = ""
    server: str = ""
    warnings: list[str] = field(default_factory=list)
    error: dict[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self)


@dataclass(frozen=True)
class PullResult:
    """A vector that is here: in a folder, in the registry, or in the cache."""

    id: str
    name: str
    description: str
    digest: str
    path: str
    offline: bool
    seen: str
    downloaded: int
    status: str = ""  # of the registry: added or exists; empty when it was not asked for
    registry_id: str | None = None
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self)


def push_all(
    client: Client, refs: Sequence[str], request: PushRequest, *, progress: Progress | None = None
) -> list[PushResult]:
    """Share each of several fine-tunes; one that is refused does not keep the others back.

    Raises:
        ComgradError: one name or description for several. Unreachable: what arrived stays for the next try.
    """
    if len(refs) > 1 and (request.name or request.description):
        why = "each needs its own"
        raise ComgradError(f"one name or description for {len(refs)} fine-tunes", why, "push them one by one")
    results = []
    for ref in refs:
        try:
            made = client.push(
                parts_of(ref, gradient=request.gradient),
                name=request.name or _registered(ref),
                description=request.description,
                public=request.public,
                org=request.org,
                base=request.base,
                progress=progress,
            )
            results.append(
                PushResult(ref, made.status, made.name, made.id, made.digest, made.server, list(made.warnings))
            )
        except Unreachable:
            raise
        except ComgradError as error:
            results.append(PushResult(ref, "refused", request.name or ref, error=error.as_dict()))
    return results


def _registered(ref: str) -> str:
    """The name that the registry knows it by; of a folder none: there the card says."""
    if Path(ref).expanduser().exists():
        return ""
    from comgrad.workflows.registry import Registry

    return Registry().get(ref).name


def parts_of(ref: str, registry: Registry | None = None, *, gradient: bool = True) -> list[Part]:
    """The files to send of what a user means: a folder when there is one, else a registry's id or name.

    Args:
        gradient: send the gradient of its task too, where there is one.

    Raises:
        NotFound: neither. StorageError: the registry's file is damaged.
    """
    path = Path(ref).expanduser()
    if path.exists():
        return parcel(path, gradient=gradient)
    from comgrad.workflows.registry import Registry

    registry = registry or Registry()
    try:
        entry = registry.get(ref)
    except NotFound as error:
        why = "there is no such path, and no vector of that id or name in the registry"
        raise NotFound(f"'{ref}'", why, "check the spelling, or see: comgrad list") from error
    card = entry.card.replaced(name=entry.name).to_json().encode()
    parts = [Part.of(CARD, card), Part.of(CONTAINER, entry.store.blob_path(entry.id))]
    found = entry.store.gradient(entry.id) if gradient else None
    if found is not None:
        facts = {"schema": 1, "digest": found[0].digest, **found[0].facts.as_dict()}
        parts += [Part.of(GRADIENT, found[1]), Part.of(GRADIENT_FACTS, json.dumps(facts).encode())]
    return parts


def explain_remote(
    client: Client,
    ref: str,
    *,
    claim: str | None = None,
    base: str | None = None,
    html: Path | None = None,
    progress: Progress | None = None,
    steps: Callable[[str, int, int], None] | None = None,
) -> Explanation:
    """What a fine-tune does, as a service sees it among its vectors; the answer of `explaining.explain`.

    Args:
        ref: a folder, or an id or name of the registry here.
        html: file for the report; it is made here, of the figures that came.

    Raises:
        ComgradError: as `Client.explain`.
    """
    parts = parts_of(ref, gradient=False)
    path = Path(ref).expanduser()
    name = path.resolve().name if path.exists() else _registered(ref)
    made = client.explain(parts, claim=claim or "", base=base, progress=progress, steps=steps)
    made = replace(made, subject=name, path=str(html) if html is not None else "")
    if html is not None:
        from comgrad.workflows.explain_report import write_explanation

        write_explanation(made, html)
    return made


def pull_all(
    client: Client,
    refs: Sequence[str],
    *,
    out: Path | None = None,
    add: bool = False,
    accept_change: bool = False,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> list[PullResult]:
    """Fetch vectors; write them to folders, put them into the registry, or keep them in the cache.

    Args:
        out: the folder; with several references one below it for each, under the vector's id.

    Raises:
        ComgradError: as `Client.pull`; what was fetched before it stays in the cache.
    """
    if out is not None and len(refs) == 1:
        check_free(out)
    results = []
    for ref in refs:
        where = out if out is None or len(refs) == 1 else out / _folder_name(ref)
        pulled = client.pull(ref, where, accept_change=accept_change, progress=progress)
        made = _result(pulled)
        results.append(_added(pulled, made, registry) if add else made)
    return results


def _folder_name(ref: str) -> str:
    """A name for a folder made of a reference: letters, digits and dashes, so that it stays where it is put."""
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in ref)
    return kept.strip("-")[:100] or "vector"


def _result(pulled: Pulled) -> PullResult:
    texts = (pulled.id, pulled.name, pulled.description, pulled.digest, pulled.path)
    return PullResult(*texts, pulled.offline, pulled.seen, pulled.downloaded)


def _added(pulled: Pulled, made: PullResult, registry: Registry | None) -> PullResult:
    """Add the container, whose bytes are the service's: the id here is the id there."""
    from comgrad.registry.card import Card
    from comgrad.workflows.adding import AddRequest, add_one
    from comgrad.workflows.registry import Registry

    with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
        for name in (CONTAINER, CARD):
            shutil.copyfile(pulled.files[name], Path(folder) / name)
        card = Card.from_file(Path(folder) / CARD)
        result = add_one(registry or Registry(), Path(folder), AddRequest(card=card, name=pulled.name))
    return replace(made, status=result.status, registry_id=result.id, warnings=list(result.warnings))
