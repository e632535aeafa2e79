"""Reader of CoNLL-U (Universal Dependencies): strict, with line numbers.

Ten columns divided by tabs; `3-4` is a token of several words and `3.1` an empty node, which belong to no basic tree and
are checked and left out. `# newdoc` begins a document; a file without it is one document, named after the file. The
word is the unit: `SpaceAfter=No` of a token of several words is that of its last word, and words inside it touch (`do`
+ `n't`; of fused forms such as French `du` this is a reading, not the spelling).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from comgrad.describe.linguistic.documents import Dependency, Document, Sentence, malformed, numbered_lines

COLUMNS = 10
ANNOTATED = frozenset(["trees"])


@dataclass
class _Rows:
    """A sentence while it is read."""

    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    glued: list[bool] = field(default_factory=list)
    tree: list[Dependency] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    joint: tuple[int, int, bool] | None = None  # first and last word of a token of several words; whether glued


def read_conllu(path: Path) -> list[Document]:
    """The documents of a CoNLL-U file.

    Raises:
        ComgradError: `bad-corpus`, with the line: columns, numbers, heads, trees that are none.
    """
    names: list[str] = [path.name]
    found: dict[int, list[Sentence]] = {0: []}
    rows = _Rows()
    for number, line in numbered_lines(path):
        if line.startswith("#"):
            words = line[1:].split()
            if words[:1] == ["newdoc"]:
                if rows.words:
                    raise malformed(path, number, "a document begins inside a sentence", "put an empty line before it")
                names.append(line.partition("=")[2].strip() or f"{path.name}#{len(names)}")
                found[len(names) - 1] = []
        elif line.strip():
            _row(path, number, line, rows)
        elif rows.words or rows.joint:
            found[len(names) - 1].append(_sentence(path, rows))
            rows = _Rows()
    if rows.words or rows.joint:
        found[len(names) - 1].append(_sentence(path, rows))
    return [Document(names[k], tuple(sentences), ANNOTATED) for k, sentences in found.items() if sentences]


def _row(path: Path, number: int, line: str, rows: _Rows) -> None:
    cells = line.split("\t")
    if len(cells) != COLUMNS:
        raise malformed(path, number, f"it has {len(cells)} columns, not {COLUMNS} divided by tabs")
    identity, form = cells[0], cells[1]
    if any(not c for c in cells):
        raise malformed(path, number, "a column is empty", "write _ for what is not known")
    glued = "SpaceAfter=No" in cells[9].split("|")
    first, dash, last = identity.partition("-")
    if dash:
        if not (first.isdigit() and last.isdigit() and int(first) == len(rows.words) + 1 <= int(last)) or rows.joint:
            raise malformed(path, number, f"the range '{identity}' does not begin at the next word, or words overlap")
        rows.joint = (int(first), int(last), glued)
        return
    whole, dot, part = identity.partition(".")
    if dot:
        if not (whole.isdigit() and part.isdigit() and int(whole) == len(rows.words)):
            raise malformed(path, number, f"the empty node '{identity}' does not follow its word")
        return
    if not identity.isdigit() or int(identity) != len(rows.words) + 1:
        raise malformed(path, number, f"the word's number is '{identity}', not {len(rows.words) + 1}")
    if not cells[6].isdigit():
        raise malformed(path, number, f"the head is '{cells[6]}'", "write a word's number, or 0 for the root")
    features = _features(path, number, cells[5])
    rows.tree.append(Dependency(int(cells[6]), cells[7], features, cells[3], cells[2]))
    rows.words.append(form)
    rows.tags.append(cells[4] if cells[4] != "_" else cells[3])
    rows.lines.append(number)
    if rows.joint is not None:
        inside = len(rows.words) < rows.joint[1]
        glued = inside or rows.joint[2]
        if not inside:
            rows.joint = None
    rows.glued.append(glued)


def _features(path: Path, number: int, text: str) -> dict[str, str]:
    if text == "_":
        return {}
    pairs = [p.partition("=") for p in text.split("|")]
    if not all(key and equals and value for key, equals, value in pairs):
        raise malformed(path, number, f"the features '{text}' are no list of Name=Value")
    return {key: value for key, _, value in pairs}


def _sentence(path: Path, rows: _Rows) -> Sentence:
    n = len(rows.words)
    if rows.joint is not None:
        at = rows.lines[-1] if rows.lines else 1
        raise malformed(path, at, f"the range {rows.joint[0]}-{rows.joint[1]} ends beyond the sentence")
    roots = [i for i, d in enumerate(rows.tree) if d.head == 0]
    if len(roots) != 1:
        at = rows.lines[roots[1]] if len(roots) > 1 else rows.lines[0]
        raise malformed(path, at, f"the sentence has {len(roots)} roots", "give exactly one word the head 0")
    for i, d in enumerate(rows.tree):
        if d.head > n:
            raise malformed(path, rows.lines[i], f"its head is {d.head} in a sentence of {n} words")
        seen, at = set(), i + 1
        while at:
            if at in seen:
                raise malformed(path, rows.lines[i], "its heads go round in a circle")
            seen.add(at)
            at = rows.tree[at - 1].head
    return Sentence(tuple(rows.words), tuple(rows.tags), tuple(rows.glued), tree=tuple(rows.tree))
