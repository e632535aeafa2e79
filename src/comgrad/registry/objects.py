"""The object store's address, its client, and its errors in three parts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - the library's own name
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)

from comgrad.errors import ComgradError, NotFound, StorageError

_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9])(?:/(?P<prefix>[A-Za-z0-9!_.*'()/\-]*))?\Z")
_GONE = {"404", "NoSuchKey", "NotFound"}
_TAKEN = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_NO_CONDITION = {"NotImplemented", "501", "InvalidArgument"}


@dataclass(frozen=True)
class Address:
    """A bucket, and the beginning of the keys in it that belong to one registry ('' or ending in '/')."""

    bucket: str
    prefix: str

    @classmethod
    def parsed(cls, text: str) -> Address:
        """`s3://bucket/prefix`. Raises ComgradError; whatever stands before an '@' is not shown."""
        found = _ADDRESS.match(text)
        if found is None or ".." in text:
            shown = text.rsplit("@", 1)[-1][:80] if text.startswith("s3:") else text.split(":", 1)[0][:20]
            raise ComgradError(
                f"the blob address '{shown}'",
                "it is not s3://BUCKET/PREFIX; keys and endpoints do not belong in it",
                "set COMGRAD_BLOBS=s3://BUCKET/PREFIX, and AWS_ENDPOINT_URL and the AWS_ keys beside it",
                code="bad-address",
            )
        prefix = (found["prefix"] or "").strip("/")
        return cls(found["bucket"], f"{prefix}/" if prefix else "")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def client() -> Any:
    """A client of the object store; endpoint, region and keys are taken from the environment as boto3 does.

    A store with an endpoint of its own is addressed by path: its bucket names are seldom names of hosts.
    """
    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    settings = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 8},
        max_pool_connections=32,
        s3={"addressing_style": "path" if own else "auto"},
        # older stores do not know the newer default checksums; the uploads here bring their own
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.Session().client("s3", config=settings)
    except (BotoCoreError, ValueError) as error:
        why = f"its client cannot be set up: {type(error).__name__}"
        raise StorageError("the object store", why, "check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION") from error


def code_of(error: ClientError) -> str:
    """The store's own word for the error, or the HTTP status where it gave none."""
    return str(error.response.get("Error", {}).get("Code") or _status(error))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_gone(error: ClientError) -> bool:
    """Whether there is no such object."""
    return code_of(error) in _GONE


def is_taken(error: ClientError) -> bool:
    """Whether a write was refused because the object is there, or is just being written by another."""
    return code_of(error) in _TAKEN


def lacks_conditions(error: ClientError) -> bool:
    """Whether the store does not know conditional writes."""
    return code_of(error) in _NO_CONDITION


_ERRORS: dict[str, tuple[str, str, str]] = {
    "NoSuchBucket": ("bucket-missing", "there is no such bucket", "create it, or correct COMGRAD_BLOBS"),
    "AccessDenied": ("permission", "these keys may not do that", "let them list, read, write and delete there"),
    "403": ("permission", "these keys may not do that", "let them list, read, write and delete there"),
    "InvalidAccessKeyId": ("permission", "the access key is not known there", "check AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": ("permission", "the secret key is wrong", "check AWS_SECRET_ACCESS_KEY"),
    "ExpiredToken": ("permission", "the session token has expired", "renew the credentials"),
    "RequestTimeTooSkewed": ("permission", "the clocks differ too much", "set this machine's clock"),
    "QuotaExceeded": ("disk-full", "its quota is used up", "free some space and try again"),
    "InsufficientStorage": ("disk-full", "it is full", "free some space and try again"),
    "XMinioStorageFull": ("disk-full", "it is full", "free some space and try again"),
    "507": ("disk-full", "it is full", "free some space and try again"),
}


@contextlib.contextmanager
def storage(what: str) -> Iterator[None]:
    """Turn the library's errors in the block into `StorageError` (or NotFound) about `what`; no key is ever shown."""
    try:
        yield
    except ClientError as error:
        raise _refused(what, error) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        why, remedy = "there are no keys for it", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise StorageError(what, why, remedy, code="permission") from error
    except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
        why, remedy = "the object store does not answer", "check AWS_ENDPOINT_URL, and that it runs; then try again"
        raise StorageError(what, why, remedy, code="unavailable") from error
    except BotoCoreError as error:
        raise StorageError(what, f"the library reported {type(error).__name__}", "check the AWS_ settings") from error


def _refused(what: str, error: ClientError) -> ComgradError:
    word = code_of(error)
    if word in _ERRORS:
        code, why, remedy = _ERRORS[word]
        return StorageError(what, why, remedy, code=code)
    if is_gone(error):
        return NotFound(what, "there is no such object", "check the bucket")
    if _status(error) >= 500 or word in {"SlowDown", "Throttling", "RequestTimeout"}:
        why = f"the object store is overloaded or failing ({word[:40]})"
        return StorageError(what, why, "try again later", code="unavailable")
    return StorageError(what, f"the object store refused it ({word[:40]})", "check the bucket's policy")
