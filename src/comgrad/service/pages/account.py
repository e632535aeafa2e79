"""One's own account: password, tokens, what one shares; and for administrators, everybody's."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from comgrad.errors import ComgradError
from comgrad.service.auth.http import Form, Who
from comgrad.service.auth.identity import SCOPES, Principal
from comgrad.service.auth.tokens import NewToken
from comgrad.service.core import service_of
from comgrad.service.errors import sign_in, status_of
from comgrad.service.listings import Asked
from comgrad.service.pages.render import go, render

router = APIRouter()
MINE = 50
TRAIL = 100


@router.get("/account")
def account(request: Request, who: Who, done: str = "") -> Response:
    """The account's page."""
    return _page(request, who, done=done)


def _page(
    request: Request,
    who: Principal,
    *,
    error: ComgradError | None = None,
    made: NewToken | None = None,
    done: str = "",
) -> Response:
    if not who.known:
        raise sign_in("your account")
    service = service_of(request)
    page = render(
        request,
        who,
        "account.html",
        status=200 if error is None else status_of(error),
        error=error,
        made=made,
        done="password" if done == "password" else "",
        account=service.accounts.account(who),
        tokens=service.tokens.list(who),
        orgs=service.organisations.mine(who),
        invited=service.organisations.invited(who),
        mine=service.listings.page(who, Asked(owner=who.handle, limit=MINE)),
    )
    if made is not None:
        page.headers["Cache-Control"] = "no-store"  # the secret is shown once
    return page


@router.post("/account/password")
def password(request: Request, who: Who, form: Form) -> Response:
    """Change the password."""
    try:
        service_of(request).sessions.change_password(who, form.get("old", ""), form.get("new", ""))
    except ComgradError as error:
        return _page(request, who, error=error)
    return go("/account?done=password")


@router.post("/account/tokens")
def make_token(request: Request, who: Who, form: Form) -> Response:
    """Make a token and show it once."""
    scopes = [s for s in SCOPES if form.get(f"scope-{s}") == "1"]
    try:
        days = int(form.get("days", "90"))
    except ValueError:
        days = 0  # refused below, in the same words as any other wrong number
    try:
        made = service_of(request).tokens.create(who, form.get("name", ""), scopes, days)
    except ComgradError as error:
        return _page(request, who, error=error)
    return _page(request, who, made=made)


@router.post("/account/tokens/{token_id}/revoke")
def revoke(request: Request, who: Who, token_id: str, form: Form) -> Response:  # noqa: ARG001 - carries the CSRF token
    """End a token."""
    try:
        service_of(request).tokens.revoke(who, token_id)
    except ComgradError as error:
        return _page(request, who, error=error)
    return go("/account#tokens")


# -- administrators --------------------------------------------------------------------------------------------------
@router.get("/people")
def people(request: Request, who: Who) -> Response:
    """Accounts and invitations."""
    return _people(request, who)


def _people(request: Request, who: Principal, **values: Any) -> Response:
    error = values.get("error")
    found = service_of(request).accounts.accounts(who)
    status = 200 if error is None else status_of(error)
    page = render(
        request,
        who,
        "people.html",
        status=status,
        accounts=found,
        **{"invited": None, "reset": None, "error": None, **values},
    )
    if values.get("invited") is not None or values.get("reset") is not None:
        page.headers["Cache-Control"] = "no-store"
    return page


@router.post("/people/invite")
def invite(request: Request, who: Who, form: Form) -> Response:
    """Invite somebody; the secret is shown once."""
    try:
        invited = service_of(request).accounts.invite(who, form.get("handle", "").strip())
    except ComgradError as error:
        return _people(request, who, error=error)
    return _people(request, who, invited=invited, address=str(service_of(request).settings.public_url))


@router.post("/people/{handle}/reset")
def reset(request: Request, who: Who, handle: str, form: Form) -> Response:  # noqa: ARG001 - carries the CSRF token
    """Let somebody who lost their password choose a new one; the secret is shown once."""
    service = service_of(request)
    try:
        made = service.recovery.issue(who, handle)
    except ComgradError as error:
        return _people(request, who, error=error)
    return _people(request, who, reset=made, address=str(service.settings.public_url))


@router.post("/people/{handle}/disable")
def disable(request: Request, who: Who, handle: str, form: Form) -> Response:
    """Shut an account out, or let it in again."""
    try:
        service_of(request).accounts.disable(who, handle, form.get("disabled", "1") == "1")
    except ComgradError as error:
        return _people(request, who, error=error)
    return go("/people")


@router.get("/audit")
def audit(request: Request, who: Who, before: int | None = None) -> Response:
    """Who did what."""
    entries = service_of(request).audit.entries(who, TRAIL, before)
    return render(request, who, "audit.html", entries=entries, full=len(entries) == TRAIL)
