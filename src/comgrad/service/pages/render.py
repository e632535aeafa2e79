"""Templates to pages: the environment, the values that every page has, and the page of an error."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi import Request
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import QueryParams
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from comgrad.errors import ComgradError
from comgrad.service.auth.identity import ANONYMOUS, Principal
from comgrad.service.errors import TooMany
from comgrad.service.pages import charts, formats
from comgrad.service.pages.markdown import markdown

HERE = Path(__file__).parent
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "comgrad_theme"
YEAR = 365 * 24 * 3600
TITLES = {
    403: "Not allowed",
    404: "Nothing here",
    405: "Nothing here",
    409: "That cannot be done now",
    410: "Removed",
    413: "Too large",
    422: "Not accepted",
    429: "Slow down a little",
    500: "Something broke here",
    503: "Busy",
    507: "No room left",
}


class Assets(StaticFiles):
    """Static files; a name with its version may be kept for ever, one without is asked for again."""

    def __init__(self) -> None:
        super().__init__(directory=HERE / "static")

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, with how long it may be kept."""
        found = await super().get_response(path, scope)
        versioned = b"v=" in scope.get("query_string", b"")
        found.headers["Cache-Control"] = f"public, max-age={YEAR}, immutable" if versioned else "no-cache"
        return found


@lru_cache
def asset(name: str) -> str:
    """The address of a static file; it changes with the file."""
    return f"/static/{name}?v={hashlib.sha256((HERE / 'static' / name).read_bytes()).hexdigest()[:12]}"


@lru_cache
def environment() -> jinja2.Environment:
    """The templates; everything is escaped unless a filter here made it."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= formats.FILTERS | {"markdown": markdown, "path": lambda text: quote(str(text), safe="")}
    made.globals |= {"asset": asset, "charts": charts, "with_query": with_query, "range": range, "len": len}
    return made


def theme_of(request: Request) -> str:
    """The theme that the reader chose."""
    chosen = request.cookies.get(THEME_COOKIE, "")
    return chosen if chosen in THEMES else "auto"


def with_query(params: QueryParams, **changes: object) -> str:
    """The query string with some values changed; None drops one."""
    kept = {k: v for k, v in params.items() if k not in changes}
    kept |= {k: str(v) for k, v in changes.items() if v is not None and v != ""}
    return "?" + "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in kept.items()) if kept else "?"


def render(request: Request, who: Principal, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page."""
    theme = theme_of(request)
    following = THEMES[(THEMES.index(theme) + 1) % len(THEMES)]
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    common = {
        "request": request,
        "who": who,
        "theme": theme,
        "next_theme": following,
        "here": here if request.method == "GET" else "/",
        "path": request.url.path,
        "error": None,
    }
    text = environment().get_template(template).render({**common, **values})
    return HTMLResponse(text, status_code=status)


def go(address: str) -> RedirectResponse:
    """To another page, after a form."""
    return RedirectResponse(address, status_code=303)


def local(address: str, otherwise: str = "/") -> str:
    """The address if it stays on this site: it comes from a form or a link that anybody can write."""
    plain = address.isprintable() and address.startswith("/") and not address.startswith(("//", "/\\"))
    return quote(address, safe="/?&=%:,+-._~") if plain and len(address) <= 2000 else otherwise


def render_error(request: Request, error: ComgradError, status: int) -> Response:
    """The page of an error: what was given, why it is refused, what to do."""
    if status == 401:
        return go("/login?next=" + quote(local(request.url.path), safe="/"))
    who = getattr(request.state, "who", None)
    page = render(
        request,
        who if isinstance(who, Principal) else ANONYMOUS,
        "error.html",
        status=status,
        problem=error,
        status_code=status,
        heading=TITLES.get(status, "Not accepted"),
        seconds=int(error.seconds) + 1 if isinstance(error, TooMany) else None,
    )
    if isinstance(error, TooMany):
        page.headers["Retry-After"] = str(int(error.seconds) + 1)
    return page
