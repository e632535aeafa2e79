"""Parameter names under the prefixes that wrappers put before them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

from comgrad.errors import ComgradError, NotFound

PREFIXES: Final = (  # what wrappers put before a parameter's own name
    "base_model.model.",
    "module.",
    "_orig_mod.",
    "0.auto_model.",
    "auto_model.",
    "model.",
    "bert.",
    "roberta.",
    "transformer.",
    "vit.",
    "clip.",
    "language_model.",
    "text.",
)


def forms(name: str) -> list[str]:
    """The name, then with known prefixes taken off one after the other."""
    out = [name]
    while True:
        prefix = next((p for p in PREFIXES if out[-1].startswith(p)), None)
        if prefix is None:
            return out
        out.append(out[-1].removeprefix(prefix))


class NameIndex:
    """Parameter names of one checkpoint, to be found under whatever prefix a wrapper gave them."""

    def __init__(self, available: Iterable[str]) -> None:
        self._available = dict.fromkeys(available)
        self._by_form: dict[str, list[str]] = {}
        for name in self._available:
            for form in forms(name):
                self._by_form.setdefault(form, []).append(name)

    def resolve(self, name: str) -> str:
        """The available parameter that `name` (a parameter, or a module whose weight is meant) stands for.

        Raises:
            NotFound: none. ComgradError: `name-ambiguous`, several.
        """
        for candidate in (name, f"{name}.weight"):
            for form in forms(candidate):
                if form in self._available:
                    return form
            for form in forms(candidate):
                found = self._by_form.get(form, [])
                if len(found) == 1:
                    return found[0]
                if found:
                    raise ComgradError(
                        f"parameter '{name}'",
                        f"it may be any of {', '.join(repr(f) for f in sorted(found)[:4])}",
                        "give the full name",
                        code="name-ambiguous",
                    )
        near = difflib.get_close_matches(name, self._available, n=1)
        raise NotFound(
            f"parameter '{name}'",
            "the checkpoint has none of that name" + (f" (the nearest is '{near[0]}')" if near else ""),
            "check that this is the base it was trained from",
        )


def resolve_name(name: str, available: Iterable[str]) -> str:
    """`NameIndex(available).resolve(name)`; build the index yourself to resolve many names."""
    return NameIndex(available).resolve(name)
