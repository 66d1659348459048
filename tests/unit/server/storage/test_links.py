"""Signed URLs."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from server.storage.links import LinkSigner, LinkState


def test_signature_holds_for_one_action_one_name_and_a_time(tmp_path: Path) -> None:
    signer = LinkSigner.from_file(tmp_path / "signing.key")
    assert stat.S_IMODE((tmp_path / "signing.key").stat().st_mode) == 0o600
    again = LinkSigner.from_file(tmp_path / "signing.key")
    token = signer.sign("read", "results/a.mp4", 200.0)
    name = "results/a.mp4"
    assert again.check("read", name, token, 199.0) is LinkState.VALID
    assert again.check("read", name, token, 200.0) is LinkState.EXPIRED
    assert again.check("write", name, token, 199.0) is LinkState.FORGED
    assert again.check("read", "results/b.mp4", token, 199.0) is LinkState.FORGED
    for bent in ("", "-", "zz-x", token[:-1], token + "=", "f" + token, "ünï-x"):
        assert again.check("read", name, bent, 199.0) is LinkState.FORGED
    assert LinkSigner(b"x" * 32).check("read", name, token, 199.0) is LinkState.FORGED


def test_link_secret_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "signing.key"
    for secret in (
        b"",
        b"\n",
        b"x" * 64,
        b"secret",
        b"CHOOSE: openssl rand -hex 32",
        b"CHANGE-ME: 32 bytes of openssl rand -hex 32",
    ):
        file.write_bytes(secret)
        with pytest.raises(ValueError, match="openssl rand -hex 32"):
            LinkSigner.from_file(file)
    file.write_bytes(b"4f1c9e0b7a2d8853" * 2)
    LinkSigner.from_file(file)
