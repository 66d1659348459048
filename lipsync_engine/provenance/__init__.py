"""Content credentials (C2PA): sign what is published, and say what a file's own credentials are worth.

The only owner of c2pa. A result says that a generative model edited it, from which source, with which model,
weights and seed; nothing about anybody. Whose signature that is, the operator decides: certificates and key
in files, or a command that signs; without either a development certificate, made here, which nobody else
knows. It knows neither codecs nor models. How to set it up: docs/trust.md.

    signing      `Marker` signs results
    development  the certificate that is made where the operator has given none
    reading      `verify`
"""

from lipsync_engine.provenance.signing import (
    Facts,
    Marker,
    Policy,
    SigningError,
    require_consent,
    signed_beside,
)
from lipsync_engine.provenance.verification import Source, Verdict, Verification, verify

__all__ = [
    "Facts",
    "Marker",
    "Policy",
    "SigningError",
    "Source",
    "Verdict",
    "Verification",
    "require_consent",
    "signed_beside",
    "verify",
]
