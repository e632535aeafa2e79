"""Logs as one JSON object a line, with every secret taken out before it is written."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any, TextIO

_SECRETS = re.compile(
    r"cg[tsifr]_[A-Za-z0-9_\-]{8,}"  # this service's own
    r"|hf_[A-Za-z0-9]{8,}"
    r"|(?i:bearer|basic)\s+[A-Za-z0-9._~+/=\-]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # name and password in an address
    r"|AKIA[A-Z0-9]{12,}"
)
_NAMES = re.compile(r"pass(word)?|secret|token|cookie|authorization|csrf|credential", re.IGNORECASE)
_OWN = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "taskName"}
HIDDEN = "[hidden]"


def redacted(value: Any, name: str = "") -> Any:
    """The value without secrets: by the look of a text, and by the name of a field."""
    if name and _NAMES.search(name) and isinstance(value, str | bytes):
        return HIDDEN
    if isinstance(value, dict):
        return {str(k): redacted(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted(v) for v in value]
    if isinstance(value, str):
        return _SECRETS.sub(HIDDEN, value)
    return value if isinstance(value, int | float | bool | None) else _SECRETS.sub(HIDDEN, str(value))


class JsonFormatter(logging.Formatter):
    """A record as JSON; a line break in a value stays inside its string."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        out: dict[str, Any] = {"at": at, "level": record.levelname.lower(), "logger": record.name}
        out["message"] = redacted(record.getMessage())
        out |= {k: redacted(v, k) for k, v in record.__dict__.items() if k not in _OWN}
        if record.exc_info:
            out["error"] = redacted(self.formatException(record.exc_info))
        return json.dumps(out, ensure_ascii=True, default=str)


def set_up(stream: TextIO | None = None, level: int = logging.INFO) -> logging.Handler:
    """Send the service's and the server's logs to one stream as JSON; the handler."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("comgrad", "uvicorn", "uvicorn.error", "huey"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level if name != "huey" else logging.WARNING)
    logging.getLogger("uvicorn.access").handlers = []
    logging.getLogger("uvicorn.access").propagate = False
    return handler
