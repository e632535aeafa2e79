"""Coming and going: the first start, signing in and out, invitations, new accounts and passwords, and the theme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from comgrad.errors import ComgradError
from comgrad.service.auth.http import Form, Who, clear_session, client_of, set_session
from comgrad.service.auth.identity import Principal
from comgrad.service.core import service_of
from comgrad.service.errors import TooMany, status_of
from comgrad.service.pages.render import THEME_COOKIE, THEMES, YEAR, go, local, render

router = APIRouter()


def _entered(request: Request, handle: str, password: str, address: str) -> Response:
    """Signed in, and on to another page."""
    session = service_of(request).sessions.log_in(handle, password, client_of(request))
    answer = go(address)
    set_session(answer, session)
    return answer


def _again(request: Request, who: Principal, template: str, error: ComgradError, **values: Any) -> Response:
    page = render(request, who, template, status=status_of(error), error=error, **values)
    if status_of(error) == 401:
        page.status_code = 422  # a form that was wrong, not a page that needs an account
    if isinstance(error, TooMany):
        page.headers["Retry-After"] = str(int(error.seconds) + 1)
    return page


def _chosen(
    request: Request, who: Principal, form: dict[str, str], choose: Callable[..., object], template: str, onward: str
) -> Response:
    """A password chosen with a one-time secret, and signed in with it."""
    handle, password = form.get("handle", "").strip(), form.get("password", "")
    try:
        choose(handle, form.get("secret", "").strip(), password, client_of(request))
        return _entered(request, handle, password, onward)
    except ComgradError as error:
        return _again(request, who, template, error, handle=handle[:60])


@router.get("/login")
def login(request: Request, who: Who, next: str = "/") -> Response:  # noqa: A002 - the query's name
    """The form for signing in."""
    onward = local(next)
    if who.known:
        return go(onward)
    return render(request, who, "login.html", handle="", onward=onward, **_doors(request))


def _doors(request: Request) -> dict[str, bool]:
    service = service_of(request)
    return {"open_sign_up": service.settings.open_sign_up, "first_start": service.accounts.needs_first_start()}


@router.post("/login")
def log_in(request: Request, who: Who, form: Form) -> Response:
    """Sign in."""
    handle, onward = form.get("handle", "").strip(), local(form.get("next", "/"))
    try:
        return _entered(request, handle, form.get("password", ""), onward)
    except ComgradError as error:
        return _again(request, who, "login.html", error, handle=handle[:60], onward=onward, **_doors(request))


@router.post("/logout")
def log_out(request: Request, who: Who, form: Form) -> Response:  # noqa: ARG001 - the form carries the CSRF token
    """Sign out."""
    service_of(request).sessions.log_out(who)
    answer = go("/")
    clear_session(answer)
    return answer


@router.get("/first-start")
def first_start(request: Request, who: Who) -> Response:
    """The form that makes the first administrator."""
    if not service_of(request).accounts.needs_first_start():
        return go("/login")
    return render(request, who, "first_start.html", handle="")


@router.post("/first-start")
def make_first(request: Request, who: Who, form: Form) -> Response:
    """Make the first administrator and sign in."""
    handle, password = form.get("handle", "").strip(), form.get("password", "")
    try:
        service_of(request).accounts.first_start(form.get("secret", "").strip(), handle, password, client_of(request))
        return _entered(request, handle, password, "/")
    except ComgradError as error:
        return _again(request, who, "first_start.html", error, handle=handle[:60])


@router.get("/invitation")
def invitation(request: Request, who: Who, handle: str = "") -> Response:
    """The form for somebody who was invited."""
    return render(request, who, "invitation.html", handle=handle[:60])


@router.post("/invitation")
def accept(request: Request, who: Who, form: Form) -> Response:
    """Choose a password and sign in."""
    return _chosen(request, who, form, service_of(request).accounts.accept, "invitation.html", "/account")


@router.get("/reset")
def reset(request: Request, who: Who, handle: str = "") -> Response:
    """The form for somebody who lost their password and has an administrator's secret."""
    return render(request, who, "reset.html", handle=handle[:60])


@router.post("/reset")
def choose_again(request: Request, who: Who, form: Form) -> Response:
    """Choose a new password and sign in."""
    return _chosen(request, who, form, service_of(request).recovery.use, "reset.html", "/account?done=password")


@router.get("/sign-up")
def sign_up(request: Request, who: Who) -> Response:
    """The form for a new account, where the site lets everybody make one."""
    if not service_of(request).settings.open_sign_up:
        return go("/invitation")
    return render(request, who, "sign_up.html", handle="")


@router.post("/sign-up")
def make_account(request: Request, who: Who, form: Form) -> Response:
    """Make an account and sign in."""
    handle, password = form.get("handle", "").strip(), form.get("password", "")
    try:
        service_of(request).accounts.sign_up(handle, password, client_of(request))
        return _entered(request, handle, password, "/account")
    except ComgradError as error:
        return _again(request, who, "sign_up.html", error, handle=handle[:60])


@router.post("/theme")
def theme(request: Request, form: Form) -> Response:  # noqa: ARG001 - every handler has the request
    """Choose light, dark or what the device says."""
    chosen = form.get("theme", "auto")
    answer = go(local(form.get("next", "/")))
    kept = chosen if chosen in THEMES else "auto"
    answer.set_cookie(THEME_COOKIE, kept, max_age=YEAR, samesite="lax", path="/")
    return answer
