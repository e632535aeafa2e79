"""What is known of the base while an adapter is read: its names, shapes and weights; or only its name."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from comgrad.errors import BaseMismatch, ComgradError, NotFound
from comgrad.types import BaseRef
from comgrad.weights.bases import resolve_base, try_resolve_base
from comgrad.weights.fingerprint import fingerprint
from comgrad.weights.hub import is_repo_id
from comgrad.weights.layouts import Layout, NameIndex, is_input_embedding, layout_of
from comgrad.weights.reader import Checkpoint, open_checkpoint


class BaseSide:
    """The base's side of an adapter. Made by `BaseSide.find`; a context manager."""

    def __init__(self, ref: BaseRef, checkpoint: Checkpoint | None, where: str) -> None:
        self.ref = ref
        self.where = where
        self._checkpoint = checkpoint
        self._index = NameIndex(checkpoint.names) if checkpoint else None
        self._layout = _layout(checkpoint.names) if checkpoint else None

    @classmethod
    def find(cls, base: str | Path | None, declared: str | None, where: str) -> BaseSide:
        """The base the user names, else the declared one where it is on this machine, else its name alone.

        Raises:
            NotFound: `base` was given and is nowhere.
            BaseMismatch: neither given nor declared.
        """
        if base is not None:
            model = resolve_base(base)
            hub_name = declared if declared and is_repo_id(declared) else None
            name = model.name if "/" in model.name or hub_name is None else hub_name
            return cls(BaseRef(name, fingerprint(model.path).root), _opened(model.path), where)
        # The declared name comes from a stranger's file: only a Hub name is looked up, never a path.
        if declared and is_repo_id(declared) and not Path(declared).exists():
            with suppress(ComgradError):  # a cached base without safetensors is as good as none
                if (there := try_resolve_base(declared)) is not None:
                    return cls(BaseRef(declared, fingerprint(there.path).root), _opened(there.path), where)
        if not declared:
            raise BaseMismatch(
                f"the adapter {where} does not name its base",
                "a task vector only has a meaning relative to one base",
                "pass the base it was trained from",
            )
        return cls(BaseRef(declared), None, where)

    @property
    def known(self) -> bool:
        """Whether the base's weights are at hand."""
        return self._checkpoint is not None

    @property
    def tied(self) -> bool:
        """Whether the base uses one tensor as input embedding and output head."""
        config = self._checkpoint.config if self._checkpoint else None
        return bool(config and config.get("tie_word_embeddings"))

    def learn_layout(self, names: Iterable[str]) -> None:
        """Recognise the family from the adapter's own names, when the base is not there to tell."""
        if not self.known:
            self._layout = _layout(names)

    def parameter(self, name: str) -> str:
        """The base's name for a parameter. Raises BaseMismatch when it has none."""
        if self._index is None:
            return name
        try:
            return self._index.resolve(name)
        except NotFound:
            raise BaseMismatch(
                f"the adapter {self.where} changes '{name}'",
                f"the base {self.ref.label} has no such parameter",
                "pass the base it was trained from",
            ) from None

    def find_parameter(self, name: str) -> str | None:
        """As `parameter`, but None when the base has none."""
        with suppress(NotFound):
            return self._index.resolve(name) if self._index else None
        return None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a base tensor; None when the base is not known."""
        return tuple(self._checkpoint.entries[name].shape) if self._checkpoint else None

    def get(self, name: str) -> Tensor:
        """A tensor of the base. The base must be known."""
        assert self._checkpoint is not None
        return self._checkpoint.get(name)

    def transposed(self, name: str, m: int, n: int, declared: bool) -> bool:
        """Whether the base stores an (m, n) delta's tensor as (n, m).

        The stored shape decides where it can; a square matrix goes by the family's layout, then by the adapter's word.

        Raises:
            BaseMismatch: the base's tensor has neither shape.
        """
        shape = self.shape(name)
        role = self._layout.role(name) if self._layout else None
        likely = declared if role is None or role.roles == ("other",) else role.transposed
        if shape is None or (shape == (m, n) and m == n):
            return likely
        if shape not in ((m, n), (n, m)):
            raise self.mismatch(name, shape, (n, m) if likely else (m, n))
        return shape == (n, m)

    def stores_transpose(self, name: str) -> bool:
        """Whether the family's layout says that this tensor is stored as (input, output)."""
        return self._layout is not None and self._layout.role(name).transposed

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a delta whose shape is not that of the base's tensor. Raises BaseMismatch."""
        there = self.shape(name)
        if there is not None and there != shape:
            raise self.mismatch(name, there, shape)

    def mismatch(self, name: str, there: tuple[int, ...], given: tuple[int, ...]) -> BaseMismatch:
        remedy = "pass the base, and the revision, that it was trained from"
        if is_input_embedding(name):
            remedy = "its vocabulary was resized: resize the base's embedding the same way first"
        return BaseMismatch(
            f"the adapter {self.where} changes '{name}' as a tensor of shape {given}",
            f"in the base {self.ref.label} it has shape {there}",
            remedy,
        )

    def close(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint.close()

    def __enter__(self) -> BaseSide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(path: Path) -> Checkpoint:
    # The values were streamed when the fingerprint was first made; here only names and single tensors count.
    return open_checkpoint(path, check_finite=False)


def _layout(names: Iterable[str]) -> Layout | None:
    with suppress(ComgradError):  # a composite model has no single layout; shapes and the adapter's word remain
        return layout_of(names)
    return None
