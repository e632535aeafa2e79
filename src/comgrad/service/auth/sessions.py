"""Signing in and out, one's own password, and whom a session's cookie or a token stands for."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from comgrad.errors import StorageError
from comgrad.service.audit import Audit
from comgrad.service.auth import secrets
from comgrad.service.auth.accounts import account_of
from comgrad.service.auth.guessing import A_TOKEN, Guesses
from comgrad.service.auth.identity import ALL, Principal, checked_password
from comgrad.service.errors import Forbidden, SignInNeeded, sign_in
from comgrad.service.settings import Settings
from comgrad.service.store import orgs, people
from comgrad.service.store.database import Database, Rows, now
from comgrad.service.store.people import Account

_USED = timedelta(minutes=1)


@dataclass(frozen=True)
class Session:
    """A new session; the secret goes into the cookie and nowhere else."""

    secret: str
    csrf: str
    account: Account
    expires_at: datetime
    secure: bool = False  # whether its cookie is sent over https only


class Sessions:
    """Sessions and tokens as they are used, over the service's database."""

    def __init__(self, database: Database, settings: Settings, audit: Audit, guesses: Guesses) -> None:
        self._db = database
        self._settings = settings
        self._audit = audit
        self._guesses = guesses

    def log_in(self, handle: str, password: str, client: str = "") -> Session:
        """A session for a handle and its password. Raises SignInNeeded (the same for all that is wrong), TooMany."""
        self._guesses.charge(handle, client)
        with self._db.read() as rows:
            found = account_of(rows, handle)
            stored = people.account_secrets(rows, found.id if found else "")[0]
        good = secrets.matches(password, stored)
        if not good or found is None or found.disabled:
            raise _wrong()
        secret = secrets.new(secrets.SESSION)
        until = now() + timedelta(days=self._settings.session_days)
        with self._db.write() as rows:
            if people.account_secrets(rows, found.id)[0] != stored:  # changed while this one was being checked
                raise _wrong()
            self._guesses.refund(rows, handle, client)
            people.put_session(rows, secrets.digest(secret), found.id, until)
            self._audit.write(rows, found.id, found.handle, "log-in", found.handle, client=client)
        return Session(secret, secrets.csrf_of(secret), found, until, self._settings.secure)

    def log_out(self, who: Principal) -> None:
        """End the session that asks, or revoke the token that does: now, and for good. Raises SignInNeeded."""
        if not who.known:
            raise sign_in()
        with self._db.write() as rows:
            if who.via == "session":
                people.drop_sessions(rows, digest=who.credential)
            else:
                people.change_token(rows, who.credential, revoked_at=now())
                self._audit.by(rows, who, "token-revoke", who.credential, {"by": "itself"})

    def change_password(self, who: Principal, old: str, new: str) -> None:
        """Change the password and end every other session. A reset that an administrator issued stays open: whoever stole
        the password cannot cancel it. Raises SignInNeeded, Forbidden, TooMany, ComgradError."""
        identity = in_person(who)
        checked_password(new)
        self._guesses.charge(who.handle, who.client)
        with self._db.read() as rows:
            stored = people.account_secrets(rows, identity)[0]
        if not secrets.matches(old, stored):
            raise _not_the_old_one()
        made = secrets.hashed(new)
        until = now() + timedelta(days=self._settings.session_days)
        with self._db.write() as rows:
            if people.account_secrets(rows, identity)[0] != stored:  # changed while this one was being checked
                raise _not_the_old_one()
            self._guesses.refund(rows, who.handle, who.client)
            people.change_account(rows, identity, password=made)
            people.drop_sessions(rows, account_id=identity)
            if who.via == "session":
                people.put_session(rows, who.credential, identity, until)
            self._audit.by(rows, who, "password", who.handle)

    # -- who asks ------------------------------------------------------------------------------------------------
    def of_session(self, secret: str, client: str) -> Principal | None:
        """Whom a session's cookie stands for; None when it is over or never was."""
        digest = secrets.digest(secret)
        with self._db.read() as rows:
            identity = people.session_account(rows, digest)
            return None if identity is None else self._principal(rows, identity, ALL, "session", client, digest, secret)

    def of_token(self, secret: str, client: str) -> Principal:
        """Whom a token stands for. Raises SignInNeeded, the same for all that can be wrong, and TooMany."""
        digest = secrets.digest(secret)
        with self._db.read() as rows:
            row = people.token_by_digest(rows, digest)
            good = row is not None and secrets.same(row[1], digest)
            if good and row is not None and not row[0].revoked and row[0].expires_at > now():
                info = row[0]
                found = self._principal(rows, info.account_id, frozenset(info.scopes), "token", client, info.id, "")
            else:
                info, found = None, None
        if found is None or info is None:
            self._guesses.charge(A_TOKEN, client)  # wrong ones only: a neighbour's mistakes keep no good one out
            raise SignInNeeded(
                "this token", "it is wrong, revoked or over", "make a new one on the account page", code="bad-token"
            )
        if info.last_used_at is None or now() - info.last_used_at > _USED:
            with contextlib.suppress(StorageError), self._db.write() as rows:  # who only reads may do so on a full disk
                people.change_token(rows, info.id, last_used_at=now())
        return found

    def _principal(
        self, rows: Rows, identity: str, scopes: frozenset[str], via: str, client: str, credential: str, secret: str
    ) -> Principal | None:
        found = people.account(rows, identity)
        if found is None or found.disabled:
            return None
        roles = orgs.roles(rows, identity)
        return Principal(
            identity,
            found.handle,
            found.site_admin,
            scopes,
            dict(roles.values()),
            {h: i for i, (h, _) in roles.items()},
            via,
            secrets.csrf_of(secret) if secret else "",
            client,
            credential,
        )


def _wrong() -> SignInNeeded:
    return SignInNeeded("this handle and password", "they do not belong together", "check both", code="wrong-password")


def _not_the_old_one() -> Forbidden:
    return Forbidden("the old password", "it is not this account's", "check it", code="wrong-password")


def in_person(who: Principal) -> str:
    """The account's id, if it is here by a session: a token must not make or end credentials."""
    identity = who.must("write")
    if who.via != "session" and "admin" not in who.scopes:
        raise Forbidden(
            "this token", "credentials are managed by signing in", "sign in with the password", code="scope"
        )
    return identity
