"""The Hugging Face Hub client: the only place that touches the network, and only when asked to.

It takes a repository's name and a revision, never an address; it downloads weights in safetensors, JSON and tokenizer
files, never pickles or code; it looks in the local cache first and honours `HF_HUB_OFFLINE`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from comgrad.errors import ComgradError, NotFound
from comgrad.weights.profile import shown
from comgrad.weights.reader import weight_files

ALLOWED: Final = (
    "*.safetensors",
    "*.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.\-]{0,94}[A-Za-z0-9_])?"
_REPO_ID: Final = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)
_REVISION: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.\-/]{0,254})", re.ASCII)


def is_repo_id(text: str) -> bool:
    """Whether `text` can be the name of a repository: `name` or `owner/name`, nothing that a path or address holds."""
    return bool(_REPO_ID.fullmatch(text)) and ".." not in text and "--" not in text


def fetch(repo_id: str, revision: str = "main", *, refresh: bool = False) -> Path:
    """The folder of a repository's snapshot in the local cache, downloaded when it is not there.

    Args:
        repo_id: `owner/name`.
        revision: a branch, tag or commit. Only a commit always names the same bytes.
        refresh: ask the Hub even when the cache has a snapshot for a branch.

    Returns:
        `.../models--owner--name/snapshots/<commit>`.

    Raises:
        ComgradError: `repo-id`, `revision`, `hub-denied`, `hub-unreachable`. NotFound: no such repository or revision,
            `hub-offline`, `hub-no-weights`.
    """
    _check(repo_id, revision)
    if not refresh and (there := cached(repo_id, revision)) is not None:
        return there
    folder = _download(repo_id, revision, local=False)
    if not _has_weights(folder):
        raise NotFound(
            f"'{repo_id}' at '{revision}'",
            "the repository has no safetensors weights, and nothing else is downloaded",
            "choose a repository with model.safetensors",
            code="hub-no-weights",
        )
    return folder


def cached(repo_id: str, revision: str = "main") -> Path | None:
    """The snapshot's folder when the local cache has its weights; touches no network.

    Raises:
        ComgradError: `repo-id`, `revision`.
    """
    _check(repo_id, revision)
    try:
        folder = _download(repo_id, revision, local=True)
    except NotFound:
        return None
    return folder if _has_weights(folder) else None


def _check(repo_id: str, revision: str) -> None:
    if not is_repo_id(repo_id):
        raise ComgradError(
            f"repository {shown(repo_id)}",
            "the Hub is asked by name, never by address",
            "give it as 'owner/name'",
            code="repo-id",
        )
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ComgradError(
            f"revision {shown(revision)}", "it is no branch, tag or commit", "give a commit hash", code="revision"
        )


def _has_weights(folder: Path) -> bool:
    try:
        return all(file.exists() for file in weight_files(folder))
    except ComgradError:
        return False


def _download(repo_id: str, revision: str, *, local: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    # With the HTTP library's own base class, whichever library this version uses.
    bases = errors.HfHubHTTPError.__mro__
    failures: tuple[type[Exception], ...] = (
        ValueError,
        *(c for c in bases if issubclass(c, Exception) and c is not Exception),
    )
    what = f"'{repo_id}' at '{revision}'"
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(ALLOWED), local_files_only=local))
    except errors.GatedRepoError as e:
        raise ComgradError(
            what, "its owner grants access one by one", "ask for access on the Hub and log in", code="hub-denied"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise NotFound(what, "the Hub has no such repository, or it is private", "check the name, or log in") from e
    except errors.RevisionNotFoundError as e:
        raise NotFound(what, "the repository has no such revision", "check the branch, tag or commit") from e
    except errors.LocalEntryNotFoundError as e:
        raise NotFound(
            what,
            f"the local cache does not have it whole, and {_offline_reason(e)}",
            "go online once, or pass a folder",
            code="hub-offline",
        ) from e
    except failures as e:
        # Neither the address nor the message is passed on: either may carry a token.
        status = getattr(getattr(e, "response", None), "status_code", None)
        raise ComgradError(
            what,
            f"the Hub did not deliver it ({type(e).__name__}{f' {status}' if status else ''})",
            "try again later",
            code="hub-unreachable",
        ) from e


def _offline_reason(error: BaseException) -> str:
    cause = error.__cause__
    if cause is None or type(cause).__name__ == "OfflineModeIsEnabled":
        return "no network may be used"
    status = getattr(getattr(cause, "response", None), "status_code", None)
    return f"the Hub did not answer ({type(cause).__name__}{f' {status}' if status else ''})"
