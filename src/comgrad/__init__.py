"""Share, compare, predict and train task vectors of open models. Importing this loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from comgrad.errors import ComgradError

if TYPE_CHECKING:
    from comgrad.client.client import Client
    from comgrad.explain.explanation import Explanation
    from comgrad.geometry.angles import grassmann, principal_angles
    from comgrad.geometry.gram import gram
    from comgrad.geometry.measures import compare, matrix
    from comgrad.geometry.spectral import spectral_projection
    from comgrad.registry.card import Card
    from comgrad.types import BaseRef
    from comgrad.vectors.delta import Dense, LowRank
    from comgrad.vectors.merge import merge
    from comgrad.vectors.task_vector import TaskVector
    from comgrad.workflows.atlas import Atlas
    from comgrad.workflows.registry import Registry
    from comgrad.workflows.suggesting import Suggestion

_EXPORTS = {
    "Atlas": "comgrad.workflows.atlas",
    "BaseRef": "comgrad.types",
    "Card": "comgrad.registry.card",
    "Client": "comgrad.client.client",
    "Dense": "comgrad.vectors.delta",
    "Explanation": "comgrad.explain.explanation",
    "LowRank": "comgrad.vectors.delta",
    "Registry": "comgrad.workflows.registry",
    "Suggestion": "comgrad.workflows.suggesting",
    "TaskVector": "comgrad.vectors.task_vector",
    "compare": "comgrad.geometry.measures",
    "gram": "comgrad.geometry.gram",
    "grassmann": "comgrad.geometry.angles",
    "matrix": "comgrad.geometry.measures",
    "merge": "comgrad.vectors.merge",
    "principal_angles": "comgrad.geometry.angles",
    "spectral_projection": "comgrad.geometry.spectral",
}

__all__ = [
    "Atlas",
    "BaseRef",
    "Card",
    "Client",
    "ComgradError",
    "Dense",
    "Explanation",
    "LowRank",
    "Registry",
    "Suggestion",
    "TaskVector",
    "compare",
    "gram",
    "grassmann",
    "matrix",
    "merge",
    "principal_angles",
    "spectral_projection",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'comgrad' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
