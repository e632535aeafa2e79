"""What is done with an upload: strict reading, the base checked, our own bytes written, a listing made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comgrad.errors import BaseMismatch, ComgradError, FileRefused, NameTaken, NotFound, StorageError
from comgrad.registry.card import Card
from comgrad.registry.models import vector_id
from comgrad.registry.names import checked_name, name_key
from comgrad.service.audit import Audit
from comgrad.service.errors import Busy, Conflict
from comgrad.service.jobs.progress import Progress
from comgrad.service.jobs.runner import Jobs
from comgrad.service.listings import checked_tags
from comgrad.service.parcels import CARD, CONTAINER, GRADIENT
from comgrad.service.store import things, work
from comgrad.service.store.database import Database, Rows
from comgrad.service.store.work import Job, UploadRow
from comgrad.service.uploads import Uploads
from comgrad.service.vectors import TAIL, drop_unlisted
from comgrad.workflows.registry import Registry

STEPS = ("read", "store", "describe")


@dataclass(frozen=True)
class Admission:
    """The job that takes an upload in; `give_up` ends one that is refused, and takes back what it stored."""

    database: Database
    registry: Registry
    uploads: Uploads
    jobs: Jobs
    audit: Audit
    give_up: Callable[[str, dict[str, Any]], None]

    def __call__(self, job: Job, progress: Progress) -> dict[str, Any]:
        """Read the parts strictly, store the vector in our own bytes and list it. Raises ComgradError: refused."""
        with self.database.read() as rows:
            upload = work.upload(rows, str(job.payload["upload"]))
        if upload is None:
            raise NotFound("the upload", "it is not known", "begin a new one")
        if upload.state == "done":  # a worker died after the last step and before saying so
            self.uploads.clear(upload.id)
            return self._done(upload)
        try:
            return self._admitted(upload, progress)
        except ComgradError as error:
            if not passing(error):
                self.give_up(upload.id, error.as_dict())
            raise

    def _done(self, upload: UploadRow) -> dict[str, Any]:
        """What the uploader is told where the worker died before it could: what was listed, without the warnings."""
        assert upload.vector_id is not None
        with self.database.read() as rows:
            listed = things.listing(rows, upload.vector_id, upload.owner_id)
        if listed is None:
            raise NotFound("the upload's vector", "it is no longer listed", "begin a new one")
        name = f"{upload.request['owner']}/{listed.name}"
        return {"vector": upload.vector_id, "name": name, "digest": listed.digest, "status": "added", "warnings": []}

    def _admitted(self, upload: UploadRow, progress: Progress) -> dict[str, Any]:
        from comgrad.workflows.adding import store_vector

        progress.step("read")
        tau, card = read_upload(self.uploads, upload)
        request = upload.request
        name = checked_name(request["name"] or card.task_id or card.name or f"vector-{upload.id[-8:]}")
        card = card.replaced(name=name, **({"description": d} if (d := request["description"]) else {}))
        progress.step("store")
        in_registry = f"{request['owner']} {name} {upload.id[-TAIL:]}"[-200:]
        noted: list[str] = []

        def before(digest: str) -> None:
            noted.extend(self._noted(upload, name, digest))

        result = store_vector(self.registry, tau, card, in_registry, what="the upload", restore=True, before=before)
        record = result.record
        assert record is not None
        if noted and result.status == "exists":  # somebody else brought it in the same moment, and it is theirs
            with self.database.write() as rows:
                work.change_upload(rows, upload.id, only=("checking",), vector_id=None)
        progress.step("describe")
        gradient = self._gradient(upload, record.id, tau)
        # all of it, or nothing: what fails before is taken back, and nothing fails after
        with self.database.write() as rows:
            status = self._listed(rows, upload, record.id, record.digest, record.size_bytes, name, card)
            if not work.change_upload(rows, upload.id, only=("checking",), state="done", vector_id=record.id):
                raise Conflict(f"the upload {upload.id}", "it was given up meanwhile", "begin a new one")
            listed = things.listing(rows, record.id, upload.owner_id)  # what was there keeps its name
            relate, new = self.jobs.note(rows, "relate", {}, key="relate")
        if new:
            self.jobs.push(relate)
        self.uploads.clear(upload.id)
        return {
            "vector": record.id,
            "name": f"{request['owner']}/{name if listed is None else listed.name}",
            "digest": record.digest,
            "status": status,
            "warnings": [w[:500] for w in tau.warnings[:20]] + card_warnings(card) + gradient,
        }

    def _noted(self, upload: UploadRow, name: str, digest: str) -> list[str]:
        """Before anything is stored: refuse a name that is taken, and write down which vector this upload brings, for
        whoever gives it up. Nothing where it is in the registry already, or was noted by an attempt before."""
        identity = vector_id(digest)
        if upload.vector_id is not None and upload.vector_id != identity:  # an attempt read it over another base
            drop_unlisted(self.database, self.registry.store, upload.vector_id, "its upload was read again")
        with self.database.write() as rows:
            check_name(rows, upload.owner_id, upload.request["owner"], name, digest)
            if upload.vector_id == identity:
                return []
            known = self.registry.store.catalogue.by_digest(digest)
            brought = known is None or known.state == "removed"
            work.change_upload(rows, upload.id, only=("checking",), vector_id=identity if brought else None)
        return [identity] if brought else []

    def _gradient(self, upload: UploadRow, identity: str, tau: Any) -> list[str]:
        """Attach the task's gradient where one was sent and the vector has none: another sharer's is not replaced.
        One that cannot be had is a warning."""
        from comgrad.workflows.gradients import attach_file

        if GRADIENT not in {p["name"] for p in upload.parts} or self.registry.store.gradient(identity) is not None:
            return []
        folder = self.uploads.folder / upload.id
        try:
            attach_file(self.registry.store, identity, tau, folder)
        except ComgradError as error:
            if passing(error):
                raise
            return [f"no gradient: {without(folder, error)}"]
        return []

    def _listed(
        self, rows: Rows, upload: UploadRow, identity: str, digest: str, size: int, name: str, card: Card
    ) -> str:
        """The listing's row; an owner has one for each vector, and for each name. Raises NameTaken."""
        request, owner = upload.request, upload.owner_id
        known = things.listing(rows, identity, owner)
        if known is not None and known.state == "active":
            return "exists"
        check_name(rows, owner, request["owner"], name, digest)
        try:
            self.registry.store.get(identity)
        except NotFound as error:  # the last other listing of the same bytes went while these were read
            raise Busy("the upload", "the same vector was just removed", "try again in a moment") from error
        columns = {
            "visibility": request["visibility"],
            "state": "active",
            "card": card.to_dict(),
            "tags": checked_tags(request["tags"]),
            "uploaded_by": upload.account_id,
            "embedding": None,
            "related": None,
            "screening": None,
        }
        if known is not None:  # the same bytes come back to the same owner, under their old name
            things.change_listing(rows, identity, owner, removed_at=None, removed_reason=None, **columns)
        else:
            key = {"vector_id": identity, "owner_id": owner, "name": name, "name_key": name_key(name)}
            things.put_listing(rows, **key, digest=digest, size_bytes=size, **columns)
        told = {"digest": digest, "visibility": request["visibility"]}
        self.audit.write(rows, upload.account_id, request["owner"], "share", f"{request['owner']}/{identity}", told)
        return "added"


def check_name(rows: Rows, owner_id: str, owner: str, name: str, digest: str) -> None:
    """Raise NameTaken when the owner's name belongs, or once belonged, to other bytes."""
    found = things.by_name(rows, owner_id, name_key(name))
    if found is None or found.digest == digest:
        return
    why = (
        "it belonged to a vector that was removed; a name never passes to another one"
        if found.state == "removed"
        else f"it reads like '{found.name}', which has other bytes"
    )
    raise NameTaken(f"the name '{owner}/{name}'", why, "choose another name")


def passing(error: ComgradError) -> bool:
    """Whether the same upload may succeed later."""
    return isinstance(error, StorageError | Busy | Conflict)


def read_upload(uploads: Uploads, upload: UploadRow) -> tuple[Any, Card]:
    """The task vector and the card of an upload's parts, strictly read and over a checked base. Raises ComgradError."""
    from comgrad.workflows.resolve import read_vector

    folder = uploads.folder / upload.id
    names = {p["name"] for p in upload.parts}
    if not all((folder / n).is_file() for n in names):
        raise NotFound("the upload's files", "they are gone", "send them again")
    card = Card.from_dict({})
    if upload.request["card"] is not None:
        card = Card.from_dict(upload.request["card"], what="the card")
    elif CARD in names:
        try:
            card = Card.from_file(folder / CARD)
        except ComgradError as error:
            raise without(folder, error) from error
    try:
        tau = read_vector(folder / CONTAINER if CONTAINER in names else folder, base=upload.request["base"])
    except ComgradError as error:
        raise without(folder, error) from error
    check_named(tau.base.name, card)
    if CONTAINER in names:
        tau = checked_base(type(tau)(tau.base, tau.tensors))  # what a stranger's file says of itself is not repeated
    return tau, card  # an adapter was read against its base, where that is here


def without(folder: Path, error: ComgradError) -> ComgradError:
    """The error without the server's own paths."""

    def clean(text: str) -> str:
        return text.replace(f"{folder}/", "").replace(str(folder), "the upload").replace(folder.name, "the upload")

    error.given, error.why, error.remedy = clean(error.given), clean(error.why), clean(error.remedy)
    error.args = (error.given, error.why, error.remedy)
    return error


def check_named(name: str, card: Card) -> None:
    """Refuse a base that has no name on the model hub, or that the card contradicts.

    Raises:
        FileRefused: (`base-name`). BaseMismatch: (`base-contradiction`).
    """
    from comgrad.weights.hub import is_repo_id

    if not is_repo_id(name) or len(name) > 200:
        raise FileRefused(
            f"the base {name[:80]!a}", "it is no name on the model hub", "name the base as owner/name", code="base-name"
        )
    claimed = card.base_model.rsplit("/", 1)[-1].casefold()
    if claimed and claimed != name.rsplit("/", 1)[-1].casefold():
        raise _contradiction(f"its weights name the base '{name}' and its card names {card.base_model[:80]!a}")


def checked_base(tau: Any) -> Any:
    """A container's vector, over a base of which nothing is claimed that was not seen here.

    Raises:
        BaseMismatch: (`base-contradiction`) it stands on another base than that of this name here, or does not fit it.
    """
    from comgrad.types import BaseRef
    from comgrad.weights.bases import try_resolve_base

    name = tau.base.name
    seen = None if Path(name).exists() else try_resolve_base(name)
    if seen is None:
        return type(tau)(BaseRef(name), tau.tensors, tau.warnings)
    root = seen.fingerprint.root
    if tau.base.fingerprint not in (None, root):
        raise _contradiction(f"it says that it stands on another '{name}' than the one that is known here")
    with seen.open() as checkpoint:
        shapes = {n: tuple(e.shape) for n, e in checkpoint.entries.items()}
        _check_shapes(tau, shapes)
    return type(tau)(BaseRef(name, root), tau.tensors, tau.warnings)


def _check_shapes(tau: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    for name, delta in tau.tensors.items():
        mine = tuple(getattr(delta, "weight_shape", None) or delta.shape)
        known = shapes.get(name)
        turned = mine[::-1] if getattr(delta, "transposed", False) else mine
        if known is None or known not in (mine, turned):
            have = "has none of that name" if known is None else f"has it in the shape {known}"
            raise _contradiction(f"it changes '{name}' of shape {mine}, and its base {have}")


def _contradiction(why: str) -> BaseMismatch:
    return BaseMismatch("the upload", why, "correct what is wrong and send it again", code="base-contradiction")


def card_warnings(card: Card) -> list[str]:
    """What would make the vector more useful."""
    if card.description.strip():
        return []
    return ["no description: it cannot be found or used for suggestions"]
