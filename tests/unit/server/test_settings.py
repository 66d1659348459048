"""Settings: sources in order, invalid values, documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipsync_engine.provenance import ManifestSigner, SigningPolicy
from server.settings import Settings, SettingsError, is_placeholder, load_settings, settings_table
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


def test_mistake_in_a_list_of_hosts_is_named(
    subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (
        "10.0.0.0/99",
        "10.0.0.300",
        "*",
        "http://127.0.0.1",
        '["a.local", "b.local"]',
        "a.local b.local",
        "a.local:99999",
        "a.local:0",
        "*.10.0.0.0/8",
        "-a.local",
    ):
        for name in ("allow_hosts", "media_hosts"):
            with subtests.test(value=value, name=name), monkeypatch.context() as environment:
                environment.setenv(f"LIPSYNC_{name.upper()}", value)
                with pytest.raises(SettingsError, match=rf"{name}.*is invalid.*: write a name"):
                    load_settings()
    monkeypatch.setenv("LIPSYNC_ALLOW_HOSTS", "a_b.local:80, *.c.local, 10.0.0.0/8:81, [fd00::/8]:82, ::1, X")
    assert len(load_settings().allow_hosts) == 6


def test_every_value_can_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "value"
    for name in Settings.model_fields:
        monkeypatch.setenv(f"LIPSYNC_{name.upper()}_FILE", str(file))
        if name != "port":
            monkeypatch.delenv(f"LIPSYNC_{name.upper()}_FILE")
    file.write_text("9002\n")
    assert load_settings().port == 9002
    file.write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        load_settings()
    monkeypatch.setenv("LIPSYNC_PORT", "1")
    with pytest.raises(SettingsError, match="both set"):
        load_settings()
    monkeypatch.delenv("LIPSYNC_PORT")
    file.unlink()
    with pytest.raises(SettingsError, match="LIPSYNC_PORT_FILE"):
        load_settings()


def test_placeholder_of_a_secret_stops_the_start(
    subtests: pytest.Subtests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "database_url"
    for secret in (
        "PASSWORD",
        "SECRET",
        "…",
        "change-me",
        "CHOOSE: openssl rand -hex 32",
        "<password>",
        "xxx",
    ):
        assert is_placeholder(secret), secret
    for secret in ("4f1c9e0b7a2d8853", "change-horses", "Secretary", "my-password-is-long", "xylophone"):
        assert not is_placeholder(secret), secret
    for variable in ("LIPSYNC_DATABASE_URL", "LIPSYNC_DATABASE_URL_FILE", "AWS_SECRET_ACCESS_KEY"):
        url = "postgresql+psycopg://lipsync:PASSWORD@db/lipsync"
        file.write_text(url)
        value = {"LIPSYNC_DATABASE_URL": url, "AWS_SECRET_ACCESS_KEY": "SECRET"}.get(variable, str(file))
        with subtests.test(variable=variable), monkeypatch.context() as environment:
            environment.setenv(variable, value)
            with pytest.raises(SettingsError, match="is a placeholder") as error:
                load_settings()
            assert "lipsync:" not in str(error.value)


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
