"""Signatures: verified by the library that others use, without a network, and refused for every changed byte."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("model_signing", reason="the extra 'sign' is not installed")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from comgrad.errors import ComgradError, FileRefused, NotFound, StorageError
from comgrad.workflows import signing


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return signing.new_key(tmp_path / "key.pem")


@pytest.fixture
def folder(tmp_path: Path, zoo: list[Path]) -> Path:
    made = tmp_path / "adapter"
    shutil.copytree(zoo[0], made)
    return made


def stock(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What the library's own program says."""
    command = [sys.executable, "-m", "model_signing", "verify", *options, "--signature", str(folder / "model.sig")]
    return subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)


def test_a_signed_folder_is_verified_here_and_by_the_stock_program(folder: Path, keys: tuple[Path, Path]) -> None:
    made = signing.sign(folder, keys[0])
    found = signing.verify(folder, key=keys[1])
    reference = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != "model.sig"}
    assert found.files == made.files == reference
    assert found.root == made.root
    assert found.signer == made.key == hashlib.sha256(keys[1].read_bytes()).hexdigest()
    assert found.name == "adapter"
    said = stock(folder, "key", "--public_key", str(keys[1]))
    assert said.returncode == 0, said.stderr
    (folder / "task_card.json").write_text("{}")
    assert stock(folder, "key", "--public_key", str(keys[1])).returncode != 0  # the check can fail


def test_what_the_stock_program_signed_is_verified_here(folder: Path, keys: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "model_signing", "sign", "key", "--private_key", str(keys[0])]
    subprocess.run([*command, "--signature", str(folder / "model.sig"), str(folder)], check=True, capture_output=True)
    assert signing.verify(folder, key=keys[1]).files


def test_a_statement_is_the_payload_that_is_signed(folder: Path, keys: tuple[Path, Path]) -> None:
    import base64

    made = signing.sign(folder, keys[0])
    envelope = json.loads((folder / "model.sig").read_text())["dsseEnvelope"]
    assert json.loads(base64.b64decode(envelope["payload"])) == signing.statement("adapter", made.files)


def test_a_service_s_signer_needs_no_file(folder: Path, keys: tuple[Path, Path]) -> None:
    files = [SimpleNamespace(name=n, sha256=d) for n, d in signing.digests_of(folder).items()]
    bundle = signing.signer(keys[0])(files)
    (folder / "model.sig").write_text(json.dumps(bundle))
    assert signing.verify(folder, key=keys[1]).name == "served"
    assert stock(folder, "key", "--public_key", str(keys[1])).returncode == 0


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_refused(folder: Path, keys: tuple[Path, Path], data: st.DataObject) -> None:
    signing.sign(folder, keys[0])
    name = data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir() if p.name != "model.sig")))
    path = folder / name
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    try:
        with pytest.raises(FileRefused, match=f"'{name}'.*not those that were signed"):
            signing.verify(folder, key=keys[1])
    finally:
        path.write_bytes(whole)
    signing.verify(folder, key=keys[1])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_changed_signature_verifies_nothing_else(folder: Path, keys: tuple[Path, Path], data: st.DataObject) -> None:
    path = folder / "model.sig"
    if not path.exists():
        signing.sign(folder, keys[0])
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + data.draw(st.integers(0, 3)) :]
    path.write_bytes(changed)
    try:
        found = signing.verify(folder, key=keys[1])
    except FileRefused as error:
        assert error.code == "signature"
    else:
        assert found.files == signing.digests_of(folder)  # only what does not matter was changed
    finally:
        path.write_bytes(whole)


def test_files_that_are_missing_or_too_many_are_refused(folder: Path, keys: tuple[Path, Path]) -> None:
    signing.sign(folder, keys[0])
    (folder / "run.py").write_text("print()")
    with pytest.raises(FileRefused, match=r"'run\.py'.*here, and not signed"):
        signing.verify(folder, key=keys[1])
    (folder / "run.py").unlink()
    (folder / "task_card.json").unlink()
    with pytest.raises(FileRefused, match=r"'task_card\.json'.*signed, and not here"):
        signing.verify(folder, key=keys[1])


def test_links_are_refused(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    (folder / "more").symlink_to(tmp_path / "outside")
    with pytest.raises(FileRefused, match="symbolic link"):
        signing.sign(folder, keys[0])


def test_another_key_is_refused(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    signing.sign(folder, keys[0])
    _, other = signing.new_key(tmp_path / "other.pem")
    with pytest.raises(FileRefused, match="no signature by this key") as caught:
        signing.verify(folder, key=other)
    assert caught.value.code == "signature"


def test_keys_are_their_owner_s_and_are_never_replaced(keys: tuple[Path, Path]) -> None:
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    with pytest.raises(StorageError, match="in the way"):
        signing.new_key(keys[0])


def test_mistakes_are_said_so(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such key"):
        signing.sign(folder, tmp_path / "none")
    bad = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "rsa").write_bytes(bad)
    with pytest.raises(ComgradError, match="no elliptic-curve key"):
        signing.sign(folder, tmp_path / "rsa")
    with pytest.raises(ComgradError, match="no private key in PEM"):
        signing.sign(folder, keys[1])
    with pytest.raises(NotFound):
        signing.verify(folder, key=keys[1])
    with pytest.raises(ComgradError, match="one public key, or against trusted"):
        signing.verify(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComgradError, match="holds no files"):
        signing.sign(tmp_path / "empty", keys[0])


def test_certificates_say_who_signed(folder: Path, tmp_path: Path) -> None:
    root_key, root = certificate(tmp_path, "root", None, None)
    key, leaf = certificate(tmp_path, "Ada", root_key, root)
    signing.sign(folder, key, certificate=leaf, chain=[root])
    assert signing.verify(folder, chain=[root]).signer == "CN=Ada"
    _, stranger = certificate(tmp_path, "stranger", None, None)
    with pytest.raises(FileRefused) as caught:
        signing.verify(folder, chain=[stranger])
    assert caught.value.code == "signature"


def certificate(folder: Path, name: str, issuer_key: Path | None, issuer: Path | None) -> tuple[Path, Path]:
    """A key and a certificate for it: self-signed, or signed by the issuer."""
    key_path, _ = signing.new_key(folder / f"{name}.key")
    key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by, by_key = subject, key
    if issuer is not None and issuer_key is not None:
        by = x509.load_pem_x509_certificate(issuer.read_bytes()).subject
        loaded = serialization.load_pem_private_key(issuer_key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        by_key = loaded
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(True, False, False, False, False, issuer is None, issuer is None, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(issuer is None, None), critical=True)
        .add_extension(usage, critical=True)
        .sign(by_key, hashes.SHA256())
    )
    path = folder / f"{name}.crt"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key_path, path
