"""Organisations: several accounts that share under one handle. Members read what it shares, its admins change it.

Nobody becomes a member without their own yes: an admin invites an account, and the account accepts.
"""

from __future__ import annotations

from datetime import timedelta

from comgrad.errors import ComgradError, NotFound
from comgrad.registry.names import checked_name
from comgrad.service.audit import Audit
from comgrad.service.auth.accounts import taken
from comgrad.service.auth.identity import Principal, checked_handle
from comgrad.service.errors import Conflict, Forbidden
from comgrad.service.store import orgs, people
from comgrad.service.store.database import Database, Rows, new_id, now
from comgrad.service.store.orgs import Invitation, Member, Org

ROLES = ("member", "admin")
MOST = 50  # organisations of one account, and invitations that it has not answered
GOOD_FOR = timedelta(days=14)


class Organisations:
    """Organisations over the service's database."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._db = database
        self._audit = audit

    def mine(self, who: Principal) -> list[Org]:
        """The organisations of the account that asks."""
        identity = who.must("read")
        with self._db.read() as rows:
            found = [orgs.org(rows, i, identity) for i in who.org_ids.values()]
        return sorted((o for o in found if o is not None), key=lambda o: o.handle)

    def create(self, who: Principal, handle: str, title: str = "") -> Org:
        """Found one; whoever does is its first admin. Raises Conflict (`handle-taken`), ComgradError."""
        identity = who.must("write")
        handle, key = checked_handle(handle)
        title = checked_name(title) if title.strip() else handle
        with self._db.write() as rows:
            taken(rows, handle, key)
            if len(orgs.roles(rows, identity)) >= MOST:
                raise Conflict("another organisation", f"an account is in at most {MOST}", "leave one")
            made = new_id("or")
            people.put_handle(rows, key, handle, made, "org")
            orgs.put_org(rows, made, handle, title)
            orgs.put_member(rows, made, identity, "admin")
            self._audit.by(rows, who, "org-create", handle)
            found = orgs.org(rows, made, identity)
        assert found is not None
        return found

    def get(self, who: Principal, handle: str) -> Org:
        """One of one's own organisations. Raises NotFound."""
        with self._db.read() as rows:
            return self._mine(rows, who, handle)

    def members(self, who: Principal, handle: str) -> list[Member]:
        """Its members; for members. Raises NotFound."""
        with self._db.read() as rows:
            return orgs.members(rows, self._mine(rows, who, handle).id)

    def change_role(self, who: Principal, handle: str, member: str, role: str) -> Member:
        """Change a member's role; for its admins. Raises NotFound (no member: invite them), Forbidden, Conflict."""
        who.must("write")
        _check_role(role)
        with self._db.write() as rows:
            org = self._administered(rows, who, handle)
            found = next((m for m in orgs.members(rows, org.id) if m.handle == member), None)
            if found is None:
                raise NotFound(
                    f"the member {member[:60]!a}",
                    f"'{handle}' has none of that handle",
                    "invite them: they join by a yes",
                )
            orgs.put_member(rows, org.id, found.account_id, role)
            self._keep_an_admin(rows, org)
            self._audit.by(rows, who, "org-role", handle, {"member": member, "role": role})
            return next(m for m in orgs.members(rows, org.id) if m.account_id == found.account_id)

    def remove_member(self, who: Principal, handle: str, member: str) -> None:
        """Remove a member (its admins), or leave (anybody). Raises NotFound, Forbidden, Conflict."""
        who.must("write")
        with self._db.write() as rows:
            org = self._mine(rows, who, handle) if member == who.handle else self._administered(rows, who, handle)
            found = self._account_id(rows, member)
            orgs.drop_member(rows, org.id, found)
            self._keep_an_admin(rows, org)
            self._audit.by(rows, who, "org-leave", handle, {"member": member})

    # -- invitations ---------------------------------------------------------------------------------------------
    def invitations(self, who: Principal, handle: str) -> list[Invitation]:
        """Whom it has invited and who has not answered; for its admins. Raises NotFound, Forbidden."""
        with self._db.read() as rows:
            return orgs.invitations(rows, org_id=self._administered(rows, who, handle).id)

    def invited(self, who: Principal) -> list[Invitation]:
        """The organisations that wait for the answer of the account that asks."""
        with self._db.read() as rows:
            return orgs.invitations(rows, account_id=who.must("read"))

    def invite(self, who: Principal, handle: str, member: str, role: str) -> Invitation:
        """Ask an account to join; again, it renews the invitation. For its admins.

        Raises:
            NotFound, Forbidden, ComgradError. Conflict: a member already, or too many invitations wait for its answer.
        """
        by = who.must("write")
        _check_role(role)
        with self._db.write() as rows:
            org = self._administered(rows, who, handle)
            found = self._account_id(rows, member)
            if any(m.account_id == found for m in orgs.members(rows, org.id)):
                raise Conflict(f"'{member}'", f"it is a member of '{handle}' already", "change its role instead")
            if orgs.invited_count(rows, found, but=org.id) >= MOST:
                raise Conflict(f"'{member}'", f"{MOST} invitations wait for its answer", "ask it to answer some")
            orgs.put_invitation(rows, org.id, found, role, by, now() + GOOD_FOR)
            self._audit.by(rows, who, "org-invite", handle, {"member": member, "role": role})
            return next(i for i in orgs.invitations(rows, org_id=org.id) if i.account_id == found)

    def withdraw(self, who: Principal, handle: str, member: str) -> None:
        """Take an invitation back; for its admins. Raises NotFound, Forbidden."""
        who.must("write")
        with self._db.write() as rows:
            org = self._administered(rows, who, handle)
            if not orgs.drop_invitation(rows, org.id, self._account_id(rows, member)):
                raise _no_invitation(f"'{member}' to '{handle}'")
            self._audit.by(rows, who, "org-withdraw", handle, {"member": member})

    def accept(self, who: Principal, handle: str) -> Org:
        """Join an organisation that invited the account that asks. Raises NotFound, Conflict, SignInNeeded."""
        identity = who.must("write")
        with self._db.write() as rows:
            found = self._invitation(rows, identity, handle)
            if len(orgs.roles(rows, identity)) >= MOST:
                raise Conflict("another organisation", f"an account is in at most {MOST}", "leave one")
            orgs.drop_invitation(rows, found.org_id, identity)
            orgs.put_member(rows, found.org_id, identity, found.role)
            self._audit.by(rows, who, "org-join", found.org, {"role": found.role, "invited_by": found.invited_by})
            joined = orgs.org(rows, found.org_id, identity)
        assert joined is not None
        return joined

    def decline(self, who: Principal, handle: str) -> None:
        """Say no to an invitation. Raises NotFound, SignInNeeded."""
        identity = who.must("write")
        with self._db.write() as rows:
            found = self._invitation(rows, identity, handle)
            orgs.drop_invitation(rows, found.org_id, identity)
            self._audit.by(rows, who, "org-decline", found.org)

    @staticmethod
    def _invitation(rows: Rows, identity: str, handle: str) -> Invitation:
        found = next((i for i in orgs.invitations(rows, account_id=identity) if i.org == handle), None)
        if found is None:
            raise _no_invitation(f"{handle[:60]!a}")
        return found

    # -- who may -------------------------------------------------------------------------------------------------
    def _mine(self, rows: Rows, who: Principal, handle: str) -> Org:
        identity = who.must("read")
        found = orgs.org(rows, who.org_ids.get(handle, ""), identity)
        if found is None:
            raise NotFound(f"the organisation {handle[:60]!a}", "you are in none of that name", "check the spelling")
        return found

    def _administered(self, rows: Rows, who: Principal, handle: str) -> Org:
        found = self._mine(rows, who, handle)
        if found.role != "admin":
            raise Forbidden(f"'{handle}'", "only its admins change its members", "ask one of them")
        return found

    @staticmethod
    def _account_id(rows: Rows, handle: str) -> str:
        owner = people.owner_by_key(rows, checked_handle(handle)[1])
        if owner is None or owner.kind != "account" or owner.handle != handle:
            raise NotFound(f"the account '{handle}'", "there is none of that handle", "check the spelling")
        return owner.id

    @staticmethod
    def _keep_an_admin(rows: Rows, org: Org) -> None:
        if not any(m.role == "admin" for m in orgs.members(rows, org.id)):
            raise Conflict(f"'{org.handle}'", "it would have no admin left", "make another member admin first")


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise ComgradError(f"the role {role[:40]!a}", "there is none of that name", "member or admin")


def _no_invitation(what: str) -> NotFound:
    return NotFound(f"the invitation of {what}", "there is none, or it is over", "ask one of its admins for a new one")
