"""Organisations of a service: several accounts that share under one handle. Nobody becomes a member without their own yes."""

from __future__ import annotations

from typing import Any, Literal

from comgrad.client.errors import not_trusted
from comgrad.client.offers import Questions
from comgrad.client.paths import API, quoted
from comgrad.client.uploads import inner

Role = Literal["member", "admin"]


class Organisations:
    """The part of a client that is about organisations, under the names of the API's own operations.

    Values are the API's: an organisation has `handle`, `title`, `role` (one's own) and `members`; a member `handle`, `role`
    and `since`; an invitation `org`, `title`, `handle`, `role`, `invited_by`, `created_at` and `expires_at`.

    All raise the service's refusals (`sign-in-needed`, `not-found`, `forbidden`, `conflict`), Unreachable and NotTrusted.
    What is no question is sent again only where it was not done.
    """

    _ask: Questions

    # -- organisations and members -------------------------------------------------------------------------------
    def orgs(self) -> list[dict[str, Any]]:
        """One's organisations."""
        return self._items(f"{API}/orgs")

    def create_org(self, handle: str, title: str = "") -> dict[str, Any]:
        """Found one; whoever does is its first admin. Raises ComgradError (`handle-taken`)."""
        body = {"handle": handle, "title": title}
        return inner(self._ask.object("POST", f"{API}/orgs", body, repeatable=False), "org")

    def org(self, org: str) -> dict[str, Any]:
        """One of one's own."""
        return inner(self._ask.object("GET", _path(org)), "org")

    def members(self, org: str) -> list[dict[str, Any]]:
        """Its members; for members."""
        return self._items(_path(org, "members"))

    def change_role(self, org: str, handle: str, role: Role) -> dict[str, Any]:
        """Change a member's role; for its admins."""
        return inner(self._ask.object("PUT", _path(org, "members", handle), {"role": role}), "member")

    def remove_member(self, org: str, handle: str) -> None:
        """Remove a member (its admins), or leave (with one's own handle)."""
        self._ask.nothing("DELETE", _path(org, "members", handle))

    # -- inviting ------------------------------------------------------------------------------------------------
    def invitations(self, org: str) -> list[dict[str, Any]]:
        """Whom it has invited and who has not answered; for its admins."""
        return self._items(_path(org, "invitations"))

    def invite_member(self, org: str, handle: str, role: Role = "member") -> dict[str, Any]:
        """Ask an account to join; again, it renews the invitation. For its admins."""
        return inner(self._ask.object("PUT", _path(org, "invitations", handle), {"role": role}), "invitation")

    def withdraw(self, org: str, handle: str) -> None:
        """Take an invitation back; for its admins."""
        self._ask.nothing("DELETE", _path(org, "invitations", handle))

    # -- being invited -------------------------------------------------------------------------------------------
    def invited(self) -> list[dict[str, Any]]:
        """The organisations that wait for one's answer."""
        return self._items(f"{API}/account/invitations")

    def accept_invitation(self, org: str) -> dict[str, Any]:
        """Join an organisation that invited one."""
        path = f"{API}/account/invitations/{quoted(org)}"
        return inner(self._ask.object("POST", path, repeatable=False), "org")

    def decline(self, org: str) -> None:
        """Say no to an invitation."""
        self._ask.nothing("DELETE", f"{API}/account/invitations/{quoted(org)}")

    def _items(self, path: str) -> list[dict[str, Any]]:
        found = self._ask.object("GET", path).get("items")
        if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
            raise not_trusted("a list", "the answer has another form: this is no comgrad service", "no-service")
        return found


def _path(org: str, *more: str) -> str:
    return "/".join((f"{API}/orgs", *map(quoted, (org, *more))))
