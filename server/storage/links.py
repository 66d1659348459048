"""Signed names: links that carry their own permission and need no key. No HTTP, no clock of its own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
from pathlib import Path


class Signer:
    """Makes and checks names that carry their own permission.

    Args:
        secret: at least 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def from_file(cls, path: Path) -> Signer:
        """The installation's secret, made on the first start; readable by its owner only."""
        if not path.exists():
            fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            fresh.touch(mode=0o600)
            fresh.write_bytes(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):  # another process was faster: its secret holds
                path.hardlink_to(fresh)
            fresh.unlink()
        return cls(path.read_bytes())

    def sign(self, purpose: str, name: str, expires_at: float) -> str:
        """`<expiry>-<signature>`, URL-safe, for one purpose and one name."""
        until = f"{int(expires_at):x}"
        return f"{until}-{self._mac(purpose, name, until)}"

    def holds(self, purpose: str, name: str, token: str, now: float) -> bool:
        until, _, mac = token.partition("-")
        if not hmac.compare_digest(mac.encode(), self._mac(purpose, name, until).encode()):
            return False
        return int(until, 16) > now

    def _mac(self, purpose: str, name: str, until: str) -> str:
        message = f"{purpose}\0{name}\0{until}".encode()
        digest = hmac.new(self._secret, message, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest[:24]).decode()
