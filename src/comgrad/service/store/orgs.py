"""Rows of organisations, their members, and the invitations that accounts have not answered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from comgrad.service.store import tables as t
from comgrad.service.store.database import Rows, now


@dataclass(frozen=True)
class Org:
    """An organisation as one of its members sees it."""

    id: str
    handle: str
    title: str
    role: str | None
    members: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"handle": self.handle, "title": self.title, "role": self.role, "members": self.members}


@dataclass(frozen=True)
class Member:
    """One member of an organisation."""

    account_id: str
    handle: str
    role: str
    since: datetime

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"handle": self.handle, "role": self.role, "since": self.since.isoformat()}


def put_org(rows: Rows, identity: str, handle: str, title: str) -> None:
    """Insert an organisation."""
    rows.execute(insert(t.organisations).values(id=identity, handle=handle, title=title, created_at=now()))


def org(rows: Rows, identity: str, account_id: str | None) -> Org | None:
    """An organisation, with the account's role in it."""
    row = rows.execute(select(t.organisations).where(t.organisations.c.id == identity)).first()
    if row is None:
        return None
    of = members(rows, identity)
    role = next((m.role for m in of if m.account_id == account_id), None)
    return Org(row.id, row.handle, row.title, role, len(of))


def members(rows: Rows, identity: str) -> list[Member]:
    """The members of an organisation, oldest first."""
    m = t.memberships.c
    query = (
        select(m.account_id, t.accounts.c.handle, m.role, m.since)
        .join(t.accounts, t.accounts.c.id == m.account_id)
        .where(m.organisation_id == identity)
        .order_by(m.since, m.account_id)
    )
    return [Member(*row) for row in rows.execute(query)]


def roles(rows: Rows, account_id: str) -> dict[str, tuple[str, str]]:
    """Organisation id → (handle, role) of an account."""
    m = t.memberships.c
    query = (
        select(m.organisation_id, t.organisations.c.handle, m.role)
        .join(t.organisations, t.organisations.c.id == m.organisation_id)
        .where(m.account_id == account_id)
    )
    return {row[0]: (row[1], row[2]) for row in rows.execute(query)}


def put_member(rows: Rows, org_id: str, account_id: str, role: str) -> None:
    """Add a member, or change its role."""
    m = t.memberships
    where = (m.c.organisation_id == org_id) & (m.c.account_id == account_id)
    if rows.execute(update(m).where(where).values(role=role)).rowcount == 0:
        rows.execute(insert(m).values(organisation_id=org_id, account_id=account_id, role=role, since=now()))


def drop_member(rows: Rows, org_id: str, account_id: str) -> None:
    """Remove a member."""
    m = t.memberships
    rows.execute(delete(m).where(m.c.organisation_id == org_id, m.c.account_id == account_id))


# -- invitations ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Invitation:
    """A place in an organisation that an account may take: by whom, as what, and until when."""

    org_id: str
    account_id: str
    org: str
    title: str
    handle: str
    role: str
    invited_by: str
    created_at: datetime
    expires_at: datetime

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        out = {n: getattr(self, n) for n in ("org", "title", "handle", "role", "invited_by")}
        return out | {n: getattr(self, n).isoformat() for n in ("created_at", "expires_at")}


def put_invitation(rows: Rows, org_id: str, account_id: str, role: str, by: str, until: datetime) -> None:
    """Invite an account, or renew its invitation; those that are over go."""
    i = t.org_invitations
    rows.execute(delete(i).where(i.c.expires_at < now()))
    drop_invitation(rows, org_id, account_id)
    values = {"organisation_id": org_id, "account_id": account_id, "role": role, "invited_by": by}
    rows.execute(insert(i).values(**values, created_at=now(), expires_at=until))


def drop_invitation(rows: Rows, org_id: str, account_id: str) -> bool:
    """End an invitation; whether there was one."""
    i = t.org_invitations
    where = (i.c.organisation_id == org_id) & (i.c.account_id == account_id)
    return bool(rows.execute(delete(i).where(where)).rowcount)


def invitations(rows: Rows, *, org_id: str | None = None, account_id: str | None = None) -> list[Invitation]:
    """The open invitations of an organisation or of an account, oldest first."""
    i, inviter = t.org_invitations.c, t.accounts.alias("inviter")
    wanted = i.organisation_id == org_id if org_id is not None else i.account_id == account_id
    names = (t.organisations.c.handle, t.organisations.c.title, t.accounts.c.handle, i.role, inviter.c.handle)
    query = (
        select(i.organisation_id, i.account_id, *names, i.created_at, i.expires_at)
        .join(t.organisations, t.organisations.c.id == i.organisation_id)
        .join(t.accounts, t.accounts.c.id == i.account_id)
        .join(inviter, inviter.c.id == i.invited_by)
        .where(wanted, i.expires_at >= now())
        .order_by(i.created_at, i.account_id, i.organisation_id)
    )
    return [Invitation(*row) for row in rows.execute(query)]


def invited_count(rows: Rows, account_id: str, *, but: str) -> int:
    """How many open invitations an account has from organisations other than that one."""
    i = t.org_invitations.c
    where = (i.account_id == account_id, i.organisation_id != but, i.expires_at >= now())
    return int(rows.execute(select(func.count()).where(*where)).scalar_one())
