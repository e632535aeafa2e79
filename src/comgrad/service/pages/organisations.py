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
    service = service_of(request).organisations
    values = {"orgs": service.mine(who), "invited": service.invited(who), "error": error}
    status = 200 if error is None else status_of(error)
    return render(request, who, "organisations.html", status=status, handle=handle, title_given=title, **values)


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
    org = service.organisations.get(who, handle)
    return render(
        request,
        who,
        "organisation.html",
        status=200 if error is None else status_of(error),
        org=org,
        invited=service.organisations.invitations(who, handle) if org.role == "admin" else [],
        members=service.organisations.members(who, handle),
        shared=service.listings.page(who, Asked(owner=handle, limit=50)),
        error=error,
    )


@router.post("/organisations/{handle}/members")
def change_role(request: Request, who: Who, handle: str, form: Form) -> Response:
    """Change a member's role."""
    try:
        service_of(request).organisations.change_role(who, handle, *_asked(form))
    except ComgradError as error:
        return _one(request, who, handle, error)
    return go(f"/organisations/{handle}")


def _asked(form: dict[str, str]) -> tuple[str, str]:
    """The member and the role that a form names."""
    return form.get("member", "").strip(), form.get("role", "member")


@router.post("/organisations/{handle}/invitations")
def invite(request: Request, who: Who, handle: str, form: Form) -> Response:
    """Ask an account to join."""
    try:
        service_of(request).organisations.invite(who, handle, *_asked(form))
    except ComgradError as error:
        return _one(request, who, handle, error)
    return go(f"/organisations/{handle}")


@router.post("/organisations/{handle}/invitations/withdraw")
def withdraw(request: Request, who: Who, handle: str, form: Form) -> Response:
    """Take an invitation back."""
    try:
        service_of(request).organisations.withdraw(who, handle, _asked(form)[0])
    except ComgradError as error:
        return _one(request, who, handle, error)
    return go(f"/organisations/{handle}")


@router.post("/organisations/{handle}/answer")
def answer(request: Request, who: Who, handle: str, form: Form) -> Response:
    """Join an organisation that asked one to, or say no."""
    organisations = service_of(request).organisations
    try:
        if form.get("answer") == "yes":
            organisations.accept(who, handle)
            return go(f"/organisations/{handle}")
        organisations.decline(who, handle)
    except ComgradError as error:
        return _list(request, who, error)
    return go("/organisations")


@router.post("/organisations/{handle}/members/remove")
def remove_member(request: Request, who: Who, handle: str, form: Form) -> Response:
    """Remove a member, or leave."""
    member = form.get("member", "").strip()
    try:
        service_of(request).organisations.remove_member(who, handle, member)
    except ComgradError as error:
        return _one(request, who, handle, error)
    return go("/organisations" if member == who.handle else f"/organisations/{handle}")
