"""A vector's card as the model hub reads it: a YAML header and Markdown, with everything that users wrote made inert."""

from __future__ import annotations

import json
from collections.abc import Sequence

from comgrad.service.vectors import Listing

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>()#+!|~$"} | {"\n": " ", "\r": " ", "\t": " "})


def model_card(listing: Listing) -> str:
    """README.md of a listed vector."""
    card = listing.card
    facts = listing.entry.record.facts
    rank = "" if facts.rank is None else f" of rank {facts.rank}"
    body = [
        f"# {inert(listing.full_name)}",
        "",
        inert(card.description) or "No description.",
        "",
        f"- base model: {inert(facts.base.name)} ({facts.base.status})",
        f"- task vector: {facts.kind}{rank}, norm {facts.norm or 0.0:.4g}",
        f"- SHA-256 of `vector.safetensors`: `{listing.digest}`",
        f"- id: `{listing.id}`",
    ]
    if card.licence:
        body.append(f"- licence: {inert(card.licence)}")
    if card.label_names:
        body.append(f"- labels: {inert(', '.join(card.label_names[:50]))}")
    parents = [f"- {inert(p.role)}: `{inert(p.id)}`" for p in card.parents[:50]]
    body += ["", "## Made from", "", *parents] if parents else []
    return _header(facts.base.name, listing.tags, card.licence) + "\n".join(body) + "\n"


def suggestion_card(description: str, base: str, sources: Sequence[tuple[str, str, float]], confidence: float) -> str:
    """README.md of a suggested starting adapter; sources are (id, name, coefficient)."""
    body = [
        "# Suggested starting adapter",
        "",
        inert(description),
        "",
        f"Predicted from the description alone, not trained. Confidence {confidence:.2f}.",
        "",
        "## Made from",
        "",
        *(f"- {c:+.4f} {inert(name)} (`{identity}`)" for identity, name, c in sources[:50]),
    ]
    return _header(base, ("suggested",), "") + "\n".join(body) + "\n"


def _header(base: str, tags: Sequence[str], licence: str) -> str:
    """The YAML header; JSON strings are YAML strings, so nothing that a user wrote can end it."""
    lines = [f"base_model: {_quoted(base)}", "library_name: peft", "tags:"]
    lines += [f"- {_quoted(t)}" for t in ("task-vector", "lora", "comgrad", *tags)]
    if licence:
        lines.append(f"license: {_quoted(licence)}")
    return "---\n" + "\n".join(lines) + "\n---\n\n"


def _quoted(text: str) -> str:
    return json.dumps(text)


def inert(text: str) -> str:
    """Text that Markdown shows as it was written: no link, image, HTML, heading or code."""
    return " ".join(text.translate(_SPECIAL).split()).replace("://", ":\u200b//")
