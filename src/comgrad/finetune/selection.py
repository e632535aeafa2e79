"""Which parameters a recipe trains: by the part they play, through the layout tables, whatever a family calls them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comgrad.errors import ComgradError
from comgrad.weights.layouts import LAYOUTS, Layout, layout_of

_ATTENTION = ("q", "k", "v", "o")
_MLP = ("mlp-in", "mlp-gate", "mlp-out")


@dataclass(frozen=True)
class Paradigm:
    """One row of the ablation (Jin et al., arXiv 2407.07089, Table 2).

    Args:
        number: its number there.
        roles: parts that are trained; a fused tensor with one of them is trained whole.
        biases: also their biases.
    """

    number: int
    name: str
    roles: tuple[str, ...]
    biases: bool
    meaning: str


PARADIGMS: Mapping[str, Paradigm] = {
    p.name: p
    for p in (
        Paradigm(1, "attention-linear", _ATTENTION, False, "attention query/key/value/output weights"),
        Paradigm(2, "attention-linear-bias", _ATTENTION, True, "attention query/key/value/output weights and biases"),
        Paradigm(
            3,
            "attention-mlp-linear",
            (*_ATTENTION, *_MLP),
            False,
            "weights of all linear layers of the attention block with its MLP",
        ),
        Paradigm(
            4,
            "attention-mlp-linear-bias",
            (*_ATTENTION, *_MLP),
            True,
            "weights and biases of all linear layers of the attention block with its MLP",
        ),
    )
}


@dataclass(frozen=True)
class Selection:
    """The parameters to train, sorted, how many numbers they hold, and how many the model holds."""

    names: tuple[str, ...]
    parameters: int
    total: int

    @property
    def share(self) -> float:
        return self.parameters / self.total

    def __str__(self) -> str:
        return f"{self.parameters:,} of {self.total:,} parameters ({self.share:.1%})"


def select(shapes: Mapping[str, Sequence[int]], paradigm: str | None = None, *, tower: str | None = None) -> Selection:
    """The parameters that a paradigm trains.

    Args:
        shapes: name → shape of the model's parameters.
        paradigm: a key of `PARADIGMS`; None selects every parameter.
        tower: only those of this tower (`text`, `vision`) of a model with two.

    Raises:
        ComgradError: (`bad-recipe`) no such paradigm; (`layout-unknown`) names of no known family; (`no-targets`)
            nothing is selected.
    """
    if paradigm is not None and paradigm not in PARADIGMS:
        raise ComgradError(
            f"the paradigm '{paradigm}'",
            "there is none of that name",
            f"use one of: {', '.join(PARADIGMS)}",
            code="bad-recipe",
        )
    total = sum(math.prod(s) for s in shapes.values())
    if paradigm is None and tower is None:
        names = sorted(shapes)
    else:
        layout = _layout(shapes)
        names = sorted(shapes) if paradigm is None else _by_role(layout, shapes, PARADIGMS[paradigm])
        names = [n for n in names if tower is None or layout.role(n).tower == tower]
    count = sum(math.prod(shapes[n]) for n in names)
    if count == 0:
        what = f"'{paradigm}'" if paradigm else "all parameters"
        raise ComgradError(
            f"a model of {len(shapes)} tensors and the selection {what}"
            + (f" in the tower '{tower}'" if tower else ""),
            "it selects no parameter, so nothing would be trained",
            "check the model's family and tower, or use another recipe",
            code="no-targets",
        )
    return Selection(tuple(names), count, total)


def _by_role(layout: Layout, shapes: Mapping[str, Sequence[int]], p: Paradigm) -> list[str]:
    return layout.select(shapes, p.roles, kind=None if p.biases else "weight")


def _layout(shapes: Mapping[str, Sequence[int]]) -> Layout:
    layout = layout_of(shapes)
    if layout is None:
        raise ComgradError(
            f"a model with tensors such as '{next(iter(shapes), '')}'",
            "it is of no family whose tensor names are known, so its attention layers cannot be told",
            f"use a model of the families {', '.join(f.name for f in LAYOUTS)}, or the recipe nonlinear",
            code="layout-unknown",
        )
    return layout
