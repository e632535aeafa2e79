"""A real service over a real registry, with accounts of every role: what the service's tests share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from comgrad.registry.card import Card
from comgrad.registry.names import name_key
from comgrad.service.app import create_app
from comgrad.service.core import Service
from comgrad.service.settings import Settings
from comgrad.service.store import people, things
from comgrad.service.store.database import new_id
from comgrad.workflows.adding import AddRequest, add_one
from comgrad.workflows.registry import Registry

PASSWORD = "five quiet brown foxes"
WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "task_card.json"
ROLES = ("anonymous", "other", "owner", "member", "org-admin", "site-admin")
HANDLES = {"other": "eve", "owner": "bob", "member": "mia", "org-admin": "ora", "site-admin": "ann"}
ORG = "lab"


@dataclass
class Site:
    """A running service and somebody of each role."""

    client: TestClient
    service: Service
    tokens: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    def headers(self, role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[role]}"} if role in self.tokens else {}

    def call(self, role: str, method: str, path: str, **more: Any) -> Any:
        headers = self.headers(role) | more.pop("headers", {})
        return self.client.request(method, path, headers=headers, **more)

    def another_token(self, role: str, *scopes: str) -> str:
        """A new token of somebody."""
        who = self.service.sessions.of_session(self.service.sessions.log_in(HANDLES[role], PASSWORD).secret, "")
        assert who is not None
        return self.service.tokens.create(who, "another", scopes or ("read", "write")).secret

    def share(self, vector_id: str, owner: str, name: str, visibility: str, **columns: Any) -> str:
        """List a vector of the registry under an owner's name."""
        record = self.service.registry.store.get(vector_id)
        with self.service.database.write() as rows:
            things.put_listing(
                rows,
                vector_id=record.id,
                owner_id=self.ids[owner],
                name=name,
                name_key=name_key(name),
                digest=record.digest,
                visibility=visibility,
                state="active",
                card=columns.pop("card", record.card.replaced(name=name).to_dict()),
                tags=columns.pop("tags", []),
                size_bytes=record.size_bytes,
                uploaded_by=self.ids[owner],
                **columns,
            )
        return record.id

    def work_off(self, seconds: float = 120.0) -> None:
        """Wait until no job is left."""
        until = time.monotonic() + seconds
        while {"queued", "running"} & set(self.service.jobs.counts()):
            assert time.monotonic() < until, self.service.jobs.counts()
            time.sleep(0.05)

    def upload(self, role: str, files: dict[str, bytes], *, wait: float = 60, **body: Any) -> Any:
        """A whole upload; the answer to its completion, or to the step that was refused."""
        parts = [{"name": n, "size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()]
        made = self.call(role, "POST", "/api/v1/uploads", json={"parts": parts, **body})
        if made.status_code != 201:
            return made
        identity = made.json()["upload"]["id"]
        for name, data in files.items():
            sent = self.send(role, identity, name, data, 0)
            if sent.status_code != 204:
                return sent
        return self.call(role, "POST", f"/api/v1/uploads/{identity}/complete?wait={wait}")

    def send(self, role: str, identity: str, name: str, data: bytes, offset: int) -> Any:
        headers = {"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"}
        return self.call(role, "PATCH", f"/api/v1/uploads/{identity}/parts/{name}", content=data, headers=headers)


def adapter(folder: Path) -> dict[str, bytes]:
    """The three files of a shipped adapter."""
    return {n: (folder / n).read_bytes() for n in (WEIGHTS, CONFIG, CARD)}


@contextmanager
def running(data: Path, *, vectors: list[Path] | None = None, **settings: Any) -> Iterator[Site]:
    """A service in a folder, with the accounts of `HANDLES`, the organisation `ORG`, and vectors in its registry."""
    registry = Registry(data)
    for path in vectors or []:
        add_one(registry, path, AddRequest(), neighbours=False)
    usual = {
        "pages": False,
        "preload": False,
        "screen": False,
        "reads_per_minute": 10**6,
        "writes_per_minute": 10**6,
        "computed_per_minute": 10**6,
        "logins_per_minute": 10**6,
        "min_free_bytes": 0,
    }
    app = create_app(Settings.checked(data=data, **(usual | settings)), registry=registry)
    with TestClient(app, raise_server_exceptions=False) as client:
        site = Site(client, app.state.service)
        _people(site)
        yield site
    registry.store.close()


def _people(site: Site) -> None:
    service = site.service
    if not service.accounts.needs_first_start():
        return
    assert service.first_secret is not None
    made = service.accounts.first_start(service.first_secret, HANDLES["site-admin"], PASSWORD)
    site.ids["site-admin"] = made.id
    admin = service.sessions.of_session(service.sessions.log_in("ann", PASSWORD).secret, "")
    assert admin is not None
    for role, handle in HANDLES.items():
        if role != "site-admin":
            invited = service.accounts.invite(admin, handle)
            site.ids[role] = service.accounts.accept(handle, invited.secret, PASSWORD).id
        who = service.sessions.of_session(service.sessions.log_in(handle, PASSWORD).secret, "")
        assert who is not None
        scopes = ["read", "write", *(["admin"] if role == "site-admin" else [])]
        site.tokens[role] = service.tokens.create(who, "tests", scopes).secret
        if role == "org-admin":
            service.organisations.create(who, ORG, "The laboratory")
            service.organisations.invite(service.sessions.of_token(site.tokens[role], ""), ORG, "mia", "member")
            service.organisations.accept(service.sessions.of_token(site.tokens["member"], ""), ORG)
    with service.database.read() as rows:
        found = people.owner_by_key(rows, ORG)
    assert found is not None
    site.ids["org"] = found.id


def a_card(**fields: Any) -> dict[str, Any]:
    """A card for a listing."""
    return Card.make(**fields).to_dict()


def unused_id(kind: str) -> str:
    """An id of the right form that stands for nothing."""
    return new_id(kind)
