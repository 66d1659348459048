"""`lipsync cluster` as people type it: what goes wrong is said in a line, and a machine comes and goes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.polling import wait_until
from tests.support.ray_nodes import open_cluster

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipsync-engine[ray]'")

COMMAND = [sys.executable, "-m", "server.cli.cluster"]


def said(*arguments: str, **environment: str) -> str:
    """The one line of a refusal."""
    result = subprocess.run(
        [*COMMAND, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


def test_join_reports_an_unreachable_cluster() -> None:
    assert said("join", "127.0.0.1:1").startswith("error: no cluster answers at 127.0.0.1:1: ")


def test_stopped_local_cluster_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.cluster import ray as ray_pool

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ConnectionError, match="belongs to no cluster"):
        ray_pool.connect("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # as `ray start` noted it
    with pytest.raises(ConnectionError, match="no cluster answers"):
        ray_pool.connect("auto")


def test_up_reports_a_port_in_use(postgres_url: str, tmp_path: Path) -> None:
    inputs = {"LIPSYNC_DATABASE_URL": postgres_url, "LIPSYNC_DATA_DIR": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert said("up", "--port", port, **inputs).startswith(f"error: port {port} is in use")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_node_joins_and_leaves(how: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = open_cluster()
    ray.init(address=cluster.address, log_to_driver=False)
    process = subprocess.Popen(
        [*COMMAND, "join", cluster.address, "--cpus", "3"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("this machine has joined the cluster at ")
        wait_until(lambda: ray.cluster_resources().get("CPU") == 3, "nobody has joined", 60, 0.2)
        if how is signal.SIGINT:  # as from a terminal
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        assert process.wait(60) == 0
        wait_until(lambda: "CPU" not in ray.cluster_resources(), "it is still there", 60, 0.2)
    finally:
        process.kill()
        ray.shutdown()
        cluster.shutdown()
