"""The web pages: server-rendered, without inline script, readable without script where the web allows it."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.staticfiles import StaticFiles

from comgrad.service.auth.http import Who
from comgrad.service.pages.render import Assets, render_error

__all__ = ["render_error", "router", "static"]


def router() -> APIRouter:
    """Every page."""
    from comgrad.service.pages import account, atlas, catalogue, organisations, people, suggest, upload, vector

    made = APIRouter(include_in_schema=False, dependencies=[Depends(remember)])
    for part in (suggest, catalogue, vector, atlas, upload, people, account, organisations):
        made.include_router(part.router)
    return made


async def remember(request: Request, who: Who) -> None:
    """Note who asks, for the page of an error."""
    request.state.who = who


def static() -> StaticFiles:
    """Style, scripts and pictures; to be mounted at /static."""
    return Assets()
