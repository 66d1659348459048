"""Signed URLs."""

from __future__ import annotations

import stat
from pathlib import Path

from server.storage.links import LinkSigner


def test_signature_holds_for_one_action_one_name_and_a_time(tmp_path: Path) -> None:
    signer = LinkSigner.from_file(tmp_path / "signing.key")
    assert stat.S_IMODE((tmp_path / "signing.key").stat().st_mode) == 0o600
    again = LinkSigner.from_file(tmp_path / "signing.key")
    token = signer.sign("read", "results/a.mp4", 200.0)
    assert again.verify("read", "results/a.mp4", token, 199.0)
    assert not again.verify("read", "results/a.mp4", token, 200.0)
    assert not again.verify("write", "results/a.mp4", token, 199.0)
    assert not again.verify("read", "results/b.mp4", token, 199.0)
    for bent in ("", "-", "zz-x", token[:-1], token + "=", "f" + token, "ünï-x"):
        assert not again.verify("read", "results/a.mp4", bent, 199.0)
    assert not LinkSigner(b"x" * 32).verify("read", "results/a.mp4", token, 199.0)
