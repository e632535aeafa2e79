"""Parameters of merging methods: one record, one check for each value, and which rows read which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from comgrad.errors import ComgradError

SCOPES = ("global", "tensor")
MAX_SEED = 2**64


@dataclass(frozen=True)
class Settings:
    """Every parameter that some method reads; a row of the table says which and gives the defaults.

    Args:
        density: share of the elements that each vector keeps, in (0, 1].
        gamma: share of the largest elements that breadcrumbs removes, in [0, 1).
        scope: what the shares are counted over: `global` is the whole vector, `tensor` each tensor by itself.
        seed: of random masks.
        inner: the method that puts the prepared vectors together.
        match: a published tool whose semantics are used where they differ; `none` is the documented formula.
    """

    density: float = 1.0
    gamma: float = 0.0
    scope: str = "global"
    seed: int = 0
    inner: str = "sum"
    match: str = "none"


def checked(
    method: str, defaults: Settings, choices: Mapping[str, tuple[str, ...]], given: Mapping[str, Any]
) -> Settings:
    """The defaults with what was given put in, every value checked.

    Args:
        method: the method's name, for messages.
        defaults: of the row.
        choices: the row's parameters; for those that are words, the words it knows (else empty).
        given: parameter → value; None means the default.

    Raises:
        ComgradError: a parameter that the method does not read, or a value out of range.
    """
    used = {name: value for name, value in given.items() if value is not None}
    for name, value in used.items():
        if name not in choices:
            known = ", ".join(f"'{p}'" for p in choices) or "none"
            raise ComgradError(
                f"the parameter '{name}' for the method '{method}'",
                "the method does not read it",
                f"leave it out (its parameters: {known})",
                code="merge-parameter",
            )
        _check(name, value, choices[name])
    settings = replace(defaults, **used)
    if settings.match != "none" and settings.scope != "tensor":
        if "scope" in used:
            raise _refused(
                f"scope '{settings.scope}' with match '{settings.match}'", "that tool trims each tensor by itself",
                "leave the scope out, or match no tool",
            )  # fmt: skip
        settings = replace(settings, scope="tensor")
    if settings.gamma + settings.density > 1.0 + 1e-12 and "gamma" in choices:
        raise _refused(
            f"density {settings.density:g} with gamma {settings.gamma:g}",
            "one cannot keep and remove more than all elements",
            f"give a gamma of at most {1 - settings.density:g}",
        )
    return settings


def described(settings: Settings, names: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a row reads, with their values, in the row's order."""
    values = asdict(settings)
    return {name: values[name] for name in names}


def _check(name: str, value: Any, words: tuple[str, ...]) -> None:
    if name == "density" and not (math.isfinite(value) and 0.0 < value <= 1.0):
        raise _refused(
            f"the density {value:g}", "it is the share of elements kept and must be above 0 and at most 1", "try 0.2"
        )
    if name == "gamma" and not (math.isfinite(value) and 0.0 <= value < 1.0):
        raise _refused(
            f"the gamma {value:g}", "it is the share of largest elements removed and must be in [0, 1)", "try 0.01"
        )
    if name == "seed" and not 0 <= value < MAX_SEED:
        raise _refused(f"the seed {value}", "a seed is a whole number of 64 bits", "give one from 0 to 2**64 - 1")
    if words and value not in words:
        raise _refused(f"the {name} '{value}'", "the method knows no such one", f"use one of {', '.join(words)}")


def _refused(given: str, why: str, remedy: str) -> ComgradError:
    return ComgradError(given, why, remedy, code="merge-parameter")
