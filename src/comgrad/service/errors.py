"""Refusals that only a service makes, and the HTTP status of every error."""

from __future__ import annotations

from comgrad.errors import ComgradError, NameTaken, NotFound, StorageError


class SignInNeeded(ComgradError):
    """Nobody is signed in, or the session or token is not valid."""

    default_code = "sign-in-needed"


class Forbidden(ComgradError):
    """The account may not do this."""

    default_code = "forbidden"


class Conflict(ComgradError):
    """The state on the server is not what the request assumes."""

    default_code = "conflict"


class TooLarge(ComgradError):
    """A body or a file is over its limit."""

    default_code = "too-large"


class WrongMedia(ComgradError):
    """A body of a kind that is not read here."""

    default_code = "media-type"


class TooMany(ComgradError):
    """Over a rate limit or a quota; `seconds` says when to come back."""

    default_code = "too-many"

    def __init__(self, given: str, why: str, remedy: str, *, seconds: float = 60.0, code: str | None = None) -> None:
        super().__init__(given, why, remedy, code=code)
        self.seconds = seconds


class Busy(ComgradError):
    """The service cannot do it now, but soon."""

    default_code = "busy"


class TooSlow(ComgradError):
    """A body that came too slowly."""

    default_code = "too-slow"


class Mistake(ComgradError):
    """The service's own."""

    default_code = "internal"


class BadRange(ComgradError):
    """A range that the file does not have, or more than one."""

    default_code = "range"


_BY_CODE = {"removed": 410, "disk-full": 507, "ambiguous": 409, "method": 405, "bad-request": 400}
_BY_CODE |= {"unavailable": 503, "locked": 503}  # a database that is away or busy: the same may succeed soon
_STORAGE = {
    "disk-full": "the service's disk is full; nothing half-written was kept",
    "unavailable": "the service's database or object store does not answer",
    "locked": "the service's database is busy",
}
_BY_KIND: tuple[tuple[type[ComgradError], int], ...] = (
    (SignInNeeded, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (TooSlow, 408),
    (NameTaken, 409),
    (Conflict, 409),
    (TooLarge, 413),
    (WrongMedia, 415),
    (BadRange, 416),
    (TooMany, 429),
    (Busy, 503),
    (StorageError, 500),
    (Mistake, 500),
)


def status_of(error: ComgradError) -> int:
    """The HTTP status of an error; 422 for what is refused for its content."""
    if isinstance(error, StorageError) and error.code == "conflict":
        return 503  # two transactions collided
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    return next((status for kind, status in _BY_KIND if isinstance(error, kind)), 422)


def passing_soon(error: ComgradError) -> bool:
    """Whether the same may succeed soon: something is busy, away or full. What is lost stays lost."""
    return status_of(error) in (503, 507)


def outward(error: ComgradError) -> ComgradError:
    """The error as a stranger may read it: what disks and databases say holds paths and addresses of the server."""
    if not isinstance(error, StorageError):
        return error
    why = _STORAGE.get(error.code, "the service could not read or write what it keeps")
    remedy = "try again later; tell the site's administrators if it stays"
    return StorageError("the request", why, remedy, code=error.code)


def sign_in(given: str = "a request by nobody") -> SignInNeeded:
    """The refusal of what only an account may do."""
    return SignInNeeded(given, "it needs an account", "sign in, or send a token in the Authorization header")


def no_vector(ref: str) -> NotFound:
    """The answer for a vector that is not there and for one that may not be read: the same words."""
    shown = ref if len(ref) <= 80 and ref.isprintable() else ascii(ref[:80])
    return NotFound(f"'{shown}'", "there is no vector of that id or name that you may read", "check the spelling")
