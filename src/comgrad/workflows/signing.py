"""Journey: sign and verify. A folder's files and their digests under one signature, checked without any network.

The form is that of OpenSSF model signing: an in-toto statement with the SHA-256 of every file, in a sigstore bundle
(`model.sig`), so that `model_signing verify key` of other tools reads it too. Keys are elliptic-curve keys in PEM; with a
certificate the signature says who signed, and whoever trusts the chain's root believes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from comgrad.errors import ComgradError, FileRefused, NotFound
from comgrad.registry import disk
from comgrad.weights.storage import atomic_write_bytes
from comgrad.workflows.signing_keys import Key, bad_key, library, new_key

SIGNATURE = "model.sig"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
MOST_SIGNATURE = 8 << 20
HOW: Mapping[str, Any] = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [SIGNATURE],
}


class Named(Protocol):
    """A file and its digest."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Signed:
    """A signature that was written: `key` is the SHA-256 of the public key's PEM, `root` that of all digests."""

    path: str
    files: dict[str, str]
    root: str
    key: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self)


@dataclass(frozen=True)
class Verified:
    """A folder whose every file is as it was when it was signed.

    Args:
        name: what the signer called it; the name itself proves nothing.
        signer: the certificate's subject, or the SHA-256 of the public key.
    """

    path: str
    name: str
    files: dict[str, str]
    root: str
    signer: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self)


# -- what is signed ----------------------------------------------------------------------------------------------------
def statement(name: str, files: Iterable[Named] | Mapping[str, str]) -> dict[str, Any]:
    """The statement over files that are served or lie in a folder, not signed yet; no file is read.

    Args:
        name: of the vector; for people.
        files: name → SHA-256, or values with these two attributes.
    """
    digests = dict(files) if isinstance(files, Mapping) else {f.name: f.sha256 for f in files}
    resources = [{"name": n, "algorithm": "sha256", "digest": d} for n, d in sorted(digests.items())]
    predicate = {"serialization": HOW, "resources": resources}
    subject = [{"name": name, "digest": {"sha256": root_of(digests)}}]
    return {"_type": STATEMENT, "subject": subject, "predicateType": PREDICATE, "predicate": predicate}


def root_of(digests: Mapping[str, str]) -> str:
    """SHA-256 over the digests in the order of the files' names."""
    return hashlib.sha256(b"".join(bytes.fromhex(digests[n]) for n in sorted(digests))).hexdigest()


def signer(key: Path, *, password: str | None = None) -> Callable[[Sequence[Named]], dict[str, Any]]:
    """A function that signs lists of files with a key that is read once. Raises ComgradError (`signing-key`)."""
    made = Key.read(key, password)
    return lambda files: made.bundle("served", {f.name: f.sha256 for f in files}, HOW)


def sign(
    folder: Path,
    key: Path,
    *,
    password: str | None = None,
    certificate: Path | None = None,
    chain: Sequence[Path] = (),
) -> Signed:
    """Sign every file of a folder into its `model.sig`.

    Args:
        key: the private key, an elliptic-curve one in PEM.
        certificate: of the key, in PEM, with `chain` towards a root that verifiers trust.

    Raises:
        ComgradError: (`signing-key`) no such key; (`signing-missing`) the library is not installed; (`nothing-to-sign`).
        FileRefused: a link is in the folder.
    """
    digests = digests_of(folder)
    if not digests:
        raise ComgradError(f"'{folder}'", "it holds no files", "name the folder to sign", code="nothing-to-sign")
    made = Key.read(key, password, certificate, chain)
    atomic_write_bytes(folder / SIGNATURE, json.dumps(made.bundle(folder.resolve().name, digests, HOW)).encode())
    return Signed(str(folder / SIGNATURE), digests, root_of(digests), made.fingerprint)


def verify(folder: Path, *, key: Path | None = None, chain: Sequence[Path] = ()) -> Verified:
    """Check that a folder's files are those of its `model.sig`, no more and no less, and who signed.

    Args:
        key: the signer's public key in PEM; or
        chain: certificates in PEM that are trusted: the signer's certificate must lead to one of them.

    Raises:
        NotFound: no `model.sig`. ComgradError: (`signing-key`) neither or both, or no key.
        FileRefused: (`signature`) not signed by it; (`digest-mismatch`) a file is another; a link is in the folder.
    """
    if (key is None) == (not chain):
        why = "a signature is checked against one public key, or against trusted certificates"
        raise ComgradError(f"'{folder}'", why, "give --key PUBLIC.pem, or --chain ROOT.pem", code="signing-key")
    path = folder / SIGNATURE
    signed, who = _checked(path, key, chain)
    subject, listed = signed["subject"][0], signed["predicate"]["resources"]
    expected = {str(r["name"]): str(r["digest"]) for r in listed}
    found = digests_of(folder)
    for kind, names in (
        ("it is signed, and not here", expected.keys() - found.keys()),
        ("it is here, and not signed", found.keys() - expected.keys()),
        ("its bytes are not those that were signed", {n for n in found if expected.get(n, found[n]) != found[n]}),
    ):
        if names:
            first = f"'{sorted(names)[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            raise FileRefused(f"{first} of '{folder}'", kind, "fetch the folder again", code="digest-mismatch")
    return Verified(str(folder), str(subject["name"]), found, root_of(found), who)


def digests_of(folder: Path) -> dict[str, str]:
    """Relative name → SHA-256 of every file below a folder but its signature. Raises FileRefused: a link is there."""
    if not folder.is_dir():
        raise NotFound(f"'{folder}'", "there is no such folder", "check the path")
    out = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise disk.linked(f"'{path}'", "a symbolic link")
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == SIGNATURE:
            continue
        with os.fdopen(disk.open_regular(path, f"'{path}'"), "rb") as file, disk.storage(f"'{path}'"):
            out[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return out


# -- checking ----------------------------------------------------------------------------------------------------------
def _checked(path: Path, key: Path | None, chain: Sequence[Path]) -> tuple[dict[str, Any], str]:
    """The signed statement and who signed it. Raises NotFound, FileRefused, ComgradError."""
    loaded = library()
    with os.fdopen(disk.open_regular(path, f"'{path}'"), "rb") as file:
        raw = file.read(MOST_SIGNATURE + 1)
    try:
        config = loaded.verifying.Config()
        if key is not None:
            config.use_elliptic_key_verifier(public_key=key)
        else:
            config.use_certificate_verifier(certificate_chain=list(chain))
    except OSError as error:
        raise NotFound(f"'{error.filename}'", "there is no such file", "check the path") from error
    except (ValueError, TypeError) as error:
        raise bad_key(key or chain[0], "it is no public key or certificate in PEM") from error
    refused = FileRefused(
        f"'{path}'", "it is no signature by this key over such a folder", "do not use it", code="signature"
    )
    if len(raw) > MOST_SIGNATURE:
        raise refused
    try:
        with tempfile.TemporaryDirectory(
            prefix="comgrad-"
        ) as folder:  # the bytes that were read, not a path's new ones
            copy = Path(folder) / SIGNATURE
            copy.write_bytes(raw)
            bundle = loaded.read(copy)
        config._verifier.verify(bundle)  # the signature, and that the statement is whole
        signed = json.loads(bundle.bundle.dsse_envelope.payload)
    except Exception as error:
        raise refused from error
    if signed["predicate"]["serialization"].get("method") != "files" or any(
        r["algorithm"] != "sha256" for r in signed["predicate"]["resources"]
    ):
        raise refused
    return signed, _who(bundle.bundle, key)


def _who(bundle: Any, key: Path | None) -> str:
    if key is not None:
        return str(bundle.verification_material.public_key.hint)
    from cryptography.x509 import load_der_x509_certificate

    first = bundle.verification_material.x509_certificate_chain.certificates[0]
    return load_der_x509_certificate(first.raw_bytes).subject.rfc4514_string()


__all__ = ["Signed", "Verified", "digests_of", "new_key", "root_of", "sign", "signer", "statement", "verify"]
