"""`comgrad.Client`: share, find and fetch task vectors of a service, over an untrusted and unreliable network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from comgrad import config
from comgrad.client import credentials
from comgrad.client.address import Address, address
from comgrad.client.downloads import Downloads
from comgrad.client.errors import not_trusted
from comgrad.client.offers import Offers, Questions, not_here
from comgrad.client.organisations import Organisations
from comgrad.client.parcel import Part, parcel
from comgrad.client.paths import API, quoted
from comgrad.client.remembered import Remembered, RemoteFile, file_of
from comgrad.client.results import Pulled, Pushed
from comgrad.client.uploads import CHUNK, Steps, Uploads, inner
from comgrad.client.wire import Patience, Wire
from comgrad.errors import ComgradError
from comgrad.weights.storage import atomic_directory, atomic_write_bytes, check_free

if TYPE_CHECKING:
    from comgrad.explain.explanation import Explanation

Progress = Callable[[int, int], None]
SIGNATURE = "model.sig"


class Client(Organisations):
    """A service as its user sees it; organisations and their members as in `Organisations`.

    Args:
        server: its address; default: the one signed in to last, or `COMGRAD_SERVER`.
        token: default: the one that `comgrad login` kept for exactly this address. It is sent nowhere else.
        insecure: allow http to another machine.
        offline: never use the network: only what was pulled before.
        cache: the folder of downloads; default `COMGRAD_CACHE`.
        wire: the connection, for tests.

    Raises:
        ComgradError: (`no-server`) no address; (`bad-address`, `not-secure`) one that cannot be used.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        token: str | None = None,
        insecure: bool = False,
        offline: bool = False,
        patience: Patience | None = None,
        cache: Path | None = None,
        wire: Wire | None = None,
    ) -> None:
        self.where = _where(server, insecure)
        if token is None:
            held = credentials.found(self.where)
            token = held.token if held is not None else None
        self.offline = offline
        folder = cache or config.downloads()
        self._wire = wire or Wire(self.where, token, patience=patience)
        self._downloads = Downloads(folder, config.copies_bytes())
        self._ask = Questions(self._wire, offline)
        self._offers = Offers(self._ask, Remembered(folder / "known"))
        self._uploads = Uploads(self._wire, folder / "sending")

    def __repr__(self) -> str:
        return f"Client('{self.where.origin}')"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    # -- asking --------------------------------------------------------------------------------------------------
    def service(self) -> dict[str, Any]:
        """What the service says of itself: name, version, limits."""
        return self._ask.object("GET", f"{API}/service")

    def account(self) -> dict[str, Any]:
        """Who the token belongs to. Raises ComgradError (`sign-in-needed`)."""
        return self._ask.object("GET", f"{API}/session")

    def show(self, ref: str) -> dict[str, Any]:
        """A vector by `owner/name` or id, with its card. Raises NotFound."""
        return self._offers.vector(ref)

    def search(self, text: str, *, limit: int = 10, words: bool = False) -> list[dict[str, Any]]:
        """Vectors by what their descriptions mean, best first; by words alone where asked."""
        found = self._ask.object("POST", f"{API}/search", {"text": text, "limit": limit, "words": words}).get("items")
        if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
            raise not_trusted("a search", "the answer has another form: this is no comgrad service", "no-service")
        return found

    def suggest(
        self,
        text: str,
        out: str | Path,
        *,
        base: str | None = None,
        rank: int | None = None,
        rule: str | None = None,
        dare: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Have a starting adapter predicted and write it; the keys of `comgrad suggest --json`.

        Args:
            text: the new task in words. out: folder to write. base, rank, rule, dare: as `comgrad suggest`.
        """
        out = Path(out)
        check_free(out)
        wanted = {"text": text, "base": base, "rank": rank, "rule": rule, "dare": dare}
        made = self._ask.object("POST", f"{API}/suggestions", {k: v for k, v in wanted.items() if v is not None})
        files = made.get("files")
        listed = [file_of(f) for f in files if isinstance(f, dict)] if isinstance(files, list) else []
        where = f"{API}/suggestions/{quoted(str(made.get('id') or ''))}/files"
        local = self._fetched(where, [f for f in listed if f is not None], progress)
        _written(out, local, None)
        return {**{k: v for k, v in made.items() if k != "files"}, "path": str(out)}

    # -- sending -------------------------------------------------------------------------------------------------
    def push(
        self,
        source: str | Path | Sequence[Part],
        *,
        name: str = "",
        description: str = "",
        public: bool = False,
        org: str | None = None,
        base: str | None = None,
        tags: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Pushed:
        """Share a fine-tune: private unless `public`, under the account unless `org` names an organisation.

        Args:
            source: an adapter's or a vector's folder, or a parcel made of one.
            name, description: default: those of its card.
            base: the base's name on the hub, where the files do not say it.

        Raises:
            ComgradError: refused; nothing is shared. Unreachable: what arrived stays, and the same call goes on there.
        """
        request = {
            "purpose": "share",
            "owner": org,
            "name": name,
            "description": description,
            "base": base,
            "visibility": "public" if public else "private",
            "tags": list(tags),
        }
        parts = parcel(source) if isinstance(source, str | Path) else list(source)
        result = self._uploads.send(parts, request, chunk=self._chunk(), progress=progress)
        texts = {k: str(result.get(k) or "") for k in ("vector", "name", "digest", "status")}
        warnings = [str(w)[:500] for w in result.get("warnings") or []]
        return Pushed(texts["vector"], texts["name"], texts["digest"], texts["status"], self.where.origin, warnings)

    def explain(
        self,
        source: str | Path | Sequence[Part],
        *,
        claim: str = "",
        base: str | None = None,
        progress: Progress | None = None,
        steps: Steps | None = None,
    ) -> Explanation:
        """What a fine-tune does, by its weights, compared with what the account may read; nothing of it is kept there
        but the report.

        Args:
            source: an adapter's or a vector's folder, or a parcel made of one.
            claim: what it is said to do; default: the description on its card.
            base: the base's name on the hub, where the files do not say it.
            progress: told bytes sent; steps: told what the service is at.

        Raises:
            ComgradError: refused, in the service's words. NotTrusted: the answer is no explanation. Unreachable.
        """
        from comgrad.explain.explanation import Explanation

        parts = parcel(source, gradient=False) if isinstance(source, str | Path) else list(source)
        request = {"purpose": "explain", "claim": claim, "base": base}
        result = self._uploads.send(parts, request, chunk=self._chunk(), progress=progress, steps=steps)
        try:
            return Explanation.from_dict(inner(result, "explanation"))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise not_trusted(
                "an explanation", "it has another form: this is no comgrad service", "no-service"
            ) from error

    def _chunk(self) -> int:
        """Bytes of one request: what the service takes, and no more than is sensible."""
        limits = self.service().get("limits")
        offered = limits.get("chunk_bytes") if isinstance(limits, dict) else None
        return min(CHUNK, offered) if isinstance(offered, int) and offered > 0 else CHUNK

    # -- fetching ------------------------------------------------------------------------------------------------
    def pull(
        self,
        ref: str,
        out: str | Path | None = None,
        *,
        only: Sequence[str] = (),
        accept_change: bool = False,
        progress: Progress | None = None,
    ) -> Pulled:
        """Fetch a vector's files, each checked against its SHA-256; what is here already is not fetched again.

        Args:
            ref: `owner/name` or an id. An id is made from the bytes, so that nobody can answer it with others.
            out: folder to write; default: the files stay in the cache.
            only: the files wanted; default: all.
            accept_change: take it although the name meant another vector when it was last pulled.

        Raises:
            NotFound: no such vector, or not pulled before while the service cannot be reached.
            NotTrusted: (`digest-mismatch`, `size-mismatch`) other bytes came; (`changed`) the name means another vector.
        """
        if out is not None:
            check_free(Path(out))
        offer, offline = self._offers.meant(ref, accept_change)
        wanted = [f for f in offer.files if not only or f.name in only]
        if offline:
            local = {f.name: path for f in wanted if (path := self._downloads.here(f.sha256)) is not None}
            if len(local) < len(wanted):
                raise not_here(ref)
            came = 0
        else:
            came = sum(f.size for f in wanted if self._downloads.here(f.sha256) is None)
            local = self._fetched(f"{API}/vectors/{quoted(offer.id)}/files", wanted, progress)
            names = [offer.id, str(offer.vector.get("full_name") or ref), ref]
            self._offers.remember(names, offer)
        if out is not None:
            _written(Path(out), local, offer.bundle)
        return Pulled(
            id=offer.id,
            name=str(offer.vector.get("full_name") or ref),
            description=str(offer.vector.get("description") or ""),
            digest=offer.digest,
            server=self.where.origin,
            files=local,
            path=str(out) if out is not None else "",
            offline=offline,
            seen=offer.seen,
            downloaded=came,
        )

    def _fetched(self, where: str, files: Sequence[RemoteFile], progress: Progress | None) -> dict[str, Path]:
        total, before, local = sum(f.size for f in files), 0, {}
        for f in files:

            def at(here: int, before: int = before) -> None:
                if progress:
                    progress(before + here, total)

            local[f.name] = self._downloads.fetch(self._wire, f"{where}/{f.name}", f.sha256, f.size, at)
            before += f.size
        return local


def _where(server: str | None, insecure: bool) -> Address:
    named = server or credentials.current()
    if not named:
        why = "nobody is signed in to a service, and COMGRAD_SERVER is not set"
        raise ComgradError("no service", why, "sign in with: comgrad login URL", code="no-server")
    return address(named, insecure=insecure)


def _written(out: Path, local: Mapping[str, Path], bundle: Mapping[str, Any] | None) -> None:
    """Copy files from the cache into a new folder: all of them or none. Raises StorageError."""
    with atomic_directory(out) as folder:
        for name, path in local.items():
            shutil.copyfile(path, folder / name)
        if bundle is not None:
            atomic_write_bytes(folder / SIGNATURE, json.dumps(bundle).encode())


__all__ = ["Client", "Pulled", "Pushed"]
