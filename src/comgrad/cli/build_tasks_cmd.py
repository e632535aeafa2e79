"""`comgrad build-tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, say, table


def register(app: typer.Typer) -> None:
    app.command("build-tasks")(build_tasks_command)


def build_tasks_command(
    corpora: Annotated[
        list[Path], typer.Argument(help="CoNLL-U (.conllu) and OntoNotes (_conll) files, or folders of them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the task directories.")],
    tasks: Annotated[str | None, typer.Option(help="Tasks, with commas; default: all that the corpora allow.")] = None,
    test_share: Annotated[float, typer.Option(help="Share of the documents for the test split.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split.", min=0)] = 0,
    max_words: Annotated[int, typer.Option(help="Longest passage an instruction is about, in tokens.", min=1)] = 120,
    most: Annotated[int, typer.Option(help="Most examples per split (and per label).", min=1)] = 2000,
    licence: Annotated[str, typer.Option(help="Licence of the corpora, kept in every card.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make linguistic and counting tasks from annotated corpora.

    For causal models, as prompts and completions: coreference-longest-chains, semantic-roles, named-entities,
    first-sentences, count-words, count-sentences, count-verbs, count-nouns, count-entities. For encoders, from CoNLL-U,
    as labelled sentences: subject-count, tree-depth, main-tense, subject-number, object-number, voice. Documents are
    never divided between train and test; the same files and options give the same bytes.

    Examples:

      comgrad build-tasks treebank/ -o tasks

      comgrad build-tasks ontonotes/ -o tasks --tasks semantic-roles,named-entities --licence "LDC"
    """
    from comgrad.describe.linguistic.build import Options, build_tasks

    names = tuple(part.strip() for part in (tasks or "").split(",") if part.strip())
    options = Options(names, test_share, seed, max_words, most, licence)
    built = build_tasks(corpora, out, options)
    if as_json:
        emit_json({"out": str(out), "tasks": [b.as_dict() for b in built]})
        return
    made = [b for b in built if not b.why_not]
    if made:
        rows = [(b.name, b.form, b.counts["train"], b.counts["test"], b.left_out) for b in made]
        table(("task", "form", "train", "test", "left out (in test)"), rows)
    for b in built:
        if b.why_not:
            say(f"not made: {b.name} ({b.why_not})")
    say(f"wrote {len(made)} task directories in {out}")
