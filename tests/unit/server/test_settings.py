"""Settings: sources in order, invalid values, documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipsync_engine.provenance import ManifestSigner, SigningPolicy
from server.settings import Settings, SettingsError, load_settings, settings_table
from tests.support.paths import ROOT


def test_environment_overrides_file_and_file_overrides_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lipsync.toml"
    file.write_text('port = 9000\nallow_hosts = ["files.local", "10.0.0.0/8"]\nmax_waiting = 5\n')
    monkeypatch.setenv("LIPSYNC_CONFIG", str(file))
    monkeypatch.setenv("LIPSYNC_PORT", "9001")
    monkeypatch.setenv("LIPSYNC_DEVICES", "cuda:0, cuda:1")
    settings = load_settings(max_waiting=7)
    assert (settings.port, settings.max_waiting, settings.host) == (9001, 7, "127.0.0.1")
    assert settings.allow_hosts == ("files.local", "10.0.0.0/8")
    assert settings.devices == ("cuda:0", "cuda:1")


def test_invalid_setting_is_named_in_error(
    subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("MAX_WAITING", "0"),
        ("SYNC_TIMEOUT_S", "300"),
        ("PUBLIC_URL", "x"),
        ("TRUSTED_PROXIES", "proxy.local"),
        ("TRUSTED_PROXIES", "10.0.0.0/99"),
        ("CORS_ORIGINS", "app.example"),
        ("CORS_ORIGINS", "https://app.example/"),
    ]:
        with subtests.test(name=name, value=value), monkeypatch.context() as environment:
            environment.setenv(f"LIPSYNC_{name}", value)
            with pytest.raises(SettingsError, match=name.lower()):
                load_settings()


def test_unknown_setting_is_named_in_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_signing_environment_configures_the_signer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIPSYNC_CREDENTIALS_DIR")
    settings = Settings(data_dir=tmp_path, marking="best_effort", trust_anchors=tmp_path / "roots.pem")
    for name, value in settings.signing_environment.items():
        monkeypatch.setenv(name, value)
    signer = ManifestSigner.from_environment()
    assert (signer.policy, signer.development_dir) == (SigningPolicy.BEST_EFFORT, tmp_path / "credentials")
    assert (signer.chain, signer.trust_anchors) == (None, tmp_path / "roots.pem")
