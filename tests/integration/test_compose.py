"""compose.yaml: its services start with the environment that the file gives them, and each is walled in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT
from tests.support.s3 import ENVIRONMENT, Storage

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def environment_of(service: str) -> dict[str, str]:
    """Return a service's environment as compose fills it in without variables of the user."""
    variables = SERVICES[service]["environment"].items()
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in variables}


def test_services_start_with_their_environment(postgres_url: str, storage: Storage, tmp_path: Path) -> None:
    secrets = {
        "database_url": postgres_url,
        "s3_access_key": ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        "s3_secret_key": "4f1c9e0b7a2d8853",
        "first_key": "4f1c9e0b7a2d8853" * 2,
    }
    for name, value in secrets.items():
        (tmp_path / name).write_text(f"{value}\n")
    for service in ("api", "worker"):
        environment = {
            name: value.replace("/run/secrets", str(tmp_path))
            for name, value in environment_of(service).items()
        }
        blobs = environment["LIPSYNC_BLOBS"]
        endpoint = storage.url.rpartition("endpoint=")[2].partition("&")[0]
        environment["LIPSYNC_BLOBS"] = blobs.replace("http://storage:3900", endpoint)
        assert environment["LIPSYNC_BLOBS"] != blobs
        command = [
            sys.executable,
            "-m",
            "server",
            "--check",
            "--port=0",
            "--data-dir",
            str(tmp_path / service),
        ]
        env = {**os.environ, **environment}
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr


def test_every_service_is_limited() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "/tmp" in service["tmpfs"], name
        assert 0 < service["pids_limit"] <= 512, name
        assert re.fullmatch(r"\dg", service["mem_limit"]), name
        assert not service.get("privileged"), name
    assert {name for name, service in SERVICES.items() if "cap_add" in service} == {"proxy"}


def test_only_the_proxy_can_be_reached_from_outside() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    assert COMPOSE["networks"]["back"] == {"internal": True}
    for name in ("database", "storage"):
        assert SERVICES[name]["networks"] == ["back"], name
    (subnet,) = COMPOSE["networks"]["front"]["ipam"]["config"]
    assert environment_of("api")["LIPSYNC_TRUSTED_PROXIES"] == subnet["subnet"]
    caddyfile = (ROOT / "deploy" / "Caddyfile").read_text()
    assert "reverse_proxy api:8000" in caddyfile
    assert "@operator path /metrics /admin/*" in caddyfile


def test_secrets_are_files() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            is_secret = re.search(r"PASSWORD|SECRET|_KEY|DATABASE_URL", variable) is not None
            assert not is_secret or value.startswith("/run/secrets/"), (name, variable)
            if is_secret:
                assert value.rpartition("/")[2] in service["secrets"]
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"secrets/{name}"}
    assert "secrets/" in (ROOT / ".gitignore").read_text().split()


def test_images_have_a_version() -> None:
    for name, service in SERVICES.items():
        if "build" not in service:
            assert re.search(r":v?\d+(\.\d+)*(@sha256:[0-9a-f]{64})?$", service["image"]), name


def test_storage_uses_the_region_of_the_settings() -> None:
    garage = tomllib.loads((ROOT / "deploy" / "garage.toml").read_text())
    api = environment_of("api")["LIPSYNC_BLOBS"]
    assert f"region={garage['s3_api']['s3_region']}" in api
    assert f":{garage['s3_api']['api_bind_addr'].rpartition(':')[2]}&" in api
    assert SERVICES["storage"]["environment"]["GARAGE_DEFAULT_BUCKET"] == "lipsync"
