"""Small parts of the server: settings that name what is wrong, keys, signed names, blobs."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.api import auth
from server.api.auth import AccessDeniedError, Authenticator, RateLimiter, Scope
from server.settings import Settings, SettingsError, load_settings, settings_table
from server.storage.blobs import Blobs, TooLargeError
from server.storage.links import LinkSigner
from server.store import Store
from tests.support.paths import ROOT

# --- settings ---


def test_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lipsync.toml"
    file.write_text('port = 9000\nallow_hosts = ["files.local", "10.0.0.0/8"]\nmax_waiting = 5\n')
    monkeypatch.setenv("LIPSYNC_CONFIG", str(file))
    monkeypatch.setenv("LIPSYNC_PORT", "9001")
    monkeypatch.setenv("LIPSYNC_DEVICES", "cuda:0, cuda:1")
    settings = load_settings(max_waiting=7)
    assert (settings.port, settings.max_waiting, settings.host) == (9001, 7, "127.0.0.1")
    assert settings.allow_hosts == ("files.local", "10.0.0.0/8")
    assert settings.devices == ("cuda:0", "cuda:1")


def test_a_bad_value_is_named(subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("MAX_WAITING", "0"),
        ("SYNC_TIMEOUT_S", "300"),
        ("PUBLIC_URL", "x"),
    ]:
        with subtests.test(name=name, value=value), monkeypatch.context() as environment:
            environment.setenv(f"LIPSYNC_{name}", value)
            with pytest.raises(SettingsError, match=name.lower()):
                load_settings()


def test_an_unknown_name_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSYNC_PROT", "8000")
    with pytest.raises(SettingsError, match="LIPSYNC_PROT"):
        load_settings()
    monkeypatch.delenv("LIPSYNC_PROT")
    file = tmp_path / "lipsync.toml"
    monkeypatch.setenv("LIPSYNC_CONFIG", str(file))
    with pytest.raises(SettingsError, match=r"lipsync\.toml"):
        load_settings()
    file.write_text("prot = 1\n")
    with pytest.raises(SettingsError, match="prot"):
        load_settings()
    file.write_text("not toml")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings()


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    table = (ROOT / "docs" / "operations.md").read_text()
    assert settings_table() in table


# --- keys ---


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'keys.sqlite'}")
    yield opened
    opened.close()


def test_a_key_lets_in_until_it_ends(store: Store, tmp_path: Path) -> None:
    text, key = auth.create_key(store, 100.0, tenant="studio", name="ci", expires_at=200.0)
    keys = Authenticator(store)
    caller = keys.authenticate(f"Bearer {text}", 150.0)
    assert (caller.tenant, caller.key_id) == ("studio", key.id)
    caller.require(Scope.RUN)
    with pytest.raises(AccessDeniedError) as refused:
        caller.require(Scope.ADMIN)
    assert refused.value.status == 403
    for header, now in ((f"Bearer {text}", 200.0), (f"Bearer {text}x", 150.0), (text, 150.0), (None, 150.0),
                        ("Basic x", 150.0), ("Bearer ", 150.0)):  # fmt: skip
        with pytest.raises(AccessDeniedError) as refused:
            keys.authenticate(header, now)
        assert refused.value.status == 401
    assert store.revoke_key(key.id, 160.0)
    assert not store.revoke_key(key.id, 161.0)
    with pytest.raises(AccessDeniedError):
        keys.authenticate(f"Bearer {text}", 170.0)
    store.close()
    assert text.encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("keys.sqlite*"))


def test_a_key_is_looked_up_once_a_second_and_noted_once_a_minute(store: Store) -> None:
    text, key = auth.create_key(store, 100.0)
    keys = Authenticator(store)
    caller = keys.authenticate(f"Bearer {text}", 150.0)
    store.revoke_key(key.id, 150.1)
    assert keys.authenticate(f"Bearer {text}", 150.9) == caller
    keys.clear_cache()
    with pytest.raises(AccessDeniedError):
        keys.authenticate(f"Bearer {text}", 150.9)
    assert [keys.should_record_use(caller, now) for now in (151.0, 152.0, 210.9, 211.0)] == [
        True,
        False,
        False,
        True,
    ]


def test_rates() -> None:
    rate = RateLimiter(60)
    assert [rate.acquire("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rate.acquire("a", 0.0) == pytest.approx(1.0)
    assert rate.acquire("b", 0.0) == 0.0
    assert rate.acquire("a", 1.0) == 0.0
    assert rate.acquire("a", 1.5) == pytest.approx(0.5)
    assert [rate.acquire("slow", 0.0, 2) for _ in range(3)] == [0.0, 0.0, pytest.approx(30.0)]


def test_signed_names(tmp_path: Path) -> None:
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


# --- blobs ---


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_blobs_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)

    async def go() -> None:
        assert await blobs.write("uploads/t/a.wav", stream(b"one", b"two"), 10) == 6
        assert b"".join([part async for part in blobs.read("uploads/t/a.wav", 2, 5)]) == b"etw"
        with pytest.raises(TooLargeError):
            await blobs.write("uploads/t/b.wav", stream(b"x" * 8, b"y" * 8), 10)

        async def breaks() -> AsyncIterator[bytes]:
            yield b"half"
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await blobs.write("uploads/t/c.wav", breaks(), 10)

    asyncio.run(go())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.wav"]
    found = asyncio.run(blobs.info("uploads/t/a.wav"))
    assert found is not None
    assert found.size == 6

    async def go_on() -> None:
        assert await blobs.info("uploads/t/b.wav") is None
        assert [blob.name for blob in await blobs.list_older_than(found.modified_at + 1)] == [
            "uploads/t/a.wav"
        ]
        assert await blobs.list_older_than(found.modified_at - 1) == []
        await blobs.delete("uploads/t/a.wav")
        await blobs.delete("uploads/t/a.wav")
        assert await blobs.info("uploads/t/a.wav") is None

    asyncio.run(go_on())


def test_names_from_outside_are_no_paths(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for name in [
        "../a.wav",
        "uploads/../a.wav",
        "/etc/passwd",
        "a.wav",
        "uploads/a",
        "uploads//a.wav",
        "uploads/t/x/a.wav",
        "uploads/a.wav\n",
        "uploads/ü.wav",
    ]:
        with subtests.test(name=name), pytest.raises(ValueError, match="not a blob name"):
            asyncio.run(Blobs(tmp_path).info(name))


# --- the command line for keys ---


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    def keys(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lipsync_engine.cli", "keys", *arguments]
        env = {**os.environ, "LIPSYNC_DATA_DIR": str(tmp_path / "data")}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    made = keys("create", "--tenant", "dubbing", "--name", "ci", "--days", "30", "--max-active-jobs", "20")
    assert made.returncode == 0, made.stderr
    name, text = made.stdout.split()
    assert text.startswith("sk_")
    listed = keys("list").stdout
    assert name in listed
    assert "dubbing" in listed
    assert "max_active_jobs 20" in listed
    assert text not in listed
    assert keys("revoke", name).returncode == 0
    assert "revoked" in keys("list").stdout
    assert keys("revoke", name).returncode == 2
    assert "scope" in keys("create", "--scopes", "root").stderr
    running = Store(f"sqlite:///{tmp_path / 'data' / 'lipsync.sqlite'}")
    assert "/admin/keys" in keys("list").stderr
    running.close()
