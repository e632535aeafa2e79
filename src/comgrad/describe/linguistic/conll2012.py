"""Reader of the OntoNotes format of the CoNLL-2012 task (`*_conll`): strict, with line numbers.

Columns, divided by blanks: document, part, word's number, word, tag, parse bit, lemma, frameset, sense, speaker, entity
bit, one column of argument bits per predicate, coreference. A line `#begin document (NAME); part N` opens a part, `#end
document` closes it, and an empty line ends a sentence.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from comgrad.describe.linguistic.documents import (
    Document,
    Frame,
    Sentence,
    Span,
    malformed,
    numbered_lines,
    written,
)

BEFORE_ROLES = 11
FEWEST = BEFORE_ROLES + 1
ANNOTATED = frozenset(["entities", "roles", "coreference"])
_BEGIN = re.compile(r"#begin document \((.+)\)(?:; part (\d+))?\s*")
_BIT = re.compile(r"((?:\([^()*\s]+)*)(\*|(?<=[^()*\s])(?=\)))(\)*)")  # (ARG0*, *, *), (V*), (GPE)
_CHAIN = re.compile(r"(\()?(\d+)(\))?")
_HIDDEN = "[WORD]"

Row = tuple[int, list[str]]


def read_conll2012(path: Path) -> list[Document]:
    """The parts of an OntoNotes file, one document each, of the document's name.

    Raises:
        ComgradError: `bad-corpus`, with the line: columns, numbers, brackets, words not filled in.
    """
    out: list[Document] = []
    name: str | None = None
    sentences: list[Sentence] = []
    rows: list[Row] = []
    begun = 0
    for number, line in numbered_lines(path):
        begin = _BEGIN.fullmatch(line)
        if begin:
            if name is not None:
                raise malformed(path, number, "a document begins before the last one has ended", "add #end document")
            name, sentences, begun = begin[1], [], number
        elif line.startswith("#end document"):
            if name is None:
                raise malformed(path, number, "no document has begun", "add #begin document (NAME); part 000")
            sentences += [_sentence(path, rows)] if rows else []
            out += [Document(name, tuple(sentences), ANNOTATED)] if sentences else []
            name, rows = None, []
        elif line.startswith("#begin"):
            raise malformed(path, number, "it is no '#begin document (NAME); part N'")
        elif not line.strip():
            sentences += [_sentence(path, rows)] if rows else []
            rows = []
        else:
            if name is None:
                raise malformed(path, number, "a word outside of a document", "add #begin document (NAME); part 000")
            rows.append((number, _cells(path, number, line, rows)))
    if name is not None:
        raise malformed(path, begun, f"the document '{name}' has no end", "add #end document; is the file whole?")
    return out


def _cells(path: Path, number: int, line: str, rows: Sequence[Row]) -> list[str]:
    cells = line.split()
    if len(cells) < FEWEST:
        raise malformed(path, number, f"it has {len(cells)} columns, and the format at least {FEWEST}")
    if rows and len(cells) != len(rows[0][1]):
        raise malformed(path, number, f"it has {len(cells)} columns, and its sentence began with {len(rows[0][1])}")
    if cells[2] != str(len(rows)):
        raise malformed(path, number, f"the word's number is '{cells[2]}', not {len(rows)}")
    if cells[3] == _HIDDEN:
        raise malformed(
            path, number, "the words are not filled in", "make the _conll file from the corpus's texts first"
        )
    return cells


def _sentence(path: Path, rows: Sequence[Row]) -> Sentence:
    words, glued = written([cells[3] for _, cells in rows])
    last = len(rows[0][1]) - 1
    columns = [[(number, cells[k]) for number, cells in rows] for k in range(last + 1)]
    frames = []
    for k in range(BEFORE_ROLES, last):
        spans = _brackets(path, columns[k])
        if sum(s.label == "V" for s in spans) != 1:
            raise malformed(path, rows[0][0], f"column {k + 1} of the sentence has no single predicate (V*)")
        frames.append(Frame(tuple(spans)))
    return Sentence(
        words,
        tuple(cells[4] for _, cells in rows),
        glued,
        entities=tuple(_brackets(path, columns[10])),
        frames=tuple(frames),
        mentions=tuple(_chains(path, columns[last])),
    )


def _brackets(path: Path, column: Sequence[tuple[int, str]]) -> list[Span]:
    """Spans of a column such as (ARG0*, *, *), (V*), (GPE); in the order of their first words, the longer first."""
    open_: list[tuple[int, str, int]] = []
    found = []
    for i, (number, bit) in enumerate(column):
        match = _BIT.fullmatch(bit)
        if match is None:
            raise malformed(path, number, f"'{bit}' is no bracket of a span")
        open_ += [(i, label, number) for label in match[1].split("(")[1:]]
        for _ in match[3]:
            if not open_:
                raise malformed(path, number, f"'{bit}' closes a span that was not opened")
            start, label, _ = open_.pop()
            found.append(Span(start, i + 1, label))
    if open_:
        raise malformed(path, open_[-1][2], f"the span '({open_[-1][1]}' is not closed in its sentence")
    return sorted(found, key=lambda s: (s.start, -s.end))


def _chains(path: Path, column: Sequence[tuple[int, str]]) -> list[Span]:
    """Mentions of a coreference column such as (12|(3, 12), (5), -."""
    open_: dict[str, list[tuple[int, int]]] = defaultdict(list)
    found = []
    for i, (number, bit) in enumerate(column):
        for part in bit.split("|") if bit != "-" else ():
            match = _CHAIN.fullmatch(part)
            if match is None or not (match[1] or match[3]):
                raise malformed(path, number, f"'{bit}' is no coreference", "write -, (3), (3, 3) or several with |")
            if match[1]:
                open_[match[2]].append((i, number))
            if match[3]:
                if not open_[match[2]]:
                    raise malformed(path, number, f"chain {match[2]} is closed and was not opened")
                found.append(Span(open_[match[2]].pop()[0], i + 1, match[2]))
    left = [(chain, number) for chain, places in open_.items() for _, number in places]
    if left:
        raise malformed(path, left[0][1], f"a mention of chain {left[0][0]} is not closed in its sentence")
    return sorted(found, key=lambda s: (s.start, -s.end))
