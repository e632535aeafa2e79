"""Tasks whose answer is text: task directories in prompt and completion form, read as strictly as `describe.task` reads.

`task_card.json` has `kind: "completion"`, `description` and `instruction`; each line of `examples.jsonl` has `prompt`,
`completion` and `split`. A model reads the prompt, a newline and the completion, and only the completion counts: the form
of `evaluate.causal`, with the completion in the place of a label's prompt. Counting tasks also have `text` (the prompt)
and `label`, and label names in their card: `describe.task.load_task` reads them, and every recipe trains on them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from comgrad.describe.task import MAX_EXAMPLES_BYTES
from comgrad.errors import ComgradError, NotFound
from comgrad.weights.strict_json import read_json

KIND = "completion"


@dataclass(frozen=True)
class Completion:
    """One prompt and the text that answers it."""

    prompt: str
    completion: str
    split: str = "train"


@dataclass(frozen=True)
class CompletionTask:
    """A task for causal models."""

    name: str
    description: str
    instruction: str
    examples: tuple[Completion, ...]

    def split(self, name: str) -> tuple[Completion, ...]:
        """The examples of one split. Raises ComgradError when it is empty."""
        chosen = tuple(e for e in self.examples if e.split == name)
        if not chosen:
            raise ComgradError(
                f"task '{self.name}' has no examples in split '{name}'",
                "training and testing need at least one",
                f"its splits are {sorted({e.split for e in self.examples})}; add the missing one",
                code="empty-split",
            )
        return chosen


def load_completions(folder: Path) -> CompletionTask:
    """Read a directory of this kind.

    Raises:
        NotFound: no card or no examples. ComgradError: `bad-task`, with the line, for what breaks the format.
    """
    card_path, path = folder / "task_card.json", folder / "examples.jsonl"
    for file in (card_path, path):
        if not file.is_file():
            raise NotFound(f"'{folder}' holds no {file.name}", "a task is its card and its examples", "add the file")
    card = read_json(card_path)
    if card.get("kind") != KIND:
        raise ComgradError(
            f"'{card_path}' has kind {card.get('kind')!r}",
            "its examples are no prompts and completions",
            f'read it as a classification task, or write "kind": "{KIND}"',
            code="bad-task",
        )
    words = [card.get(key) for key in ("description", "instruction")]
    if not all(isinstance(w, str) and w.strip() for w in words):
        raise ComgradError(f"'{card_path}'", "a description or an instruction is missing", "add both", code="bad-task")
    if path.stat().st_size > MAX_EXAMPLES_BYTES:
        raise ComgradError(f"'{path}'", "it is larger than a task's examples may be", "split it", code="bad-task")
    with path.open(encoding="utf-8") as lines:
        examples = tuple(_example(line, path, i) for i, line in enumerate(lines, 1) if line.strip())
    return CompletionTask(str(card.get("name") or folder.name), str(words[0]), str(words[1]), examples)


def _example(line: str, path: Path, number: int) -> Completion:
    try:
        row = json.loads(line)
        found = [row["prompt"], row["completion"], row.get("split", "train")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ComgradError(
            f"'{path}' line {number}", f"it is no prompt with its completion ({error})", "mend it", code="bad-task"
        ) from error
    if not all(isinstance(part, str) and part.strip() for part in found):
        raise ComgradError(
            f"'{path}' line {number}", "a prompt, a completion and a split are words", "mend it", code="bad-task"
        )
    return Completion(*found)
