"""Tokens for programs: shown once, stored as a digest, with scopes and an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from comgrad.errors import ComgradError, NotFound
from comgrad.registry.names import checked_name
from comgrad.service.audit import Audit
from comgrad.service.auth import secrets
from comgrad.service.auth.identity import SCOPES, Principal
from comgrad.service.auth.sessions import in_person
from comgrad.service.errors import Conflict, Forbidden
from comgrad.service.store import people
from comgrad.service.store.database import Database, new_id, now
from comgrad.service.store.people import TokenInfo

MOST = 100
MOST_DAYS = 366


@dataclass(frozen=True)
class NewToken:
    """A new token and its secret, which is shown once."""

    info: TokenInfo
    secret: str


class Tokens:
    """Tokens over the service's database."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._db = database
        self._audit = audit

    def list(self, who: Principal) -> list[TokenInfo]:
        """The account's tokens, newest first."""
        identity = in_person(who)
        with self._db.read() as rows:
            return people.tokens_of(rows, identity)

    def create(self, who: Principal, name: str, scopes: Sequence[str], days: int = 90) -> NewToken:
        """A new token. Raises Forbidden (`admin` for somebody who is none), Conflict, ComgradError."""
        identity = in_person(who)
        wanted = tuple(s for s in SCOPES if s in scopes)
        if not wanted or set(scopes) - set(SCOPES):
            raise ComgradError("the scopes", "some are unknown, or there are none", f"choose of: {', '.join(SCOPES)}")
        if "admin" in wanted and not who.site_admin:
            raise Forbidden(
                "the scope 'admin'", "this account does not administer the site", "leave it out", code="scope"
            )
        if not 1 <= days <= MOST_DAYS:
            raise ComgradError(f"{days} days", f"a token lives 1 to {MOST_DAYS} days", "give another number")
        secret = secrets.new(secrets.TOKEN)
        made = now()
        info = TokenInfo(
            new_id("tk"), identity, checked_name(name)[:100], wanted, made, made + timedelta(days=days), None, None
        )
        with self._db.write() as rows:
            live = [t for t in people.tokens_of(rows, identity) if not t.revoked and t.expires_at > made]
            if len(live) >= MOST:
                raise Conflict("another token", f"an account has at most {MOST}", "revoke one that is not needed")
            people.put_token(rows, info, secrets.digest(secret))
            self._audit.by(rows, who, "token-create", info.id, {"scopes": list(wanted), "days": days})
        return NewToken(info, secret)

    def revoke(self, who: Principal, token_id: str) -> TokenInfo:
        """End a token now. Raises NotFound."""
        identity = in_person(who)
        with self._db.write() as rows:
            found = next((t for t in people.tokens_of(rows, identity) if t.id == token_id), None)
            if found is None:
                raise NotFound(f"the token {token_id[:60]!a}", "you have none of that id", "see the list of tokens")
            if not found.revoked:
                people.change_token(rows, token_id, revoked_at=now())
                self._audit.by(rows, who, "token-revoke", token_id)
            return next(t for t in people.tokens_of(rows, identity) if t.id == token_id)
