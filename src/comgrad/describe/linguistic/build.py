"""From annotated corpora to task directories: read, cut into passages, split by document, answer, write."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comgrad.describe.linguistic.completions import KIND
from comgrad.describe.linguistic.conll2012 import read_conll2012
from comgrad.describe.linguistic.conllu import read_conllu
from comgrad.describe.linguistic.documents import Document, passages
from comgrad.describe.linguistic.instructions import INSTRUCTIONS, Instruction, prompt
from comgrad.describe.linguistic.labels import LABELLINGS, Labelling
from comgrad.errors import ComgradError, NotFound
from comgrad.weights.storage import atomic_directory, atomic_write_bytes, check_free

SCHEMA = 1
MOST_LABELS = 64  # numbers that a counting task may have as labels
NAMES = (*INSTRUCTIONS, *LABELLINGS)
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How tasks are built.

    Args:
        tasks: names of `NAMES`; all that the corpora allow when empty.
        test_share: of the documents, those whose examples are `test`.
        seed: of the split, and of what is left out where there are more than `most`.
        longest: tokens of a passage that an instruction is about.
        most: examples of each split (for labels, of each label in it).
        licence: what the corpora's makers ask for, kept in every card.
    """

    tasks: tuple[str, ...] = ()
    test_share: float = 0.2
    seed: int = 0
    longest: int = 120
    most: int = 2000
    licence: str = ""

    def check(self) -> None:
        """Raises ComgradError for unknown tasks and numbers out of range."""
        for name in self.tasks:
            if name not in NAMES:
                raise ComgradError(
                    f"the task '{name}'", "none is called so", f"choose from: {', '.join(NAMES)}", code="bad-options"
                )
        if not 0.0 < self.test_share < 1.0 or self.longest < 1 or self.most < 1:
            raise ComgradError(
                f"a test share of {self.test_share}, {self.longest} tokens and {self.most} examples",
                "the share lies between 0 and 1, the numbers are at least 1",
                "mend the options",
                code="bad-options",
            )


@dataclass(frozen=True)
class Built:
    """One task made.

    Args:
        counts: split → examples.
        left_out: training examples dropped because their text is in the test split.
        why_not: why there is no such task; empty where there is one.
    """

    name: str
    form: str
    counts: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    why_not: str = ""

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


# -- reading -----------------------------------------------------------------------------------------------------------
def read_corpora(paths: Sequence[Path]) -> tuple[list[Document], list[Path]]:
    """The documents of CoNLL-U and OntoNotes files, and of those in folders; and the files, in the order read.

    Raises:
        NotFound: no such path, or nothing of these formats in it. ComgradError: a file that breaks its format.
    """
    files = [f for path in paths for f in _files(path)]
    if len({f.resolve() for f in files}) < len(files):
        raise ComgradError("the corpora", "a file is given twice", "give each once", code="bad-options")
    documents: list[Document] = []
    for file in files:
        documents += (read_conllu if file.suffix == ".conllu" else read_conll2012)(file)
    if not documents:
        raise NotFound(f"{len(files)} files", "there is no document in them", "check the files")
    return documents, files


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not _known(path):
            raise ComgradError(
                f"'{path}'",
                "its name ends neither in .conllu nor in _conll or .conll",
                "rename it after its format",
                code="bad-corpus",
            )
        return [path]
    found = sorted(p for p in path.rglob("*") if p.is_file() and _known(p)) if path.is_dir() else []
    if not found:
        raise NotFound(f"'{path}'", "it is no file or folder with .conllu or _conll files", "check the path")
    return found


def _known(path: Path) -> bool:
    return path.suffix in (".conllu", ".conll") or path.name.endswith("_conll")


# -- splitting ---------------------------------------------------------------------------------------------------------
def split_of(names: Sequence[str], share: float, seed: int) -> dict[str, str]:
    """Document → `train` or `test`: in the order of SHA-256(seed, name), the first round(share·n) are test, at least one.

    Raises:
        ComgradError: fewer than two documents.
    """
    order = sorted(set(names), key=lambda n: _rank(seed, n))
    if len(order) < 2:
        raise ComgradError(
            f"{len(order)} document",
            "examples of one document must not be on both sides of a split",
            "give more files, or mark documents with '# newdoc id = NAME'",
            code="too-few-documents",
        )
    test = min(max(1, round(share * len(order))), len(order) - 1)
    return {name: "test" if i < test else "train" for i, name in enumerate(order)}


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}\n{text}".encode()).hexdigest()


# -- making ------------------------------------------------------------------------------------------------------------
def build_tasks(paths: Sequence[Path], out: Path, options: Options | None = None) -> list[Built]:
    """Write a task directory for each task the corpora allow: `out`/NAME with `task_card.json` and `examples.jsonl`.

    The same files and options give the same bytes. Tasks asked for by name must come out; of all, those that cannot be
    made are told with their reason.

    Raises:
        NotFound, ComgradError: what cannot be read, split or made. StorageError: a folder is in the way.
    """
    options = options or Options()
    options.check()
    documents, files = read_corpora(paths)
    split = split_of([d.name for d in documents], options.test_share, options.seed)
    source = [{"file": f.name, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for f in files]
    pieces = [p for d in documents for p in passages(d, options.longest)]
    made: list[tuple[Built, Row, list[Row]]] = []
    for name in options.tasks or NAMES:
        if name in INSTRUCTIONS:
            found = _instructed(INSTRUCTIONS[name], pieces, split, options)
        else:
            found = _labelled(LABELLINGS[name], documents, split, options)
        if found[0].why_not and options.tasks:
            raise ComgradError(f"the task '{name}'", found[0].why_not, "give other corpora", code="no-examples")
        made.append(found)
    for built, _, _ in made:
        if not built.why_not:
            check_free(out / built.name)
    for built, card, rows in made:
        if not built.why_not:
            common = {"source": source, "licence": options.licence, "split": f"by document, seed {options.seed}"}
            _write(out / built.name, card | common | {"counts": built.counts}, rows)
    return [built for built, _, _ in made]


def _instructed(
    task: Instruction, pieces: Sequence[Document], split: dict[str, str], options: Options
) -> tuple[Built, Row, list[Row]]:
    rows: list[Row] = []
    for d in pieces:
        answer = task.answer(d) if task.needs <= d.annotated else None
        if answer is not None:
            asked = prompt(task.instruction, d)
            rows.append({"prompt": asked, "completion": answer, "split": split[d.name], "document": d.name})
    rows, left_out = _trimmed(rows, "prompt", options, lambda r: r["split"])
    why = _missing(rows, task.needs, any(task.needs <= d.annotated for d in pieces))
    card = {
        "schema": SCHEMA, "task_id": task.name, "name": task.title, "description": task.description,
        "family": "counting" if task.counted else "linguistic", "kind": KIND, "instruction": task.instruction,
    }  # fmt: skip
    numbers = sorted({int(r["completion"]) for r in rows}) if task.counted else []
    if len(numbers) > 1 and numbers[-1] - numbers[0] < MOST_LABELS:
        names = [str(n) for n in range(numbers[0], numbers[-1] + 1)]
        card |= {"label_names": names, "label_prompts": names}
        rows = [r | {"text": r["prompt"], "label": int(r["completion"]) - numbers[0]} for r in rows]
    return _built(task.name, "completion", rows, left_out, why), card, rows


def _labelled(
    task: Labelling, documents: Sequence[Document], split: dict[str, str], options: Options
) -> tuple[Built, Row, list[Row]]:
    rows: list[Row] = []
    for d in documents:
        for s in d.sentences if "trees" in d.annotated else ():
            label = task.label(s)
            if label is not None:
                rows.append({"text": s.text(), "label": label, "split": split[d.name], "document": d.name})
    rows, left_out = _trimmed(rows, "text", options, lambda r: (r["split"], r["label"]))
    why = _missing(rows, frozenset(["trees"]), any("trees" in d.annotated for d in documents))
    if not why and len({r["label"] for r in rows if r["split"] == "train"}) < 2:
        why = "all training examples have one label"
    card = {
        "schema": SCHEMA, "task_id": task.name, "name": task.title, "description": task.description,
        "family": "probing", "kind": "classification",
        "label_names": list(task.label_names), "label_prompts": list(task.label_prompts),
    }  # fmt: skip
    return _built(task.name, "classification", rows, left_out, why), card, rows


def _trimmed(rows: list[Row], key: str, options: Options, cell: Callable[[Row], Hashable]) -> tuple[list[Row], int]:
    """Without repeated texts, without training texts that are tested, and with at most `most` of each cell; in order."""
    tested = {r[key] for r in rows if r["split"] == "test"}
    own = [r for r in rows if r["split"] == "test" or r[key] not in tested]
    unique = list({(r["split"], r[key]): r for r in reversed(own)}.values())[::-1]
    taken: Counter[Hashable] = Counter()
    chosen = set()
    for i in sorted(range(len(unique)), key=lambda i: _rank(options.seed, unique[i][key])):
        if taken[cell(unique[i])] < options.most:
            taken[cell(unique[i])] += 1
            chosen.add(i)
    return [r for i, r in enumerate(unique) if i in chosen], len(rows) - len(own)


def _missing(rows: Sequence[Row], needs: frozenset[str], annotated: bool) -> str:
    if not annotated:
        return f"the corpora have no {' and '.join(sorted(needs))}"
    empty = [s for s in ("train", "test") if not any(r["split"] == s for r in rows)]
    return f"no document of the {empty[0]} split has an answer" if empty else ""


def _built(name: str, form: str, rows: Sequence[Row], left_out: int, why: str) -> Built:
    counts = Counter(r["split"] for r in rows)
    return Built(name, form, {s: counts[s] for s in ("train", "test")}, left_out, why)


def _write(folder: Path, card: Row, rows: Sequence[Row]) -> None:
    with atomic_directory(folder) as inside:
        text = json.dumps(card, ensure_ascii=False, indent=1) + "\n"
        atomic_write_bytes(inside / "task_card.json", text.encode())
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        atomic_write_bytes(inside / "examples.jsonl", lines.encode())
