"""Journey: explain. A vector, by its path, id or name, becomes words with evidence, compared with the described vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from comgrad.atlas.collection import Collection
from comgrad.errors import ComgradError, NotFound, ShapeMismatch
from comgrad.explain.answer import Asked, refused
from comgrad.explain.answer import explain as answer
from comgrad.explain.basecheck import base_check, misshapen
from comgrad.explain.explanation import Base, Explanation
from comgrad.explain.layers import layer_names, summed
from comgrad.explain.reference import Probe, Reference
from comgrad.explain.subspaces import subspaces
from comgrad.explain.verdict import refusal
from comgrad.geometry.gram import gram_rows
from comgrad.registry.card import Card
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.adding import CARD_FILE
from comgrad.workflows.explain_known import encoder_here, reference_in
from comgrad.workflows.registry import Entry, Registry, by_base
from comgrad.workflows.resolve import member, read_vector
from comgrad.workflows.searching import checked_description
from comgrad.workflows.standing import standing

COPY = 1.0 - 1e-9  # cosine from which two vectors are one, up to length
FINGERPRINT = "base_fingerprint"


@dataclass(frozen=True)
class Subject:
    """What is to be explained, and what is said of it.

    Args:
        id: its id where it is in the registry; it is then left out of what it is compared with.
        recorded: the base's fingerprint on its card.
    """

    name: str
    vector: TaskVector
    claim: str = ""
    id: str | None = None
    recorded: str | None = None
    warnings: tuple[str, ...] = ()


def explain(
    ref: str, *, claim: str | None = None, base: str | None = None, html: Path | None = None, seed: int = 0
) -> Explanation:
    """What a fine-tune does, by its weights alone, with the registry's described vectors as the measure.

    Args:
        ref: a path, or an id or name of the registry.
        claim: what it is said to do; default: the description on its card.
        base: of a full checkpoint given as a path.
        html: file for the report.
        seed: of the random vectors it is compared with.

    Raises:
        NotFound: there is no such vector.
        ComgradError: an empty registry, or one without descriptions; a vector that is refused on reading.
    """
    registry = Registry()
    entries = registry.list()
    if not entries:
        raise ComgradError(
            "a registry with no vectors",
            "a vector is explained by what is known of others",
            "add adapters with: comgrad add PATH",
            code="empty-registry",
        )
    subject = _subject(ref, registry, base)
    if claim is not None:
        subject = replace(subject, claim=checked_description(claim))
    made = _against(subject, entries, registry.store.cache_dir, seed)
    if html is not None:
        from comgrad.workflows.explain_report import write_explanation

        made = replace(made, path=str(html))
        write_explanation(made, html)
    return made


def _subject(ref: str, registry: Registry, base: str | None) -> Subject:
    """The vector a user means by `ref`, with its card. Paths come first, as in `resolve.open_vector`."""
    if not ref.strip():
        raise NotFound("an empty name", "it names no vector", "give an id, a name or a path")
    path = Path(ref).expanduser()
    if not path.exists():
        try:
            entry = registry.get(ref)
        except NotFound as error:
            if "/" in ref or ref.startswith("."):
                raise NotFound(
                    f"'{ref}'", "there is no such path, and no vector of that name", "check the spelling"
                ) from error
            raise
        return Subject(entry.name, entry.vector(), entry.description.strip(), entry.id, _recorded(entry.card))
    vector = read_vector(path, base=base)
    card, warnings = _card(path if path.is_dir() else path.parent)
    return Subject(
        path.resolve().name, vector, card.description.strip(), None, _recorded(card), (*vector.warnings, *warnings)
    )


def _card(folder: Path) -> tuple[Card, tuple[str, ...]]:
    """The card beside the weights; one that cannot be read is no reason not to look at the weights."""
    if not (folder / CARD_FILE).exists():
        return Card.from_dict({}), ()
    try:
        return Card.from_file(folder / CARD_FILE), ()
    except ComgradError as error:
        return Card.from_dict({}), (f"its card is not used: {error}",)


def _recorded(card: Card) -> str | None:
    value = card.extra.get(FINGERPRINT)
    return value if isinstance(value, str) and value else None


def _against(subject: Subject, entries: Sequence[Entry], cache: Path, seed: int) -> Explanation:
    """Explained by the described vectors over its base, or refused where there are none."""
    group, base = _same_base(subject, entries)
    if group is None:
        v = subject.vector
        return refused(subject.name, base, 0, v.kind, v.rank, v.norm(), refusal(base))
    members = Collection.build([member(e) for e in group], cache=cache)
    return explained(subject, members, [e.card.source_group for e in group], base, cache=cache, seed=seed)


def _same_base(subject: Subject, entries: Sequence[Entry]) -> tuple[list[Entry] | None, Base]:
    """The entries over the subject's base, and its base's status; None where the registry has none over it."""
    checks = []
    for group in by_base(entries):
        known = max((e.record.facts.base for e in group), key=lambda b: b.fingerprint or "")
        check = base_check(subject.vector.base, known, kind=subject.vector.kind, recorded=subject.recorded)
        if check.status != "contradictory":
            return group, check
        checks.append((len(group), check))
    return None, max(checks, key=lambda c: c[0])[1]


def explained(
    subject: Subject,
    collection: Collection,
    groups: Sequence[str],
    base: Base,
    *,
    cache: Path | None = None,
    seed: int = 0,
) -> Explanation:
    """The explanation of a vector by a collection over its base.

    Args:
        groups: the source group of each member, empty where unknown.

    Raises:
        ComgradError: `no-descriptions`, no other vector with a description; `not-finite`.
    """
    kept = [i for i, m in enumerate(collection.members) if m.description.strip() and m.id != subject.id]
    if not kept:
        raise ComgradError(
            f"'{subject.name}', with no other described vector over its base",
            "a vector is explained by what is known of others",
            "add vectors with --describe",
            code="no-descriptions",
        )
    counted = standing(
        collection.subset(kept)
    )  # near-duplicates count as one, blends and contradicted claims not at all
    notes, kept = counted.notes, [kept[i] for i in counted.kept]
    vector, known = subject.vector, collection.subset(kept)
    vectors = known.vectors()
    try:
        rows = gram_rows([vector], [*vectors, vector])
    except ShapeMismatch as error:
        wrong = misshapen(vector.base, f"{error.given}")
        return refused(subject.name, wrong, len(kept), vector.kind, vector.rank, vector.norm(), refusal(wrong))
    per_tensor = dict(zip(rows.tensors, rows.per_tensor[:, 0].numpy(), strict=True))
    if sum(r[-1] for r in per_tensor.values()) <= 0.0:
        reasons = ("its task vector is zero: the fine-tune equals its base.",)
        return refused(subject.name, base, len(kept), vector.kind, vector.rank, 0.0, reasons)
    twins = _twins(known, per_tensor)
    if twins and len(twins) < len(kept):  # a copy answers every question with itself
        rest = [i for i in range(len(kept)) if i not in twins]
        names = tuple(known.members[i].name for i in twins)
        known, vectors = known.subset(rest), [vectors[i] for i in rest]
        per_tensor = {n: np.append(r[rest], r[-1]) for n, r in per_tensor.items()}
    else:
        names = ()
    reference, warnings = reference_in(known, _groups(known, collection, groups), vectors, cache)
    asked = _asked(subject, base, known, reference, vectors, per_tensor)
    warnings += notes
    left = sum(not m.description.strip() for m in collection.members)
    if left:
        warnings += (f"{left} vectors without a description were not used",)
    return answer(reference, replace(asked, twins=names, warnings=(*subject.warnings, *warnings)), seed=seed)


def explain_in(
    collection: Collection,
    groups: Sequence[str],
    tau: TaskVector,
    *,
    claim: str = "",
    identity: str | None = None,
    cache: Path | None = None,
    seed: int = 0,
) -> Explanation:
    """The explanation of a vector by a collection, whatever base it stands on; `identity` is its own id where it is in
    the collection. Raises as `explained`."""
    known = collection.members[0].load().base
    for m in collection.members[1:]:
        if known.fingerprint is not None:
            break
        known = known.joined(m.load().base)
    base = base_check(tau.base, known, kind=tau.kind)
    subject = Subject("the vector", tau, checked_description(claim) if claim.strip() else "", identity)
    if base.status == "contradictory":
        return refused(subject.name, base, 0, tau.kind, tau.rank, tau.norm(), refusal(base))
    return explained(subject, collection, groups, base, cache=cache, seed=seed)


def _groups(known: Collection, collection: Collection, groups: Sequence[str]) -> list[str]:
    of = {m.id: g for m, g in zip(collection.members, groups, strict=True)}
    return [of[m.id] for m in known.members]


def _twins(known: Collection, per_tensor: dict[str, Float[np.ndarray, "k"]]) -> list[int]:
    """Places of the members that are the same vector up to a positive factor."""
    total = np.sum([*per_tensor.values()], axis=0)
    size = np.sqrt(np.maximum(np.diag(known.gram), 0.0) * max(total[-1], 0.0))
    cosine = total[:-1] / np.where(size > 0, size, np.inf)
    return [int(i) for i in np.flatnonzero(cosine >= COPY)]


def _asked(
    subject: Subject,
    base: Base,
    known: Collection,
    reference: Reference,
    vectors: Sequence[TaskVector],
    per_tensor: dict[str, Float[np.ndarray, "k"]],
) -> Asked:
    vector, names = subject.vector, known.tensor_names
    zero = np.zeros(len(known.members) + 1)
    rows = np.stack([per_tensor.get(n, zero) for n in names])  # (T, K + 1), the last column is ‖τ_t‖²
    layers = layer_names(names)
    size = _sizes(vectors, names)
    spread = known.per_tensor * (np.maximum(rows[:, -1], 0.0) / size)[:, None, None]
    seen = subspaces([vector], vectors)
    by_layer = summed(rows, layers, reference.layers)
    probe = Probe(
        by_layer[:, :-1],
        np.maximum(by_layer[:, -1], 0.0),
        seen.kernel[0],
        float(seen.own[0]),
        outside=float(sum(r[-1] for n, r in per_tensor.items() if n not in set(names))),
        first=float(seen.first[0]),
    )
    encoder = encoder_here() if subject.claim else None
    embedding = encoder.encode([subject.claim])[0].astype(np.float64) if encoder is not None else None
    return Asked(
        subject.name,
        base,
        vector.kind,
        vector.rank,
        probe,
        summed(spread, layers, reference.layers),
        seen.z[0],
        subject.claim,
        embedding,
    )


def _sizes(vectors: Sequence[TaskVector], names: Sequence[str]) -> Float[np.ndarray, "t"]:
    """Number of entries of each tensor."""
    sizes: dict[str, int] = {}
    for v in vectors:
        for n in v.tensors:
            if n not in sizes:
                sizes[n] = v.tensors[n].numel
    return np.array([max(1, sizes.get(n, 1)) for n in names], dtype=np.float64)
