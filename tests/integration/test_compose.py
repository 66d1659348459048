"""The files for containers say what the program understands: its settings, against real services."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from server.settings import Settings
from tests.support.paths import ROOT
from tests.support.s3 import ENVIRONMENT, Storage

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = ("api", "worker")
GIVEN = {"POSTGRES_PASSWORD": "secret", "S3_SECRET": "long secret"}


def environment(service: str) -> dict[str, str]:
    """As compose gives it: with what the user must choose, and defaults for what he may."""

    def filled(found: re.Match[str]) -> str:
        return GIVEN[found[1]] if found[2].startswith(":?") else GIVEN.get(found[1], found[2][2:])

    given = SERVICES[service]["environment"].items()
    return {name: re.sub(r"\$\{(\w+)(:[?-][^}]*)\}", filled, value) for name, value in given}


@pytest.fixture
def storage() -> Iterator[Storage]:
    opened = Storage()
    yield opened
    opened.close()


def test_the_processes_start_with_what_the_file_gives(
    postgres_url: str, storage: Storage, tmp_path: Path
) -> None:
    for service in OURS:
        given = environment(service)
        database, blobs = given["LIPSYNC_DATABASE_URL"], given["LIPSYNC_BLOBS"]
        here = {
            "LIPSYNC_DATABASE_URL": postgres_url,
            "LIPSYNC_BLOBS": blobs.replace("http://storage:9000", storage.url.rpartition("endpoint=")[2]),
        }
        assert here["LIPSYNC_BLOBS"] != blobs
        assert urlsplit(database).scheme == urlsplit(postgres_url).scheme
        command = [sys.executable, "-m", "server", "--check", "--data-dir", str(tmp_path / service)]
        env = {**os.environ, **given, **ENVIRONMENT, **here}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_the_services_agree() -> None:
    api, worker, database, storage = (environment(name) for name in (*OURS, "database", "storage"))
    for name in ("LIPSYNC_DATABASE_URL", "LIPSYNC_BLOBS", "AWS_ACCESS_KEY_ID"):
        assert api[name] == worker[name], name
    assert (api["LIPSYNC_DEVICES"], worker["LIPSYNC_DEVICES"]) == ("none", "cpu")
    url = urlsplit(api["LIPSYNC_DATABASE_URL"])
    assert (url.hostname, url.port, url.path) == ("database", 5432, f"/{database['POSTGRES_USER']}")
    assert (url.username, url.password) == (database["POSTGRES_USER"], database["POSTGRES_PASSWORD"])
    keys = api["AWS_ACCESS_KEY_ID"], api["AWS_SECRET_ACCESS_KEY"]
    assert keys == (storage["MINIO_ROOT_USER"], storage["MINIO_ROOT_PASSWORD"])
    bucket = urlsplit(api["LIPSYNC_BLOBS"]).netloc
    assert f"/data/{bucket} " in SERVICES["storage"]["entrypoint"][-1]
    image = ROOT / COMPOSE["x-lipsync"]["build"]["dockerfile"]
    (data,) = re.findall(r"LIPSYNC_DATA_DIR=(\S+)", image.read_text())
    for service in OURS:
        assert SERVICES[service]["volumes"] == [f"data:{data}"]
    assert SERVICES["api"]["ports"] == ["8000:{}".format(Settings.model_fields["port"].default)]


def test_our_containers_hold_no_privileges() -> None:
    for service in OURS:
        assert SERVICES[service]["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in SERVICES[service]["security_opt"]
