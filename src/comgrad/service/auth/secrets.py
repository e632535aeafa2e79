"""Secrets: made with 256 random bits, stored only as digests; passwords stretched with scrypt."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets as source
import threading
from functools import lru_cache

TOKEN = "cgt_"
SESSION = "cgs_"
INVITATION = "cgi_"
FIRST_START = "cgf_"
RESET = "cgr_"
BYTES = 32

_COST = {"n": 2**14, "r": 8, "p": 2}
_MEMORY = 64 * 2**20
_AT_ONCE = threading.BoundedSemaphore(4)  # one takes 16 MiB and a processor for a moment


def new(kind: str) -> str:
    """A secret of 256 random bits; the beginning says what it is for, so that a leaked one is recognised."""
    return f"{kind}{source.token_urlsafe(BYTES)}"


def digest(secret: str) -> str:
    """SHA-256 of a secret: enough for one with 256 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two texts are equal, in a time that does not say where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def csrf_of(session: str) -> str:
    """The token that a form of this session carries; it cannot be made without the session's secret."""
    return hmac.new(session.encode(), b"comgrad csrf", hashlib.sha256).hexdigest()


def hashed(password: str) -> str:
    """`scrypt$n$r$p$salt$hash` of a password."""
    salt = source.token_bytes(16)
    made = _scrypt(password, salt, **_COST)
    cost = "$".join(str(_COST[k]) for k in ("n", "r", "p"))
    return f"scrypt${cost}${_text(salt)}${_text(made)}"


@lru_cache(maxsize=1)
def _nobody() -> str:
    """Checked for accounts that do not exist, so that both answers take as long."""
    return hashed(source.token_hex(16))


def matches(password: str, stored: str | None) -> bool:
    """Whether a password is the stored one; as slow for an account without one."""
    _, n, r, p, salt, expected = (stored or _nobody()).split("$")
    made = _scrypt(password, base64.b64decode(salt), n=int(n), r=int(r), p=int(p))
    return hmac.compare_digest(made, base64.b64decode(expected)) and stored is not None


def _scrypt(password: str, salt: bytes, *, n: int, r: int, p: int) -> bytes:
    text = password.encode("utf-8", "surrogatepass")
    with _AT_ONCE:
        return hashlib.scrypt(text, salt=salt, n=n, r=r, p=p, maxmem=_MEMORY, dklen=32)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
