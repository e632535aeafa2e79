"""Annotated documents as the task builder sees them, whatever file they were read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comgrad.errors import ComgradError

_CLOSING = frozenset([".", ",", ";", ":", "?", "!", ")", "]", "}", "%", "'", "''", "’", "”", "...", "-RRB-"])
_OPENING = frozenset(["(", "[", "{", "$", "#", "``", "“", "-LRB-"])
_CLITICS = frozenset(["'s", "'S", "n't", "N'T", "'re", "'ve", "'ll", "'d", "'m", "’s", "n’t", "’re", "’ve", "’ll"])
_WRITTEN = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"'}


@dataclass(frozen=True)
class Span:
    """Words `start` to `end` (exclusive) of a sentence, with a label: an entity's type, a role, a chain's number."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Frame:
    """One predicate and its arguments; the verb itself has the label V."""

    spans: tuple[Span, ...]

    def first(self, label: str) -> Span | None:
        return next((s for s in self.spans if s.label == label), None)


@dataclass(frozen=True)
class Dependency:
    """One word's place in the tree: head (0 is the root, else 1-based), relation, features, universal tag, lemma."""

    head: int
    relation: str
    features: dict[str, str]
    tag: str
    lemma: str


@dataclass(frozen=True)
class Sentence:
    """Words with their tags and whatever annotation the file has.

    Args:
        glued: (n,) whether no space follows the word.
        tree: one `Dependency` per word, for CoNLL-U; empty otherwise.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    glued: tuple[bool, ...]
    entities: tuple[Span, ...] = ()
    frames: tuple[Frame, ...] = ()
    mentions: tuple[Span, ...] = ()
    tree: tuple[Dependency, ...] = ()

    def text(self, start: int = 0, end: int | None = None) -> str:
        """The words from `start` to `end` as one writes them."""
        stop = len(self.words) if end is None else end
        parts = []
        for i in range(start, stop):
            parts.append(self.words[i])
            if i + 1 < stop and not self.glued[i]:
                parts.append(" ")
        return "".join(parts)


@dataclass(frozen=True)
class Document:
    """Sentences of one text. Chains are numbers shared by the mentions of its sentences.

    Args:
        name: documents of one name stay on one side of a split.
        annotated: what the file says about it: `trees`, `entities`, `roles`, `coreference`.
    """

    name: str
    sentences: tuple[Sentence, ...]
    annotated: frozenset[str]

    def text(self) -> str:
        return " ".join(s.text() for s in self.sentences)


def written(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """Treebank tokens as one writes them, and after which no space follows (`he 's -LRB- here -RRB- .`)."""
    plain = [w[1:] if len(w) == 2 and w[0] == "/" else w for w in words]  # '/.' is an escaped '.'
    glued = [
        w in _OPENING or after in _CLOSING or after in _CLITICS
        for w, after in zip(plain, [*plain[1:], ""], strict=True)
    ]
    return tuple(_WRITTEN.get(w, w) for w in plain), tuple(glued)


def is_word(form: str) -> bool:
    """Whether a token counts as a word: it has a letter or a digit."""
    return any(c.isalnum() for c in form)


def passages(document: Document, longest: int) -> list[Document]:
    """The document in consecutive pieces of whole sentences, each of at most `longest` tokens or of one sentence."""
    out: list[list[Sentence]] = []
    size = 0
    for s in document.sentences:
        if not out or size + len(s.words) > longest:
            out.append([])
            size = 0
        out[-1].append(s)
        size += len(s.words)
    return [Document(document.name, tuple(part), document.annotated) for part in out]


def malformed(path: Path, line: int, why: str, remedy: str = "mend the file") -> ComgradError:
    """The error for a file that breaks its format, with the line."""
    return ComgradError(f"'{path}' line {line}", why, remedy, code="bad-corpus")


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 text file with their numbers, without line ends. Raises ComgradError."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ComgradError(
            f"'{path}'", f"it cannot be read as text ({error})", "write it as UTF-8", code="bad-corpus"
        ) from error
    return [(i, line.rstrip("\r")) for i, line in enumerate(text.split("\n"), 1)]
