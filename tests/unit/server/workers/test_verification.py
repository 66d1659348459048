"""Verification of content credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lipsync_engine.provenance import ManifestFacts, ManifestSigner, SigningPolicy
from server.workers.cli_child import VERIFICATION_LIMITS, CliChild
from server.workers.verification import verify_file
from tests.support.application import Api

Make = Callable[..., Api]


@pytest.fixture
def signed(clip: Path, tmp_path: Path, credentials_dir: Path) -> bytes:
    film = tmp_path / "film.mp4"
    film.write_bytes(clip.read_bytes())
    assert (
        ManifestSigner(SigningPolicy.REQUIRED, credentials_dir).sign(
            film, clip, ManifestFacts("tiny", "", 7, 1, "x")
        )
        is None
    )
    return film.read_bytes()


def post(api: Api, content: bytes, **headers: str) -> Any:
    inputs = api.headers | {"Content-Type": "application/octet-stream"} | headers
    return api.client.post("/api/native/v1/verify", content=content, headers=inputs)


def test_signed_video_is_verified(api: Api, signed: bytes, clip: Path) -> None:
    result = post(api, signed)
    assert result.status_code == 200
    assert (result.json()["verdict"], result.json()["made"]["seed"]) == ("trusted", 7)
    changed = bytearray(signed)
    changed[len(changed) // 2] ^= 1
    assert post(api, bytes(changed)).json()["verdict"] == "invalid"
    assert post(api, clip.read_bytes()).json()["verdict"] == "none"
    assert list(api.server.settings.data_dir.glob(".verify-*")) == []


def test_result_of_a_job_is_verified(api: Api, signed: bytes) -> None:
    job_id = api.submit()
    path = f"/api/native/v1/jobs/{job_id}/credentials"
    assert api.client.get(path, headers=api.headers).status_code == 404
    api.succeed(job_id, signed)
    assert api.client.get(path, headers=api.headers).json()["verdict"] == "trusted"
    other = api.client.get(path, headers={"Authorization": f"Bearer {api.other_key}"})
    assert other.status_code == 404


def test_verification_needs_a_key_and_has_a_size_limit(make_api: Make, signed: bytes) -> None:
    api = make_api(max_upload_bytes=len(signed) - 1)
    assert post(api, signed).status_code == 413
    assert post(api, signed, Authorization="Bearer nobody").status_code == 401
    assert list(api.server.settings.data_dir.glob(".verify-*")) == []


def test_one_tenant_does_not_hold_up_the_verification_of_another(clip: Path) -> None:
    """Two commands run at once, one of each tenant."""
    child = CliChild({}, VERIFICATION_LIMITS)
    ended: list[str] = []

    async def verify(tenant: str) -> None:
        await verify_file(child, clip, tenant)
        ended.append(tenant)

    async def run() -> None:
        await asyncio.gather(verify("mallory"), verify("mallory"), verify("mallory"), verify("bob"))

    asyncio.run(run())
    assert ended.index("bob") <= 1
