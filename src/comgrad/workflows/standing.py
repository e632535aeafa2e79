"""What each vector of a registry counts for in a ranking: copies as one, claims that the weights contradict not at all.

Vectors and descriptions come from anybody. Four things are told, always against older vectors only:

- a near-duplicate counts with the oldest of its kind, and in the words of that one;
- a description that repeats an older one's words is believed where the weights resemble that one's, as those of a second
  training on the same task do;
- a vector that is made of more than eight older ones, as the mean of all or their common direction is, stands for no task;
- where several accounts share, at most three vectors of one account stand for one task, so that nobody's voice is drowned.

A description in words of its own, on weights of its own, cannot be told true or false this way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from comgrad.atlas.collection import FEWEST_TO_CENTRE, Collection
from comgrad.atlas.duplicates import Groups, copies
from comgrad.registry.search import words

# Half the least centred cosine (0.25) of two trainings on one task, of 24 pairs; 99 of 100 pairs of two tasks are below it
CLAIM = 0.12
VOTES = 3  # of one account for one task: a few trainings of it are honest work
SAME = 0.25  # centred cosine from which two vectors of one account are of one task: the least of the pairs named above
REPEATED = 6  # words in a row of an older description's beginning that make a newer one worth reading on


@dataclass(frozen=True)
class Standing:
    """The members of a collection as rankings take them.

    Args:
        groups: near-duplicates.
        doubt: per member why it is not believed; empty where it is.
        notes: what does not count and why, in words for a user.
    """

    groups: Groups
    doubt: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def kept(self) -> list[int]:
        """The members that count."""
        return [i for i in self.groups.leaders if not self.doubt[i]]


def standing(atlas: Collection) -> Standing:
    """The standing of every member of a collection that is in the order of age."""
    found = atlas.groups
    doubt = [""] * len(atlas.members)
    for made in atlas.blends:
        left = f"{made.residual:.0%} of it are its own"
        doubt[made.index] = f"it is made of {len(made.parents)} older vectors ({left}) and stands for no task"
    _contradicted(atlas, found, doubt)
    _crowded(atlas, found, doubt)
    return Standing(found, tuple(doubt), _notes(atlas, found, doubt))


def _contradicted(atlas: Collection, found: Groups, doubt: list[str]) -> None:
    """Doubt on descriptions that repeat an older believed one's words on weights unlike that one's."""
    texts = [tuple(words(m.description)) for m in atlas.members]
    believed: dict[tuple[str, ...], list[int]] = {}
    near = None
    for i in found.leaders:
        for others in [] if doubt[i] else repeated(texts, i, believed):
            if near is None:
                crowd = len(found.leaders) >= FEWEST_TO_CENTRE
                near = atlas.centred_cosine() if crowd else atlas.cosine()
            j = max(others, key=lambda j: near[i, j])
            if near[i, j] < CLAIM:
                doubt[i] = contradiction(atlas.members[others[0]].name, float(near[i, j]))
                break
        if not doubt[i] and texts[i]:
            believed.setdefault(texts[i][:REPEATED], []).append(i)


def _crowded(atlas: Collection, found: Groups, doubt: list[str]) -> None:
    """Doubt on what one account has too much of: older vectors of its own, in the same words or with weights alike."""
    owners = [m.owner for m in atlas.members]
    counted = [i for i in found.leaders if owners[i] and not doubt[i]]
    many = Counter(owners[i] for i in counted)
    if len(many) < 2 or max(many.values()) <= VOTES:
        return
    near = None
    if len(counted) >= FEWEST_TO_CENTRE:  # by a mean in which every account has one voice: a flood must not be the mean
        weights = np.zeros(len(owners))
        weights[counted] = [1.0 / (len(many) * many[owners[i]]) for i in counted]
        near = atlas.centred_cosine(weights)
    texts = [words(m.description) for m in atlas.members]
    kept: dict[str, list[int]] = {}
    for i in counted:
        mine = kept.setdefault(owners[i], [])
        alike = sum(
            (bool(texts[i]) and texts[i] == texts[j]) or (near is not None and near[i, j] >= SAME) for j in mine
        )
        if alike >= VOTES:
            doubt[i] = too_many(alike)
        else:
            mine.append(i)


def too_many(alike: int) -> str:
    """Why a vector does not count whose owner has several of the same task already."""
    return f"its owner shares {alike} older ones of the same task, and no more of one account count"


def contradiction(name: str, cosine: float) -> str:
    """Why a description is not believed that repeats another one's."""
    return f"its description repeats that of '{name}', which its weights do not resemble (cosine {cosine:.2f})"


def repeated(texts: Sequence[tuple[str, ...]], i: int, believed: dict[tuple[str, ...], list[int]]) -> list[list[int]]:
    """The older members whose whole description, of at least six words, stands in that of member i, or equals it; those
    with one description together, for it is enough to resemble one of them."""
    text = texts[i]
    found = {j for j in believed.get(text, []) if texts[j] == text}  # a short one has itself as its beginning
    for at in range(len(text) - REPEATED + 1):
        for j in believed.get(text[at : at + REPEATED], []):
            if text[at : at + len(texts[j])] == texts[j]:
                found.add(j)
    by_text: dict[tuple[str, ...], list[int]] = {}
    for j in sorted(found):
        by_text.setdefault(texts[j], []).append(j)
    return list(by_text.values())


def _notes(atlas: Collection, found: Groups, doubt: Sequence[str]) -> tuple[str, ...]:
    names = [m.name for m in atlas.members]
    by_leader: dict[int, list[str]] = {}
    for c in copies(atlas.gram, found):
        longer = f", {c.length:.0f} times as long" if c.length >= 10.0 else ""
        by_leader.setdefault(c.of, []).append(f"'{names[c.index]}' is a near-copy of '{names[c.of]}'{longer}")
    notes = [
        f"{said[0]} and counts as one with it" + (f"; so do {len(said) - 1} others" if len(said) > 1 else "")
        for said in by_leader.values()
    ]
    return (*notes, *(f"'{names[i]}' does not count: {why}" for i, why in enumerate(doubt) if why))
