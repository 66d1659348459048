"""The development certificate: created on this machine, trusted nowhere else."""

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

DEVELOPMENT_ORGANISATION = "lipsync-engine development"
"""Organisation name of the certificate."""

VALID_DAYS = 3650


def create_development_certificate(folder: Path, valid_days: float = VALID_DAYS) -> None:
    """Create a root and a signer certificate, unless another process does so at the same time.

    The root's private key is discarded, so that it cannot sign anything else.
    """
    root_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _issue_certificate("root", root_key.public_key(), None, root_key, valid_days)
    leaf = _issue_certificate("signer", leaf_key.public_key(), root, root_key, valid_days)
    private = leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    temporary.mkdir(mode=0o700)
    for name, content in (
        ("root.pem", to_pem(root)),
        ("chain.pem", to_pem(leaf)),
        ("key.pem", private.decode()),
    ):
        (temporary / name).touch(mode=0o600)
        (temporary / name).write_text(content)
    try:
        temporary.rename(folder)
    except OSError:  # another process has created it
        shutil.rmtree(temporary)
        if not folder.exists():
            raise
        return
    log.warning(
        "development certificate for content credentials created in %s; it is trusted nowhere else: set "
        "LIPSYNC_SIGNING_CHAIN and a key to use your own (docs/trust.md)",
        folder,
    )


def _issue_certificate(
    name: str,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    signer: ec.EllipticCurvePrivateKey,
    valid_days: float,
) -> x509.Certificate:
    """Issue a certificate with the profile that C2PA requires; without an issuer a root certificate."""
    is_root, now = issuer is None, datetime.now(UTC)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, DEVELOPMENT_ORGANISATION),
            x509.NameAttribute(
                NameOID.COMMON_NAME, f"{DEVELOPMENT_ORGANISATION} {name} {secrets.token_hex(4)}"
            ),
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
        .not_valid_before(now - timedelta(days=1))  # other machines' clocks may be behind
        .not_valid_after(now + timedelta(days=valid_days))
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


def to_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
