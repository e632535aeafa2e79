"""How often a secret may be guessed: pauses that grow with the attempts, for each source; nobody is locked out.

An attempt is counted before its secret is looked at, so that many at once do not slip through together; a right one is
taken back. What counts is the pair of account and source (an address, or the network of 64 bits of IPv6). An account that
is attacked from everywhere leaves each source fewer attempts before the pauses begin, and never none: the right password
from another source works whatever strangers do.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from comgrad.service.errors import TooMany
from comgrad.service.store import guesses
from comgrad.service.store.database import Database, Rows, now
from comgrad.service.web.limits import network

QUIET = timedelta(hours=1)  # without an attempt, and all is forgotten
FREE, FREE_ATTACKED, FREE_SOURCE = 10, 3, 50  # attempts without a pause: at an account, at an attacked one, at any
ATTACKED = 50  # wrong attempts at an account, from anywhere
FIRST, LONGEST = 30.0, 900.0  # seconds of the first pause, which doubles, and of the longest
THE_FIRST_START, A_TOKEN = "the first start", "a token"  # no handle has a space


class Guesses:
    """Attempts at secrets, over the service's database: all processes count together."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def charge(self, what: str, client: str) -> None:
        """Count an attempt at a handle's secret, or at `A_TOKEN`. Raises TooMany while a pause lasts."""
        pair, source, whole = _keys(what, client)
        with self._db.write() as rows:
            known = guesses.known(rows, [pair, source, whole], QUIET)
            attacked = known.get(whole, (0, None))[0] >= ATTACKED
            wait = max(
                _left(known.get(pair), FREE_ATTACKED if attacked else FREE), _left(known.get(source), FREE_SOURCE)
            )
            if wait <= 0.0:
                guesses.count(rows, [pair, source, whole] if _owned(what) else [pair, source], QUIET)
        if wait > 0.0:
            why = "there were too many wrong attempts from this address"
            raise TooMany("signing in", why, f"wait {wait:.0f} s; elsewhere it works", seconds=wait, code="guessing")

    def refund(self, rows: Rows, what: str, client: str) -> None:
        """Take the attempt back that was right; what went before it from the same source is forgiven."""
        pair, source, whole = _keys(what, client)
        guesses.forget(rows, pair)
        guesses.uncount(rows, [source, whole])


def _owned(what: str) -> bool:
    """Whether it belongs to one account, at which attempts from everywhere are aimed."""
    return what not in (THE_FIRST_START, A_TOKEN)


def _keys(what: str, client: str) -> tuple[str, str, str]:
    source = network(client)[:60]
    return f"{what[:100]} from {source}", f"from {source}", f"any {what[:100]}"


def _left(known: tuple[int, datetime] | None, free: int) -> float:
    """Seconds of the pause that are left."""
    if known is None or known[0] < free:
        return 0.0
    pause = min(FIRST * 2.0 ** min(known[0] - free, 20), LONGEST)
    return pause - (now() - known[1]).total_seconds()
