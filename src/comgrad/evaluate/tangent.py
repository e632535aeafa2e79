"""The first-order picture of a frozen-head classifier at θ₀: its logits along known task vectors, and its gradient.

With φ_ck(x) = ∂z_c(x)/∂c_k at c = 0 of θ₀ + Σ_k c_k τ_k, the loss near the base is that of the logits z + Σ_k c_k φ_k, and
the first-order gain of vector k is −⟨∇L(θ₀), τ_k⟩ = mean over examples of Σ_c (y_c − p_c) φ_ck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from comgrad.describe.task import Example, Task
from comgrad.errors import ComgradError, ShapeMismatch
from comgrad.evaluate.classifier import LOGIT_SCALE, Bench, Score, embed
from comgrad.evaluate.directions import BUDGET, Directions, Trace
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BATCH_TOKENS = 2048
GRADIENT_RANK = 16
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tangent:
    """Logits and their derivatives, both minus their mean over classes, which no softmax sees.

    Args:
        z0: (n, C) base logits. phi: (n, C, K) derivatives along each vector. labels: (n,).
        tensor_names, tensor_gains: the first-order gains tensor by tensor (T, K), where they were asked for.
    """

    z0: Float[np.ndarray, "n c"]
    phi: Float[np.ndarray, "n c k"]
    labels: Int[np.ndarray, "n"]
    tensor_names: tuple[str, ...] = ()
    tensor_gains: Float[np.ndarray, "t k"] | None = None

    @property
    def gains(self) -> Float[np.ndarray, "k"]:
        """−⟨∇L(θ₀), τ_k⟩ of the mean cross-entropy in nats, (K,)."""
        residual = -_softmax(self.z0.astype(np.float64))
        residual[np.arange(len(self.labels)), self.labels] += 1.0
        out: Float[np.ndarray, "k"] = np.einsum("nc,nck->k", residual, self.phi.astype(np.float64)) / len(self.labels)
        return out

    def loss(self, coefficients: Float[np.ndarray, "k"] | None = None) -> float:
        """Mean cross-entropy in nats of the linearised classifier at θ₀ + Σ c_k τ_k; at θ₀ without coefficients."""
        z = self.z0.astype(np.float64)
        if coefficients is not None:
            z = z + self.phi.astype(np.float64) @ coefficients
        return float(-np.log(_softmax(z)[np.arange(len(z)), self.labels]).mean())


def _softmax(z: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    e: Float[np.ndarray, "n c"] = np.exp(z - z.max(axis=1, keepdims=True))
    out: Float[np.ndarray, "n c"] = e / e.sum(axis=1, keepdims=True)
    return out


def tangent(
    bench: Bench,
    task: Task,
    examples: Sequence[Example],
    vectors: Sequence[TaskVector],
    *,
    per_tensor: bool = False,
    leading: int | None = None,
    fast: bool = False,
    encoder: nn.Module | None = None,
    prompts: Tensor | None = None,
    progress: Progress | None = None,
) -> Tangent:
    """The classifier's logits on the examples and their exact derivatives along the vectors.

    One forward and C − 1 backward passes (or `leading` + 1); low-rank changes are never formed.

    Args:
        vectors: K task vectors over the bench's base, low-rank or dense.
        per_tensor: also the gains tensor by tensor.
        leading: with many classes, differentiate for each text the label and its likeliest classes alone, so many in
            all, and the others as one, by their mean under the base's probabilities. The gains stay exact.
        fast: multiply matrices in bfloat16: several times as fast where the processor can, derivatives right to about 1 %,
            their means over examples to about 0.1 %.
        encoder: the base encoder, where the caller has one open; at another point than θ₀, give its prompts too.
        prompts: (labels, d) as the base model encodes them.
        progress: called with (examples done, all).

    Raises:
        ComgradError: no examples; (`no-tangent`) a tensor whose response is not known. ShapeMismatch: another model's.
        BaseMismatch: a vector stands on another base.
    """
    for k, v in enumerate(vectors):
        bench.base.ref.joined(v.base, what=f"the bench and vector {k}")
    model, prompts, tokens = _opened(bench, task, examples, encoder, prompts)
    directions = Directions(model, vectors)
    n, C, K = len(examples), task.n_labels, len(vectors)
    labels = torch.tensor([e.label for e in examples], device=bench.device)
    z0 = prompts.new_zeros(n, C)
    phi = prompts.new_zeros(n, C, K)
    gains = torch.zeros(len(directions.names), K, dtype=torch.float64, device=bench.device)
    done = 0
    with _frozen(model), Trace(directions.modules).recording() as trace:
        for rows, batch in _batches(tokens):
            trace.start(len(rows))
            with torch.enable_grad(), _half(bench, fast):
                hidden = embed(model, **batch)
            with torch.enable_grad():
                z = _centred(hidden.to(prompts) @ prompts.T)
            z0[rows] = z.detach()
            residual = torch.softmax(z.detach(), dim=1).neg()
            residual[torch.arange(len(rows)), labels[rows]] += 1.0
            pick, spread = _combinations(-residual, labels[rows], leading)
            weight = torch.einsum("bc,bcj->jb", residual, spread) / n
            part = phi.new_zeros(pick.shape[1], len(rows), K)
            with torch.enable_grad():
                combined = torch.einsum("bjc,bc->bj", pick, z)
            for first, slopes in _slopes(combined, trace):
                with _half(bench, fast):
                    answers = list(directions.respond(trace, slopes))
                for t, along in answers:
                    part[first : first + len(along)] += along
                    if per_tensor:
                        share = weight[first : first + len(along)]
                        gains[t] += torch.einsum("jb,jbk->k", share.double(), along.double())
            whole = torch.einsum("bcj,jbk->bck", spread, part)
            phi[rows] = whole - whole.mean(dim=1, keepdim=True)
            done += len(rows)
            if progress:
                progress(done, n)
    found = Tangent(z0.cpu().numpy(), phi.cpu().numpy(), labels.cpu().numpy())
    return replace(found, tensor_names=directions.names, tensor_gains=gains.cpu().numpy()) if per_tensor else found


def _combinations(chances: Tensor, labels: Tensor, leading: int | None) -> tuple[Tensor, Tensor]:
    """Which J combinations of logits are differentiated (b, J, C), and how each class's derivative follows (b, C, J).

    All classes but the last, which is minus the sum of the others as logits are centred; or the leading ones, and one
    mean of the rest.

    Args:
        chances: (b, C) the base's probabilities, but for the labels' own, which may hold anything.
    """
    b, C = chances.shape
    one = torch.eye(C, dtype=chances.dtype, device=chances.device)
    if leading is None or leading + 1 >= C - 1:
        spread = torch.cat([one[:-1, :-1], -torch.ones_like(one[:1, :-1])])
        return one[:-1].expand(b, -1, -1), spread.expand(b, -1, -1)
    ranked = chances.clone()
    ranked[torch.arange(b), labels] = torch.inf  # the label first
    first = ranked.argsort(dim=1, descending=True, stable=True)[:, : max(1, leading)]
    heads = one[first]  # (b, leading, C)
    rest = 1.0 - heads.sum(dim=1)
    mean = chances * rest
    mean = mean / mean.sum(dim=1, keepdim=True).clamp_min(torch.finfo(mean.dtype).tiny)
    pick = torch.cat([heads, mean[:, None]], dim=1)
    return pick, torch.cat([heads, rest[:, None]], dim=1).transpose(1, 2)


def _slopes(z: Tensor, trace: Trace) -> Iterator[tuple[int, dict[int, list[Tensor]]]]:
    """∂z_j/∂y at every recorded call, for as many columns j at a time as fit the budget."""
    calls = [c for found in trace.calls.values() for c in found]
    size = sum(c.y.numel() * c.y.element_size() for c in calls)
    step = max(1, BUDGET // max(1, size))
    for first in range(0, z.shape[1], step):
        chosen = range(first, min(first + step, z.shape[1]))
        out: dict[int, list[Tensor]] = {}
        for c in chosen:
            found = torch.autograd.grad(z[:, c].sum(), [k.y for k in calls], retain_graph=True, allow_unused=True)
            for call, slope in zip(calls, found, strict=True):
                if slope is not None:  # an unused module, such as a pooler's, has no say in the logits
                    out.setdefault(id(call), []).append(slope)
        yield first, out


# -- the gradient ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TaskGradient:
    """∇L_q(θ₀) in low-rank form: the share of its energy kept, and how the base does on the examples."""

    vector: TaskVector
    energy_kept: float
    rank: int
    score: Score


def task_gradient(bench: Bench, task: Task, examples: Sequence[Example], *, names: Sequence[str]) -> TaskVector:
    """∇L_q(θ₀) of the mean cross-entropy over the examples, dense, for the named tensors of the base.

    Its inner product with a task vector is the first-order LOSS along it; the gain is minus that.

    Raises:
        ComgradError: no examples, or no names. ShapeMismatch: the base has no tensor of such a name.
    """
    return _gradient(bench, task, examples, names, None)[0]


def compressed_gradient(
    bench: Bench,
    task: Task,
    examples: Sequence[Example],
    *,
    names: Sequence[str],
    rank: int = GRADIENT_RANK,
    encoder: nn.Module | None = None,
) -> TaskGradient:
    """`task_gradient` with every matrix cut to its leading `rank` directions. Raises as `task_gradient`."""
    full, score = _gradient(bench, task, examples, names, encoder)
    small, kept = full.compress(rank)
    return TaskGradient(TaskVector(small.base, {n: _stored(d) for n, d in small.tensors.items()}), kept, rank, score)


def _stored(d: Delta) -> Delta:
    """Factors in bf16, half the bytes: their rounding is far below what the cut leaves out."""
    if isinstance(d, LowRank):
        return replace(d, B=d.B.bfloat16(), A=d.A.bfloat16(), stored=torch.bfloat16)
    return d


def _gradient(
    bench: Bench, task: Task, examples: Sequence[Example], names: Sequence[str], encoder: nn.Module | None
) -> tuple[TaskVector, Score]:
    model, prompts, tokens = _opened(bench, task, examples, encoder)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if name not in parameters:
            raise ShapeMismatch(f"tensor '{name}'", "the model has no such tensor", "name tensors of the base")
    labels = torch.tensor([e.label for e in examples], device=bench.device)
    wanted = [parameters[name] for name in names]
    total = [torch.zeros_like(p) for p in wanted]
    loss = correct = 0.0
    with _frozen(model, but=wanted):
        for rows, batch in _batches(tokens):
            with torch.enable_grad():
                z = _logits(model, batch, prompts)
                summed = nn.functional.cross_entropy(z, labels[rows], reduction="sum")
            for so_far, g in zip(total, torch.autograd.grad(summed, wanted, allow_unused=True), strict=True):
                if g is not None:
                    so_far += g
            loss += float(summed.detach())
            correct += float((z.detach().argmax(dim=1) == labels[rows]).sum())
    turned = _turned(model)
    n = len(examples)
    tensors: dict[str, Delta] = {}
    for name, parameter, g in zip(names, wanted, total, strict=True):
        across = id(parameter) in turned
        W = (g / n).cpu()
        tensors[name] = Dense(W.T.contiguous() if across else W, transposed=across)
    return TaskVector(bench.base.ref, tensors), Score(loss / n, correct / n, n)


def _turned(model: nn.Module) -> set[int]:
    """Ids of the parameters that the model stores as (input, output)."""
    kinds = ("Conv1D", "Embedding")
    return {id(m.weight) for m in model.modules() if type(m).__name__ in kinds and isinstance(m.weight, Tensor)}


# -- shared ------------------------------------------------------------------------------------------------------------
def _opened(
    bench: Bench,
    task: Task,
    examples: Sequence[Example],
    encoder: nn.Module | None,
    prompts: Tensor | None = None,
) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """The base encoder, the prompts it encodes, and the examples' tokens."""
    if not examples:
        raise ComgradError(
            f"task '{task.name}' with no examples", "a gradient is a mean over examples", "give at least one"
        )
    model = bench.encoder() if encoder is None else encoder
    if prompts is None:
        with torch.no_grad():
            prompts = embed(model, **bench.tokens(task.label_prompts))
    return model, prompts, bench.tokens([e.text for e in examples])


def _batches(tokens: dict[str, Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Rows of like length with their tokens, each batch of at most `BATCH_TOKENS` tokens with padding."""
    lengths = tokens["attention_mask"].sum(dim=1)
    order = lengths.argsort(stable=True)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * int(lengths[order[stop]]) <= BATCH_TOKENS:
            stop += 1
        rows = order[start:stop]
        used = tokens["attention_mask"][rows].any(dim=0)
        yield rows, {key: value[rows][:, used] for key, value in tokens.items()}
        start = stop


def _half(bench: Bench, fast: bool) -> torch.autocast:
    return torch.autocast(bench.device.type, torch.bfloat16, enabled=fast)


def _logits(model: nn.Module, batch: dict[str, Any], prompts: Tensor) -> Tensor:
    """(b, C) logits minus their mean over classes."""
    return _centred(embed(model, **batch) @ prompts.T)


def _centred(cosines: Tensor) -> Tensor:
    z = LOGIT_SCALE * cosines
    return z - z.mean(dim=1, keepdim=True)


class _frozen:  # noqa: N801 - used as a function
    """No parameter but the chosen ones has a gradient inside the block."""

    def __init__(self, model: nn.Module, but: Sequence[Tensor] = ()) -> None:
        self._model, self._but = model, {id(p) for p in but}

    def __enter__(self) -> None:
        self._before = [(p, p.requires_grad) for p in self._model.parameters()]
        for p, _ in self._before:
            p.requires_grad_(id(p) in self._but)

    def __exit__(self, *_: object) -> None:
        for p, required in self._before:
            p.requires_grad_(required)
