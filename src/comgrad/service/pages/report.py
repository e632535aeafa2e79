"""The report of an explanation, as values for its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comgrad.service.pages import charts

MOST_PARTS = 8


def of(x: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of `Explanation.as_dict()`."""
    from comgrad.workflows.explain_report import CLAIMS, HEADLINES  # here, because it loads torch

    sources = list(x.get("sources") or [])
    layers = list(x.get("layers") or [])
    claim = x.get("claim")
    return {
        "x": x,
        "headline": HEADLINES.get(x["verdict"], x["verdict"]),
        "claim_words": CLAIMS.get(claim["status"], "") if claim else "",
        "parts": _parts(sources),
        "neighbours": _scaled(list(x.get("neighbours") or []), "subspace"),
        "layers": _scaled(layers, "energy"),
        "lines": sorted(x.get("evidence") or [], key=lambda e: ("warning", "note", "fine").index(e["weight"])),
    }


def _parts(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Shares of the vector's squared length: the largest sources, and the others together."""
    ordered = sorted(sources, key=lambda s: -float(s["share"]))
    rows = [dict(s) for s in ordered[:MOST_PARTS]]
    rest = ordered[MOST_PARTS:]
    if rest:
        share = sum(float(s["share"]) for s in rest)
        rows.append({"id": "", "name": f"{len(rest)} others", "coefficient": None, "share": share})
    return _scaled(rows, "share")


def _scaled(rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    top = max([float(r.get(key) or 0.0) for r in rows], default=0.0)
    return [dict(r) | {"bar": charts.bar(float(r.get(key) or 0.0), top)} for r in rows]
