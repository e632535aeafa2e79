"""The start page and the pages of suggestions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from comgrad.errors import ComgradError
from comgrad.service.auth.http import Form, Who
from comgrad.service.auth.identity import Principal
from comgrad.service.core import Service, service_of
from comgrad.service.errors import status_of
from comgrad.service.listings import Asked
from comgrad.service.pages import charts, words
from comgrad.service.pages.bundle import bundle
from comgrad.service.pages.render import go, render

router = APIRouter()
NEWEST = 8
EXAMPLES = (
    "Recognise which of several intents a request to a voice assistant about travel expresses: "
    "book a flight, reserve a hotel, change a booking.",
    "Tell whether a tweet is hateful, offensive or neither.",
    "Tell whether the subject of a sentence's main clause is singular or plural.",
)
LOADED = ("adapter_model.safetensors", "adapter_config.json")


@router.get("/")
def start(request: Request, who: Who, text: str = "") -> Response:
    """One box: describe your task."""
    service = service_of(request)
    if service.accounts.needs_first_start() and not text:
        return go("/first-start") if service.listings.page(who, Asked(limit=1)).total == 0 else _home(request, who, "")
    return _home(request, who, text[:20_000])


def _home(
    request: Request, who: Principal, text: str, error: ComgradError | None = None, base: str = "", dare: bool = False
) -> Response:
    service = service_of(request)
    newest = service.listings.page(who, Asked(limit=NEWEST))
    return render(
        request,
        who,
        "home.html",
        status=200 if error is None else status_of(error),
        text=text,
        chosen=base,
        dare=dare,
        error=error,
        newest=newest,
        examples=EXAMPLES,
        bases=service.insight.bases(who),
        first_start=service.accounts.needs_first_start(),
    )


@router.post("/suggest")
def ask(request: Request, who: Who, form: Form) -> Response:
    """Make a suggestion and show it."""
    text, base, dare = form.get("text", "").strip(), form.get("base", ""), form.get("dare") == "1"
    try:
        made = service_of(request).insight.suggest(who, text, base=base or None, dare=dare)
    except ComgradError as error:
        return _home(request, who, text, error, base, dare)
    return go(f"/suggestions/{made.id}" + ("?dared=1" if dare else ""))


@router.get("/suggestions/{suggestion_id}")
def suggestion(request: Request, who: Who, suggestion_id: str, dared: str = "") -> Response:
    """What was suggested, why, how sure, and how to use it."""
    service: Service = service_of(request)
    found = service.insight.suggestion(who, suggestion_id)
    made: dict[str, Any] = found.made
    sources = found.sources
    bars = charts.signed_bars([float(s["coefficient"]) for s in sources])
    return render(
        request,
        who,
        "suggestion.html",
        found=found,
        made=made,
        dared=dared == "1",
        text=found.description,
        confidence=words.confidence(made),
        sources=list(zip(sources, bars, strict=True)),
        layers=charts.layers(found.layers),
        files=found.files,
        hours=service.settings.suggestion_hours,
        folder=_folder(suggestion_id),
    )


def _folder(suggestion_id: str) -> str:
    return "start-" + "".join(c for c in suggestion_id if c.isalnum())[-10:]


@router.get("/suggestions/{suggestion_id}/adapter.zip")
def download(request: Request, who: Who, suggestion_id: str) -> Response:
    """The adapter as one file."""
    service = service_of(request)
    found = service.insight.suggestion(who, suggestion_id)
    files = [service.insight.suggestion_file(who, suggestion_id, f.name) for f in found.files]
    return bundle(files, _folder(suggestion_id))
