"""How figures, sizes and times are written on pages."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

NONE = "–"
MINUS = "\u2212"


def size(count: float | None) -> str:
    """Bytes, in thousands: 612 kB."""
    if count is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if count >= 9.95 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def figure(value: float | None, digits: int = 3) -> str:
    """So many significant digits, with a true minus."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if places > 6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    return f"{value:,.{places}f}".replace(",", "\u2009").replace("-", MINUS)


def fixed(value: float | None, places: int = 2) -> str:
    """So many decimal places, for columns."""
    return (
        NONE
        if value is None or not math.isfinite(value)
        else f"{round(value, places) + 0.0:.{places}f}".replace("-", MINUS)
    )


def signed(value: float | None, places: int = 3) -> str:
    """With its sign, for coefficients."""
    return NONE if value is None or not math.isfinite(value) else f"{value:+.{places}f}".replace("-", MINUS)


def percent(value: float | None) -> str:
    """A share in percent; a small one is not shown as none."""
    if value is None or not math.isfinite(value):
        return NONE
    shown = 100 * value
    if not math.isfinite(shown):
        return NONE
    if 0 < abs(shown) < 0.1:
        return "<0.1 %"
    return f"{shown:.0f} %" if abs(shown) >= 9.95 else f"{shown:.1f} %".replace("-", MINUS)


def instant(value: datetime | str | None) -> datetime | None:
    """A time from JSON or as it is."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def day(value: datetime | str | None) -> str:
    """31 Jan 2026."""
    found = instant(value)
    return NONE if found is None else f"{found.day} {found:%b %Y}"


def minute(value: datetime | str | None) -> str:
    """31 Jan 2026, 14:05 UTC."""
    found = instant(value)
    return NONE if found is None else f"{found.day} {found:%b %Y, %H:%M} UTC"


def iso(value: datetime | str | None) -> str:
    """For the datetime attribute."""
    found = instant(value)
    return "" if found is None else found.isoformat(timespec="seconds")


def short(digest: str | None, keep: int = 12) -> str:
    """The beginning of a digest."""
    return NONE if not digest else digest[:keep] + "…" if len(digest) > keep else digest


def clip(text: str, most: int = 200) -> str:
    """One line of a text, cut at a word."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most].rsplit(" ", 1)[0] + "…"


def count(number: int, one: str, many: str = "") -> str:
    """1 vector, 38 vectors, 10 000 vectors."""
    return f"{number:,}".replace(",", "\u2009") + " " + (one if number == 1 else many or one + "s")


def last(name: str) -> str:
    """The name without its owner: a base model's last part."""
    return name.rsplit("/", 1)[-1]


def plain(value: object) -> str:
    """A value of a card: whole numbers as they are, others in four digits."""
    return figure(value, 4) if isinstance(value, float) else str(value)


def sentence(text: str) -> str:
    """With a capital at the start and one full stop at the end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) or not text else ".")


FILTERS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (size, figure, fixed, signed, percent, day, minute, iso, short, clip, count, last, plain, sentence)
}
