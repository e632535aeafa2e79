"""Whether a vector stands on the base that the known vectors stand on."""

from __future__ import annotations

from comgrad.explain.explanation import Base
from comgrad.types import BaseRef

_SUBTRACTED = "the base's weights were subtracted here, and are those the known vectors stand on"
_NAMED = (
    "the base it names was hashed on this machine and has the fingerprint of the known vectors' base; that it was trained"
    " from exactly these weights is its author's word, for an adapter does not contain them"
)


def base_check(mine: BaseRef, known: BaseRef, *, kind: str, recorded: str | None = None) -> Base:
    """Verified, declared or contradictory.

    Args:
        mine, known: the vector's base, and that of the known vectors.
        kind: of the vector; a dense one was made by subtracting its base.
        recorded: the fingerprint that its card carries, if any.
    """
    for fingerprint, whose in ((recorded, "its card records"), (mine.fingerprint, "it stands on")):
        if fingerprint and known.fingerprint and fingerprint != known.fingerprint:
            return Base(
                "contradictory",
                mine.name,
                mine.fingerprint,
                f"{whose} a base with fingerprint {fingerprint[:8]}; the known vectors' base has {known.fingerprint[:8]}",
            )
    if not mine.same_as(known):
        return Base(
            "contradictory",
            mine.name,
            mine.fingerprint,
            f"it names the base '{mine.name}'; the known vectors stand on '{known.name}'",
        )
    if mine.fingerprint and known.fingerprint:
        return Base("verified", mine.name, mine.fingerprint, _SUBTRACTED if kind == "dense" else _NAMED)
    whose = "this vector's" if not mine.fingerprint else "the known vectors'"
    return Base("declared", mine.name, mine.fingerprint, f"only the name agrees: {whose} base was never seen here")


def misshapen(mine: BaseRef, why: str) -> Base:
    """The same name, other shapes."""
    return Base(
        "contradictory", mine.name, mine.fingerprint, f"its shapes are not those of the known vectors' base: {why}"
    )
