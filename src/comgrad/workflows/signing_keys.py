"""Keys for signatures, and the signing library, which is loaded only when something is signed or verified."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comgrad.errors import ComgradError, NotFound
from comgrad.registry import disk
from comgrad.weights.storage import atomic_write_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def new_key(path: Path) -> tuple[Path, Path]:
    """Make a P-256 key pair: `path` for its owner's eyes only, `path`.pub for everybody. Raises StorageError (`exists`)."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    made = ec.generate_private_key(ec.SECP256R1())
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    private = made.private_bytes(pem, serialization.PrivateFormat.PKCS8, none)
    public = made.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    with disk.storage(f"'{path}'"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | disk.OPEN_FLAGS, 0o600)
        try:
            disk.write_all(fd, private)
            os.fsync(fd)
        finally:
            os.close(fd)
        disk.sync_folder(path.resolve().parent)
    shown = path.with_name(f"{path.name}.pub")
    atomic_write_bytes(shown, public)
    return path, shown


@dataclass(frozen=True)
class Key:
    """The signing library's signer over a key, and the public key's fingerprint."""

    signer: Any
    fingerprint: str

    @classmethod
    def read(cls, path: Path, password: str | None, certificate: Path | None = None, chain: Sequence[Path] = ()) -> Key:
        loaded = library()
        private = _private(path, password)
        try:
            if certificate is not None:
                config = loaded.signing.Config().use_certificate_signer(
                    private_key=path, signing_certificate=certificate, certificate_chain=list(chain)
                )
            else:
                config = loaded.signing.Config().use_elliptic_key_signer(private_key=path, password=_bytes(password))
        except (OSError, ValueError, TypeError) as error:
            raise bad_key(certificate or path, "it does not go with the key") from error
        from cryptography.hazmat.primitives import serialization

        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(config._signer, hashlib.sha256(public).hexdigest())

    def bundle(self, name: str, digests: Mapping[str, str], how: Mapping[str, Any]) -> dict[str, Any]:
        """The sigstore bundle over the files; `how` says how they were hashed."""
        loaded = library()
        items = [
            loaded.manifest.FileManifestItem(path=Path(n), digest=loaded.Digest("sha256", bytes.fromhex(d)))
            for n, d in digests.items()
        ]
        kind = loaded.manifest.SerializationType.from_args(dict(how))
        payload = loaded.payload(loaded.manifest.Manifest(name, items, kind))
        bundle: dict[str, Any] = json.loads(self.signer.sign(payload).bundle.to_json())
        return bundle


def _private(path: Path, password: str | None) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(path.read_bytes(), _bytes(password))
    except FileNotFoundError as error:
        raise NotFound(f"'{path}'", "there is no such key", "make one with: comgrad sign --new-key FILE") from error
    except (OSError, ValueError, TypeError) as error:
        raise bad_key(path, "it is no private key in PEM, or its password is another") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey) or found.curve.name not in _CURVES:
        raise bad_key(path, "it is no elliptic-curve key of a curve that is used here")
    return found


def bad_key(path: Path, why: str) -> ComgradError:
    """The refusal of a file that is no key for this."""
    return ComgradError(f"'{path}'", why, "make one with: comgrad sign --new-key FILE", code="signing-key")


def _bytes(password: str | None) -> Any:
    return None if password is None else password.encode()


@dataclass(frozen=True)
class Library:
    """The parts of the signing library that are used."""

    signing: Any
    verifying: Any
    manifest: Any
    Digest: Any
    payload: Any
    read: Any


def library() -> Library:
    """The signing library. Raises ComgradError (`signing-missing`)."""
    try:
        from model_signing import manifest, signing, verifying
        from model_signing._hashing.hashing import Digest
        from model_signing._signing.sign_sigstore_pb import Signature
        from model_signing._signing.signing import Payload
    except ImportError as error:
        why = f"the signing library is not installed ({error.name} is missing)"
        raise ComgradError("a signature", why, "run: pip install 'comgrad[sign]'", code="signing-missing") from error
    return Library(signing, verifying, manifest, Digest, Payload, Signature.read)
