"""Instruction tasks on annotated documents: what is asked in words, and the answer that the annotation gives.

The tasks are the kinds of the task-vector similarity slides. An answer of None means that the document has none (no
chain, no entity), and gives no example.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comgrad.describe.linguistic.documents import Document, Frame, Sentence, Span, is_word

Place = tuple[int, Span]  # sentence, words
PRONOUNS = ("PRP", "PRP$", "WP", "WP$", "DT", "PRON", "DET")
PROPER = ("NNP", "PROPN")
POSSESSIVE = ("PRP$", "WP$")
ORDER = ("ARG0", "V", "ARG1", "ARGM-TMP")
SHARE = 0.1


@dataclass(frozen=True)
class Instruction:
    """One task.

    Args:
        needs: annotations a document must have.
        answer: document → answer, or None.
        counted: the answer is a number.
    """

    name: str
    title: str
    description: str
    instruction: str
    needs: frozenset[str]
    answer: Callable[[Document], str | None]
    counted: bool = False


def prompt(instruction: str, document: Document) -> str:
    """The text before the answer; a newline and the answer follow."""
    return f"In the following document, {instruction}.\n### Document: {document.text()}\n### Answer:"


# -- coreference -------------------------------------------------------------------------------------------------------
def chains(document: Document) -> dict[str, list[Place]]:
    """Chain → its mentions in the order of the text; chains of one mention are none."""
    found: dict[str, list[Place]] = defaultdict(list)
    for i, s in enumerate(document.sentences):
        for m in s.mentions:
            found[m.label].append((i, m))
    return {label: places for label, places in found.items() if len(places) > 1}


def anchor(document: Document, places: Sequence[Place]) -> Place:
    """The first mention that is more than pronouns and articles, or the first of all."""

    def full(place: Place) -> bool:
        i, m = place
        return any(t not in PRONOUNS for t in document.sentences[i].tags[m.start : m.end])

    return next((p for p in places if full(p)), places[0])


def longest_chains(document: Document) -> str | None:
    """The sentences that hold a mention of a longest chain, each mention replaced by its chain's anchor.

    Of a mention inside another only the outer one is replaced; a possessive pronoun becomes the anchor's possessive.
    """
    found = chains(document)
    if not found:
        return None
    most = max(map(len, found.values()))
    kept = {label: anchor(document, places) for label, places in found.items() if len(places) == most}
    out = []
    for i, s in enumerate(document.sentences):
        chosen = [m for m in s.mentions if m.label in kept]
        if chosen:
            out.append(_replaced(document, i, chosen, kept))
    return " ".join(out)


def _replaced(document: Document, i: int, chosen: Sequence[Span], anchors: dict[str, Place]) -> str:
    s = document.sentences[i]
    words, glued = list(s.words), list(s.glued)
    end = -1
    outer = []
    for m in sorted(chosen, key=lambda m: (m.start, -m.end)):
        if m.start >= end:
            outer.append(m)
            end = m.end
    for m in reversed(outer):
        if anchors[m.label] != (i, m):
            text = _named(document, anchors[m.label], s, m)
            words[m.start : m.end], glued[m.start : m.end] = [text], [glued[m.end - 1]]
    return Sentence(tuple(words), ("",) * len(words), tuple(glued)).text()


def _named(document: Document, anchor: Place, s: Sentence, m: Span) -> str:
    """The anchor's words in the place of a mention: possessive where that is, capital at the beginning alone."""
    at, span = anchor
    source = document.sentences[at]
    text = source.text(span.start, span.end - (source.tags[span.end - 1] == "POS"))
    if span.start == 0 and not source.tags[0].startswith(PROPER) and source.words[0] != "I":
        text = text[0].lower() + text[1:]
    if m.start == 0:
        text = text[0].upper() + text[1:]
    possessive = s.tags[m.end - 1] == "POS" or (m.end - m.start == 1 and s.tags[m.start] in POSSESSIVE)
    return f"{text}'s" if possessive else text


# -- roles, entities, beginnings, counts -------------------------------------------------------------------------------
def roles(document: Document) -> str | None:
    """One sentence of ARG0, verb, ARG1 and, where there is one, ARGM-TMP for each predicate that has the first three."""
    found = [_clause(s, f) for s in document.sentences for f in s.frames]
    clauses = [c for c in found if c is not None]
    return " ".join(clauses) or None


def _clause(s: Sentence, frame: Frame) -> str | None:
    spans = [frame.first(label) for label in ORDER]
    if None in spans[:3]:
        return None
    text = " ".join(s.text(p.start, p.end) for p in spans if p is not None)
    return f"{text[0].upper()}{text[1:]}."


def entities(document: Document) -> str | None:
    """The named entities in the order of the text, each with its type: `Ross (PERSON); two weeks (DATE)`."""
    found = [f"{s.text(e.start, e.end)} ({e.label})" for s in document.sentences for e in s.entities]
    return "; ".join(found) or None


def beginning(document: Document) -> str | None:
    """The first 10 % of the sentences, rounded up; None for a document of one sentence."""
    n = len(document.sentences)
    if n < 2:
        return None
    return " ".join(s.text() for s in document.sentences[: math.ceil(SHARE * n)])


def _count(each: Callable[[Sentence], int]) -> Callable[[Document], str]:
    return lambda document: str(sum(each(s) for s in document.sentences))


def _tagged(s: Sentence, treebank: str, universal: Sequence[str]) -> int:
    """Words whose universal tag is among `universal`, or, where there is no tree, whose tag begins with `treebank`."""
    if s.tree:
        return sum(d.tag in universal for d in s.tree)
    return sum(t.startswith(treebank) for t in s.tags)


def _counting(name: str, what: str, each: Callable[[Sentence], int], needs: Sequence[str] = ()) -> Instruction:
    return Instruction(
        f"count-{name}",
        f"Counting {name}",
        f"Count {what} in a document. The answer is a number; the subject of the text does not matter.",
        f"count {what}",
        frozenset(needs),
        _count(each),
        counted=True,
    )


_ROWS = (
    Instruction(
        "coreference-longest-chains",
        "Sentences of the longest coreference chains",
        "Keep the sentences of a document that mention what is mentioned most often, and replace every such mention by its "
        "anchor, the first full name or description. Needs coreference resolution and copying.",
        "keep sentences with longest coreference chains and replace coreference with anchor",
        frozenset(["coreference"]),
        longest_chains,
    ),
    Instruction(
        "semantic-roles",
        "Who does what, and when",
        "Rewrite a document as short sentences that hold only agent, verb, patient and time of each event. Needs semantic "
        "role labelling.",
        "build sentences with only ARG0 VERB ARG1 ARGM-TMP",
        frozenset(["roles"]),
        roles,
    ),
    Instruction(
        "named-entities",
        "Named entities",
        "List the named entities of a document with their types, in the order of the text.",
        "list the named entities with their types",
        frozenset(["entities"]),
        entities,
    ),
    Instruction(
        "first-sentences",
        "The first tenth of the sentences",
        "Repeat the first tenth of the sentences of a document. A control: nothing needs to be understood.",
        "select the first 10 % of the sentences",
        frozenset(),
        beginning,
    ),
    _counting("words", "the words", lambda s: sum(map(is_word, s.words))),
    _counting("sentences", "the sentences", lambda _s: 1),
    _counting("verbs", "the verbs", lambda s: _tagged(s, "VB", ("VERB", "AUX"))),
    _counting("nouns", "the nouns", lambda s: _tagged(s, "NN", ("NOUN", "PROPN"))),
    _counting("entities", "the named entities", lambda s: len(s.entities), ["entities"]),
)

INSTRUCTIONS: dict[str, Instruction] = {row.name: row for row in _ROWS}
