"""Who asks: an account by its session or token, or nobody."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from comgrad.errors import ComgradError
from comgrad.registry.names import name_key
from comgrad.service.errors import Forbidden, sign_in

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
ALL = frozenset(SCOPES)

_HANDLE = re.compile(r"[a-z0-9](?:[a-z0-9]|-(?=[a-z0-9])){1,38}\Z")
_RESERVED = frozenset(
    [
        "admin",
        "administrator",
        "root",
        "api",
        "static",
        "login",
        "logout",
        "account",
        "accounts",
        "settings",
        "me",
        "you",
        "anonymous",
        "nobody",
        "comgrad",
        "official",
        "support",
        "staff",
        "security",
        "system",
        "public",
        "private",
        "orgs",
        "names",
        "vectors",
        "uploads",
        "jobs",
        "search",
        "suggest",
        "local",
    ]
)


@dataclass(frozen=True)
class Principal:
    """Who asks, and what they may do.

    Args:
        orgs: handle → role (`member`, `admin`). org_ids: handle → id.
        csrf: what a form of this session must carry.
    """

    account_id: str | None = None
    handle: str = ""
    site_admin: bool = False
    scopes: frozenset[str] = frozenset({"read"})
    orgs: Mapping[str, str] = field(default_factory=dict)
    org_ids: Mapping[str, str] = field(default_factory=dict)
    via: str = "anonymous"
    csrf: str = ""
    client: str = ""
    credential: str = ""  # digest of the session, id of the token

    @property
    def known(self) -> bool:
        """Whether somebody is signed in."""
        return self.account_id is not None

    @property
    def owner_ids(self) -> frozenset[str]:
        """The account and its organisations: whose private vectors it reads."""
        mine = [] if self.account_id is None else [self.account_id]
        return frozenset([*mine, *self.org_ids.values()])

    def must(self, scope: Scope) -> str:
        """The account's id, if there is one with that scope. Raises SignInNeeded, Forbidden."""
        if self.account_id is None:
            raise sign_in()
        if scope not in self.scopes:
            raise Forbidden("this token", f"it lacks the scope '{scope}'", "make a token with that scope", code="scope")
        return self.account_id

    def must_administer(self) -> str:
        """The account's id, if it administers the site. Raises SignInNeeded, Forbidden."""
        if self.account_id is None:
            raise sign_in()
        if not self.site_admin or "admin" not in self.scopes:
            raise Forbidden("this account", "only administrators of the site may do this", "ask one of them")
        return self.account_id

    def writes_as(self, owner_id: str) -> bool:
        """Whether it may change what that owner shares: its own, or what an organisation it administers shares."""
        if owner_id == self.account_id:
            return True
        return any(self.orgs[h] == "admin" for h, i in self.org_ids.items() if i == owner_id)


ANONYMOUS = Principal()


def checked_handle(handle: str) -> tuple[str, str]:
    """A handle and its key. Raises ComgradError (`handle-refused`)."""
    if not _HANDLE.match(handle) or handle in _RESERVED:
        raise ComgradError(
            f"the handle {handle[:60]!a}",
            "a handle is 2 to 39 small letters, digits and single hyphens, and some words are reserved",
            "choose another handle",
            code="handle-refused",
        )
    return handle, name_key(handle)


def checked_password(password: str) -> str:
    """A password that can be one. Raises ComgradError (`password-refused`)."""
    if not 12 <= len(password) <= 512 or len(set(password)) < 5:
        raise ComgradError(
            "the password",
            "a password has 12 to 512 characters, at least five of them different",
            "choose a longer one, such as a few words",
            code="password-refused",
        )
    return password
