"""The service's commands against the real service: start, sign in, push, pull, search, suggest, sign, verify, sign out."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra 'service' is not installed")
pytest.importorskip("model_signing", reason="the extra 'sign' is not installed")

from client_stand_in import running
from comgrad.client import credentials, signing_in
from comgrad.client.address import address
from comgrad.client.client import Client
from comgrad.client.wire import Patience, Wire
from comgrad.errors import ComgradError, NotFound
from comgrad.service.app import create_app
from comgrad.service.settings import Settings
from comgrad.workflows import signing
from comgrad.workflows.registry import Registry

PASSWORD = "five quiet brown foxes"
Run = Callable[..., tuple[int, str, str]]


class Cutting:
    """The real application, whose connections are cut as the test says: `cuts` holds (method, part of a path, bytes)."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.cuts: list[tuple[str, str, int]] = []
        self.seen: list[tuple[str, str]] = []
        self.public_key = Path()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        self.seen.append((method, path))
        cut = next((c for c in self.cuts if c[0] == method and c[1] in path), None)
        if cut is None:
            await self.app(scope, receive, send)
            return
        self.cuts.remove(cut)
        left = cut[2]

        async def short(message: dict[str, Any]) -> None:
            nonlocal left
            if message["type"] == "http.response.start":
                await send({**message, "headers": [h for h in message["headers"] if h[0] != b"upload-offset"]})
                return
            body = message.get("body", b"")[:left]
            left -= len(body)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            if left <= 0:
                raise ConnectionError("cut on purpose")

        async def shorter() -> dict[str, Any]:
            message = await receive()
            return {**message, "body": message.get("body", b"")[: cut[2]], "more_body": False}

        await self.app(scope, shorter if method == "PATCH" else receive, short if method == "GET" else send)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Cutting]]:
    """A real service on a port of this machine: its address, its one-time secret, and how to cut its connections."""
    key = tmp_path_factory.mktemp("keys") / "site.pem"
    settings = Settings(
        data=tmp_path_factory.mktemp("served"),
        preload=False,
        max_chunk_bytes=50_000,
        signing_key=signing.new_key(key)[0],
    )
    app = create_app(settings)
    cutting = Cutting(app)
    cutting.public_key = Path(f"{key}.pub")
    with running(cutting, lifespan="on") as origin:
        yield origin, app.state.service.first_secret, cutting


@pytest.fixture(autouse=True, scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of credentials and that of downloads, of this module."""
    folder = tmp_path_factory.mktemp("me")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMGRAD_CONFIG", str(folder / "config"))
        patch.setenv("COMGRAD_CACHE", str(folder / "cache"))
        for name in ("COMGRAD_TOKEN", "COMGRAD_SERVER"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture
def signed_in(site: tuple[str, str, Cutting], run: Run, places: Path) -> Run:
    """The program, signed in as the site's administrator."""
    origin, secret, cutting = site
    cutting.cuts.clear()
    if not (places / "config" / "credentials.json").exists():
        code, out, err = run(
            "login", origin, "--first-start", "--account", "ada", "--json", lines=f"{secret}\n{PASSWORD}\n"
        )
        assert code == 0, err
        assert {"server", "account", "expires_at", "path"} <= set(json.loads(out))
    return run


def pushed(run: Run, *arguments: object) -> list[dict[str, Any]]:
    code, out, err = run("push", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


def test_the_token_is_made_and_the_password_is_not_kept(signed_in: Run, places: Path) -> None:
    text = (places / "config" / "credentials.json").read_text()
    assert "cgt_" in text
    assert PASSWORD not in text
    code, _, err = signed_in("login", Client().where.origin, "--account", "ada", lines="a wrong password\n")
    assert code == 1
    assert "wrong password" not in err


def test_without_a_name_the_service_calls_it_what_the_registry_would(signed_in: Run, zoo: list[Path]) -> None:
    [made] = pushed(signed_in, zoo[6])
    assert made["name"] == f"ada/{zoo[6].name}"  # its card's task id, not the title on the card
    assert json.loads((zoo[6] / "task_card.json").read_text())["name"] != zoo[6].name


def test_push_pull_add_and_sign(
    signed_in: Run, zoo: list[Path], tmp_path: Path, site: tuple[str, str, Cutting]
) -> None:
    [made] = pushed(signed_in, zoo[1], "--public", "--name", "first")
    gradients = [p for m, p in site[2].seen if m == "PATCH" and "task_gradient" in p]
    assert len(gradients) >= 2
    assert {"given", "status", "name", "id", "digest", "server", "warnings", "error"} <= set(made)
    assert (made["status"], made["name"]) == ("added", "ada/first")
    assert pushed(signed_in, zoo[1], "--public", "--name", "first")[0]["status"] == "exists"

    out = tmp_path / "first"
    code, text, err = signed_in("pull", "ada/first", "-o", out, "--json")
    assert code == 0, err
    [pulled] = json.loads(text)
    assert pulled["id"] == made["id"] and not pulled["offline"]
    digest = hashlib.sha256((out / "vector.safetensors").read_bytes()).hexdigest()
    assert digest == pulled["digest"] == made["digest"]
    assert json.loads((out / "task_card.json").read_text())["description"]
    assert (out / "README.md").read_text().startswith("---\n")
    key = site[2].public_key
    assert signed_in("verify", out, "--key", key)[0] == 0  # the service's own signature, over exactly what it serves

    import comgrad as cg

    there, here = cg.TaskVector.from_peft(zoo[1]), cg.TaskVector.from_peft(out)
    assert there.cosine(here) == pytest.approx(1.0, abs=1e-6)

    code, text, err = signed_in("pull", "ada/first", "--add", "--json")
    assert code == 0, err
    [added] = json.loads(text)
    assert (added["status"], added["registry_id"]) == ("added", made["id"])
    assert added["downloaded"] == 0
    assert Registry().get("ada/first").id == made["id"]
    # from the registry to the service again: the same bytes, so nothing new
    assert pushed(signed_in, made["id"], "--public")[0]["status"] == "exists"

    cutting = site[2]
    before = len(cutting.seen)
    code, text, err = signed_in("pull", "ada/first", "-o", tmp_path / "again", "--offline")
    assert code == 0, err
    assert "the service was not asked" in err
    assert len(cutting.seen) == before
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(p.name for p in out.iterdir())


def test_cut_connections_lose_nothing(
    signed_in: Run, zoo: list[Path], site: tuple[str, str, Cutting], tmp_path: Path
) -> None:
    origin, _, cutting = site
    weights = (zoo[2] / "adapter_model.safetensors").stat().st_size
    assert weights > 300_000
    cutting.cuts = [("PATCH", "adapter_model", n) for n in (0, 7, 20_000, 49_999)]
    naps: list[float] = []
    held = json.loads((Path(os.environ["COMGRAD_CONFIG"]) / "credentials.json").read_text())["hosts"][origin]
    wire = Wire(address(origin), held["token"], patience=Patience(longest=0.01), sleep=naps.append)
    with Client(origin, wire=wire) as client:
        made = client.push(zoo[2], name="cut", public=True)
        assert cutting.cuts == []
        assert made.status == "added"
        cutting.cuts = [("GET", "adapter_model", n) for n in (0, 1, 70_000)]
        pulled = client.pull("ada/cut", tmp_path / "cut")
        assert cutting.cuts == []
    import comgrad as cg

    assert cg.TaskVector.from_peft(tmp_path / "cut").cosine(cg.TaskVector.from_peft(zoo[2])) == pytest.approx(1.0)
    assert pulled.id == made.id


def test_private_is_the_default(
    signed_in: Run, zoo: list[Path], site: tuple[str, str, Cutting], tmp_path: Path
) -> None:
    [made] = pushed(signed_in, zoo[3], "--name", "mine")
    stranger = Wire(address(site[0]))
    with Client(site[0], wire=stranger, cache=tmp_path / "theirs") as client:
        for ref in ("ada/mine", made["id"]):
            with pytest.raises(NotFound):
                client.pull(ref)
        assert "ada/mine" not in [h["full_name"] for h in client.search("a", words=True, limit=50)]


def test_refusals_are_the_service_s_words(signed_in: Run, zoo: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "adapter_config.json").write_bytes((zoo[1] / "adapter_config.json").read_bytes())
    (bad / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle" * 9)
    code, out, err = signed_in("push", bad, zoo[4], "--json")
    assert code == 1
    first, second = json.loads(out)
    assert (first["status"], first["error"]["code"]) == ("refused", "pickle")
    assert second["status"] in ("added", "exists")  # one refusal does not keep the others back
    assert err.startswith("error: ")
    assert str(tmp_path) not in first["error"]["why"]
    code, _, err = signed_in("pull", "ada/never", "-o", tmp_path / "x")
    assert code == 1
    assert err.count("\n") == 1 and err.startswith("error: 'ada/never'; there is no vector")
    code, _, err = signed_in("push", "no-such-thing")
    assert code == 1 and "no such path, and no vector" in err


def test_search_remote_has_the_keys_of_search(signed_in: Run, zoo: list[Path]) -> None:
    pushed(signed_in, zoo[1], "--public", "--name", "first")
    text = json.loads((zoo[1] / "task_card.json").read_text())["description"].split()[0]
    code, out, err = signed_in("search", text, "--words", "--remote", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found
    assert {"id", "name", "description", "base", "kind", "rank", "norm", "digest", "score"} <= set(found[0])
    code, out, _ = signed_in("search", text, "--words", "--remote")
    assert code == 0 and "ada/first" in out


def test_suggest_remote_has_the_keys_of_suggest(signed_in: Run, zoo: list[Path], tmp_path: Path) -> None:
    for n, folder in enumerate(zoo[5:8]):
        pushed(signed_in, folder, "--public", "--name", f"more-{n}")
    out = tmp_path / "start"
    code, text, err = signed_in("suggest", "Sort questions of bank customers", "--remote", "-o", out, "--json")
    assert code == 0, err
    made = json.loads(text)
    assert {"abstained", "confidence", "scale", "sources", "trainable", "path"} <= set(made)
    assert made["path"] == str(out)
    import comgrad as cg

    assert cg.TaskVector.from_peft(out).tensors
    code, _, err = signed_in("suggest", "x", "--remote", "--share", "0.5", "-o", tmp_path / "other")
    assert code == 1 and "examples stay on this machine" in err


def test_sign_and_verify(run: Run, zoo: list[Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(zoo[0], tmp_path / "adapter")
    code, out, err = run("sign", tmp_path / "adapter", "--new-key", tmp_path / "me.pem", "--json")
    assert code == 0, err
    assert {"path", "files", "root", "key"} <= set(json.loads(out))
    code, out, err = run("verify", tmp_path / "adapter", "--key", tmp_path / "me.pem.pub", "--json")
    assert code == 0, err
    assert {"path", "name", "files", "root", "signer"} <= set(json.loads(out))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    code, _, err = run("verify", tmp_path / "adapter", "--key", tmp_path / "me.pem.pub")
    assert code == 1 and "not those that were signed" in err
    code, _, err = run("sign", tmp_path / "adapter")
    assert code == 1 and "--key are needed" in err


def test_explain_remote_answers_as_explain(
    signed_in: Run, zoo: list[Path], site: tuple[str, str, Cutting], tmp_path: Path
) -> None:
    for n, folder in enumerate(zoo[5:9]):
        pushed(signed_in, folder, "--public", "--name", f"known-{n}")
    with Client() as client:
        before = len(client.search("a", words=True, limit=50))
    page = tmp_path / "report.html"
    code, out, err = signed_in("explain", zoo[10], "--remote", "--html", page, "--json")
    assert code == 0, err
    there = json.loads(out)
    assert {"sources", "residual", "description", "evidence", "verdict"} <= set(there)
    assert (there["subject"], there["path"]) == (zoo[10].name, str(page))
    text = page.read_text()
    assert text.lower().startswith("<!doctype html>")
    assert "<script" not in text
    code, out, err = signed_in("explain", zoo[10], "--server", site[0], "--claim", "bake a cake")
    assert code == 0, err
    assert out.startswith(f"{zoo[10].name}: ")
    assert "What this cannot tell:" in out
    with Client() as client:
        found = client.explain(zoo[10], claim="bake a cake")
        assert found.claim is not None and found.claim.text == "bake a cake"
        assert f"{zoo[10].name}: {found.verdict}" == out.splitlines()[0]
        assert found.as_dict().keys() == there.keys()
        assert len(client.search("a", words=True, limit=50)) == before  # nothing of it is kept
        told: list[tuple[str, int, int]] = []
        bytes_sent: list[tuple[int, int]] = []
        client.explain(zoo[9], progress=lambda *x: bytes_sent.append(x), steps=lambda *x: told.append(x))
        assert bytes_sent[-1][0] == bytes_sent[-1][1] > 0
        assert all(0 <= at < of and of == 3 for _, at, of in told)
    code, _, err = signed_in("explain", tmp_path, "--remote")
    assert code == 1 and err.count("\n") == 1 and "adapter_model.safetensors" in err


def test_logging_out_revokes_and_forgets(signed_in: Run, site: tuple[str, str, Cutting], places: Path) -> None:
    held = json.loads((places / "config" / "credentials.json").read_text())["hosts"][site[0]]
    code, out, err = signed_in("logout", "--json")
    assert code == 0, err
    assert json.loads(out) == {"server": site[0], "was_signed_in": True, "revoked": True, "error": None}
    assert held["token"] not in (places / "config" / "credentials.json").read_text()
    with Client(site[0], token=held["token"]) as client, pytest.raises(ComgradError, match="sign in with"):
        client.account()
    (places / "config" / "credentials.json").unlink()
    code, _, err = signed_in("push", places)
    assert code == 1 and "nobody is signed in" in err


def test_logging_out_of_a_service_that_is_gone_says_how_to_end_the_token_there(
    run: Run, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMGRAD_CONFIG", str(places / "other"))
    token = "cgt_" + "x" * 43
    credentials.keep(credentials.Credential("http://127.0.0.1:9", token, "ada", "tk-1", "2030-01-31T00:00:00+00:00"))
    code, out, err = run("logout")
    assert code == 0
    assert "forgotten, and not revoked there" in out
    assert "http://127.0.0.1:9/account#tokens" in err and "2030-01-31" in err and "does not answer" in err
    assert token not in out + err + (places / "other" / "credentials.json").read_text()
    credentials.keep(credentials.Credential("http://127.0.0.1:9", token))
    told = json.loads(run("logout", "--json")[1])
    assert (told["was_signed_in"], told["revoked"], told["error"]["code"]) == (True, False, "unreachable")


def test_serve_starts_prints_the_secret_once_and_stops_gracefully(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from comgrad.cli.main import main; main()", "serve", "--port", "0"]
    environment = {**os.environ, "COMGRAD_HOME": str(tmp_path / "home"), "COMGRAD_SERVICE_PRELOAD": "false"}
    said = []
    for start in range(2):
        log = tmp_path / f"log-{start}"
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            answered = _answer(log, process)
            assert answered["first_start"] is (start == 0)
            if start == 0:
                origin = next(x for x in log.read_text().split() if x.startswith("http://127.0.0.1:"))
                secret = next(x for x in log.read_text().split() if x.startswith("cgf_"))
                signing_in.first_start(address(origin.rstrip("/")), secret, "ada", PASSWORD)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode in (0, -signal.SIGTERM)
        said.append(log.read_text())
        assert "Traceback" not in said[-1]
    assert [text.count("cgf_") for text in said] == [1, 0]  # not shown again once it is used


def _answer(log: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What the service says of itself, as soon as it does."""
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        line = next((x for x in log.read_text().splitlines() if x.startswith("serving ")), None)
        if line is not None:
            with suppress(ComgradError), Client(line.rsplit(" at ", 1)[1]) as client:
                return client.service()
        time.sleep(0.05)


def test_serve_tells_programs_where_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from comgrad.cli.main import main; main()", "serve", "--port", "0", "--json"]
    environment = {**os.environ, "COMGRAD_HOME": str(tmp_path / "home"), "COMGRAD_SERVICE_PRELOAD": "false"}
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
    try:
        deadline = time.monotonic() + 120
        while (text := (tmp_path / "out").read_text()).count("}") < 2:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "err").read_text()
            time.sleep(0.05)
        where, end = json.JSONDecoder().raw_decode(text)
        first, _ = json.JSONDecoder().raw_decode(text[end:].lstrip())
    finally:
        process.kill()
        process.wait()
    assert where["url"] == first["url"]
    assert where["url"].startswith("http://127.0.0.1:")
    assert first["first_start_secret"].startswith("cgf_")
    assert "cgf_" not in (tmp_path / "err").read_text()
