"""Organisations: those one is in, their members, and founding one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from comgrad.errors import ComgradError
from comgrad.service.auth.http import Form, Who
from comgrad.service.auth.identity import Principal
from comgrad.service.core import service_of
from comgrad.service.errors import sign_in, status_of
from comgrad.service.listings import Asked
from comgrad.service.pages.render import go, render

router = APIRouter()


@router.get("/organisations")
def organisations(request: Request, who: Who) -> Response:
    """One's own organisations."""
    return _list(request, who)


def _list(
    request: Request, who: Principal, error: ComgradError | None = None, handle: str = "", title: str = ""
) -> Response:
    if not who.known:
        raise sign_in("your organisations")
    found = service_of(request).organisations.mine(who)
    status = 200 if error is None else status_of(error)
    return render(
        request, who, "organisations.html", status=status, orgs=found, error=error, handle=handle, title_given=title
    )


@router.post("/organisations")
def found(request: Request, who: Who, form: Form) -> Response:
    """Found one."""
    handle, title = form.get("handle", "").strip(), form.get("title", "").strip()
    try:
        made = service_of(request).organisations.create(who, handle, title)
    except ComgradError as error:
        return _list(request, who, error, handle[:60], title[:200])
    return go(f"/organisations/{made.handle}")


@router.get("/organisations/{handle}")
def organisation(request: Request, who: Who, handle: str) -> Response:
    """One of them, with its members and vectors."""
    return _one(request, who, handle)


def _one(request: Request, who: Principal, handle: str, error: ComgradError | None = None) -> Response:
    if not who.known:
        raise sign_in("this organisation")
    service = service_of(request)
    return render(
        request,
        who,
        "organisation.html",
        status=200 if error is None else status_of(error),
        org=service.organisations.get(who, handle),
        members=service.organisations.members(who, handle),
        shared=service.listings.page(who, Asked(owner=handle, limit=50)),
        error=error,
    )


@router.post("/organisations/{handle}/members")
def put_member(request: Request, who: Who, handle: str, form: Form) -> Response:
    """Add a member or change a role."""
    try:
        service_of(request).organisations.put_member(
            who, handle, form.get("member", "").strip(), form.get("role", "member")
        )
    except ComgradError as error:
        return _one(request, who, handle, error)
    return go(f"/organisations/{handle}")


@router.post("/organisations/{handle}/members/remove")
def remove_member(request: Request, who: Who, handle: str, form: Form) -> Response:
    """Remove a member, or leave."""
    member = form.get("member", "").strip()
    try:
        service_of(request).organisations.remove_member(who, handle, member)
    except ComgradError as error:
        return _one(request, who, handle, error)
    return go("/organisations" if member == who.handle else f"/organisations/{handle}")
