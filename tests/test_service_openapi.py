"""Requests made from the API's own description: no server error, and every answer as described."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("schemathesis", reason="the extra 'dev' is not installed")
pytest.importorskip("fastapi", reason="the extra 'service' is not installed")

from service_site import Site, running

ATTACKS = Path(__file__).parent.parent / "attacks"
API = "/api/v1"


# schemathesis makes some wrong values by the module `random`, which hypothesis advises against
pytestmark = pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning"
)


@pytest.fixture(scope="module")
def openapi() -> ModuleType:
    if str(ATTACKS) not in sys.path:
        sys.path.insert(0, str(ATTACKS))
    return __import__("openapi")


@pytest.fixture(scope="module")
def site(zoo: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("service"), vectors=zoo[:3]) as made:
        stored = [r.id for r in made.service.registry.store.list()]
        for at, identity in enumerate(stored):
            made.share(identity, "owner", f"vector-{at}", "public" if at < 2 else "private")
        yield made


@pytest.fixture(scope="module")
def document(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site.client.get(f"{API}/openapi.json").json()
    return found


def test_answers_are_as_described_and_none_is_a_server_error(
    openapi: ModuleType, site: Site, document: dict[str, Any]
) -> None:
    refs = [r.id for r in site.service.registry.store.list()]
    known = {
        "ref": refs,
        "name": ["vector-0", "vector.safetensors"],
        "owner": ["bob"],
        "org": ["lab"],
        "handle": ["eve"],
    }
    people = {role: site.headers(role) for role in ("owner", "site-admin")}
    report = openapi.probe(site.client, document, people, known, 2)
    told = report.as_dict()
    assert told["problems"] == []
    assert report.operations == {f"{m.upper()} {p}" for p, ms in document["paths"].items() for m in ms}
    assert report.requests > 4 * len(report.operations)
    assert {"200", "404", "422"} <= set(told["statuses"])
    assert not any(status >= "500" for status in told["statuses"])


def test_the_probe_notices(openapi: ModuleType, site: Site, document: dict[str, Any]) -> None:
    """Proof that it can fail: a status that is not described, and a body of another form."""
    path = f"{API}/vectors/{{ref}}"
    get = document["paths"][path]["get"]
    for responses, kind in (
        ({"200": {"description": "all is well"}}, "UndefinedStatusCode"),
        (
            {"4XX": {"description": "x", "content": {"application/json": {"schema": {"type": "string"}}}}},
            "JsonSchemaError",
        ),
    ):
        changed = {**document, "paths": {path: {"get": {**get, "responses": responses}}}}
        report = openapi.probe(site.client, changed, {"nobody": {}}, {}, 3)
        assert (f"GET {path}", kind) in report.problems


def test_every_operation_describes_its_refusals(document: dict[str, Any]) -> None:
    operations = [o for p, ms in document["paths"].items() if p.startswith(API) for o in ms.values()]
    assert len(operations) > 30
    for operation in operations:
        assert {"4XX", "503", "507"} <= set(operation["responses"])
        assert "422" not in operation["responses"]  # FastAPI's own form, which is not ours
    words = document["components"]["schemas"]["Words"]
    assert set(words["required"]) == {"code", "given", "why", "remedy"}
    assert re.match(words["properties"]["code"]["pattern"], "sign-in-needed")
