"""Accounts: how they are made (the first start, invitations, sign-up), and shut out."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from comgrad.errors import ComgradError
from comgrad.service.audit import Audit
from comgrad.service.auth import secrets
from comgrad.service.auth.guessing import THE_FIRST_START, Guesses
from comgrad.service.auth.identity import Principal, checked_handle, checked_password
from comgrad.service.errors import Conflict, Forbidden, sign_in
from comgrad.service.settings import Settings
from comgrad.service.store import people
from comgrad.service.store.database import Database, Rows, new_id, now
from comgrad.service.store.people import Account

INVITED = timedelta(days=7)
FIRST = "first-start"


@dataclass(frozen=True)
class Invited:
    """An invitation; whoever has the secret chooses the password."""

    handle: str
    secret: str


class Accounts:
    """Accounts over the service's database."""

    def __init__(self, database: Database, settings: Settings, audit: Audit, guesses: Guesses) -> None:
        self._db = database
        self._settings = settings
        self._audit = audit
        self._guesses = guesses
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
        handle, key = checked_handle(handle)
        checked_password(password)
        self._guesses.charge(THE_FIRST_START, client)
        with self._db.read() as rows:
            expected = people.value(rows, FIRST)
        if expected is None or not secrets.same(secrets.digest(secret), expected):
            raise Forbidden(
                "the first-start secret", "it is wrong or was used", f"read it from {self.first_start_file.name}"
            )
        stored = secrets.hashed(password)
        with self._db.write() as rows:
            if people.value(rows, FIRST) != expected:
                raise Forbidden("the first-start secret", "it was used", "sign in")
            made = self._made(rows, handle, key, password=stored, site_admin=True)
            people.set_value(rows, FIRST, None)
            self._guesses.refund(rows, THE_FIRST_START, client)
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
        checked_password(password)
        self._guesses.charge(handle, client)
        stored = secrets.hashed(password)
        with self._db.write() as rows:
            found = account_of(rows, handle)
            _, invitation, until = people.account_secrets(rows, found.id if found else "")
            good = secrets.same(secrets.digest(secret), invitation or "") and until is not None and until > now()
            if good and found is not None and found.invited and not found.disabled:
                people.change_account(rows, found.id, password=stored, invitation=None, invitation_until=None)
                self._guesses.refund(rows, handle, client)
                self._audit.write(rows, found.id, found.handle, "accept", found.handle, client=client)
                made = people.account(rows, found.id)
                assert made is not None
                return made
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

    # -- all of them ----------------------------------------------------------------------------------------------
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
            found = account_of(rows, handle)
            if found is None or found.id == who.account_id:
                raise Conflict(f"the account {handle[:60]!a}", "it is your own, or there is none", "name another")
            people.change_account(rows, found.id, disabled=disabled)
            if disabled and not found.invited:  # a reset is not to outlive it; an invitation waits
                people.change_account(rows, found.id, invitation=None, invitation_until=None)
            people.drop_sessions(rows, account_id=found.id)
            self._audit.by(rows, who, "disable" if disabled else "enable", found.handle)
            changed = people.account(rows, found.id)
        assert changed is not None
        return changed


def account_of(rows: Rows, handle: str) -> Account | None:
    """The account of exactly that handle."""
    try:
        key = checked_handle(handle)[1]
    except ComgradError:
        return None
    owner = people.owner_by_key(rows, key)
    found = people.account(rows, owner.id) if owner is not None else None
    return found if found is not None and found.handle == handle else None


def taken(rows: Rows, handle: str, key: str) -> None:
    """Refuse a handle that belongs, or reads like one that belongs, to somebody. Raises Conflict (`handle-taken`)."""
    if people.owner_by_key(rows, key) is not None:
        raise Conflict(
            f"the handle '{handle}'", "it, or one that reads like it, is taken", "choose another", code="handle-taken"
        )
