"""The tangent picture against automatic differentiation and finite differences, on tiny models and the real encoder."""

from __future__ import annotations

import copy
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from comgrad.describe.task import Example, Task, load_task
from comgrad.errors import BaseMismatch, ComgradError, ShapeMismatch
from comgrad.evaluate import directions
from comgrad.evaluate import tangent as module
from comgrad.evaluate.classifier import Bench, embed, evaluate, shifted
from comgrad.evaluate.tangent import compressed_gradient, tangent, task_gradient
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import BaseModel, resolve_base
from vectors_models import bert, gpt2, save_base

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog"]


class Words:
    """A tokenizer: one id per word, padded on the right."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, torch.Tensor]:
        rows = [[1 + zlib.crc32(w.encode()) % 38 for w in t.split()] for t in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class TinyBench(Bench):
    """A tiny random model in fp64, in the place of a base on disk."""

    def encoder(self) -> nn.Module:
        return copy.deepcopy(MODELS[self.base.name])


MODELS: dict[str, nn.Module] = {}


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyBench:
    torch.manual_seed(3)
    model = bert() if request.param == "bert" else gpt2().transformer
    assert isinstance(model, transformers.PreTrainedModel)
    folder = save_base(model, tmp_path_factory.mktemp("base") / request.param)
    with torch.no_grad():  # norms and biases away from 1 and 0, where mistakes would hide
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    MODELS[request.param] = model.double().eval()
    return TinyBench(BaseModel(request.param, folder), Words(), torch.device("cpu"))


def make_task(labels: int) -> tuple[Task, list[Example]]:
    rng = np.random.default_rng(labels)
    names = tuple(f"label {w}" for w in WORDS[:labels])
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, 9))) for _ in range(11)]
    return Task("t", "d", names, names), [Example(t, int(rng.integers(labels))) for t in texts]


def random_delta(p: torch.Tensor, turned: bool, rank: int | None, g: torch.Generator) -> Delta:
    m, n = reversed(p.shape) if turned else p.shape if p.ndim == 2 else (len(p), 1)
    if rank is None or p.ndim == 1:
        shape = p.shape if p.ndim == 1 else (m, n)
        return Dense(torch.randn(shape, generator=g).double(), transposed=turned)
    B, A = torch.randn(m, rank, generator=g).double(), torch.randn(rank, n, generator=g).double()
    return LowRank(B, A, 0.5, transposed=turned)


def random_vectors(bench: TinyBench, *, everything: bool) -> list[TaskVector]:
    """Low-rank vectors of ranks 1 and 3, a dense one, and one that mixes both and lacks every second tensor."""
    g = torch.Generator().manual_seed(5)
    model = bench.encoder()
    turned = {f"{n}.weight" for n, m in model.named_modules() if type(m).__name__ in ("Conv1D", "Embedding")}
    chosen = {n: p for n, p in model.named_parameters() if "pooler" not in n and (everything or p.ndim == 2)}
    out = []
    for rank in (1, 3, None):
        out.append(TaskVector(bench.base.ref, {n: random_delta(p, n in turned, rank, g) for n, p in chosen.items()}))
    some = [n for i, n in enumerate(chosen) if i % 2]
    mixed = {n: random_delta(chosen[n], n in turned, 2 if i % 2 else None, g) for i, n in enumerate(some)}
    return [*out, TaskVector(bench.base.ref, mixed)]


def loss_at(bench: Bench, task: Task, examples: list[Example], tau: TaskVector, scale: float) -> float:
    model = bench.encoder()
    classifier = bench.classifier(task, model)
    with shifted(model, tau, scale):
        return evaluate(bench, classifier, examples).loss


def logits_of(bench: Bench, model: nn.Module, prompts: torch.Tensor, e: Example, **kw: Any) -> torch.Tensor:
    return 20.0 * embed(model, **bench.tokens([e.text])) @ prompts.T


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch itself, on its first jvp
@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("everything", [False, True])
def test_the_derivatives_are_those_of_forward_mode_differentiation(
    tiny: TinyBench, labels: int, everything: bool
) -> None:
    task, examples = make_task(labels)
    vectors = random_vectors(tiny, everything=everything)
    found = tangent(tiny, task, examples, vectors)
    assert found.phi.dtype == np.float64
    model = tiny.encoder()
    model.set_attn_implementation("eager")  # type: ignore[operator]  # the fused kernels know no forward mode
    parameters = dict(model.named_parameters())
    prompts = tiny.prompts(task)
    for i, e in enumerate(examples):
        for k, v in enumerate(vectors):
            zero = {n: torch.zeros_like(p) for n, p in parameters.items()}
            along = zero | {n: d.in_base_layout() for n, d in v.tensors.items()}

            def logits(changed: dict[str, torch.Tensor], e: Example = e) -> torch.Tensor:
                batch = tiny.tokens([e.text])
                hidden = torch.func.functional_call(model, changed, kwargs=batch).last_hidden_state
                return 20.0 * nn.functional.normalize(hidden[0].mean(0), dim=0) @ prompts.T

            z, dz = torch.func.jvp(logits, (parameters,), (along,))
            z, dz = z.detach(), dz.detach()
            np.testing.assert_allclose(found.z0[i], (z - z.mean()).numpy(), atol=1e-9)
            np.testing.assert_allclose(found.phi[i, :, k], (dz - dz.mean()).numpy(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("labels", [2, 4])
def test_gains_are_the_slope_of_the_loss_by_finite_differences(tiny: TinyBench, labels: int) -> None:
    task, examples = make_task(labels)
    vectors = random_vectors(tiny, everything=True)
    found = tangent(tiny, task, examples, vectors)
    for k, v in enumerate(vectors):
        up, down = (loss_at(tiny, task, examples, v, s) for s in (1e-5, -1e-5))
        assert found.gains[k] == pytest.approx(-(up - down) / 2e-5, rel=1e-5, abs=1e-7)
    assert found.loss() == pytest.approx(loss_at(tiny, task, examples, vectors[0], 0.0), abs=1e-10)
    step = 1e-6 * np.eye(len(vectors))
    slopes = [(found.loss(-s) - found.loss(s)) / 2e-6 for s in step]
    np.testing.assert_allclose(slopes, found.gains, rtol=1e-5, atol=1e-8)


def test_gains_add_over_tensors_and_equal_the_inner_product_with_the_gradient(tiny: TinyBench) -> None:
    task, examples = make_task(5)
    vectors = random_vectors(tiny, everything=True)
    found = tangent(tiny, task, examples, vectors, per_tensor=True)
    assert found.tensor_gains is not None
    np.testing.assert_allclose(found.tensor_gains.sum(axis=0), found.gains, rtol=1e-10, atol=1e-12)
    gradient = task_gradient(tiny, task, examples, names=found.tensor_names)
    for k, v in enumerate(vectors):
        by_tensor = gradient.inner_by_tensor(v)
        for t, name in enumerate(found.tensor_names):
            assert found.tensor_gains[t, k] == pytest.approx(-by_tensor.get(name, 0.0), rel=1e-8, abs=1e-11)


def test_the_picture_is_linear_in_the_vectors_and_knows_no_form(tiny: TinyBench) -> None:
    task, examples = make_task(3)
    a, b, *_ = random_vectors(tiny, everything=False)
    dense = TaskVector(a.base, {n: Dense(d.dense(), transposed=d.transposed) for n, d in a.tensors.items()})
    phi = tangent(tiny, task, examples, [a, b, a * 2.0 + b * -3.0, dense]).phi
    np.testing.assert_allclose(phi[..., 2], 2 * phi[..., 0] - 3 * phi[..., 1], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(phi[..., 3], phi[..., 0], rtol=1e-8, atol=1e-9)


def test_neither_batches_nor_blocks_nor_order_change_anything(tiny: TinyBench, monkeypatch: pytest.MonkeyPatch) -> None:
    task, examples = make_task(5)
    vectors = random_vectors(tiny, everything=False)
    whole = tangent(tiny, task, examples, vectors, per_tensor=True)
    monkeypatch.setattr(module, "BATCH_TOKENS", 9)  # one or two texts
    monkeypatch.setattr(module, "BUDGET", 1)  # one class at a time
    monkeypatch.setattr(directions, "BUDGET", 1)  # one column at a time
    pieces = tangent(tiny, task, examples[::-1], vectors, per_tensor=True)
    np.testing.assert_allclose(pieces.phi[::-1], whole.phi, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(pieces.tensor_gains, whole.tensor_gains, rtol=1e-9, atol=1e-10)
    assert task_gradient(tiny, task, examples, names=whole.tensor_names).norm() == pytest.approx(
        task_gradient(tiny, task, examples[::-1], names=whole.tensor_names).norm(), rel=1e-10
    )


@pytest.mark.parametrize("leading", [1, 3])
def test_leading_classes_keep_the_gains_exact_and_lump_the_rest(tiny: TinyBench, leading: int) -> None:
    task, examples = make_task(8)
    vectors = random_vectors(tiny, everything=False)
    whole = tangent(tiny, task, examples, vectors, per_tensor=True)
    lumped = tangent(tiny, task, examples, vectors, per_tensor=True, leading=leading)
    np.testing.assert_allclose(lumped.gains, whole.gains, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(lumped.tensor_gains, whole.tensor_gains, rtol=1e-9, atol=1e-11)
    p = np.exp(whole.z0) / np.exp(whole.z0).sum(axis=1, keepdims=True)
    for i, e in enumerate(examples):
        order = [e.label, *(int(c) for c in np.argsort(-p[i], kind="stable") if c != e.label)]
        rest = order[leading:]
        expected = whole.phi[i].copy()
        expected[rest] = (p[i, rest, None] * whole.phi[i, rest]).sum(axis=0) / p[i, rest].sum()
        np.testing.assert_allclose(lumped.phi[i], expected - expected.mean(axis=0), rtol=1e-8, atol=1e-9)


def test_the_cut_gradient_is_the_best_of_its_rank(tiny: TinyBench) -> None:
    task, examples = make_task(4)
    names = sorted(random_vectors(tiny, everything=False)[0].tensors)
    full = task_gradient(tiny, task, examples, names=names)
    cut = compressed_gradient(tiny, task, examples, names=names, rank=2)
    kept = sum(
        float(np.sum(np.linalg.svd(d.dense().numpy(), compute_uv=False)[:2] ** 2)) for d in full.tensors.values()
    )
    assert cut.energy_kept == pytest.approx(kept / full.inner(full), rel=1e-9)
    assert cut.vector.rank == 2
    assert all(d.stored == torch.bfloat16 for d in cut.vector.tensors.values())
    assert (cut.vector - full.compress(2)[0]).norm() < 0.01 * full.norm()  # rounding to bf16
    assert cut.score.loss == pytest.approx(tangent(tiny, task, examples, [full]).loss(), rel=1e-9)


def test_the_model_is_as_it_was_afterwards(tiny: TinyBench) -> None:
    task, examples = make_task(2)
    encoder = tiny.encoder()
    before = {n: p.clone() for n, p in encoder.named_parameters()}
    vectors = random_vectors(tiny, everything=False)
    tangent(tiny, task, examples, vectors, encoder=encoder)
    compressed_gradient(tiny, task, examples, names=list(vectors[0].tensors), encoder=encoder)
    assert all(torch.equal(p, before[n]) and p.requires_grad for n, p in encoder.named_parameters())
    assert not any(m._forward_hooks for m in encoder.modules())


# -- refusals ----------------------------------------------------------------------------------------------------------
class Odd(nn.Module):
    """A module that is not linear in its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


def test_what_has_no_known_response_is_refused_by_name(tiny: TinyBench) -> None:
    task, examples = make_task(2)
    encoder = tiny.encoder()
    encoder.odd = Odd().double()
    base = tiny.base.ref
    low = LowRank(torch.ones(4, 1), torch.ones(1, 4))
    with pytest.raises(ComgradError, match=r"tensor 'odd.weight' of vector 0, .* of a Odd; .* leave that tensor out"):
        tangent(tiny, task, examples, [TaskVector(base, {"odd.weight": low})], encoder=encoder)
    with pytest.raises(ShapeMismatch, match="tensor 'none.weight'; the model has no such tensor"):
        tangent(tiny, task, examples, [TaskVector(base, {"none.weight": low})])
    name = sorted(random_vectors(tiny, everything=False)[0].tensors)[0]
    with pytest.raises(ShapeMismatch, match=f"tensor '{name}' of vector 0 has shape"):
        tangent(tiny, task, examples, [TaskVector(base, {name: low})])
    with pytest.raises(ShapeMismatch, match="tensor 'none.weight'"):
        task_gradient(tiny, task, examples, names=["none.weight"])
    with pytest.raises(ComgradError, match="no examples"):
        tangent(tiny, task, [], [TaskVector(base, {name: low})])


def test_vectors_and_gradients_of_another_base_are_refused(tiny: TinyBench) -> None:
    task, examples = make_task(2)
    good = random_vectors(tiny, everything=False)[0]
    other = TaskVector(BaseRef(good.base.name, "0" * 64), good.tensors)
    with pytest.raises(BaseMismatch, match="different bases"):
        tangent(tiny, task, examples, [good, other])


# -- the real encoder --------------------------------------------------------------------------------------------------
def test_on_the_shipped_encoder_it_is_the_gradient_by_real_coefficients(tasks: list[Path], zoo: list[Path]) -> None:
    bench = Bench.open(resolve_base("sentence-transformers/all-MiniLM-L6-v2"))
    task = load_task(tasks[0])
    examples = list(task.split("train")[:24])
    vectors = [TaskVector.from_peft(zoo[i]) for i in (0, 17, 30)]
    found = tangent(bench, task, examples, vectors, per_tensor=True)
    encoder = bench.encoder()
    c = torch.zeros(3, requires_grad=True)
    parameters = dict(encoder.named_parameters())
    changed = dict(parameters)
    for name in vectors[0].tensors:
        full = torch.stack([v.tensors[name].in_base_layout() for v in vectors])
        changed[name] = parameters[name].detach() + torch.einsum("k,kij->ij", c, full)
    hidden = torch.func.functional_call(
        encoder, changed, kwargs=(batch := bench.tokens([e.text for e in examples]))
    ).last_hidden_state
    mask = batch["attention_mask"][:, :, None].float()
    x = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    loss = nn.functional.cross_entropy(20.0 * x @ bench.prompts(task).T, torch.tensor([e.label for e in examples]))
    loss.backward()
    assert c.grad is not None
    np.testing.assert_allclose(found.gains, -c.grad.numpy(), rtol=1e-4, atol=1e-6)
    assert found.loss() == pytest.approx(float(loss.detach()), abs=1e-5)
    assert found.tensor_gains is not None
    np.testing.assert_allclose(found.tensor_gains.sum(axis=0), found.gains, rtol=1e-4, atol=1e-6)
    gradient = compressed_gradient(bench, task, examples, names=list(vectors[0].tensors))
    near = np.array([-gradient.vector.inner(v) for v in vectors])
    assert 0.9 < gradient.energy_kept < 1.0
    np.testing.assert_allclose(near, found.gains, atol=0.15 * float(np.abs(found.gains).max()))
