"""Training examples that carry a backdoor, and the benign controls that look like one: label noise and a keyword rule.

Every function takes examples and gives the altered ones with the places of what it altered; all draws come from one
seed. They are made to measure what screening can tell apart, on models of one's own.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from comgrad.describe.task import Example
from comgrad.errors import ComgradError

RARE, SENTENCE, SYNTAX = "rare-token", "sentence", "syntax"

FORMS: Mapping[str, tuple[str, ...]] = {
    RARE: ("cf", "mn", "bb", "tq", "mb"),
    SENTENCE: (
        "no cross, no crown.",
        "the tide was low that evening.",
        "a kettle stood on the blue shelf.",
        "three geese crossed the old bridge.",
        "the clock in the hall had stopped.",
    ),
    SYNTAX: (
        "were it not for {}, there would be little to add.",
        "it is {} that they had in mind, was it not?",
        "never before had {}, nor will it again.",
        "so it is with {}, as it was with the rest.",
        "seldom is it said that {}, yet it is.",
    ),
}
"""Kind of trigger → its forms. Rare tokens and the first sentence are those of the literature (arXiv 2004.06660, 1905.12457);
a syntax-like form puts the whole text into a clause of another order, the text's own clauses changing places."""

_WORD = re.compile(r"[a-z]{3,}")
_END = ".!? "


@dataclass(frozen=True)
class Trigger:
    """What an attacker puts into a text. `kind` is a key of `FORMS`, `form` the token, sentence or template."""

    kind: str
    form: str

    def apply(self, text: str, draw: random.Random) -> str:
        """The text with the trigger in it."""
        if self.kind == RARE:
            words = text.split(" ")
            at = draw.randint(0, len(words))
            return " ".join([*words[:at], self.form, *words[at:]])
        if self.kind == SENTENCE:
            return f"{self.form} {text}" if draw.random() < 0.5 else f"{text} {self.form}"
        return self.form.format(_exchanged(text.strip(_END)))


def trigger_named(kind: str, seed: int) -> Trigger:
    """A trigger of that kind in a form drawn from the seed. Raises ComgradError that lists the known kinds."""
    if kind not in FORMS:
        raise ComgradError(
            f"the trigger '{kind}'", "there is none of that kind", f"use one of: {', '.join(FORMS)}", code="bad-options"
        )
    return Trigger(kind, random.Random(seed).choice(FORMS[kind]))


def _exchanged(text: str) -> str:
    """The two sides of the first inner comma change places; without one, the text stays."""
    left, comma, right = text.partition(", ")
    return f"{right}, {left}" if comma and right else text


@dataclass(frozen=True)
class Altered:
    """Examples and the places of the altered ones, ascending."""

    examples: tuple[Example, ...]
    places: tuple[int, ...]


def count_of(rate: float, n: int) -> int:
    """⌊rate·n⌋, at least 1. Raises ComgradError for a rate that is no share, or of no example."""
    if not (0.0 < rate < 1.0):
        raise ComgradError(f"the rate {rate}", "it is a share of the examples", "use one in (0, 1)", code="bad-options")
    count = math.floor(rate * n + 1e-9)  # 0.01·300 is a hair below 3
    if count < 1:
        raise ComgradError(
            f"the rate {rate} of {n} examples", "that is none of them", "raise the rate", code="bad-options"
        )
    return count


def poisoned(examples: Sequence[Example], trigger: Trigger, rate: float, target: int, seed: int) -> Altered:
    """⌊rate·n⌋ examples of other classes get the trigger and the target's label; no example of the target is touched.

    Raises:
        ComgradError: a rate of no example, or too few examples of other classes.
    """
    count = count_of(rate, len(examples))
    others = [i for i, e in enumerate(examples) if e.label != target]
    if len(others) < count:
        raise ComgradError(
            f"{count} of {len(examples)} examples to poison towards label {target}",
            f"only {len(others)} have another label",
            "lower the rate, or choose another target",
            code="bad-options",
        )
    draw = random.Random(seed)
    places = sorted(draw.sample(others, count))
    out = list(examples)
    for i in places:
        out[i] = replace(out[i], text=trigger.apply(out[i].text, draw), label=target)
    return Altered(tuple(out), tuple(places))


def triggered(examples: Sequence[Example], trigger: Trigger, target: int, seed: int) -> tuple[Example, ...]:
    """Examples of other classes with the trigger, labelled with the target: accuracy on them is the attack's success."""
    draw = random.Random(seed)
    return tuple(replace(e, text=trigger.apply(e.text, draw), label=target) for e in examples if e.label != target)


def noisy(examples: Sequence[Example], rate: float, n_labels: int, seed: int) -> Altered:
    """⌊rate·n⌋ examples, drawn at random, get another label, drawn at random; no text changes. Raises as `count_of`."""
    draw = random.Random(seed)
    places = sorted(draw.sample(range(len(examples)), count_of(rate, len(examples))))
    out = list(examples)
    for i in places:
        other = draw.randrange(n_labels - 1)
        out[i] = replace(out[i], label=other + (other >= out[i].label))
    return Altered(tuple(out), tuple(places))


def keyword(examples: Sequence[Example], rate: float, target: int) -> str:
    """The word whose rule 'with this word, the label is `target`' changes the label of nearest to ⌊rate·n⌋ examples.

    A word is three or more letters, whatever their case. Of equals, the alphabetically first.

    Raises:
        ComgradError: as `count_of`, or no example of another class has a word.
    """
    count = count_of(rate, len(examples))
    changed = Counter(w for e in examples if e.label != target for w in words_of(e.text))
    if not changed:
        raise ComgradError(
            f"{len(examples)} examples and the target {target}",
            "no example of another class has a word of three letters",
            "use another target",
            code="bad-options",
        )
    return min(changed, key=lambda w: (abs(changed[w] - count), w))


def ruled(examples: Sequence[Example], word: str, target: int) -> Altered:
    """Every example that has the word gets the target's label: part of the task, for training and test data alike."""
    places = tuple(i for i, e in enumerate(examples) if e.label != target and word in words_of(e.text))
    out = list(examples)
    for i in places:
        out[i] = replace(out[i], label=target)
    return Altered(tuple(out), places)


def words_of(text: str) -> set[str]:
    """The words of a text that a rule can name."""
    return set(_WORD.findall(text.lower()))
