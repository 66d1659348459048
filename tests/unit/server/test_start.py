"""Checks before a server starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lipsync_engine.errors import ParameterError, ResourceError
from lipsync_engine.media.sandbox import SandboxStatus
from server.settings import Settings, SettingsError
from server.start import (
    WorkerCheck,
    check_hook,
    format_host,
    inherit_listener,
    list_devices,
    open_listener,
)
from server.store import DatabaseUnavailableError, Store
from server.workers.check import check_devices, check_isolation


def test_server_listens_on_ipv6_and_on_both(subtests: pytest.Subtests) -> None:
    for host, targets in [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("127.0.0.1", ["127.0.0.1"])]:
        for target in targets:
            with subtests.test(host=host, target=target), open_listener(host, 0) as listener:
                socket.create_connection((target, listener.getsockname()[1]), timeout=5).close()
    assert format_host("::1") == "[::1]"


def test_address_that_cannot_be_used_is_named_in_one_sentence(subtests: pytest.Subtests) -> None:
    with open_listener("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for host, number, problem in [
            ("127.0.0.1", port, f"port = {port}: another program has this port"),
            ("203.0.113.7", 0, "does not have the address"),
            ("no address", 0, "no address and no name"),
        ]:
            with subtests.test(host=host), pytest.raises(SettingsError, match=problem) as error:
                open_listener(host, number)
            assert "\n" not in str(error.value)


def test_passed_sockets_are_one_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inherit_listener() is None
    for pid, count in [(os.getpid() + 1, "1"), (os.getpid(), "2")]:
        monkeypatch.setenv("LISTEN_PID", str(pid))
        monkeypatch.setenv("LISTEN_FDS", count)
        if count == "1":
            assert inherit_listener() is None  # meant for another process
        else:
            with pytest.raises(SettingsError, match="passed 2 sockets"):
                inherit_listener()
        assert "LISTEN_FDS" not in os.environ


def test_server_starts_without_heavy_libraries() -> None:
    program = "import server.__main__, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "cv2", "scipy", "onnxruntime", "ray", "c2pa", "av", "PIL", "transformers"}
    assert not heavy & set(done.stdout.split())


def test_job_hook_must_be_url_or_program() -> None:
    for hook in (None, "https://hook.example/x", f"{sys.executable} -c 'x y'"):
        check_hook(hook)
    for hook in ("/nosuch/hook --flag", "", "'open"):
        with pytest.raises(SettingsError, match="job_hook"):
            check_hook(hook)


def test_database_url_must_be_sqlite_or_postgresql(subtests: pytest.Subtests) -> None:
    for url in ("nonsense", "mysql://user:secret@host/x", "postgresql+psycopg2://host/x"):
        with (
            subtests.test(url=url),
            pytest.raises(DatabaseUnavailableError, match="sqlite:////PATH") as error,
        ):
            Store(url)
        assert "secret" not in str(error.value)


def test_workers_that_cannot_start_are_reported_with_a_remedy(
    subtests: pytest.Subtests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPSYNC_WEIGHTS_DIR", str(tmp_path / "weights"))
    cases = {
        "'nosuch' does not exist": {"model": "nosuch"},
        "not a lip-sync model": {"model": "nsfw-image-detection"},
        "weights pull latentsync-1.6": {"model": "latentsync-1.6"},
        "weights pull nsfw-image-detection": {"content_check": "refuse"},
        "/nosuch.pem": {"signing_chain": tmp_path / "nosuch.pem", "signing_key": tmp_path / "key.pem"},
    }
    checks = {
        problem: WorkerCheck(Settings(data_dir=tmp_path, **changes), ("cpu",), with_devices=False)  # type: ignore[arg-type]
        for problem, changes in cases.items()
    }
    for problem, check in checks.items():
        with subtests.test(problem=problem), pytest.raises(SettingsError, match=problem) as error:
            check.require_success()
        assert "\n" not in str(error.value)
    WorkerCheck(Settings(data_dir=tmp_path, model="nosuch"), (), with_devices=False).require_success()


def test_devices_are_checked() -> None:
    check_devices(["cpu"])
    with pytest.raises(ParameterError, match="device='gpu' does not exist: use cuda"):
        check_devices(["cpu", "gpu"])


def test_serve_stops_with_the_sentence_of_the_check(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "--port", "0", "--data-dir", str(tmp_path)]
    for arguments, environment, problem in [
        ([], {"LIPSYNC_MODEL": "nosuch"}, "Model 'nosuch' does not exist"),
        (["--check"], {"LIPSYNC_DATABASE_URL": "nonsense"}, "cannot open the database: database_url is not"),
    ]:
        result = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        (line,) = result.stderr.splitlines()
        assert (result.returncode, result.stdout) == (2, "")
        assert line.startswith(f"error: {problem}")


def test_missing_sandbox_is_reported_or_refused() -> None:
    assert check_isolation(SandboxStatus(True, True), is_required=True) == ""
    without_landlock = SandboxStatus(blocks_network=True, blocks_files=False)
    assert "OTHER FILES ARE OPEN" in check_isolation(without_landlock, is_required=False)
    with pytest.raises(ResourceError, match=r"require_sandbox is on, but .* OTHER FILES ARE OPEN"):
        check_isolation(without_landlock, is_required=True)


def test_devices_are_those_that_cuda_may_use(tmp_path: Path, subtests: pytest.Subtests) -> None:
    eight, one, windows, none = (tmp_path / name for name in ("eight", "one", "windows", "none"))
    for folder, names in (
        (eight, [*(f"nvidia{number}" for number in range(8)), "nvidiactl", "nvidia-uvm"]),
        (one, ["nvidia3", "nvidiactl"]),  # a container that was given the host's fourth GPU
        (windows, ["dxg"]),
        (none, ["null"]),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    for folder, visible, count in [
        (eight, None, 8),
        (eight, "2", 1),
        (eight, "2, 5,-1,6", 2),
        (eight, "", 0),
        (eight, "-1", 0),
        (eight, "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 1),
        (one, None, 1),
        (one, "MIG-1a2b, MIG-3c4d", 2),
        (windows, None, 1),
        (none, "0", 0),
    ]:
        with subtests.test(folder=folder.name, visible=visible):
            expected = tuple(f"cuda:{number}" for number in range(count)) or ("cpu",)
            assert list_devices(folder, visible) == expected
