"""Ceilings: how far sums of the known vectors could go if the answer were known, and how far a second run goes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from comgrad.errors import Undefined
from comgrad.evaluate.classifier import LOGIT_SCALE, embed
from comgrad.predict import fewshot
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.fold import Fold
from comgrad.workflows.bench.outcome import Outcome
from comgrad.workflows.bench.shots import linearised

if TYPE_CHECKING:
    from comgrad.workflows.bench.methods import Method

RIDGE = 0.01  # of the mean diagonal of G
CURVATURE = 0.03  # nats; a tenth of what a prediction uses
STEPS, BATCH, RATE = 100, 32, 0.05
Vector = Float[np.ndarray, "k"]


def least_squares(fold: Fold, aid: Aid) -> Outcome:
    """The Frobenius projection of the query's own vector on the fold's span: (G + λI)⁻¹ g."""
    inner = aid.answer.inner
    if inner is None:
        return Outcome(missing="the query has no vector of its own")
    G = fold.evidence.gram
    return Outcome(np.linalg.solve(G + RIDGE * np.diag(G).mean() * np.eye(len(G)), inner))


def functional_linear(fold: Fold, aid: Aid) -> Outcome:
    """Coefficients fitted to all prepared training examples of the query, linearised at θ₀."""
    found = aid.all_shots().tangent
    P = fewshot.precision(fold.evidence.gram, None, len(found.labels), curvature=CURVATURE)
    zero = np.zeros(len(fold.allowed))
    return Outcome(fewshot.mode(linearised(found), zero, zero, P))


def functional_true(fold: Fold, aid: Aid) -> Outcome:
    """Coefficients trained by Adam on the true loss of the query's whole training split, from the linearised fit."""
    start = functional_linear(fold, aid).coefficients
    assert start is not None
    return Outcome(trained_coefficients(fold, aid, start))


def trained_coefficients(fold: Fold, aid: Aid, start: Vector) -> Vector:
    """Adam on c through θ₀ + Σ c_k τ_k, minibatches of the whole training split."""
    model, train = aid.model, aid.item.task.split("train")
    device = model.bench.device
    stacks = stacked([model.corpus.vectors[k] for k in fold.allowed], device)
    base = {n: p.detach() for n, p in model.encoder.named_parameters() if n in stacks}
    prompts, encoder = model.prompts(aid.item), _Embedding(model.encoder)
    c = torch.tensor(start, dtype=torch.float32, device=device, requires_grad=True)
    optimiser = torch.optim.Adam([c], lr=RATE * float(np.abs(start).max(initial=0.1)))
    rng = np.random.default_rng([fold.seed, 4])
    for _ in range(STEPS):
        rows = [train[i] for i in rng.choice(len(train), min(BATCH, len(train)), replace=False)]
        tokens = model.bench.tokens([r.text for r in rows])
        labels = torch.tensor([r.label for r in rows], device=device)
        with torch.enable_grad():
            moved = {f"encoder.{n}": base[n] + (B * c[owner]) @ A for n, (B, A, owner) in stacks.items()}
            rows_of = torch.func.functional_call(encoder, moved, (tokens,))
            loss = torch.nn.functional.cross_entropy(LOGIT_SCALE * rows_of @ prompts.T, labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return c.detach().double().cpu().numpy()


def stacked(vectors: list[TaskVector], device: torch.device) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Tensor's name → all vectors' s·B side by side (m, R), their A one below the other (R, n), and owners (R,).

    Raises:
        Undefined: a vector that is not low-rank, or stands transposed in its base.
    """
    out = {}
    for name in sorted({n for v in vectors for n in v.tensors}):
        held = [(k, v.tensors[name]) for k, v in enumerate(vectors) if name in v.tensors]
        low = [(k, d) for k, d in held if isinstance(d, LowRank) and not d.transposed]
        if len(low) < len(held):
            raise Undefined(f"tensor '{name}'", "this ceiling trains sums of plain low-rank vectors", "leave it out")
        factors = [d.folded() for _, d in low]
        owners = torch.tensor([k for k, d in low for _ in range(d.rank)])
        B, A = torch.cat([b for b, _ in factors], dim=1), torch.cat([a for _, a in factors])
        out[name] = (B.to(device), A.to(device), owners.to(device))
    return out


class _Embedding(torch.nn.Module):
    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return embed(self.encoder, **tokens)


def own(fold: Fold, aid: Aid) -> Outcome:
    """The query's own vector."""
    del fold
    vector = aid.answer.own
    return Outcome(missing="the query has no vector of its own") if vector is None else Outcome(vector=vector)


def second_run(fold: Fold, aid: Aid, *, kind: str) -> Outcome:
    """Another training run of the same task."""
    del fold
    path = aid.answer.second_runs.get(kind)
    return Outcome(missing="no second run") if path is None else Outcome(vector=TaskVector.from_peft(path))


def methods() -> list[Method]:
    """The rows."""
    from comgrad.workflows.bench.methods import CEILING, Method

    def row(name: str, function: object, meaning: str, *, code: tuple[str, ...] = (), long: bool = False) -> Method:
        return Method(name, function, meaning, CEILING, "oracle", long, (__name__, *code))  # type: ignore[arg-type]

    fit = ("comgrad.predict.fewshot",)
    return [
        row("oracle-least-squares", least_squares, "projection of the query's own vector on the others"),
        row("oracle-linear", functional_linear, "coefficients fitted to all prepared examples, linearised", code=fit),
        row("oracle-functional", functional_true, "coefficients trained on all its examples", code=fit, long=True),
        row(
            "second-run-same-a",
            partial(second_run, kind="same_a_seed_other_data_order"),
            "another run, other data order",
        ),
        row("second-run-other-a", partial(second_run, kind="other_a_seed"), "another run, other seed of A"),
        row("own", own, "the query's own adapter"),
    ]
