"""How much one address may ask: a bucket for each kind of request, refilled evenly; memory is bounded."""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections import OrderedDict

from comgrad.service.settings import Settings

MOST = 50_000


class Buckets:
    """Token buckets of this process: kind and address → what is left."""

    def __init__(self, settings: Settings) -> None:
        self._rates = {
            "read": settings.reads_per_minute,
            "write": settings.writes_per_minute,
            "computed": settings.computed_per_minute,
            "login": settings.logins_per_minute,
        }
        self._left: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, kind: str, client: str) -> float:
        """Take one; 0 when there was one, else the seconds until there is."""
        client, rate = network(client), self._rates[kind] / 60.0
        now = time.monotonic()
        with self._lock:
            left, since = self._left.pop((kind, client), (float(self._rates[kind]), now))
            left = min(float(self._rates[kind]), left + (now - since) * rate)
            wait = 0.0 if left >= 1.0 else (1.0 - left) / rate
            self._left[(kind, client)] = (left - 1.0 if wait == 0.0 else left, now)
            while len(self._left) > MOST:
                self._left.popitem(last=False)
        return wait


def network(address: str) -> str:
    """The address; of IPv6 its network of 64 bits, all of which one customer has."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4 or found.ipv4_mapped is not None:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False))


_COMPUTED = (
    *("/api/v1/suggestions", "/api/v1/trends", "/api/v1/compare", "/api/v1/map"),
    *("/suggest", "/trends", "/compare", "/map"),
)
_OF_ONE = re.compile(r"/api/v1/vectors/[^/]+/(neighbours|profile)\Z")
_LOGIN = (
    *("/api/v1/session", "/api/v1/first-start", "/api/v1/accounts"),
    *("/login", "/first-start", "/invitation", "/sign-up", "/reset", "/account/password"),
)


def kind_of(method: str, path: str) -> str:
    """Which bucket a request draws from."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return "computed" if path in _COMPUTED or _OF_ONE.match(path) else "read"
    if path.startswith(_LOGIN) and method == "POST":
        return "login"
    return "computed" if path in _COMPUTED else "write"
