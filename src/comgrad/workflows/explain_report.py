"""The explanation as one HTML page: no script, nothing from elsewhere, every text escaped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from comgrad.explain.evidence import percent
from comgrad.weights.writer import atomic_write_bytes

if TYPE_CHECKING:
    from comgrad.explain.explanation import Explanation, LayerShare, Spread

DECADES = 6  # the scale of shares goes from 10⁻⁶ to 1
MOST_PARTS = 7
CLEARLY = 3.0  # times what is explained of a random layer

HEADLINES = {
    "consistent": "Consistent with known tasks",
    "unexplained": "Not explained by known tasks",
    "suspicious": "Suspicious: look before you use it",
    "refused": "Refused: it cannot be compared",
}
CLAIMS = {
    "consistent": "The description that came with it fits its weights.",
    "unexplained": "The weights neither confirm nor contradict the description that came with it.",
    "contradictory": "The description that came with it does not fit its weights.",
}


@dataclass(frozen=True)
class Bar:
    """A labelled bar: where it starts and how long it is, in percent of the picture's width."""

    label: str
    start: float
    width: float
    figure: str
    note: str = ""
    tick: float | None = None


def write_explanation(x: Explanation, path: Path) -> None:
    """Write the page atomically."""
    atomic_write_bytes(path, page(x).encode())


def page(x: Explanation) -> str:
    """The page's HTML."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = files("comgrad.workflows").joinpath("templates/explain.html").read_text("utf-8")
    environment.filters["sentence"] = _sentence
    text: str = environment.from_string(source).render(
        x=x,
        headline=HEADLINES[x.verdict],
        claim_words=CLAIMS[x.claim.status] if x.claim else "",
        neighbours=_neighbours(x),
        scale=_scale(x),
        parts=_parts(x),
        layers=[_layer(layer, x.layers) for layer in x.layers],
        odds=_odds(x),
        claim_bars=_claim_bars(x),
        percent=percent,
        decades=[percent(10.0**-d) for d in range(DECADES, -1, -2)],
    )
    return text


def _neighbours(x: Explanation) -> list[Bar]:
    """Correlations, from zero to the largest; the mark is what known vectors reach with their own nearest."""
    usual = x.nearest_known.middle if x.nearest_known is not None else None
    top = max([*(n.subspace for n in x.neighbours), usual or 0.0, 1e-300])
    tick = None if usual is None else _within(100 * usual / top)
    return [
        Bar(n.name, 0.0, _within(100 * n.subspace / top), f"{n.subspace:.3f}", n.family, tick) for n in x.neighbours
    ]


def _scale(x: Explanation) -> list[Bar]:
    """What is explained of this vector, of random ones and of known ones, on one logarithmic scale."""
    if x.residual_random is None:
        return []
    rows = [Bar("this vector", 0.0, _log(1 - x.residual), percent(1 - x.residual))]
    for label, spread in (("known vectors", x.residual_known), ("random vectors", x.residual_random)):
        if spread is not None:
            low, high = _log(1 - spread.high), _log(1 - spread.low)
            rows.append(Bar(label, low, max(high - low, 1.5), _range(spread)))
    return rows


def _range(spread: Spread) -> str:
    return f"{percent(1 - spread.high)} to {percent(1 - spread.low)}"


def _log(share: float) -> float:
    """Place of a share on the logarithmic scale, in percent of its width."""
    return _within(100.0 * (1.0 + math.log10(max(share, 10.0**-DECADES)) / DECADES))


def _parts(x: Explanation) -> list[Bar]:
    """The explained part, cut among the known vectors it is made of."""
    whole = sum(s.share for s in x.sources)
    if whole <= 0.0 or x.like_random:
        return []
    out, start = [], 0.0
    shown = x.sources[:MOST_PARTS]
    rest = whole - sum(s.share for s in shown)
    for name, share in [*((s.name, s.share) for s in shown), *([("others", rest)] if rest > 1e-12 else [])]:
        width = _within(100 * share / whole)
        out.append(Bar(name, start, width, percent(share / whole), percent(share)))
        start += width
    return out


def _layer(layer: LayerShare, layers: tuple[LayerShare, ...]) -> Bar:
    top = max([*(v.energy for v in layers), *(v.usual for v in layers), 1e-300])
    explained = "–" if layer.explained is None else percent(layer.explained)
    note = f"{explained} explained" + (f", mostly by {layer.nearest}" if _tells(layer) else "")
    return Bar(layer.name, 0.0, _within(100 * layer.energy / top), percent(layer.energy), note, 100 * layer.usual / top)


def _tells(layer: LayerShare) -> bool:
    """Whether the known vectors explain clearly more of the layer than of a random one."""
    known, chance = layer.explained, layer.random
    return bool(layer.nearest) and known is not None and chance is not None and known > CLEARLY * chance


def _odds(x: Explanation) -> Bar | None:
    if x.family_odds is None or not x.family_odds[1]:
        return None
    right, of = x.family_odds
    return Bar(x.family, 0.0, 100.0 * right / of, f"{right} of {of}")


def _claim_bars(x: Explanation) -> list[Bar]:
    c = x.claim
    if c is None or c.swapped is None or c.true is None:
        return []
    return [
        Bar("wrong descriptions that fit at least as well", 0.0, _within(100 * c.swapped), percent(c.swapped)),
        Bar("true descriptions that fit no better", 0.0, _within(100 * c.true), percent(c.true)),
    ]


def _within(value: float) -> float:
    return min(max(value, 0.0), 100.0)


def _sentence(text: str) -> str:
    """With a capital at the start and one full stop at the end."""
    return text[:1].upper() + text[1:].rstrip(".") + "."
