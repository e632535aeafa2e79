"""The address of a service: a scheme, a host and a port, nothing more. Credentials belong to exactly one of them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import httpx2

from comgrad.errors import ComgradError

_HOST = re.compile(r"[a-z0-9._\-]{1,253}|[0-9a-f:.]{2,45}")
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Address:
    """Where a service is; `host` is in ASCII form, so that look-alike letters show as `xn--`."""

    scheme: str
    host: str
    port: int

    @property
    def origin(self) -> str:
        """`https://host`, with the port where it is not the usual one: what credentials are bound to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}")

    @property
    def local(self) -> bool:
        """Whether it is this machine."""
        return _loopback(self.host)

    def __str__(self) -> str:
        return self.origin


def address(text: str, *, insecure: bool = False) -> Address:
    """The address that a user wrote: `hub.example.org`, `https://hub.example.org:8443`, `127.0.0.1:8000`.

    Args:
        insecure: allow http to another machine, where everybody on the way can read the token.

    Raises:
        ComgradError: (`bad-address`) it is none, or holds a path, a query or a password; (`not-secure`) http to another
            machine.
    """
    given = text.strip()
    shown = ascii(given[:200])
    if "@" in given:  # it may hold a password: do not repeat it
        raise _refused(
            "the address", "it holds a user name or a password", "give https://HOST; sign in with comgrad login"
        )
    if "://" not in given:
        given = ("http://" if _loopback(_host_of(given)) else "https://") + given
    try:
        url = httpx2.URL(given)
        port = url.port
    except (httpx2.InvalidURL, ValueError) as error:
        raise _refused(shown, "it is no address", "give https://HOST or https://HOST:PORT") from error
    host = url.raw_host.decode("ascii")
    if url.scheme not in _PORTS or not _HOST.fullmatch(host) or not 0 < (port or 1) < 65536:
        raise _refused(shown, "it is no address of a service", "give https://HOST or https://HOST:PORT")
    if url.path not in ("", "/") or url.query or url.fragment:
        raise _refused(shown, "it holds more than a host and a port", f"give {url.scheme}://{host} alone")
    if url.scheme == "http" and not _loopback(host) and not insecure:
        why = "without https everybody on the way can read the token and change the files"
        raise ComgradError(shown, why, f"give https://{host}, or say --insecure", code="not-secure")
    return Address(url.scheme, host, port or _PORTS[url.scheme])


def _host_of(text: str) -> str:
    """The host of `host[:port][/...]`, without looking at it closely."""
    text = text.split("/", 1)[0]
    return text[1:].split("]", 1)[0] if text.startswith("[") else text.rsplit(":", 1)[0] if ":" in text else text


def _loopback(host: str) -> bool:
    """Whether a host is this machine. Odd spellings of numbers (`0x7f.1`, `127.1`) are not taken for it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(given: str, why: str, remedy: str) -> ComgradError:
    return ComgradError(given, why, remedy, code="bad-address")
