"""Provenance of results: content credentials (C2PA), visible label, invisible watermark, content filter.

This package is the only owner of c2pa. A manifest states that a generative model edited the video, from which
source, with which model, weights and seed. It contains no personal data. The operator configures the signer:
certificate and key in files, or a command that signs. Otherwise a development certificate is created, which
no other machine trusts. Set-up: docs/trust.md.

    signing         `ManifestSigner`
    verification    `verify_credentials`
    development     the development certificate
    label           visible label
    watermark       invisible watermark
    content_filter  NSFW policy on sources
"""

from lipsync_engine.provenance.signing import (
    ManifestFacts,
    ManifestSigner,
    SigningError,
    SigningPolicy,
    require_consent,
    signed_copy_path,
)
from lipsync_engine.provenance.verification import Ingredient, Verdict, Verification, verify_credentials

__all__ = [
    "Ingredient",
    "ManifestFacts",
    "ManifestSigner",
    "SigningError",
    "SigningPolicy",
    "Verdict",
    "Verification",
    "require_consent",
    "signed_copy_path",
    "verify_credentials",
]
