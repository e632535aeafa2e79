"""Accounts: the first start, invitations, signing in and out, and who a session or a token stands for."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from comgrad.errors import ComgradError
from comgrad.service.audit import Audit
from comgrad.service.auth import secrets
from comgrad.service.auth.identity import ALL, Principal, checked_handle, checked_password
from comgrad.service.errors import Conflict, Forbidden, SignInNeeded, TooMany, sign_in
from comgrad.service.settings import Settings
from comgrad.service.store import people
from comgrad.service.store.database import Database, Rows, new_id, now
from comgrad.service.store.people import Account

WINDOW = timedelta(minutes=15)
INVITED = timedelta(days=7)
FIRST = "first-start"
_FIRST_GUESS, _TOKEN_GUESS = "the first start", "a token"  # no handle has a space
_USED = timedelta(minutes=1)
_FAILURES = 10  # of one account from one address; five times as many from anywhere


@dataclass(frozen=True)
class Session:
    """A new session; the secret goes into the cookie and nowhere else."""

    secret: str
    csrf: str
    account: Account
    expires_at: datetime
    secure: bool = False  # whether its cookie is sent over https only


@dataclass(frozen=True)
class Invited:
    """An invitation; whoever has the secret chooses the password."""

    handle: str
    secret: str


class Accounts:
    """Accounts over the service's database."""

    def __init__(self, database: Database, settings: Settings, audit: Audit) -> None:
        self._db = database
        self._settings = settings
        self._audit = audit
        self.first_start_file: Path = settings.folder / "first-start-secret"

    # -- the first start -----------------------------------------------------------------------------------------
    def prepare(self) -> str | None:
        """Make the one-time secret of the first start where there is no administrator; it is also written to a file
        that only this user reads. The same secret until it is used. None when there is an administrator."""
        with self._db.write() as rows:
            if people.has_admin(rows):
                return None
            with contextlib.suppress(OSError):
                kept = self.first_start_file.read_text("utf-8").strip()
                if secrets.same(secrets.digest(kept), people.value(rows, FIRST) or ""):
                    return kept
            secret = secrets.new(secrets.FIRST_START)
            people.set_value(rows, FIRST, secrets.digest(secret))
            self.first_start_file.unlink(missing_ok=True)
            os.close(os.open(self.first_start_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            self.first_start_file.write_text(secret + "\n", "utf-8")
            return secret

    def needs_first_start(self) -> bool:
        """Whether nobody administers the site yet."""
        with self._db.read() as rows:
            return not people.has_admin(rows)

    def first_start(self, secret: str, handle: str, password: str, client: str = "") -> Account:
        """Make the first administrator. Raises Forbidden (a wrong secret, or used already), ComgradError."""
        self._limit(_FIRST_GUESS, client)
        with self._db.read() as rows:
            expected = people.value(rows, FIRST)
        if expected is None or not secrets.same(secrets.digest(secret), expected):
            self._failed(_FIRST_GUESS, client)
            raise Forbidden(
                "the first-start secret", "it is wrong or was used", f"read it from {self.first_start_file.name}"
            )
        handle, key = checked_handle(handle)
        stored = secrets.hashed(checked_password(password))
        with self._db.write() as rows:
            if people.value(rows, FIRST) != expected:
                raise Forbidden("the first-start secret", "it was used", "sign in")
            made = self._made(rows, handle, key, password=stored, site_admin=True)
            people.set_value(rows, FIRST, None)
            self._audit.write(rows, made.id, handle, "first-start", handle, client=client)
        self.first_start_file.unlink(missing_ok=True)
        return made

    # -- making accounts -----------------------------------------------------------------------------------------
    def invite(self, who: Principal, handle: str) -> Invited:
        """Reserve a handle for somebody; again for one who has not answered gives a new secret. Site admins only."""
        who.must_administer()
        handle, key = checked_handle(handle)
        secret = secrets.new(secrets.INVITATION)
        columns = {"invitation": secrets.digest(secret), "invitation_until": now() + INVITED}
        with self._db.write() as rows:
            known = people.owner_by_key(rows, key)
            waiting = people.account(rows, known.id) if known and known.handle == handle else None
            if waiting is not None and waiting.invited:
                people.change_account(rows, waiting.id, **columns)
            else:
                self._made(rows, handle, key, **columns)
            self._audit.by(rows, who, "invite", handle)
        return Invited(handle, secret)

    def accept(self, handle: str, secret: str, password: str, client: str = "") -> Account:
        """Choose the password of an invited account. Raises Forbidden, the same for all that can be wrong."""
        self._limit(handle, client)
        stored = secrets.hashed(checked_password(password))
        with self._db.write() as rows:
            found = self._account(rows, handle)
            _, invitation, until = people.account_secrets(rows, found.id if found else "")
            good = secrets.same(secrets.digest(secret), invitation or "") and until is not None and until > now()
            if good and found is not None and found.invited:
                people.change_account(rows, found.id, password=stored, invitation=None, invitation_until=None)
                self._audit.write(rows, found.id, found.handle, "accept", found.handle, client=client)
                made = people.account(rows, found.id)
                assert made is not None
                return made
        self._failed(handle, client)
        raise Forbidden("this invitation", "it is wrong, used or over", "ask for a new one", code="invitation")

    def sign_up(self, handle: str, password: str, client: str = "") -> Account:
        """Make one's own account, where the site lets everybody. Raises Forbidden, Conflict, ComgradError."""
        if not self._settings.open_sign_up:
            raise Forbidden("a new account", "this site is by invitation", "ask an administrator for one")
        handle, key = checked_handle(handle)
        stored = secrets.hashed(checked_password(password))
        with self._db.write() as rows:
            made = self._made(rows, handle, key, password=stored)
            self._audit.write(rows, made.id, handle, "sign-up", handle, client=client)
        return made

    def _made(self, rows: Rows, handle: str, key: str, **columns: object) -> Account:
        taken(rows, handle, key)
        identity = new_id("ac")
        people.put_handle(rows, key, handle, identity, "account")
        people.put_account(rows, identity, handle, **columns)
        made = people.account(rows, identity)
        assert made is not None
        return made

    # -- signing in and out --------------------------------------------------------------------------------------
    def log_in(self, handle: str, password: str, client: str = "") -> Session:
        """A session for a handle and its password. Raises SignInNeeded (the same for all that is wrong), TooMany."""
        self._limit(handle, client)
        with self._db.read() as rows:
            found = self._account(rows, handle)
            stored, _, _ = people.account_secrets(rows, found.id if found else "")
        good = secrets.matches(password, stored)
        if not good or found is None or found.disabled:
            self._failed(handle, client)
            raise SignInNeeded(
                "this handle and password", "they do not belong together", "check both", code="wrong-password"
            )
        secret = secrets.new(secrets.SESSION)
        until = now() + timedelta(days=self._settings.session_days)
        with self._db.write() as rows:
            people.forgive(rows, _both(found.handle, client))
            people.put_session(rows, secrets.digest(secret), found.id, until)
            self._audit.write(rows, found.id, found.handle, "log-in", found.handle, client=client)
        return Session(secret, secrets.csrf_of(secret), found, until, self._settings.secure)

    def log_out(self, who: Principal) -> None:
        """End the session that asks."""
        if who.via == "session":
            with self._db.write() as rows:
                people.drop_sessions(rows, digest=who.credential)

    def change_password(self, who: Principal, old: str, new: str) -> None:
        """Change the password and end every other session. Raises SignInNeeded, Forbidden, ComgradError."""
        identity = in_person(who)
        self._limit(who.handle, who.client)
        with self._db.read() as rows:
            stored, _, _ = people.account_secrets(rows, identity)
        if not secrets.matches(old, stored):
            self._failed(who.handle, who.client)
            raise Forbidden("the old password", "it is not this account's", "check it", code="wrong-password")
        made = secrets.hashed(checked_password(new))
        until = now() + timedelta(days=self._settings.session_days)
        with self._db.write() as rows:
            people.change_account(rows, identity, password=made)
            people.drop_sessions(rows, account_id=identity)
            people.put_session(rows, who.credential, identity, until)
            self._audit.by(rows, who, "password", who.handle)

    def account(self, who: Principal) -> Account:
        """The account that asks. Raises SignInNeeded."""
        with self._db.read() as rows:
            found = people.account(rows, who.must("read"))
        if found is None:
            raise sign_in()
        return found

    def accounts(self, who: Principal) -> list[Account]:
        """All accounts; for site admins."""
        who.must_administer()
        with self._db.read() as rows:
            return people.all_accounts(rows)

    def disable(self, who: Principal, handle: str, disabled: bool = True) -> Account:
        """Shut an account out, or let it in again; its sessions end. Site admins only, and not themselves."""
        who.must_administer()
        with self._db.write() as rows:
            found = self._account(rows, handle)
            if found is None or found.id == who.account_id:
                raise Conflict(f"the account {handle[:60]!a}", "it is your own, or there is none", "name another")
            people.change_account(rows, found.id, disabled=disabled)
            people.drop_sessions(rows, account_id=found.id)
            self._audit.by(rows, who, "disable" if disabled else "enable", found.handle)
            changed = people.account(rows, found.id)
        assert changed is not None
        return changed

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
            self._limit(
                _TOKEN_GUESS, client
            )  # of wrong ones only: a neighbour's mistakes keep nobody with a good one out
            self._failed(_TOKEN_GUESS, client)
            raise SignInNeeded(
                "this token", "it is wrong, revoked or over", "make a new one on the account page", code="bad-token"
            )
        if info.last_used_at is None or now() - info.last_used_at > _USED:
            with self._db.write() as rows:
                people.change_token(rows, info.id, last_used_at=now())
        return found

    def _principal(
        self, rows: Rows, identity: str, scopes: frozenset[str], via: str, client: str, credential: str, secret: str
    ) -> Principal | None:
        found = people.account(rows, identity)
        if found is None or found.disabled:
            return None
        roles = people.roles(rows, identity)
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

    @staticmethod
    def _account(rows: Rows, handle: str) -> Account | None:
        try:
            key = checked_handle(handle)[1]
        except ComgradError:
            return None
        owner = people.owner_by_key(rows, key)
        found = people.account(rows, owner.id) if owner is not None else None
        return found if found is not None and found.handle == handle else None

    # -- guessing ------------------------------------------------------------------------------------------------
    def _limit(self, handle: str, client: str) -> None:
        with self._db.read() as rows:
            count = people.failed(rows, [_both(handle, client)], WINDOW)
            wide = people.failed(rows, [f"any {handle}"[:200], f"from {client}"], WINDOW)
        if count >= _FAILURES or wide >= 5 * _FAILURES:
            raise TooMany(
                "signing in", "there were too many wrong attempts", "wait a quarter of an hour", seconds=900.0
            )

    def _failed(self, handle: str, client: str) -> None:
        keys = [_both(handle, client), f"from {client}"]
        if handle not in (_TOKEN_GUESS, _FIRST_GUESS):  # these have no owner who could be kept out by others' guesses
            keys.append(f"any {handle}"[:200])
        with self._db.write() as rows:
            people.fail(rows, keys, WINDOW)


def _both(handle: str, client: str) -> str:
    return f"{handle} from {client}"[:200]


def in_person(who: Principal) -> str:
    """The account's id, if it is here by a session: a token must not make or end credentials."""
    identity = who.must("write")
    if who.via != "session" and "admin" not in who.scopes:
        raise Forbidden(
            "this token", "credentials are managed by signing in", "sign in with the password", code="scope"
        )
    return identity


def taken(rows: Rows, handle: str, key: str) -> None:
    """Refuse a handle that belongs, or reads like one that belongs, to somebody. Raises Conflict (`handle-taken`)."""
    if people.owner_by_key(rows, key) is not None:
        raise Conflict(
            f"the handle '{handle}'", "it, or one that reads like it, is taken", "choose another", code="handle-taken"
        )
