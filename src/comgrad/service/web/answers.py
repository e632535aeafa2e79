"""Answers: finite JSON, and files with an ETag and at most one range."""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi.encoders import jsonable_encoder
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from comgrad.service.errors import BadRange
from comgrad.service.files import Opened

BLOCK = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")
_FILE_CSP = "default-src 'none'; sandbox"


class Json(JSONResponse):
    """JSON in which a number that is not finite is null, and a lone surrogate a question mark."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        try:
            text = _dumped(content)
        except ValueError:
            text = _dumped(finite(content))
        return text.encode("utf-8", "replace")


def _dumped(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=jsonable_encoder)


class JsonRoute(APIRoute):
    """A route whose answer becomes JSON in the thread that computed it, not in the one that serves all connections."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _sending(endpoint, options.get("status_code") or 200), **options)


def _sending(endpoint: Callable[..., Any], status: int) -> Callable[..., Any]:
    """The endpoint, with what it returns as a response, unless it sets headers by a response of its own."""
    if inspect.iscoroutinefunction(endpoint) or "response" in inspect.signature(endpoint).parameters:
        return endpoint

    @functools.wraps(endpoint)
    def send(*args: Any, **given: Any) -> Response:
        made = endpoint(*args, **given)
        return made if isinstance(made, Response) else Json(made, status)

    return send


def finite(value: Any) -> Any:
    """The value with null for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def send_file(request: Request, opened: Opened, *, public: bool) -> Response:
    """The file, or a part of it. Raises BadRange: more than one range, or one that the file does not have."""
    etag = f'"{opened.digest}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{opened.name}"',
        "Content-Security-Policy": _FILE_CSP,
        "Cache-Control": "public, no-cache" if public else "private, no-cache",
        "X-Content-Digest": f"sha256:{opened.digest}",
    }
    known = [t.strip().removeprefix("W/") for t in request.headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    given = request.headers.get("range")
    if request.headers.get("if-range") not in (None, etag):
        given = None
    first, last = (0, opened.size - 1) if given is None else _range(given, opened.size)
    status = 200 if given is None else 206
    if status == 206:
        headers["Content-Range"] = f"bytes {first}-{last}/{opened.size}"
    headers["Content-Length"] = str(last - first + 1)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=opened.media_type)
    if opened.path is None:
        return Response(opened.data[first : last + 1], status, headers, opened.media_type)
    return StreamingResponse(_blocks(opened.path, first, last), status, headers, opened.media_type)


def _range(text: str, size: int) -> tuple[int, int]:
    found = _RANGE.match(text.replace(" ", ""))
    if found is None or found[1] == found[2] == "":
        raise BadRange(f"the range {text[:60]!a}", "one range of bytes is served", "ask for one, such as bytes=0-1023")
    first = int(found[1]) if found[1] else max(0, size - int(found[2]))
    last = min(int(found[2]) if found[1] and found[2] else size - 1, size - 1)
    if first > last:
        raise BadRange(f"the range {text[:60]!a}", f"the file has {size} bytes", "ask for bytes that it has")
    return first, last


def _blocks(path: Path, first: int, last: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        left = last - first + 1
        while left > 0 and (block := file.read(min(BLOCK, left))):
            left -= len(block)
            yield block
