"""What a table of tensor names says: the part a tensor plays, and where the parts of a fused tensor lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final, Literal

from comgrad.errors import ComgradError, ShapeMismatch
from comgrad.weights.names import forms

Row = tuple[str, tuple[str, ...], bool]  # module or parameter pattern, roles, transposed
Kind = Literal["weight", "bias"]

ROLES: Final = ("q", "k", "v", "o", "mlp-in", "mlp-gate", "mlp-out", "embed", "norm", "head", "other")


@dataclass(frozen=True)
class Role:
    """The part one tensor plays.

    Args:
        layer: number of its block; None outside the blocks.
        roles: one of `ROLES`; several, in the order of their rows, when the tensor is fused.
        kind: weight or bias.
        transposed: stored as (input, output).
        tower: `text` or `vision` in a model with two, else empty.
    """

    layer: int | None
    roles: tuple[str, ...]
    kind: Kind
    transposed: bool
    tower: str = ""


@dataclass(frozen=True)
class Layout:
    """One family's table. `signature` matches a tensor that only this family has."""

    name: str
    signature: str
    rows: tuple[Row, ...]
    towers: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _patterns(self) -> tuple[tuple[re.Pattern[str], Row], ...]:
        return tuple((_pattern(row[0]), row) for row in self.rows)

    def matches(self, names: Iterable[str]) -> bool:
        """Whether some tensor has this family's signature."""
        signature = _pattern(self.signature)
        return any(signature.fullmatch(form) for name in names for form in forms(name))

    def role(self, name: str) -> Role:
        """The part of a tensor, found under any known prefix; `other` when the table does not list it."""
        for form in forms(name):
            for pattern, (_, roles, transposed) in self._patterns:
                if match := pattern.fullmatch(form):
                    layer = match.groupdict().get("i")
                    kind: Kind = "bias" if match["kind"] in ("bias", "beta", "in_proj_bias") else "weight"
                    turned = transposed and kind == "weight"
                    return Role(None if layer is None else int(layer), roles, kind, turned, self._tower(form))
        kind = "bias" if name.endswith(".bias") else "weight"
        return Role(None, ("other",), kind, False, self._tower(name))

    def split(self, name: str, shape: Sequence[int]) -> dict[str, tuple[int, int]]:
        """Where each role of a tensor begins and ends on its output side.

        Args:
            name: the tensor.
            shape: as stored. The output side is the last axis of a transposed tensor, the first of any other.

        Raises:
            ShapeMismatch: the output side does not divide into the fused parts.
        """
        role = self.role(name)
        rows = (shape[-1] if role.transposed else shape[0]) if shape else 1
        size, rest = divmod(rows, len(role.roles))
        if rest:
            raise ShapeMismatch(
                f"'{name}' of shape {tuple(shape)}",
                f"{rows} rows do not divide into {len(role.roles)} equal parts ({', '.join(role.roles)})",
                "check that the model is of the family it was recognised as",
            )
        return {r: (i * size, (i + 1) * size) for i, r in enumerate(role.roles)}

    def select(self, names: Iterable[str], roles: Iterable[str], *, kind: Kind | None = None) -> list[str]:
        """The tensors that play one of `roles`, sorted."""
        wanted = set(roles)
        if unknown := sorted(wanted - set(ROLES)):
            raise ComgradError(f"role '{unknown[0]}'", "there is no such role", f"use one of {', '.join(ROLES)}")
        found = ((name, self.role(name)) for name in names)
        return sorted(n for n, r in found if wanted & set(r.roles) and kind in (None, r.kind))

    def _tower(self, form: str) -> str:
        return next((tower for start, tower in self.towers if form.startswith(start)), "")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """A row's regular expression: a module takes weight or bias (or their old names); `!` ends a bare parameter."""
    bare = template.endswith("!")
    body = re.escape(template.rstrip("!")).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"[^.]+")
    if bare:
        head, _, last = body.rpartition(r"\.")
        return re.compile((head + r"\." if head else "") + f"(?P<kind>{last})")
    return re.compile(body + r"\.(?P<kind>weight|bias|gamma|beta)")
