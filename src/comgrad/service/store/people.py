"""Rows of accounts, handles, sessions and tokens, and single values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update

from comgrad.service.store import tables as t
from comgrad.service.store.database import Rows, now


@dataclass(frozen=True)
class Account:
    """A person or a program that signs in."""

    id: str
    handle: str
    site_admin: bool
    disabled: bool
    created_at: datetime
    invited: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "created_at": self.created_at.isoformat()}


@dataclass(frozen=True)
class Owner:
    """Whom a handle belongs to: `kind` is `account` or `org`."""

    id: str
    handle: str
    kind: str


@dataclass(frozen=True)
class TokenInfo:
    """A token, without its secret."""

    id: str
    account_id: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    @property
    def revoked(self) -> bool:
        """Whether it was revoked."""
        return self.revoked_at is not None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        out: dict[str, Any] = {"id": self.id, "name": self.name, "scopes": list(self.scopes), "revoked": self.revoked}
        times = ("created_at", "expires_at", "last_used_at")
        return out | {n: v.isoformat() if (v := getattr(self, n)) else None for n in times}


# -- handles and accounts ------------------------------------------------------------------------------------------
def put_handle(rows: Rows, key: str, handle: str, owner: str, kind: str) -> None:
    """Take a handle for ever. A taken one ends the transaction with Conflict."""
    rows.execute(insert(t.handles).values(key=key, handle=handle, owner_id=owner, kind=kind))


def owner_by_key(rows: Rows, key: str) -> Owner | None:
    """Whom a handle belongs to, or belonged."""
    row = rows.execute(select(t.handles).where(t.handles.c.key == key)).first()
    return None if row is None else Owner(row.owner_id, row.handle, row.kind)


def owner_handles(rows: Rows) -> dict[str, str]:
    """Owner id → handle, of all."""
    return {row.owner_id: row.handle for row in rows.execute(select(t.handles.c.owner_id, t.handles.c.handle))}


def put_account(rows: Rows, identity: str, handle: str, **columns: Any) -> None:
    """Insert an account; columns: password, invitation, invitation_until, site_admin."""
    base = {"site_admin": False, "disabled": False, "created_at": now()}
    rows.execute(insert(t.accounts).values(id=identity, handle=handle, **(base | columns)))


def change_account(rows: Rows, identity: str, **columns: Any) -> None:
    """Change an account's columns."""
    rows.execute(update(t.accounts).where(t.accounts.c.id == identity).values(columns))


def account(rows: Rows, identity: str) -> Account | None:
    """The account of an id."""
    row = rows.execute(select(t.accounts).where(t.accounts.c.id == identity)).first()
    return None if row is None else _account(row)


def account_secrets(rows: Rows, identity: str) -> tuple[str | None, str | None, datetime | None]:
    """Password hash; the digest of the secret that lets choose a new one (an invitation's or a reset's), and its end."""
    c = t.accounts.c
    row = rows.execute(select(c.password, c.invitation, c.invitation_until).where(c.id == identity)).first()
    return (None, None, None) if row is None else (row[0], row[1], row[2])


def all_accounts(rows: Rows) -> list[Account]:
    """Every account, oldest first."""
    return [_account(r) for r in rows.execute(select(t.accounts).order_by(t.accounts.c.created_at))]


def has_admin(rows: Rows) -> bool:
    """Whether there is a site admin."""
    found = rows.execute(select(func.count()).select_from(t.accounts).where(t.accounts.c.site_admin)).scalar_one()
    return bool(found)


def _account(row: Row[Any]) -> Account:
    return Account(row.id, row.handle, row.site_admin, row.disabled, row.created_at, row.password is None)


# -- sessions and tokens -------------------------------------------------------------------------------------------
def put_session(rows: Rows, digest: str, account_id: str, until: datetime) -> None:
    """Insert a session, and drop those that are over."""
    rows.execute(delete(t.sessions).where(t.sessions.c.expires_at < now()))
    values = {"digest": digest, "account_id": account_id, "created_at": now(), "expires_at": until}
    rows.execute(insert(t.sessions).values(values))


def session_account(rows: Rows, digest: str) -> str | None:
    """The account of a session that is not over."""
    s = t.sessions.c
    row = rows.execute(select(s.account_id).where(s.digest == digest, s.expires_at >= now())).first()
    return None if row is None else str(row[0])


def drop_sessions(rows: Rows, *, digest: str | None = None, account_id: str | None = None) -> None:
    """End one session, or all of an account."""
    s = t.sessions
    rows.execute(delete(s).where(s.c.digest == digest if digest is not None else s.c.account_id == account_id))


def put_token(rows: Rows, info: TokenInfo, digest: str) -> None:
    """Insert a token by the digest of its secret."""
    values = {"digest": digest, "scopes": " ".join(info.scopes), "revoked_at": None, "last_used_at": None}
    names = ("id", "account_id", "name", "created_at", "expires_at")
    rows.execute(insert(t.tokens).values(values | {n: getattr(info, n) for n in names}))


def token_by_digest(rows: Rows, digest: str) -> tuple[TokenInfo, str] | None:
    """The token whose secret has that digest, and the digest as it is stored."""
    row = rows.execute(select(t.tokens).where(t.tokens.c.digest == digest)).first()
    return None if row is None else (_token(row), row.digest)


def tokens_of(rows: Rows, account_id: str) -> list[TokenInfo]:
    """All tokens of an account, newest first."""
    c = t.tokens.c
    return [
        _token(r)
        for r in rows.execute(select(t.tokens).where(c.account_id == account_id).order_by(c.created_at.desc()))
    ]


def change_token(rows: Rows, identity: str, **columns: Any) -> None:
    """Change a token's columns."""
    rows.execute(update(t.tokens).where(t.tokens.c.id == identity).values(columns))


def _token(row: Row[Any]) -> TokenInfo:
    scopes = tuple(row.scopes.split())
    times = (row.created_at, row.expires_at, row.last_used_at, row.revoked_at)
    return TokenInfo(row.id, row.account_id, row.name, scopes, *times)


# -- single values -------------------------------------------------------------------------------------------------
def value(rows: Rows, name: str) -> str | None:
    """A single stored value."""
    row = rows.execute(select(t.values.c.value).where(t.values.c.name == name)).first()
    return None if row is None else str(row[0])


def set_value(rows: Rows, name: str, text: str | None) -> None:
    """Store or (None) drop a single value."""
    rows.execute(delete(t.values).where(t.values.c.name == name))
    if text is not None:
        rows.execute(insert(t.values).values(name=name, value=text))
