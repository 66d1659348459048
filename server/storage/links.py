"""Signed URLs: names that carry their own permission and need no API key. No HTTP, no clock of its own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
from enum import StrEnum
from pathlib import Path

from server.settings import is_placeholder

MIN_SECRET_BYTES = 32
MIN_DISTINCT_BYTES = 8
"""32 random hexadecimal digits have fewer with a probability below one in a million."""


class LinkState(StrEnum):
    """Verdict on a signed link; FORGED: not signed by this installation, or not for this name."""

    VALID = "valid"
    EXPIRED = "expired"
    FORGED = "forged"


class LinkSigner:
    """Signs names and verifies their signatures.

    Args:
        secret: at least 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def from_file(cls, path: Path) -> LinkSigner:
        """Read the installation's secret; the first start creates it, readable by its owner only.

        Raises:
            ValueError: the secret can be guessed.
        """
        if not path.exists():
            new_file = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            new_file.touch(mode=0o600)
            new_file.write_bytes(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):  # another process was faster: its secret is used
                path.hardlink_to(new_file)
            new_file.unlink()
        secret = path.read_bytes()
        is_weak = len(secret) < MIN_SECRET_BYTES or len(set(secret)) < MIN_DISTINCT_BYTES
        if is_weak or is_placeholder(secret.decode(errors="replace")):
            raise ValueError(
                f"the link secret in {path} can be guessed ({len(secret)} bytes, {len(set(secret))} "
                "different): write 32 random bytes into it (openssl rand -hex 32), or delete it for a new one"
            )
        return cls(secret)

    def sign(self, purpose: str, name: str, expires_at: float) -> str:
        """Return `<expiry>-<signature>`, URL-safe, for one purpose and one name."""
        expiry = f"{int(expires_at):x}"
        return f"{expiry}-{self._signature(purpose, name, expiry)}"

    def check(self, purpose: str, name: str, token: str, now: float) -> LinkState:
        """Check that a token was signed for this purpose and name, and that it has not expired."""
        expiry, _, signature = token.partition("-")
        if not hmac.compare_digest(signature.encode(), self._signature(purpose, name, expiry).encode()):
            return LinkState.FORGED
        return LinkState.VALID if int(expiry, 16) > now else LinkState.EXPIRED

    def _signature(self, purpose: str, name: str, expiry: str) -> str:
        message = f"{purpose}\0{name}\0{expiry}".encode()
        digest = hmac.new(self._secret, message, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest[:24]).decode()
