"""Workers on a Ray cluster of several nodes here: they share a film, are replaced, end when told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.app import Server
from server.cluster.autoscaling import WorkerState
from server.settings import Settings
from tests.support.live_server import LiveServer
from tests.support.polling import wait_until
from tests.support.ray_nodes import add_node, open_cluster

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipsync-engine[ray]'")
pytestmark = pytest.mark.slow  # Ray's processes, and three workers that load a model

Ffmpeg = Callable[..., None]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from server.cluster import ray as ray_pool

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    opened = open_cluster()
    # Before there are other nodes, so that this program stands beside the head, as `lipsync cluster up` does.
    ray_pool.connect(opened.address)
    yield opened
    ray.shutdown()
    opened.shutdown()


def test_job_survives_a_lost_node_and_the_pool_replaces_it(
    cluster: Any,
    postgres_url: str,
    tmp_path: Path,
    clip: Path,
    make_voice: Callable[[float], Path],
    ffmpeg: Ffmpeg,
    start_server: Callable[..., LiveServer],
) -> None:
    from server.cluster import ray as ray_pool

    small, long_voice = tmp_path / "clip.mp4", make_voice(40)
    ffmpeg("-i", clip, "-vf", "scale=128:-2", "-crf", 18, small)
    nodes = [add_node(cluster, num_cpus=1) for _ in range(2)]
    api = start_server(devices="none", database_url=postgres_url)
    inputs: dict[str, Any] = {"data_dir": api.data_dir, "database_url": postgres_url, "devices": ("cpu",)}
    ray_pool.start_pool(Settings(cluster_min=2, cluster_max=2, **inputs))

    def conditions() -> list[WorkerState]:
        return sorted(report.state for report in ray_pool.status()[0])

    def names() -> set[str]:
        return {report.name for report in ray_pool.status()[0]}

    wait_until(lambda: conditions() == [WorkerState.IDLE] * 2, "the workers do not start", 240, 1)
    job = api.submit(api.upload(small), api.upload(long_voice), inference_steps=2, guidance_scale=1)
    wait_until(lambda: conditions() == [WorkerState.BUSY] * 2, "they do not share the film", 120, 0.2)
    before = names()
    cluster.remove_node(nodes[1], allow_graceful=False)
    wait_until(lambda: names() != before, "nobody sees that a worker is lost", 120, 0.5)
    add_node(cluster, num_cpus=1)
    assert api.wait_for_job(job, timeout_s=300)["status"] == "completed"
    wait_until(lambda: conditions() == [WorkerState.IDLE] * 2, "the lost worker is not replaced", 240, 1)
    before = names()
    ray.kill(ray_pool.get_pool(), no_restart=False)
    wait_until(lambda: conditions() == [WorkerState.IDLE] * 2, "the new pool lacks the workers", 60, 0.5)
    assert names() == before
    ray_pool.drain()
    with pytest.raises(ValueError, match="cluster up"):
        ray_pool.status()
    assert api.stop() == 0


def test_device_with_crashing_workers_is_quarantined(tmp_path: Path) -> None:
    """Its worker ends before it is ready: there is no such model."""
    settings = Settings(data_dir=tmp_path, model="nonsense", devices=("cpu",))
    server = Server(settings, ("cpu",), quarantines=True)

    async def go() -> int:
        def is_quarantined() -> bool:
            return server.supervisor.workers[0].state is WorkerState.QUARANTINED

        async with server.run():
            await asyncio.to_thread(wait_until, is_quarantined, "the device is still in use", 180, 0.1)
            return server.supervisor.workers[0].starts

    assert asyncio.run(go()) == 3
