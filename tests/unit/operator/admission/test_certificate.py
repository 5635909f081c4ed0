"""The serving certificate is reloaded from files while the server runs."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from savepoint_operator.admission.certificate import ServingCertificate


def write_pair(directory: Path, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    signed = builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=9999))
    pem = signed.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (directory / "tls.crt").write_bytes(pem)
    (directory / "ca.crt").write_bytes(pem)
    (directory / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def test_nothing_is_loaded_until_the_files_exist(tmp_path: Path) -> None:
    certificate = ServingCertificate(tmp_path)
    assert certificate.reload() is False
    assert not certificate.loaded
    write_pair(tmp_path, "one")
    assert certificate.reload() is True
    assert certificate.loaded
    assert certificate.ca_pem == (tmp_path / "ca.crt").read_text()
    assert certificate.reload() is False


def test_a_renewed_pair_is_loaded_into_the_same_context(tmp_path: Path) -> None:
    write_pair(tmp_path, "one")
    certificate = ServingCertificate(tmp_path)
    certificate.reload()
    context, before = certificate.context, certificate.ca_pem
    write_pair(tmp_path, "two")
    assert certificate.reload() is True
    assert certificate.context is context
    assert certificate.ca_pem != before


@pytest.mark.parametrize("broken", ["tls.crt", "tls.key", "ca.crt"])
def test_a_mismatched_pair_leaves_the_earlier_one_in_use(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_pair(tmp_path, "one")
    certificate = ServingCertificate(tmp_path)
    certificate.reload()
    before = certificate.ca_pem
    write_pair(tmp_path, "two")
    (tmp_path / broken).write_text("-----BEGIN NONSENSE-----\n")
    assert certificate.reload() is False
    assert certificate.ca_pem == before
    assert "is unusable" in caplog.text
    assert "PRIVATE" not in caplog.text
