"""A new password for somebody who lost theirs: a one-time secret from an administrator, without any e-mail."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from comgrad.errors import NotFound
from comgrad.service.audit import Audit
from comgrad.service.auth import secrets
from comgrad.service.auth.accounts import account_of
from comgrad.service.auth.guessing import Guesses
from comgrad.service.auth.identity import Principal, checked_password
from comgrad.service.errors import Conflict, Forbidden
from comgrad.service.settings import Settings
from comgrad.service.store import people
from comgrad.service.store.database import FILE, Database, Rows, now
from comgrad.service.store.people import Account

GOOD_FOR = timedelta(days=1)
OPERATOR = "(operator)"  # whoever has the machine; no handle looks like this


@dataclass(frozen=True)
class Reset:
    """A reset that was issued; whoever has the secret chooses the password, once."""

    handle: str
    secret: str
    expires_at: datetime


class Recovery:
    """Resets over the service's database; of a secret only the digest is stored."""

    def __init__(self, database: Database, audit: Audit, guesses: Guesses) -> None:
        self._db = database
        self._audit = audit
        self._guesses = guesses

    def issue(self, who: Principal, handle: str) -> Reset:
        """A secret with which an account chooses a new password; an earlier one ends. Site admins only.

        Raises:
            Forbidden, SignInNeeded: somebody else asks. Conflict: no such account, or one that never had a password.
        """
        who.must_administer()
        with self._db.write() as rows:
            made = self._made(rows, handle)
            self._audit.by(rows, who, "reset-issue", handle)
        return made

    def issue_here(self, handle: str) -> Reset:
        """The same for whoever runs the service, on its machine: the way back when no administrator can sign in."""
        with self._db.write() as rows:
            made = self._made(rows, handle)
            self._audit.write(rows, None, OPERATOR, "reset-issue", handle)
        return made

    def use(self, handle: str, secret: str, password: str, client: str = "") -> Account:
        """Choose a new password with such a secret; every session ends. Raises Forbidden (the same for all that can be
        wrong), TooMany, ComgradError (`password-refused`)."""
        checked_password(password)
        self._guesses.charge(handle, client)
        with self._db.read() as rows:
            good = self._good(rows, handle, secret)
        if good:
            stored = secrets.hashed(password)
            with self._db.write() as rows:
                found = account_of(rows, handle)
                if found is not None and self._good(rows, handle, secret):  # nobody else used it meanwhile
                    people.change_account(rows, found.id, password=stored, invitation=None, invitation_until=None)
                    people.drop_sessions(rows, account_id=found.id)
                    self._guesses.refund(rows, handle, client)
                    self._audit.write(rows, found.id, found.handle, "reset-use", found.handle, client=client)
                    return found
        raise Forbidden("this reset", "it is wrong, used or over", "ask an administrator for a new one", code="reset")

    @staticmethod
    def _good(rows: Rows, handle: str, secret: str) -> bool:
        found = account_of(rows, handle)
        _, expected, until = people.account_secrets(rows, found.id if found else "")
        if found is None or found.invited or found.disabled:
            return False
        return secrets.same(secrets.digest(secret), expected or "") and until is not None and until > now()

    @staticmethod
    def _made(rows: Rows, handle: str) -> Reset:
        found = account_of(rows, handle)
        if found is None:
            raise Conflict(f"the account {handle[:60]!a}", "there is none", "check the spelling")
        if found.invited:
            raise Conflict(f"the account '{handle}'", "it never had a password", "invite it again")
        if found.disabled:
            raise Conflict(f"the account '{handle}'", "it is shut out", "let it in again first")
        secret, until = secrets.new(secrets.RESET), now() + GOOD_FOR
        people.change_account(rows, found.id, invitation=secrets.digest(secret), invitation_until=until)
        return Reset(found.handle, secret, until)


def here(settings: Settings, handle: str) -> Reset:
    """A reset for an account of the service of these settings, which may be running. Raises NotFound, Conflict,
    StorageError."""
    if settings.database is None and not (settings.folder / FILE).is_file():
        raise NotFound(
            f"'{settings.data}'", "no service has its folder there", "say --data FOLDER, or set COMGRAD_HOME"
        )
    database = Database(settings.folder, settings.database)
    try:
        return Recovery(database, Audit(database), Guesses(database)).issue_here(handle)
    finally:
        database.close()
