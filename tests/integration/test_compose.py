"""compose.yaml: its services start with the environment that the file gives them, and use the same data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.support.paths import ROOT
from tests.support.s3 import ENVIRONMENT, Storage

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
SECRETS = {"POSTGRES_PASSWORD": "secret", "S3_SECRET": "long secret"}


def environment_of(service: str) -> dict[str, str]:
    """Return a service's environment as compose fills it in: with secrets of the user, and defaults."""

    def value_of(variable: re.Match[str]) -> str:
        name, rest = variable[1], variable[2]
        return SECRETS[name] if rest.startswith(":?") else SECRETS.get(name, rest[2:])

    variables = SERVICES[service]["environment"].items()
    return {name: re.sub(r"\$\{(\w+)(:[?-][^}]*)\}", value_of, value) for name, value in variables}


def test_services_start_with_their_environment(postgres_url: str, storage: Storage, tmp_path: Path) -> None:
    for service in ("api", "worker"):
        environment = environment_of(service)
        blobs = environment["LIPSYNC_BLOBS"]
        replaced = {
            "LIPSYNC_DATABASE_URL": postgres_url,
            "LIPSYNC_BLOBS": blobs.replace("http://storage:9000", storage.url.rpartition("endpoint=")[2]),
        }
        assert replaced["LIPSYNC_BLOBS"] != blobs
        command = [sys.executable, "-m", "server", "--check", "--data-dir", str(tmp_path / service)]
        env = {**os.environ, **environment, **ENVIRONMENT, **replaced}
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr


def test_services_share_database_and_storage() -> None:
    api, worker, database, storage = map(environment_of, ("api", "worker", "database", "storage"))
    for name in ("LIPSYNC_DATABASE_URL", "LIPSYNC_BLOBS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert api[name] == worker[name], name
    url = urlsplit(api["LIPSYNC_DATABASE_URL"])
    assert (url.hostname, url.username, url.password) == (
        "database",
        database["POSTGRES_USER"],
        database["POSTGRES_PASSWORD"],
    )
    keys = api["AWS_ACCESS_KEY_ID"], api["AWS_SECRET_ACCESS_KEY"]
    assert keys == (storage["MINIO_ROOT_USER"], storage["MINIO_ROOT_PASSWORD"])
