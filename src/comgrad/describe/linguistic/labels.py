"""Classification tasks on the sentences of dependency treebanks: counterparts of the instruction tasks for encoders.

Relations and features are those of Universal Dependencies v2. A label of None means that the sentence does not say (no
subject, no tense), and gives no example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comgrad.describe.linguistic.documents import Dependency, Sentence

SUBJECTS = ("nsubj", "csubj")
FLAT, NESTED = 3, 5  # depths up to which a tree is flat, and moderately nested; the root has depth 1


@dataclass(frozen=True)
class Labelling:
    """One task: `label` gives an index into `label_names`, or None."""

    name: str
    title: str
    description: str
    label_names: tuple[str, ...]
    label_prompts: tuple[str, ...]
    label: Callable[[Sentence], int | None]


def root(s: Sentence) -> int:
    """Place of the root, from 0."""
    return next(i for i, d in enumerate(s.tree) if d.head == 0)


def children(s: Sentence, parent: int) -> list[Dependency]:
    return [d for d in s.tree if d.head == parent + 1]


def kind(d: Dependency) -> str:
    """The relation without its subtype: `nsubj:pass` is `nsubj`."""
    return d.relation.partition(":")[0]


def depth(s: Sentence) -> int:
    """Words on the longest way from the root to a leaf, punctuation left out."""
    deepest = 0
    for i, d in enumerate(s.tree):
        steps, at = 1, i
        while s.tree[at].head:
            at = s.tree[at].head - 1
            steps += 1
        deepest = max(deepest, steps if kind(d) != "punct" else 0)
    return deepest


def _subjects(s: Sentence) -> int:
    return min(sum(kind(d) in SUBJECTS for d in s.tree), 3)


def _depth(s: Sentence) -> int:
    found = depth(s)
    return 0 if found <= FLAT else 1 if found <= NESTED else 2


def _tense(s: Sentence) -> int | None:
    """Past, present or future of the main clause: its first finite verb, or `will` before it."""
    top = root(s)
    helpers = [d for d in children(s, top) if kind(d) in ("aux", "cop")]
    if any(d.lemma.lower() in ("will", "shall") for d in helpers):
        return 2
    finite = [d for d in (*helpers, s.tree[top]) if d.features.get("VerbForm") == "Fin" and "Tense" in d.features]
    return {"Past": 0, "Pres": 1}.get(finite[0].features["Tense"]) if finite else None


def _number(*relations: str) -> Callable[[Sentence], int | None]:
    """Singular or plural of the only dependent of the main verb in one of these relations, if it is a noun."""

    def label(s: Sentence) -> int | None:
        found = [d for d in children(s, root(s)) if kind(d) in relations]
        if len(found) != 1 or found[0].tag not in ("NOUN", "PROPN"):
            return None
        return {"Sing": 0, "Plur": 1}.get(found[0].features.get("Number", ""))

    return label


def _voice(s: Sentence) -> int | None:
    below = children(s, root(s))
    if any(d.relation in ("nsubj:pass", "csubj:pass", "aux:pass") for d in below):
        return 1
    return 0 if s.tree[root(s)].tag == "VERB" and any(kind(d) in SUBJECTS for d in below) else None


_ROWS = (
    Labelling(
        "subject-count", "Number of subjects",
        "Tell how many subjects, nominal or clausal, the clauses of a sentence have together. Content is irrelevant; the "
        "count follows a gold dependency tree.",
        ("none", "one", "two", "three or more"),
        ("This sentence has no subject.", "This sentence has one subject.", "This sentence has two subjects.",
         "This sentence has three or more subjects."),
        _subjects,
    ),
    Labelling(
        "tree-depth", "Depth of the syntax tree",
        "Tell how deeply nested the grammatical structure of a sentence is, by the depth of its gold dependency tree: up to "
        "three levels, four or five, or more.",
        ("flat", "moderately nested", "deeply nested"),
        ("The structure of this sentence is flat.", "The structure of this sentence is moderately nested.",
         "The structure of this sentence is deeply nested."),
        _depth,
    ),
    Labelling(
        "main-tense", "Tense of the main clause",
        "Determine whether the main clause of a sentence is in the past, the present or the future (will) tense, whatever "
        "the subordinate clauses are in.",
        ("past", "present", "future"),
        ("The main clause is in the past tense.", "The main clause is in the present tense.",
         "The main clause is in the future tense."),
        _tense,
    ),
    Labelling(
        "subject-number", "Number of the subject",
        "Decide whether the noun that is the subject of the main clause is singular or plural.",
        ("singular", "plural"),
        ("The subject of the main clause is singular.", "The subject of the main clause is plural."),
        _number("nsubj"),
    ),
    Labelling(
        "object-number", "Number of the object",
        "Decide whether the noun that is the direct object of the main clause is singular or plural.",
        ("singular", "plural"),
        ("The object of the main clause is singular.", "The object of the main clause is plural."),
        _number("obj"),
    ),
    Labelling(
        "voice", "Voice of the main verb",
        "Decide whether the main verb of a sentence stands in the active or in the passive voice.",
        ("active", "passive"),
        ("The main verb is in the active voice.", "The main verb is in the passive voice."),
        _voice,
    ),
)  # fmt: skip

LABELLINGS: dict[str, Labelling] = {row.name: row for row in _ROWS}
