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

from pydantic import BaseModel

from comgrad.service.api import results, results_atlas, results_vectors, results_work
from service_site import WEIGHTS, Site, adapter, running

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


def loose(document: dict[str, Any], schema: Any, seen: set[str]) -> Iterator[str]:
    """Where a schema lets through an object whose fields it does not name."""
    if isinstance(schema, list):
        for part in schema:
            yield from loose(document, part, seen)
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in seen:
            seen.add(name)
            yield from (f"{name}: {x}" for x in loose(document, document["components"]["schemas"][name], seen))
        return
    if schema == {} or (schema.get("type") == "object" and "properties" not in schema and not _values(schema)):
        yield str(schema.get("title", "without a name"))
    for key in ("properties", "$defs"):
        for part in schema.get(key, {}).values():
            yield from loose(document, part, seen)
    for key in ("items", "anyOf", "oneOf", "allOf", "prefixItems", "additionalProperties"):
        yield from loose(document, schema.get(key), seen)


def _values(schema: dict[str, Any]) -> bool:
    """Whether an object is a table of values of one known form."""
    more = schema.get("additionalProperties")
    return isinstance(more, dict) and more != {}


def test_every_answer_in_json_names_its_fields(document: dict[str, Any]) -> None:
    found: set[str] = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            good = {s: r for s, r in operation["responses"].items() if s.startswith("2")}
            assert good, (method, path)
            for answer in good.values():
                schema = answer.get("content", {}).get("application/json", {}).get("schema")
                if schema is not None:
                    assert set(schema) == {"$ref"}, (method, path, schema)
                    found |= set(loose(document, schema, set()))
    # what has no fixed fields: what an audited action tells, a signature in sigstore's own form, a card's unknown keys
    words = {x.rpartition(": ")[2] for x in found}
    assert words == {"Detail", "without a name", "Extra"}, found


def test_what_a_whole_journey_is_told_is_as_described(zoo: list[Path], tmp_path: Path) -> None:
    """Answers that made-up requests do not reach: of jobs that ended, and of vectors that were related and screened."""
    with running(tmp_path, screen=True) as site:

        def told(model: type[BaseModel], method: str, path: str, role: str = "owner", **more: Any) -> Any:
            answer = site.call(role, method, f"{API}{path}", **more)
            assert answer.status_code < 300, answer.text
            model.model_validate_json(answer.content)
            return answer.json()

        for at, path in enumerate(zoo[:12]):
            answer = site.upload("owner", adapter(path), wait=60, name=f"v{at}", visibility="public")
            assert answer.status_code == 201, answer.text
            results_work.Completed.model_validate_json(answer.content)
        site.work_off(300)
        identity = answer.json()["upload"]["vector"]
        whole = told(results_vectors.OneVector, "GET", f"/vectors/{identity}")["vector"]
        assert whole["related"] is not None and whole["screening"] is not None
        explained = site.upload("other", adapter(zoo[12]), wait=60, purpose="explain")
        site.work_off(300)
        job = explained.json()["job"]["id"]
        shown = told(results_work.OneJob, "GET", f"/jobs/{job}?wait=60", role="other")["job"]
        assert shown["result"]["explanation"]["sources"]
        done = site.call("other", "POST", f"{API}/uploads/{explained.json()['upload']['id']}/complete")
        results_work.Completed.model_validate_json(done.content)
        broken = site.upload("owner", {**adapter(zoo[13]), WEIGHTS: b"\0" * 100}, wait=60)
        assert broken.status_code == 422
        told(results_work.Uploads, "GET", "/uploads")
        told(results_work.Jobs, "GET", "/jobs")
        told(results_vectors.Catalogue, "GET", "/vectors?q=a")
        assert told(results_vectors.Neighbours, "GET", f"/vectors/{identity}/neighbours")["items"]
        told(results_vectors.Profile, "GET", f"/vectors/{identity}/profile")
        told(results_vectors.Manifest, "GET", f"/vectors/{identity}/manifest")
        made = told(results_vectors.Suggestion, "POST", "/suggestions", json={"text": "moods of films"})
        told(results_vectors.Suggestion, "GET", f"/suggestions/{made['id']}")
        assert told(results_vectors.Hits, "POST", "/search", json={"text": "moods of films"})["items"]
        told(results_vectors.Comparison, "GET", f"/compare?a=bob/v0&b={identity}")
        assert told(results_atlas.Map, "GET", "/map")["points"]
        told(results_atlas.Trends, "GET", "/trends")
        told(results.Entries, "GET", "/audit", role="site-admin")
        told(results_vectors.Removed, "DELETE", f"/vectors/{identity}")
