"""Requests made from the service's own description, right and wrong ones: no server error, and every answer as described.

    python attacks/openapi.py [--examples 100] [--only PATH] [--seed 0] [--json]

The description is /api/v1/openapi.json. For each operation schemathesis makes so many requests that fit it and so many that
do not, some of which name things that are there; each is sent by nobody, by a member and by the administrator. An answer
must be no 5xx, have a status, a type, headers and a body that the description names, and refuse what does not fit. The
service is `comgrad serve` in a process of its own, over an empty folder. Exits with 1 when an answer is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service import Site, attacked

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
ORIGIN = "http://127.0.0.1"
UNBOUNDED = {
    f"{kind}_PER_MINUTE": "10000000" for kind in ("READS", "WRITES", "COMPUTED", "LOGINS")
}  # a refusal hides what is behind it
SIGN_OUT = "DELETE /api/v1/session"
Known = Mapping[str, Sequence[str]]


@dataclass
class Report:
    """What came of the requests.

    Args:
        operations: that were tried. answers: (operation, status) → how often. problems: each kind once, with its first case.
    """

    operations: set[str] = field(default_factory=set)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    problems: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """How many were made."""
        return self.answers.total()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        statuses = Counter[str]()
        for (_, status), n in self.answers.items():
            statuses[str(status)] += n
        told = [f"{operation}: {kind}: {what}" for (operation, kind), what in sorted(self.problems.items())]
        own = {"operations": len(self.operations), "requests": self.requests}
        return own | {"statuses": dict(sorted(statuses.items())), "problems": told}


def sent(client: Any, case: Any, headers: Mapping[str, str]) -> httpx2.Response | None:
    """The answer to a case; None where it cannot be a request at all, such as one with a line break in a header."""
    made = case.as_transport_kwargs(base_url=ORIGIN)
    fields = ("method", "url", "params", "data", "json", "headers", "cookies", "files")
    try:
        request = requests.Request(**{k: v for k, v in made.items() if k in fields}).prepare()
        address = (request.url or "").removeprefix(ORIGIN)
        own = {k: v for k, v in request.headers.items() if k.lower() not in ("user-agent", "content-length")}
        answer: httpx2.Response = client.request(
            request.method, address, headers={**own, **headers}, content=request.body, follow_redirects=False
        )
    except (requests.RequestException, httpx2.InvalidURL, httpx2.LocalProtocolError, UnicodeError, ValueError):
        return None
    return answer


def probe(
    client: Any,
    document: dict[str, Any],
    people: Mapping[str, Mapping[str, str]],
    known: Known,
    examples: int,
    *,
    only: str = "",
    start: int = 0,
    tell: Callable[[str], object] = len,
) -> Report:
    """Ask every operation of the description.

    Args:
        people: name → headers that say who asks. known: path parameter → values that are there; used every second time.
        examples: requests of each kind for each person and operation. tell: told each operation that is done.
    """
    report = Report()
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in sorted(operations, key=lambda o: o.label == SIGN_OUT):  # a token that signs out is over
        if only in operation.path:
            report.operations.add(operation.label)
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request without parameters
                    _ask(report, client, operation, people, known, examples, mode, start)
            tell(operation.label)
    return report


def _ask(
    report: Report,
    client: Any,
    operation: Any,
    people: Mapping[str, Mapping[str, str]],
    known: Known,
    examples: int,
    mode: GenerationMode,
    start: int,
) -> None:
    turn = 0

    @seed(start)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        nonlocal turn
        turn += 1
        if mode is GenerationMode.POSITIVE and turn % 2:
            for name in case.path_parameters or ():
                if known.get(name):
                    case.path_parameters[name] = known[name][turn // 2 % len(known[name])]
        for headers in people.values():
            answer = sent(client, case, headers)
            if answer is not None:
                report.answers[operation.label, answer.status_code] += 1
                _judge(report, operation.label, case, answer)

    one()


def _judge(report: Report, operation: str, case: Any, answer: httpx2.Response) -> None:
    """Note each kind of failure once for an operation, with the request that met it first."""
    try:
        case.validate_response(answer, checks=CHECKS)
    except FailureGroup as group:
        for failure in group.exceptions:
            asked = f"{answer.request.method} {answer.request.url}"[:200]
            words = " ".join(str(getattr(failure, "message", failure)).split())[:300]
            report.problems.setdefault((operation, type(failure).__name__), f"{words} [{asked}: {answer.text[:200]}]")


@contextlib.contextmanager
def furnished() -> Iterator[tuple[Site, Known]]:
    """The attacked service, with something of each kind to name."""
    with attacked(UNBOUNDED) as site:
        site.ok("POST", "/api/v1/orgs", who="bob", json={"handle": "lab", "title": "The laboratory"})
        upload = site.begin(site.adapter(3)).json()["upload"]["id"]
        jobs = [j["id"] for j in site.ok("GET", "/api/v1/jobs", who="bob")["items"]]
        known = {
            "ref": [*site.ids.values(), "bob/open"],
            "identity": [upload, *jobs],
            "part": ["adapter_config.json", "adapter_model.safetensors"],
            "name": ["open", "vector.safetensors", "README.md"],
            "owner": ["bob"],
            "handle": ["eve"],
            "org": ["lab"],
        }
        yield site, known


def main() -> int:
    """Run as described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="of each kind, for each person and operation")
    parser.add_argument("--only", default="", help="operations with this in their path")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with furnished() as (site, known):
        document = site.ok("GET", "/api/v1/openapi.json")
        people = {n: {"Authorization": f"Bearer {t}"} for n, t in site.tokens.items() if n in ("bob", "ann")}
        with httpx2.Client(base_url=site.origin, timeout=120, trust_env=False) as client:
            report = probe(
                client,
                document,
                {"nobody": {}, **people},
                known,
                options.examples,
                only=options.only,
                start=options.seed,
                tell=lambda label: None if options.json else print(f"asked {label}", flush=True),
            )
        mistakes = [line for line in site.log.read_text(errors="replace").splitlines() if "made a mistake" in line]
    told = report.as_dict() | {"mistakes_in_the_log": mistakes[:10]}
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        for problem in told["problems"]:
            print(f"BAD {problem}")
        print(f"{told['requests']:,} requests of {told['operations']} operations; answers {told['statuses']}")
        print(f"{len(told['problems'])} problems, {len(mistakes)} mistakes in the log")
    return bool(told["problems"] or mistakes)


if __name__ == "__main__":
    sys.exit(main())
