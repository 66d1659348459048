"""A certificate for trying things out: made on this machine, known to nobody else."""

from __future__ import annotations

import logging
import secrets
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

log = logging.getLogger(__name__)

DEVELOPMENT = "lipsync-engine development"
"""The organisation in it."""

VALID_DAYS = 3650


def make_development(folder: Path) -> None:
    """A root and a certificate under it. The root's key is thrown away, so that it signs nothing else."""
    root_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _issue("root", root_key.public_key(), None, root_key)
    leaf = _issue("signer", leaf_key.public_key(), root, root_key)
    private = leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    fresh.mkdir(mode=0o700)
    for name, content in (("root.pem", pem(root)), ("chain.pem", pem(leaf)), ("key.pem", private.decode())):
        (fresh / name).touch(mode=0o600)
        (fresh / name).write_text(content)
    try:
        fresh.rename(folder)
    except OSError:  # another process was first: one certificate is enough
        shutil.rmtree(fresh)
        if not folder.exists():
            raise
        return
    log.warning(
        "a development certificate for content credentials was made in %s: nobody else knows it; set "
        "LIPSYNC_SIGNING_CHAIN and a key for your own (docs/trust.md)",
        folder,
    )


def _issue(
    name: str,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """A certificate of the profile that C2PA asks for; without issuer a root."""
    is_root, now = issuer is None, datetime.now(UTC)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, DEVELOPMENT),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{DEVELOPMENT} {name} {secrets.token_hex(4)}"),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=not is_root, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=is_root, crl_sign=is_root,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=0 if is_root else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(usage, critical=True)
    )
    if not is_root:
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purposes, critical=False)
    return builder.sign(signer, hashes.SHA256())


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
