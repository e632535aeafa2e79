"""`comgrad train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note, progress, say, table


def register(app: typer.Typer) -> None:
    app.command("train")(train)


def train(
    task: Annotated[Path, typer.Option("--task", help="Task folder: task_card.json and examples.jsonl[.gz].")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the result to.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="What is trained: lora, qlora, nonlinear, ntk, attention-linear, attention-linear-bias, "
            "attention-mlp-linear or attention-mlp-linear-bias."
        ),
    ] = "lora",
    init: Annotated[
        Path | None, typer.Option(help="An adapter or vector to start from, such as one that suggest wrote.")
    ] = None,
    merge_init: Annotated[
        bool, typer.Option("--merge-init", help="Merge the init into the base and train a fresh adapter on top.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Base model: a name or a folder; default: the init's, else all-MiniLM-L6-v2.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of a start from zero; lora: 8.", min=1)] = None,
    share: Annotated[
        float, typer.Option(help="Part of the adapter's parameters to train: the directions with most energy first.")
    ] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Training steps; default: 80.", min=1)] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="lora and qlora: 0.002; nonlinear: 0.0001; others: 0.0003.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a step; default: 16.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Order of the examples, and dropout.", min=0)] = 0,
    schedule: Annotated[
        str | None,
        typer.Option(help="constant, linear or cosine learning rate; lora and qlora: constant; others: cosine."),
    ] = None,
    warmup_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps in which the learning rate rises; lora and qlora: 0; others: 8 of 80, in proportion.", min=0
        ),
    ] = None,
    limit_examples: Annotated[
        int | None, typer.Option(help="Train on so many examples, drawn with the seed.", min=1)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the arithmetic: fp32, bf16 or fp16 (on a GPU); qlora: bf16; others: fp32.")
    ] = None,
    regulariser: Annotated[str | None, typer.Option(help="Added to the loss: orthoreg.")] = None,
    regulariser_weight: Annotated[float | None, typer.Option(help="What the regulariser is multiplied by.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a task from zero or from a known vector; an interrupted run goes on when it is started again.

    lora and qlora write a PEFT adapter that stock PEFT loads; the other recipes train the model's own parameters and
    write a dense vector for comgrad add and comgrad apply. Both come with a card that comgrad add reads. Encoders are trained as
    classifiers with a frozen head of label prompts, causal language models on the label's prompt as the answer, image
    towers of open_clip on images with a zero-shot head. Losses
    are of the test split, or of a part of the training examples that is held back. Without --init, --share cuts the
    rank evenly; with it, what is not trained stays in the result unchanged. A dense recipe starts at base + init. A
    vector of ntk is of the linearised model, and its card says so.

    Examples:

      comgrad train --task my-task -o my-adapter

      comgrad train --task my-task --init start --share 0.25 -o my-adapter

      comgrad train --task my-task --init start --merge-init --steps 40 -o my-adapter --json

      comgrad train --task my-task --recipe attention-linear -o my-vector
    """
    from comgrad.workflows.training import TrainRequest, what_is_kept
    from comgrad.workflows.training import train as run

    request = TrainRequest(
        task_dir=task,
        recipe=recipe,
        init=init,
        merge_init=merge_init,
        base=base,
        rank=rank,
        share=share,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        schedule=schedule,
        warmup_steps=warmup_steps,
        seed=seed,
        limit_examples=limit_examples,
        precision=precision,
        regulariser=regulariser,
        regulariser_weight=regulariser_weight,
    )
    try:
        with progress("training") as update:
            result = run(request, out, progress=update)
    except KeyboardInterrupt:
        note(f"interrupted: {what_is_kept(out)}")
        raise
    if as_json:
        emit_json(result.as_dict())
        return
    rows = [("base", result.loss_base, result.accuracy_base)]
    rows += [("start", result.loss_before, result.accuracy_before)] if init is not None else []
    rows += [(f"after {result.steps} steps", result.loss_after, result.accuracy_after)]
    table((f"on {result.examples['evaluated']} examples ({result.evaluated_on})", "loss (nats)", "accuracy"), rows)
    resumed = f", resumed from step {result.resumed_from}" if result.resumed_from is not None else ""
    part = f"{result.trainable_share:.2%} of the model"
    if result.share != 1.0:
        part = f"{result.share:.0%} of the adapter, {part}"
    say(
        f"trained {result.trainable_parameters:,} parameters ({part}) "
        f"on {result.examples['train']} examples in {result.seconds:.1f} s{resumed}"
    )
    say(f"wrote {result.path}; share it with: comgrad add {result.path}")
