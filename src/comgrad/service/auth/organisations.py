"""Organisations: several accounts that share under one handle. Members read what it shares, its admins change it."""

from __future__ import annotations

from comgrad.errors import ComgradError, NotFound
from comgrad.registry.names import checked_name
from comgrad.service.audit import Audit
from comgrad.service.auth.accounts import taken
from comgrad.service.auth.identity import Principal, checked_handle
from comgrad.service.errors import Conflict, Forbidden
from comgrad.service.store import people
from comgrad.service.store.database import Database, Rows, new_id
from comgrad.service.store.people import Member, Org

ROLES = ("member", "admin")
MOST = 50


class Organisations:
    """Organisations over the service's database."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._db = database
        self._audit = audit

    def mine(self, who: Principal) -> list[Org]:
        """The organisations of the account that asks."""
        identity = who.must("read")
        with self._db.read() as rows:
            found = [people.org(rows, i, identity) for i in who.org_ids.values()]
        return sorted((o for o in found if o is not None), key=lambda o: o.handle)

    def create(self, who: Principal, handle: str, title: str = "") -> Org:
        """Found one; whoever does is its first admin. Raises Conflict (`handle-taken`), ComgradError."""
        identity = who.must("write")
        handle, key = checked_handle(handle)
        title = checked_name(title) if title.strip() else handle
        with self._db.write() as rows:
            taken(rows, handle, key)
            if len(people.roles(rows, identity)) >= MOST:
                raise Conflict("another organisation", f"an account is in at most {MOST}", "leave one")
            made = new_id("or")
            people.put_handle(rows, key, handle, made, "org")
            people.put_org(rows, made, handle, title)
            people.put_member(rows, made, identity, "admin")
            self._audit.by(rows, who, "org-create", handle)
            found = people.org(rows, made, identity)
        assert found is not None
        return found

    def get(self, who: Principal, handle: str) -> Org:
        """One of one's own organisations. Raises NotFound."""
        with self._db.read() as rows:
            return self._mine(rows, who, handle)

    def members(self, who: Principal, handle: str) -> list[Member]:
        """Its members; for members. Raises NotFound."""
        with self._db.read() as rows:
            return people.members(rows, self._mine(rows, who, handle).id)

    def put_member(self, who: Principal, handle: str, member: str, role: str) -> Member:
        """Add a member or change a role; for its admins. Raises NotFound, Forbidden, Conflict, ComgradError."""
        who.must("write")
        if role not in ROLES:
            raise ComgradError(f"the role {role[:40]!a}", "there is none of that name", "member or admin")
        with self._db.write() as rows:
            org = self._administered(rows, who, handle)
            found = self._account_id(rows, member)
            people.put_member(rows, org.id, found, role)
            self._keep_an_admin(rows, org)
            self._audit.by(rows, who, "org-member", handle, {"member": member, "role": role})
            return next(m for m in people.members(rows, org.id) if m.account_id == found)

    def remove_member(self, who: Principal, handle: str, member: str) -> None:
        """Remove a member (its admins), or leave (anybody). Raises NotFound, Forbidden, Conflict."""
        who.must("write")
        with self._db.write() as rows:
            org = self._mine(rows, who, handle) if member == who.handle else self._administered(rows, who, handle)
            found = self._account_id(rows, member)
            people.drop_member(rows, org.id, found)
            self._keep_an_admin(rows, org)
            self._audit.by(rows, who, "org-leave", handle, {"member": member})

    def _mine(self, rows: Rows, who: Principal, handle: str) -> Org:
        identity = who.must("read")
        found = people.org(rows, who.org_ids.get(handle, ""), identity)
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
        if not any(m.role == "admin" for m in people.members(rows, org.id)):
            raise Conflict(f"'{org.handle}'", "it would have no admin left", "make another member admin first")
