"""Paths of the API: whatever a user or a service puts into a segment, it stays that segment."""

from __future__ import annotations

from comgrad.errors import NotFound

API = "/api/v1"
_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~")


def vector_path(ref: str) -> str:
    """The path of a vector by `owner/name` or id. Raises NotFound."""
    owner, slash, name = ref.strip().partition("/")
    return f"{API}/names/{quoted(owner)}/{quoted(name)}" if slash else f"{API}/vectors/{quoted(owner)}"


def quoted(part: str) -> str:
    """One segment of a path; whatever it holds, it stays one segment. Raises NotFound for what cannot be one."""
    if not part.strip(".") or len(part) > 500:
        raise NotFound(f"{part[:60]!a}", "no vector has such a name", "give OWNER/NAME or an id")
    return "".join(c if c in _SAFE else "".join(f"%{b:02X}" for b in c.encode("utf-8", "replace")) for c in part)
