"""Blobs in an S3-compatible object store: `<prefix>blobs/ab/<sha256>`, with local copies to read from.

An object becomes visible when its upload is complete, never before, so there is no half-written blob; what a killed
writer leaves is an unfinished multipart upload, which `sweep` aborts. The bytes that are uploaded come from a private
copy that has been hashed, and each request carries the SHA-256 of its bytes for the store to check.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BufferedReader
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from comgrad.errors import FileRefused, NotFound, StorageError
from comgrad.registry import objects
from comgrad.registry.blobs import Condition, Source, checked_digest, is_digest
from comgrad.registry.copies import LocalCopies, sha256_of

PART_BYTES = 64 << 20  # blobs up to this size are one request
_MAX_PARTS = 10_000
_CHUNK = 1 << 20
_ATTEMPTS = 3


class S3Blobs:
    """Blobs in a bucket.

    Args:
        address: the bucket, and the beginning of this registry's keys.
        copies: where local copies are kept.
        part: bytes per request; larger blobs go up in several (the store's smallest is 5 MiB).
    """

    def __init__(self, address: objects.Address, copies: LocalCopies, *, part: int = PART_BYTES) -> None:
        self.address = address
        self.copies = copies
        self._part = part
        self._root = f"{address.prefix}blobs/"
        self._client: tuple[int, Any] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"S3Blobs({str(self.address)!r})"

    def close(self) -> None:
        """Close this process's connections; they are made again when needed."""
        with self._lock:
            if self._client is not None and self._client[0] == os.getpid():
                self._client[1].close()
            self._client = None

    def prepare(self) -> None:
        """Make the folder of local copies. Raises StorageError."""
        self.copies.files.prepare()

    # -- writing -------------------------------------------------------------------------------------------------
    def measure(self, source: Source) -> tuple[str, int]:
        """SHA-256 and size in bytes. Raises NotFound, FileRefused, StorageError."""
        return self.copies.files.measure(source)

    def put(self, source: Source, *, declared: str | None = None) -> tuple[str, int]:
        """Store bytes, or the file at a path, durably; returns the digest and size of what was stored.

        An object that is there already is read and compared, and replaced only if it is not what its name says.

        Raises:
            NotFound, FileRefused: the source is missing, a link or not a file; (`digest-mismatch`) the declared
                digest is not that of the bytes. Nothing is stored.
            StorageError: the local disk or the object store cannot take it; (`unavailable`) it does not answer.
        """
        digest, size = self.copies.put(source, declared)
        with self._storage(digest):
            for attempt in range(_ATTEMPTS):
                try:
                    sums = self._upload(digest, size, {"IfNoneMatch": "*"})
                except ClientError as error:
                    if objects.is_taken(error):
                        if self.verify(digest) == "ok":
                            return digest, size
                        sums = self._upload(digest, size, {})
                    elif objects.lacks_conditions(error):
                        sums = self._upload(digest, size, {})
                    elif objects.code_of(error) != "NoSuchUpload" or attempt == _ATTEMPTS - 1:
                        raise
                    else:  # another process took the unfinished upload for an abandoned one
                        continue
                self._confirm(digest, size, sums)
                return digest, size
        raise AssertionError("the loop above returns or raises")

    def put_bytes(self, data: bytes, *, declared: str | None = None) -> str:
        """Store bytes; returns their digest. Raises as `put`."""
        return self.put(data, declared=declared)[0]

    def put_file(self, path: Path, *, declared: str | None = None) -> str:
        """Store a copy of a file; returns its digest. Raises as `put`."""
        return self.put(path, declared=declared)[0]

    def _upload(self, digest: str, size: int, condition: dict[str, str]) -> set[str]:
        """Send the local copy; the checksums that the store may then tell of the object."""
        local = self.copies.path(digest)
        if local is None:
            raise StorageError(f"the local copy of {digest}", "it disappeared", "find what else deletes files there")
        with local.open("rb") as file:
            if size <= self._part:
                data = file.read()
                self._call("put_object", digest, Body=data, ChecksumSHA256=_checksum(data), **condition)
                return {_checksum(data)}
            return self._upload_parts(digest, size, file, condition)

    def _upload_parts(self, digest: str, size: int, file: BufferedReader, condition: dict[str, str]) -> set[str]:
        part = max(self._part, -(-size // _MAX_PARTS))
        upload = self._call("create_multipart_upload", digest, ChecksumAlgorithm="SHA256")["UploadId"]
        try:
            parts = []
            for number, data in enumerate(iter(lambda: file.read(part), b""), start=1):
                check = _checksum(data)
                sent = self._call(
                    "upload_part", digest, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=check
                )
                parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": check})
            self._call(
                "complete_multipart_upload", digest, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
            )
            together = _checksum(b"".join(base64.b64decode(part["ChecksumSHA256"]) for part in parts))
            return {together, f"{together}-{len(parts)}", base64.b64encode(bytes.fromhex(digest)).decode()}
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell; sweep aborts the rest
                self._call("abort_multipart_upload", digest, UploadId=upload)
            raise

    def _confirm(self, digest: str, size: int, sums: set[str]) -> None:
        """Trust no store's word: the object must be there with every byte, and with the checksum where it keeps one."""
        head = self._head(digest, ChecksumMode="ENABLED")
        if head is None:  # collected meanwhile, as no row needs it yet: who writes the row looks again
            return
        if head["ContentLength"] != size or head.get("ChecksumSHA256") not in {None, *sums}:
            self._call("delete_object", digest)
            raise StorageError(self._what(digest), "the store kept other bytes than were sent", "check the store")

    # -- reading -------------------------------------------------------------------------------------------------
    def exists(self, digest: str) -> bool:
        """Whether the object is there; its bytes are not read (`verify` does)."""
        return self._head(digest) is not None

    def path(self, digest: str) -> Path:
        """A local, read-only file with the blob's bytes, fetched when it is not here.

        The file may be deleted once it has not been asked for in a minute: open it at once.

        Raises:
            NotFound: there is no such blob. FileRefused: (`digest-mismatch`) the object's bytes are not the blob's.
            StorageError: the object store or the local disk fails.
        """
        return self.copies.fetch(checked_digest(digest), lambda: self._pieces(digest))

    def open(self, digest: str) -> BufferedReader:
        """The blob for reading, from a local copy. Raises as `path`."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):  # deleted between the two calls
                return self.path(digest).open("rb")
        raise StorageError(f"the local copy of {digest}", "it disappeared", "give the local copies more room")

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes `start` to `stop` (exclusive) in pieces, from the local copy or straight from the store.

        A stream of the whole blob is hashed as it goes.

        Raises:
            NotFound, StorageError: as `path`. FileRefused: (`digest-mismatch`) at the end of a whole stream.
        """
        local = self.copies.path(checked_digest(digest))
        if local is not None:
            return self.copies.files.stream(digest, start, stop)
        if stop is not None and stop <= start:
            return iter(())
        if start or stop is not None:
            return self._pieces(digest, f"bytes={start}-{'' if stop is None else stop - 1}")
        return self._checked(digest)

    def _checked(self, digest: str) -> Iterator[bytes]:
        total = hashlib.sha256()
        for piece in self._pieces(digest):
            total.update(piece)
            yield piece
        if total.hexdigest() != digest:
            why = f"its bytes hash to {total.hexdigest()}"
            raise FileRefused(self._what(digest), why, "add the same file again", code="digest-mismatch")

    def _pieces(self, digest: str, span: str | None = None) -> Iterator[bytes]:
        with self._storage(digest):
            try:
                body = self._call("get_object", digest, **({"Range": span} if span else {}))["Body"]
            except ClientError as error:
                if objects.code_of(error) in ("InvalidRange", "416"):
                    return
                raise
            with contextlib.closing(body):
                yield from body.iter_chunks(_CHUNK)

    def verify(self, digest: str) -> Condition:
        """Read every byte from the store: `ok`, `missing` or `corrupt`. Raises StorageError when it cannot be read."""
        try:
            return "ok" if sha256_of(self._pieces(digest)) == digest else "corrupt"
        except NotFound:
            return "missing"

    def digests(self) -> Iterator[str]:
        """The digests of all blobs, in no order; other objects are not blobs. Raises StorageError."""
        with objects.storage(f"the blobs in '{self.address}'"):
            pages = self._s3().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.address.bucket, Prefix=self._root):
                for found in page.get("Contents", ()):
                    folder, _, name = found["Key"][len(self._root) :].partition("/")
                    if is_digest(name) and folder == name[:2]:
                        yield name

    def age(self, digest: str) -> float:
        """Seconds since the object was stored, by the store's own clock; infinite when it is not there."""
        head = self._head(digest)
        return float("inf") if head is None else max(0.0, (_now(head) - head["LastModified"]).total_seconds())

    # -- deleting ------------------------------------------------------------------------------------------------
    def delete(self, digest: str) -> bool:
        """Delete the object and the local copy; whether there was one. Raises StorageError."""
        there = self.exists(digest)
        with self._storage(digest):
            if there:
                self._call("delete_object", digest)
        self.copies.drop(digest)
        return there

    def sweep(self, grace: float) -> int:
        """Abort unfinished uploads and delete temporary files older than `grace` seconds. Raises StorageError."""
        swept = self.copies.sweep(grace)
        with objects.storage(f"the blobs in '{self.address}'"):
            pages = self._s3().get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.address.bucket, Prefix=self._root):
                for found in page.get("Uploads", ()):
                    if (_now(page) - found["Initiated"]).total_seconds() >= grace:
                        swept += self._abort(found["Key"], found["UploadId"])
        return swept

    def _abort(self, key: str, upload: str) -> int:
        try:
            self._s3().abort_multipart_upload(Bucket=self.address.bucket, Key=key, UploadId=upload)
        except ClientError as error:
            if objects.code_of(error) != "NoSuchUpload":  # finished or aborted meanwhile
                raise
            return 0
        return 1

    # -- single objects ------------------------------------------------------------------------------------------
    def read_object(self, name: str) -> bytes | None:
        """The bytes of an object that is no blob (the registry's marker); None when there is none."""
        with objects.storage(f"'{self.address}/{name}'"):
            try:
                found = self._s3().get_object(Bucket=self.address.bucket, Key=self.address.prefix + name)
            except ClientError as error:
                if objects.is_gone(error):
                    return None
                raise
            return bytes(found["Body"].read())

    def write_object(self, name: str, data: bytes) -> None:
        """Write an object that is no blob."""
        with objects.storage(f"'{self.address}/{name}'"):
            self._s3().put_object(
                Bucket=self.address.bucket, Key=self.address.prefix + name, Body=data, ChecksumSHA256=_checksum(data)
            )

    # -- inside --------------------------------------------------------------------------------------------------
    def _head(self, digest: str, **options: str) -> dict[str, Any] | None:
        with self._storage(digest):
            try:
                return dict(self._call("head_object", digest, **options))
            except ClientError as error:
                if objects.is_gone(error):
                    return None
                raise

    def _call(self, operation: str, digest: str, **values: Any) -> Any:
        key = f"{self._root}{digest[:2]}/{checked_digest(digest)}"
        call: Callable[..., Any] = getattr(self._s3(), operation)
        return call(Bucket=self.address.bucket, Key=key, **values)

    def _s3(self) -> Any:
        """This process's client: after a fork the parent's connections must not be used."""
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                self._client = (os.getpid(), objects.client())
            return self._client[1]

    def _storage(self, digest: str) -> contextlib.AbstractContextManager[None]:
        return objects.storage(self._what(digest))

    def _what(self, digest: str) -> str:
        return f"the blob '{self.address}/blobs/{digest[:2]}/{digest}'"


def _checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _now(answer: dict[str, Any]) -> datetime:
    """The store's time, by the date of its answer: this machine's clock may differ."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return parsedate_to_datetime(date) if date else datetime.now(UTC)
