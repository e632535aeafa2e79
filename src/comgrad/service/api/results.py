"""What the API sends, as models for its description: clients are made from them, and answers are not changed by them.

A figure may be null: a number that is not finite is sent as null.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Figure = float | None
Role = Literal["member", "admin"]
Scope = Literal["read", "write", "admin"]
Visibility = Literal["public", "private"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Sent(BaseModel):
    """A JSON object of exactly these fields."""

    model_config = ConfigDict(extra="forbid")


def sends(model: type[BaseModel], status: int = 200) -> dict[str, Any]:
    """What a route's decorator takes to describe its answer by a model; the answer itself is sent as it is made."""
    return {"response_model": None, "status_code": status, "responses": {status: {"model": model}}}


# -- the site ----------------------------------------------------------------------------------------------------------
class Limits(Sent):
    """What one account may send."""

    upload_bytes: int
    chunk_bytes: int
    vectors: int


class About(Sent):
    """What the service is and takes."""

    name: str
    version: str
    api: int
    first_start: bool
    open_sign_up: bool
    signed_in: str | None
    limits: Limits


class Health(Sent):
    """The process answers."""

    ok: bool


class Ready(Sent):
    """Whether each part works."""

    ok: bool
    parts: dict[str, bool]


class Entry(Sent):
    """An entry of the audit log; its hash covers the one before."""

    number: int
    at: datetime
    account_id: str | None
    handle: str
    action: str
    target: str
    detail: dict[str, Any]
    client: str
    hash: Digest


class Entries(Sent):
    """Entries of the audit log, newest first."""

    items: list[Entry]


# -- people ------------------------------------------------------------------------------------------------------------
class Account(Sent):
    """A person or a program that signs in."""

    id: str
    handle: str
    site_admin: bool
    disabled: bool
    created_at: datetime
    invited: bool


class OneAccount(Sent):
    """An account."""

    account: Account


class Accounts(Sent):
    """Accounts, oldest first."""

    items: list[Account]


class Invited(Sent):
    """A reserved handle; the secret is shown once."""

    handle: str
    secret: str


class Reset(Invited):
    """The secret with which an account chooses a new password."""

    expires_at: datetime


class SignedIn(OneAccount):
    """A new session; its cookie comes beside it."""

    csrf: str
    expires_at: datetime


class OrgRole(Sent):
    """An organisation and one's role in it."""

    handle: str
    role: Role


class Session(OneAccount):
    """Who asks."""

    via: Literal["session", "token"]
    scopes: list[Scope]
    orgs: list[OrgRole]
    csrf: str


class Token(Sent):
    """A token without its secret."""

    id: str
    name: str
    scopes: list[Scope]
    revoked: bool
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None


class OneToken(Sent):
    """A token."""

    token: Token


class NewToken(OneToken):
    """A new token; the secret is shown once."""

    secret: str


class Tokens(Sent):
    """One's tokens, newest first."""

    items: list[Token]


class Org(Sent):
    """An organisation as one of its members sees it."""

    handle: str
    title: str
    role: Role | None
    members: int


class OneOrg(Sent):
    """An organisation."""

    org: Org


class Orgs(Sent):
    """Organisations by handle."""

    items: list[Org]


class Member(Sent):
    """A member."""

    handle: str
    role: Role
    since: datetime


class OneMember(Sent):
    """A member."""

    member: Member


class Members(Sent):
    """The members of an organisation."""

    items: list[Member]


class Invitation(Sent):
    """A place in an organisation that an account may take."""

    org: str
    title: str
    handle: str
    role: Role
    invited_by: str
    created_at: datetime
    expires_at: datetime


class OneInvitation(Sent):
    """An invitation."""

    invitation: Invitation


class Invitations(Sent):
    """Invitations that wait for an answer, oldest first."""

    items: list[Invitation]
