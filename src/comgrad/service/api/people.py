"""Routes of accounts, sessions, tokens and organisations."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Request, Response

from comgrad.service.api import results as r
from comgrad.service.api.bodies import (
    Credentials,
    DisabledBody,
    Handle,
    NewPassword,
    OrgBody,
    RoleBody,
    TokenBody,
    WithSecret,
)
from comgrad.service.api.results import sends
from comgrad.service.auth.http import Who, clear_session, client_of, set_session
from comgrad.service.core import service_of
from comgrad.service.web.answers import Json, JsonRoute

router = APIRouter(tags=["accounts"], default_response_class=Json, route_class=JsonRoute)


@router.post("/first-start", **sends(r.OneAccount, 201))
def first_start(request: Request, who: Who, body: WithSecret) -> dict[str, Any]:
    """Make the first administrator, with the one-time secret that the service wrote at its first start."""
    del who
    made = service_of(request).accounts.first_start(body.secret, body.handle, body.password, client_of(request))
    return {"account": made.as_dict()}


@router.post("/accounts", **sends(r.OneAccount, 201))
def sign_up(request: Request, who: Who, body: Credentials) -> dict[str, Any]:
    """Make one's own account, where the site lets everybody."""
    del who
    made = service_of(request).accounts.sign_up(body.handle, body.password, client_of(request))
    return {"account": made.as_dict()}


@router.get("/accounts", **sends(r.Accounts))
def accounts(request: Request, who: Who) -> dict[str, Any]:
    """All accounts; for administrators of the site."""
    return {"items": [a.as_dict() for a in service_of(request).accounts.accounts(who)]}


@router.put("/accounts/{handle}/disabled", **sends(r.OneAccount))
def disable(request: Request, who: Who, handle: str, body: DisabledBody) -> dict[str, Any]:
    """Shut an account out, or let it in again; for administrators of the site."""
    return {"account": service_of(request).accounts.disable(who, handle, body.disabled).as_dict()}


@router.post("/invitations", **sends(r.Invited, 201))
def invite(request: Request, who: Who, body: Handle) -> dict[str, Any]:
    """Reserve a handle; whoever gets the secret chooses the password. For administrators of the site."""
    return dict(service_of(request).accounts.invite(who, body.handle).__dict__)


@router.post("/accounts/accept", **sends(r.OneAccount))
def accept(request: Request, who: Who, body: WithSecret) -> dict[str, Any]:
    """Choose the password of an account that one was invited to."""
    del who
    made = service_of(request).accounts.accept(body.handle, body.secret, body.password, client_of(request))
    return {"account": made.as_dict()}


@router.post("/accounts/{handle}/reset", **sends(r.Reset, 201))
def issue_reset(request: Request, who: Who, handle: str) -> dict[str, Any]:
    """A one-time secret with which an account chooses a new password; for administrators of the site."""
    made = service_of(request).recovery.issue(who, handle)
    return {"handle": made.handle, "secret": made.secret, "expires_at": made.expires_at.isoformat()}


@router.post("/accounts/reset", **sends(r.OneAccount))
def use_reset(request: Request, who: Who, body: WithSecret) -> dict[str, Any]:
    """Choose a new password with the secret of a reset; every session of the account ends."""
    del who
    made = service_of(request).recovery.use(body.handle, body.secret, body.password, client_of(request))
    return {"account": made.as_dict()}


@router.post("/session", **sends(r.SignedIn))
def log_in(request: Request, response: Response, who: Who, body: Credentials) -> dict[str, Any]:
    """Sign in: a cookie, and the token that changes must carry in X-CSRF-Token."""
    del who
    made = service_of(request).sessions.log_in(body.handle, body.password, client_of(request))
    set_session(response, made)
    return {"account": made.account.as_dict(), "csrf": made.csrf, "expires_at": made.expires_at.isoformat()}


@router.get("/session", **sends(r.Session))
def session(request: Request, who: Who) -> dict[str, Any]:
    """Who asks."""
    found = service_of(request).accounts.account(who)
    orgs = [{"handle": h, "role": role} for h, role in sorted(who.orgs.items())]
    return {"account": found.as_dict(), "via": who.via, "scopes": sorted(who.scopes), "orgs": orgs, "csrf": who.csrf}


@router.delete("/session", status_code=204)
def log_out(request: Request, who: Who) -> Response:
    """Sign out: the session ends; a token that asks is revoked."""
    service_of(request).sessions.log_out(who)
    response = Response(status_code=204)
    clear_session(response)
    return response


@router.put("/account/password", status_code=204)
def password(request: Request, who: Who, body: NewPassword) -> Response:
    """Change the password; every other session ends."""
    service_of(request).sessions.change_password(who, body.old, body.new)
    return Response(status_code=204)


@router.get("/tokens", **sends(r.Tokens))
def tokens(request: Request, who: Who) -> dict[str, Any]:
    """One's tokens, without their secrets."""
    return {"items": [t.as_dict() for t in service_of(request).tokens.list(who)]}


@router.post("/tokens", **sends(r.NewToken, 201))
def create_token(request: Request, who: Who, body: TokenBody) -> dict[str, Any]:
    """A new token; its secret is shown once."""
    made = service_of(request).tokens.create(who, body.name, body.scopes, body.days)
    return {"token": made.info.as_dict(), "secret": made.secret}


@router.delete("/tokens/{token_id}", **sends(r.OneToken))
def revoke_token(request: Request, who: Who, token_id: str) -> dict[str, Any]:
    """End a token now."""
    return {"token": service_of(request).tokens.revoke(who, token_id).as_dict()}


@router.get("/orgs", **sends(r.Orgs))
def orgs(request: Request, who: Who) -> dict[str, Any]:
    """One's organisations."""
    return {"items": [o.as_dict() for o in service_of(request).organisations.mine(who)]}


@router.post("/orgs", **sends(r.OneOrg, 201))
def create_org(request: Request, who: Who, body: OrgBody) -> dict[str, Any]:
    """Found an organisation."""
    return {"org": service_of(request).organisations.create(who, body.handle, body.title).as_dict()}


@router.get("/orgs/{org}", **sends(r.OneOrg))
def org(request: Request, who: Who, org: str) -> dict[str, Any]:
    """One of one's organisations."""
    return {"org": service_of(request).organisations.get(who, org).as_dict()}


@router.get("/orgs/{org}/members", **sends(r.Members))
def members(request: Request, who: Who, org: str) -> dict[str, Any]:
    """Its members; for members."""
    return {"items": [m.as_dict() for m in service_of(request).organisations.members(who, org)]}


@router.put("/orgs/{org}/members/{handle}", **sends(r.OneMember))
def change_role(request: Request, who: Who, org: str, handle: str, body: RoleBody) -> dict[str, Any]:
    """Change a member's role; for its admins. Whoever is no member is invited instead."""
    return {"member": service_of(request).organisations.change_role(who, org, handle, body.role).as_dict()}


@router.delete("/orgs/{org}/members/{handle}", status_code=204)
def remove_member(request: Request, who: Who, org: str, handle: str) -> Response:
    """Remove a member, or leave."""
    service_of(request).organisations.remove_member(who, org, handle)
    return Response(status_code=204)


@router.get("/orgs/{org}/invitations", **sends(r.Invitations))
def invitations(request: Request, who: Who, org: str) -> dict[str, Any]:
    """Whom it has invited and who has not answered; for its admins."""
    return {"items": [i.as_dict() for i in service_of(request).organisations.invitations(who, org)]}


@router.put("/orgs/{org}/invitations/{handle}", **sends(r.OneInvitation))
def invite_member(request: Request, who: Who, org: str, handle: str, body: RoleBody) -> dict[str, Any]:
    """Ask an account to join; for its admins. It is a member once it accepts."""
    return {"invitation": service_of(request).organisations.invite(who, org, handle, body.role).as_dict()}


@router.delete("/orgs/{org}/invitations/{handle}", status_code=204)
def withdraw(request: Request, who: Who, org: str, handle: str) -> Response:
    """Take an invitation back; for its admins."""
    service_of(request).organisations.withdraw(who, org, handle)
    return Response(status_code=204)


@router.get("/account/invitations", **sends(r.Invitations))
def invited(request: Request, who: Who) -> dict[str, Any]:
    """The organisations that wait for one's answer."""
    return {"items": [i.as_dict() for i in service_of(request).organisations.invited(who)]}


@router.post("/account/invitations/{org}", **sends(r.OneOrg))
def accept_invitation(request: Request, who: Who, org: str) -> dict[str, Any]:
    """Join an organisation that invited one."""
    return {"org": service_of(request).organisations.accept(who, org).as_dict()}


@router.delete("/account/invitations/{org}", status_code=204)
def decline(request: Request, who: Who, org: str) -> Response:
    """Say no to an invitation."""
    service_of(request).organisations.decline(who, org)
    return Response(status_code=204)


@router.get("/audit", **sends(r.Entries))
def audit(
    request: Request,
    who: Who,
    limit: int = Query(100, ge=1, le=1000),
    before: int | None = Query(None, ge=1, le=2**62),
) -> dict[str, Any]:
    """The newest entries of the audit log; for administrators of the site."""
    return {"items": service_of(request).audit.entries(who, limit, before)}
