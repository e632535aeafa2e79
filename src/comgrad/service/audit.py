"""The audit log: who did what, in the same transaction as the deed; append only, chained by hashes."""

from __future__ import annotations

from typing import Any

from comgrad.service.auth.identity import Principal
from comgrad.service.store import trail
from comgrad.service.store.database import Database, Rows

SERVICE = "(service)"  # what the service does by itself; no handle looks like this


class Audit:
    """The log over the service's database. Values are data: no line of text is ever made of them."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def write(
        self,
        rows: Rows,
        account_id: str | None,
        handle: str,
        action: str,
        target: str,
        detail: dict[str, Any] | None = None,
        *,
        client: str = "",
    ) -> None:
        """Append an entry in the transaction of the deed."""
        trail.append(rows, account_id, handle, action, target[:500], detail or {}, client[:64])

    def by(self, rows: Rows, who: Principal, action: str, target: str, detail: dict[str, Any] | None = None) -> None:
        """Append an entry for what somebody does."""
        self.write(rows, who.account_id, who.handle, action, target, detail, client=who.client)

    def entries(self, who: Principal, limit: int = 100, before: int | None = None) -> list[dict[str, Any]]:
        """The newest entries; for site admins."""
        who.must_administer()
        with self._db.read() as rows:
            return trail.entries(rows, max(1, min(limit, 1000)), before)

    def broken(self) -> int | None:
        """The number of the first entry that was changed after it was written; None when the log is whole."""
        with self._db.read() as rows:
            return trail.broken(rows)
