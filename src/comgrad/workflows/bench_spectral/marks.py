"""Tables and numbers of the page, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def image(images: Mapping[str, str], name: str) -> str:
    return f"\n![{name}]({images[name]})\n" if name in images else ""


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    out += [f"| {' | '.join(str(c).replace('|', '/') for c in line)} |" for line in lines]
    return "\n".join(out) + "\n"


def number(x: float | None, digits: int = 2) -> str:
    return "–" if x is None or not math.isfinite(x) else f"{x:.{digits}f}"


def digits_of(x: float) -> str:
    """Three significant digits: shares of energy are small."""
    return "–" if not math.isfinite(x) else f"{x:.3g}"


def p_value(x: float) -> str:
    return "–" if not math.isfinite(x) else "< 0.0001" if x < 1e-4 else f"{x:.4f}"
