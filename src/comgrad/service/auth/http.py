"""How a request says who asks: a bearer token, or the session's cookie with a token against forged requests."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from comgrad.errors import ComgradError
from comgrad.service.auth import secrets
from comgrad.service.auth.identity import ANONYMOUS, Principal
from comgrad.service.auth.sessions import Session
from comgrad.service.core import service_of
from comgrad.service.errors import Forbidden, SignInNeeded, WrongMedia
from comgrad.service.store.database import now

COOKIE = "comgrad_session"
HEADER = "X-CSRF-Token"
FIELD = "csrf"
FORM = "application/x-www-form-urlencoded"
SAFE = ("GET", "HEAD", "OPTIONS")
_MOST_FIELDS = 100


def client_of(request: Request) -> str:
    """The address that asks; a proxy's word for it is taken only from those that the settings name."""
    found: str = request.scope.get("comgrad.client", "")
    return found


def set_session(response: Response, session: Session) -> None:
    """Send a session's cookie; its name binds it to this host where the service is reached over https."""
    age = max(0, int((session.expires_at - now()).total_seconds()))
    name = _name(session.secure)
    response.set_cookie(name, session.secret, max_age=age, httponly=True, samesite="lax", secure=session.secure)


def clear_session(response: Response) -> None:
    """Take the cookie back."""
    for secure in (False, True):
        response.delete_cookie(_name(secure), httponly=True, samesite="lax", secure=secure)


def _name(secure: bool) -> str:
    return f"__Host-{COOKIE}" if secure else COOKIE


async def principal(request: Request) -> Principal:
    """Who asks. Raises SignInNeeded (a token that is not valid), Forbidden (`csrf`)."""
    client = client_of(request)
    sessions = service_of(request).sessions
    header = request.headers.get("authorization")
    if header is not None:
        kind, _, secret = header.partition(" ")
        if kind.lower() != "bearer" or not secret.strip().startswith(secrets.TOKEN):
            raise SignInNeeded("this Authorization header", "it holds no token of this service", "send: Bearer cgt_...")
        return await run_in_threadpool(sessions.of_token, secret.strip(), client)
    cookie = request.cookies.get(_name(service_of(request).settings.secure))
    found = await run_in_threadpool(sessions.of_session, cookie, client) if cookie else None
    if request.method not in SAFE:
        await _check_origin(request, found)
    if found is not None:
        return found
    return Principal(client=client) if client else ANONYMOUS


async def _check_origin(request: Request, who: Principal | None) -> None:
    """Refuse what another site's page makes a browser send."""
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise _forged("it comes from another site's page")
    if who is None:
        return
    given = request.headers.get(HEADER)
    if given is None and not request.url.path.startswith("/api/") and _is_form(request):
        given = (await _fields(request)).get(FIELD)
    if given is None or not secrets.same(given, who.csrf):
        raise _forged("it lacks the session's token against forged requests, or has another one")


def _forged(why: str) -> Forbidden:
    return Forbidden("this request", why, "load the page again and repeat it", code="csrf")


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM


async def _fields(request: Request) -> dict[str, str]:
    try:
        found = await request.form(max_files=0, max_fields=_MOST_FIELDS)
    except ComgradError:
        raise
    except Exception as error:
        raise ComgradError("the form", "it cannot be read", "send it again", code="bad-request") from error
    return {k: v for k, v in found.items() if isinstance(v, str)}


Who = Annotated[Principal, Depends(principal)]


async def form_of(request: Request, who: Who) -> dict[str, str]:
    """The fields of a form, after the check against forged requests. Raises WrongMedia, ComgradError."""
    del who
    if not _is_form(request):
        raise WrongMedia("the body", "it is no form", f"send it as {FORM}")
    fields = await _fields(request)
    if any("\x00" in v or any(0xD800 <= ord(c) <= 0xDFFF for c in v) for v in fields.values()):
        raise ComgradError("the form", "a field is no text", "send text", code="bad-request")
    return fields


Form = Annotated[dict[str, str], Depends(form_of)]
