"""A folder of tiny tasks that share no text, for the tests of task arithmetic: made here, no download."""

from __future__ import annotations

import json
import random
from pathlib import Path

from training_models import COLD, FILLER, WARM

TASKS = tuple(f"{a}-or-{b}" for a, b in zip(COLD, WARM, strict=True))


def data_folder(root: Path, *, flipped_test: bool = False, train: int = 60, test: int = 24) -> Path:
    """`tasks/<id>/` for five tasks; the label is which of two words of its own a text has.

    Args:
        flipped_test: every label of the test splits is the other one.
    """
    for k, name in enumerate(TASKS):
        folder = root / "tasks" / name
        folder.mkdir(parents=True)
        card = {
            "name": name,
            "description": f"Say whether a text has the word {COLD[k]} or {WARM[k]}.",
            "family": f"family-{k}",
            "label_names": [COLD[k], WARM[k]],
            "label_prompts": [f"it is {COLD[k]}", f"it is {WARM[k]}"],
        }
        (folder / "task_card.json").write_text(json.dumps(card))
        draw = random.Random(k)
        lines = []
        for split, count in (("train", train), ("test", test)):
            for i in range(count):
                words = [(COLD, WARM)[i % 2][k], *draw.choices(FILLER, k=draw.randint(3, 7))]
                draw.shuffle(words)
                label = 1 - i % 2 if flipped_test and split == "test" else i % 2
                lines.append(json.dumps({"text": " ".join(words), "label": label, "split": split}))
        (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return root
