"""The wire: one connection pool to one address, retries with back-off, no redirects, answers read within limits."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, TypeVar

import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from comgrad.client.address import Address
from comgrad.client.errors import Remote, Unreachable, not_trusted, refusal
from comgrad.errors import ComgradError

T = TypeVar("T")

MOST_JSON = 64 << 20
_LATER = frozenset({408, 429, 502, 503, 504})
_NOT_DONE = frozenset({429, 503})  # refused before anything was done, so that even a POST may be sent again
_LONGEST_WAIT = 3600.0
PERSISTENT = 8  # times the usual attempts


@dataclass(frozen=True)
class Patience:
    """How long to go on.

    Args:
        attempts: of one request; a transfer that makes progress starts counting anew.
        seconds: no attempt begins later than this after the first.
        longest: of the random pause before an attempt; `Retry-After` may ask for more.
        connect, answer: seconds to wait for a connection, and for the next bytes.
    """

    attempts: int = 8
    seconds: float = 180.0
    longest: float = 20.0
    connect: float = 10.0
    answer: float = 60.0


class Again(Exception):
    """Try again, after `after` seconds where the service said so; `error` is for the user when it was the last try."""

    def __init__(self, error: ComgradError, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


@dataclass(frozen=True)
class Answer:
    """A whole answer: status, headers, and JSON where there was some."""

    status: int
    headers: httpx2.Headers
    json: Any


class Wire:
    """Requests to one address.

    Args:
        where: the address; nothing is ever sent to another one.
        token: sent in the Authorization header of each request, and nowhere else.
        transport: for tests; default: the network.
        sleep: how to pause.
    """

    def __init__(
        self,
        where: Address,
        token: str | None = None,
        *,
        patience: Patience | None = None,
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.where = where
        self.patience = patience or Patience()
        self._sleep = sleep
        headers = {"User-Agent": f"comgrad/{version('comgrad')}", "Accept-Encoding": "identity"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        waits = httpx2.Timeout(self.patience.answer, connect=self.patience.connect)
        # A proxy is for other machines; cookies would be a second credential, so none is kept.
        self._http = httpx2.Client(
            base_url=where.origin,
            headers=headers,
            timeout=waits,
            follow_redirects=False,
            trust_env=not where.local,
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"Wire('{self.where.origin}')"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- whole answers -------------------------------------------------------------------------------------------
    def ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> Answer:
        """Send a request until it is answered, and read the answer as JSON.

        Args:
            path: below the address, already encoded.
            repeatable: the request may be done twice; otherwise it is sent again only where it was not done.

        Raises:
            ComgradError: the service's refusal; Unreachable; NotTrusted.
        """

        def once() -> Answer:
            with self.open(
                method, path, json_body=body, params=params, headers=headers, repeatable=repeatable
            ) as answer:
                return Answer(answer.status_code, answer.headers, _parsed(answer, self.where.origin))

        return self.patiently(once)

    # -- one attempt ---------------------------------------------------------------------------------------------
    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        json_body: Any = None,
        content: bytes | Iterable[bytes] | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        also: frozenset[int] = frozenset(),
        repeatable: bool = True,
    ) -> Iterator[httpx2.Response]:
        """One attempt: the open answer, whose body is not read yet. Raises Again, ComgradError.

        Args:
            also: statuses that the caller handles, besides success.
        """
        if not path.startswith("/") or path.startswith("//"):
            raise ValueError("a path begins with one slash")
        kept = {k: v for k, v in (params or {}).items() if v is not None}
        try:
            with self._http.stream(
                method, path, json=json_body, content=content, params=kept or None, headers=headers
            ) as answer:
                self._http.cookies.clear()
                if answer.status_code not in also:
                    self._refuse(answer, repeatable)
                yield answer
        except httpx2.TransportError as error:
            raise self._cut(error, repeatable) from error
        except httpx2.DecodingError as error:
            raise not_trusted(f"an answer of {self.where.origin}", "its body cannot be decoded") from error

    def _refuse(self, answer: httpx2.Response, repeatable: bool) -> None:
        status = answer.status_code
        if status < 300 or status == 304:
            return
        origin = self.where.origin
        if status < 400:
            raise Remote(
                f"a request to {origin}",
                f"it answers with a redirect{_towards(answer)}, and a token is never taken to another address",
                "sign in at the address where the service really is",
                code="redirected",
                status=status,
            )
        try:
            body = _parsed(answer, origin)
        except ComgradError:
            body = None  # an error page of something in between
        error = refusal(status, body, origin)
        if status in _LATER and (repeatable or status in _NOT_DONE):
            raise Again(error, _after(answer))
        raise error

    def _cut(self, error: httpx2.TransportError, repeatable: bool) -> Exception:
        origin = self.where.origin
        if _certificate(error):
            return Unreachable(
                origin,
                "its certificate cannot be trusted",
                "check the address; never go on regardless",
                code="certificate",
            )
        why = f"it does not answer ({type(error).__name__})"
        gone = Unreachable(origin, why, "check the address and the network, then do the same again")
        early = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
        if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError) or not (repeatable or early):
            return gone
        return Again(gone)

    @contextmanager
    def briefly(self) -> Iterator[None]:
        """Try twice at most: where there is something to fall back on."""
        usual = self.patience
        self.patience = replace(usual, attempts=min(2, usual.attempts))
        try:
            yield
        finally:
            self.patience = usual

    @contextmanager
    def persistently(self) -> Iterator[None]:
        """Try as long as the patience lasts, however often: where something was begun that is to be ended."""
        usual = self.patience
        self.patience = replace(usual, attempts=PERSISTENT * usual.attempts)
        try:
            yield
        finally:
            self.patience = usual

    # -- patience ------------------------------------------------------------------------------------------------
    def patiently(self, once: Callable[[], T]) -> T:
        """Do something until it does not raise Again, with growing random pauses. Raises what its last try meant."""
        p = self.patience
        grown = wait_random_exponential(multiplier=0.5, max=p.longest)

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked = error.after if isinstance(error, Again) else 0.0
            return max(asked, grown(state))

        again = Retrying(
            retry=retry_if_exception_type(Again),
            wait=pause,
            stop=stop_after_attempt(p.attempts) | stop_before_delay(p.seconds),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return again(once)
        except Again as last:
            raise last.error from last.__cause__


def _parsed(answer: httpx2.Response, origin: str) -> Any:
    """The JSON of an answer, None where it has no body; read within a limit, and never decompressed."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise not_trusted(f"an answer of {origin}", "it is compressed, which was not asked for")
    data = bytearray()
    for piece in answer.iter_raw():
        data += piece
        if len(data) > MOST_JSON:
            raise not_trusted(f"an answer of {origin}", f"it is larger than {MOST_JSON >> 20} MiB")
    if not data:
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        if answer.status_code >= 400:
            return None
        raise not_trusted(
            f"an answer of {origin}", "it is no JSON: this is no comgrad service", "no-service"
        ) from error


def _after(answer: httpx2.Response) -> float:
    """Seconds that Retry-After asks for, as a number or a date."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _LONGEST_WAIT)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def _towards(answer: httpx2.Response) -> str:
    try:
        host = httpx2.URL(answer.headers.get("Location", "")).raw_host.decode("ascii")
    except (httpx2.InvalidURL, ValueError):
        return ""
    return f" to '{host[:200]}'" if host else ""


def _certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
