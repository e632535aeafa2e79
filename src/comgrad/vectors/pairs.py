"""Two checkpoints side by side: which tensors make the delta, which are left out, and what is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from comgrad.errors import BaseMismatch, ComgradError, FileRefused, ShapeMismatch
from comgrad.weights.layouts import TIED_HEADS, Layout, is_input_embedding, layout_of
from comgrad.weights.reader import Checkpoint

# Biases that heads share with their model, stored once or twice: (copy, original).
_TIED_BIASES = (
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ("lm_head.decoder.bias", "lm_head.bias"),
)
# Buffers that libraries store or drop as they like; none is trained.
_BUFFERS = (
    "position_ids",
    "token_type_ids",
    "rotary_emb.inv_freq",
    "attn.masked_bias",
    "attn_mask",
    "num_batches_tracked",
)


@dataclass(frozen=True)
class Pair:
    """A base and a fine-tuned checkpoint whose tensors correspond.

    Args:
        base, finetuned: the open checkpoints.
        names: tensors that make the delta, sorted.
        notes: what was left out, for the vector's warnings.
        layout: the family, None when it is not known.
    """

    base: Checkpoint
    finetuned: Checkpoint
    names: tuple[str, ...]
    notes: tuple[str, ...]
    layout: Layout | None

    def transposed(self, name: str) -> bool:
        """Whether the checkpoints store this tensor as (input, output)."""
        role = self.layout.role(name) if self.layout else None
        return role is not None and role.transposed and len(self.base.entries[name].shape) == 2

    def close(self) -> None:
        self.base.close()
        self.finetuned.close()


def copies(checkpoint: Checkpoint) -> dict[str, str]:
    """Tensors stored a second time under a tied name: copy → original, where their bytes are the same."""
    names = set(checkpoint.names)
    embeddings = [n for n in names if is_input_embedding(n)]
    candidates: list[tuple[str, str]] = [(head, e) for head in TIED_HEADS if head in names for e in embeddings]
    candidates += [pair for pair in _TIED_BIASES if names.issuperset(pair)]
    return {copy: original for copy, original in candidates if _same_tensor(checkpoint, copy, checkpoint, original)}


def pair(base: Checkpoint, finetuned: Checkpoint) -> Pair:
    """Match two checkpoints tensor by tensor.

    Raises:
        BaseMismatch: another architecture, or tensors that only one of them has.
        ShapeMismatch: another shape (a resized vocabulary).
        FileRefused: `integer-tensor`, a buffer that differs; `untied-head`.
    """
    notes: list[str] = []
    _same_family(base, finetuned)
    skipped = _skip_tied(base, finetuned, notes) | _skip_buffers(base, finetuned, notes)
    ours = [n for n in base.names if n not in skipped]
    theirs = [n for n in finetuned.names if n not in skipped]
    _same_names(finetuned, ours, theirs)
    names = [n for n in ours if base.entries[n].is_float and finetuned.entries[n].is_float]
    _same_shapes(base, finetuned, names)
    if not names:
        raise FileRefused(
            f"'{base.path}' and '{finetuned.path}'",
            "they share no float tensor",
            "pass model weights",
            code="no-weights",
        )
    dtypes = {(base.entries[n].dtype, finetuned.entries[n].dtype) for n in names}
    for one, other in sorted(d for d in dtypes if d[0] != d[1]):
        notes.append(f"the base stores {one} and the fine-tuned checkpoint {other}: part of the delta is that rounding")
    layout = None
    with suppress(ComgradError):  # a composite model has no single layout, and then nothing is taken as transposed
        layout = layout_of(names)
    return Pair(base, finetuned, tuple(names), tuple(notes), layout)


def _skip_tied(base: Checkpoint, finetuned: Checkpoint, notes: list[str]) -> set[str]:
    """Tied copies count once; a head in one checkpoint only must be a copy there."""
    skipped: set[str] = set()
    sides = ((base, copies(base)), (finetuned, copies(finetuned)))
    tied_names = {*TIED_HEADS, *(copy for copy, _ in _TIED_BIASES)}
    for name in sorted(tied_names & ({*base.names} | {*finetuned.names})):
        holders = [(c, tied) for c, tied in sides if name in c.entries]
        still = [name in tied for _, tied in holders]
        if all(still):
            skipped.add(name)
            notes.append(f"'{name}' is tied to the input embedding and counted once")
        elif len(holders) == 1:
            raise FileRefused(
                f"'{holders[0][0].path}' has a '{name}' of its own",
                "the other checkpoint ties it to the input embedding, so there is no tensor to compare it with",
                "save both models with the head tied, or both with it untied",
                code="untied-head",
            )
    return skipped


def _skip_buffers(base: Checkpoint, finetuned: Checkpoint, notes: list[str]) -> set[str]:
    """Integer and boolean tensors, and known buffers: equal, or in one checkpoint only."""
    skipped: set[str] = set()
    for name in sorted({*base.names} | {*finetuned.names}):
        entries = [c.entries[name] for c in (base, finetuned) if name in c.entries]
        known = any(name == b or name.endswith(f".{b}") for b in _BUFFERS)
        mask = name.endswith("attn.bias") and all(len(e.shape) == 4 for e in entries)
        if all(e.is_float for e in entries) and not (known or mask):
            continue
        skipped.add(name)
        if len(entries) == 2 and not _same_tensor(base, name, finetuned, name):
            raise FileRefused(
                f"the {entries[0].dtype} tensor '{name}' differs between '{base.path}' and '{finetuned.path}'",
                "a difference of integers or masks is no task vector",
                "check that both are the same architecture and neither is quantised",
                code="integer-tensor",
            )
        notes.append(f"the buffer '{name}' was left out")
    return skipped


def _same_tensor(one: Checkpoint, a: str, other: Checkpoint, b: str) -> bool:
    x, y = one.entries[a], other.entries[b]
    if (x.dtype, tuple(x.shape)) == (y.dtype, tuple(y.shape)):
        return one.sha256(a) == other.sha256(b)
    if x.shape != y.shape or x.is_float != y.is_float:
        return False
    return bool(torch.equal(one.get(a).double(), other.get(b).double()))  # int32 and int64 position ids, say


def _same_family(base: Checkpoint, finetuned: Checkpoint) -> None:
    shared = len({*base.names} & {*finetuned.names})
    if shared * 2 < min(len(base.names), len(finetuned.names)):
        raise BaseMismatch(
            f"'{base.path}' and '{finetuned.path}' share {shared} tensor names",
            "they are not of one architecture, or were saved by different model classes",
            "save both with the same class (AutoModel, say)",
        )


def _same_names(finetuned: Checkpoint, ours: Sequence[str], theirs: Sequence[str]) -> None:
    missing, extra = sorted({*ours} - {*theirs}), sorted({*theirs} - {*ours})
    if not missing and not extra:
        return
    parts = []
    if missing:
        parts.append(f"lacks {_listed(missing)}")
    if extra:
        parts.append(f"has {_listed(extra)} more")
    raise BaseMismatch(
        f"'{finetuned.path}' {' and '.join(parts)}",
        "a task vector needs every tensor in both checkpoints",
        "save both with the same model class; a fresh head has no base to be compared with",
    )


def _same_shapes(base: Checkpoint, finetuned: Checkpoint, names: Sequence[str]) -> None:
    for name in names:
        one, other = tuple(base.entries[name].shape), tuple(finetuned.entries[name].shape)
        if one == other:
            continue
        if is_input_embedding(name) or name in TIED_HEADS:
            raise ShapeMismatch(
                f"'{name}' has shape {one} in the base and {other} in the fine-tuned checkpoint",
                "the vocabulary was resized, so the added rows have no base",
                "resize the base in the same way (resize_token_embeddings), save it, and use that as the base",
            )
        raise ShapeMismatch(
            f"'{name}' has shape {one} in the base and {other} in the fine-tuned checkpoint",
            "a difference needs one shape",
            "check that both are the same architecture",
        )


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(f"'{n}'" for n in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} others"
