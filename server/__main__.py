"""`lipsync serve` and `python -m server`: everything on one machine, with no other service."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import time
from dataclasses import replace
from types import FrameType

import uvicorn

from server import logs
from server.api import auth
from server.api.auth import Scope
from server.api.http_limits import ConnectionLimits, ProtocolFactory, raise_file_limit
from server.app import Server, create_app
from server.settings import Settings, SettingsError, documented, load_settings
from server.storage.blobs import StorageAwayError
from server.store import AlreadyOpenError, DatabaseAwayError

NO_DEVICE = ("none",)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="lipsync serve",
        description="Serve lip-sync over HTTP. Settings come from LIPSYNC_<NAME> in the environment, or from "
        "the TOML file that LIPSYNC_CONFIG names:",
        epilog=documented(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one")
    parser.add_argument("--data-dir", help="database, uploads, results")
    parser.add_argument("--check", action="store_true", help="check settings and database, then stop")
    given = vars(parser.parse_args())
    check = given.pop("check")
    try:
        settings = load_settings(**{name: value for name, value in given.items() if value is not None})
        logs.configure(settings.log_format)
        server = Server(settings, () if settings.devices == NO_DEVICE else settings.devices or _devices())
        server.blobs.require()
    except StorageAwayError as error:
        print(f"error: the storage cannot be used: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except DatabaseAwayError as error:
        print(f"error: the database cannot be opened: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except (SettingsError, AlreadyOpenError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  (a command line's answer)
        return 2
    if check:
        server.jobs.close()
        server.store.close()
        print("settings and database are fine")  # noqa: T201
        return 0
    # uvicorn drains on a signal and then raises it again for whoever started it: that is a clean end here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    listening = socket.create_server((settings.host, settings.port))
    _welcome(server, settings, listening.getsockname()[1])
    patience = ConnectionLimits()
    patience = replace(patience, connections=min(patience.connections, raise_file_limit()))
    config = uvicorn.Config(
        create_app(server),
        http=ProtocolFactory(patience),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.drain_s) + 5,
    )
    _Uvicorn(config, server).run(sockets=[listening])
    return 0


class _Uvicorn(uvicorn.Server):
    """Tells the server at once that it is to stop: streams to clients would hold up the end."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._told = server.jobs

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._told.is_leaving = True
        super().handle_exit(sig, frame)


def _devices() -> tuple[str, ...]:
    """Every CUDA device, else the CPU; asked of the driver's files, so that torch need not load here."""
    from pathlib import Path

    count = (
        len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        if Path("/proc/driver/nvidia/gpus").exists()
        else 0
    )
    return tuple(f"cuda:{number}" for number in range(count)) or ("cpu",)


def _welcome(server: Server, settings: Settings, port: int) -> None:
    """Say where the server is; on the first start make a key, which is shown once."""
    url = str(settings.public_url or f"http://{settings.host}:{port}").rstrip("/")
    lines = [f"lipsync server: {url}   model: {settings.model}   data: {settings.data_dir}"]
    if not server.store.all_keys():
        text, _ = auth.create_key(server.store, time.time(), name="first", scopes=frozenset(Scope))
        lines += [
            f"your API key, shown this once: {text}",
            "try it:",
            f"  curl {url}/api/v3/balance -H 'Authorization: Bearer {text}'",
        ]
    print("\n".join(lines), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
