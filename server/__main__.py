"""`lipsync serve` and `python -m server`: the whole server on one machine, without other services."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from server.api.auth import Scope, create_key
from server.api.http_limits import ConnectionLimits, ProtocolFactory, raise_file_limit
from server.app import Server, create_app
from server.logs import configure_logging, format_event
from server.settings import Settings, SettingsError, load_settings, settings_table
from server.start import (
    WorkerCheck,
    check_hook,
    format_host,
    inherit_listener,
    list_devices,
    open_listener,
)
from server.storage.blobs import StorageUnavailableError
from server.storage.private_files import create_private_files
from server.store import AlreadyOpenError, DatabaseUnavailableError

log = logging.getLogger("lipsync.server")

NO_DEVICE = ("none",)
PRINTED_KEY_S = 86400.0
"""How long a first key is valid that was printed to something else than a terminal."""

MIN_SHUTDOWN_S = 5
"""After the drain, responses that are being sent have at least so long to end."""


def main(argv: list[str] | None = None) -> int:
    """Run the server; `argv` replaces the arguments of the process. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="lipsync serve",
        description="Serve lip-sync over HTTP. Settings are read from LIPSYNC_<NAME> in the environment, "
        "then from the TOML file in LIPSYNC_CONFIG:",
        epilog=settings_table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on; 0 chooses a free one")
    parser.add_argument("--data-dir", help="folder of database, uploads and results")
    parser.add_argument("--check", action="store_true", help="check all that a start needs, then exit")
    arguments = vars(parser.parse_args(argv))
    check_only = arguments.pop("check")
    try:
        settings = load_settings(**{name: value for name, value in arguments.items() if value is not None})
        configure_logging(settings.log_format)
        create_private_files()
        check_hook(settings.job_hook)
        all_devices = list_devices(Path("/dev"), os.environ.get("CUDA_VISIBLE_DEVICES"))
        devices = () if settings.devices == NO_DEVICE else settings.devices or all_devices
        listener = inherit_listener() or open_listener(settings.host, settings.port)
        worker_check = WorkerCheck(settings, devices, with_devices=check_only)
        server = Server(settings, devices)
        server.blobs.check_access()
        server.isolation_warning = worker_check.require_success()
    except StorageUnavailableError as error:
        print(f"error: cannot use the storage: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except DatabaseUnavailableError as error:
        print(f"error: cannot open the database: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except (SettingsError, AlreadyOpenError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  (a command line's answer)
        return 2
    if check_only:
        server.jobs.close()
        server.store.close()
        listener.close()
        if server.isolation_warning:
            print(f"warning: {server.isolation_warning}", file=sys.stderr)  # noqa: T201
        print("settings, address, database, storage, hook, model and signer are valid")  # noqa: T201
        return 0
    if server.isolation_warning:
        log.warning("%s", server.isolation_warning)
    # uvicorn raises the signal again at its end: exit with status 0 here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    _print_banner(server, settings, listener.getsockname()[1])
    limits = ConnectionLimits()
    limits = replace(limits, max_connections=min(limits.max_connections, raise_file_limit()))
    config = uvicorn.Config(
        create_app(server),
        http=ProtocolFactory(limits),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # `ProxyMiddleware` reads them
    )
    _UvicornServer(config, server).run(sockets=[listener])
    return 0


class _UvicornServer(uvicorn.Server):
    """Drains before it stops to listen: clients go on polling and downloading while running jobs end.

    A second Ctrl-C ends it at once.

    Args:
        linger_s: how long clients have to let go of idle connections before they are closed.
    """

    def __init__(self, config: uvicorn.Config, server: Server, linger_s: float = 2.0) -> None:
        super().__init__(config)
        self._server, self._linger_s = server, linger_s
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.started and self._drain is None:
            loop = asyncio.get_running_loop()
            self._drain = loop.create_task(self._drain_and_exit(sig, frame))
            loop.call_soon_threadsafe(lambda: None)  # the loop may be waiting
        elif self._drain is None:
            super().handle_exit(sig, frame)
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True

    async def _drain_and_exit(self, sig: int, frame: FrameType | None) -> None:
        deadline = time.monotonic() + self._server.settings.drain_s
        # A request on a connection that is just being closed would fail: clients shall open new ones.
        close = (b"connection", b"close")  # uvicorn reads its configuration once a second, so set both
        self.config.encoded_headers = [*self.config.encoded_headers, close]
        self.server_state.default_headers = [*self.server_state.default_headers, close]
        try:
            await self._server.drain()
            self._server.jobs.end_waits()
            await self._wait_for_connections(self._linger_s)
            for listener in self.servers:
                listener.close()
            await asyncio.sleep(0.1)  # a connection that was just accepted has sent nothing yet
            await self._wait_for_connections(self._linger_s)
        finally:
            remaining_s = max(MIN_SHUTDOWN_S, deadline - time.monotonic())
            self.config.timeout_graceful_shutdown = int(remaining_s)
            super().handle_exit(sig, frame)

    async def _wait_for_connections(self, timeout_s: float) -> None:
        """Wait until no connection is open, or the time is up."""
        end = time.monotonic() + timeout_s
        while self.server_state.connections and time.monotonic() < end:
            await asyncio.sleep(0.05)


def _print_banner(server: Server, settings: Settings, port: int) -> None:
    """Print the address; on the first start create an API key and print it once."""
    url = str(settings.public_url or f"http://{format_host(settings.host)}:{port}").rstrip("/")
    facts = {"url": url, "model": settings.model, "data": str(settings.data_dir)}
    now, text = time.time(), None
    if not server.store.list_keys():
        create = partial(
            create_key, server.store, now, name="first", scopes=frozenset(Scope), by="first start"
        )
        if settings.first_key is not None:
            create(text=settings.first_key)
        else:  # logs are kept, and read by others
            text, _ = create(expires_at=None if sys.stdout.isatty() else now + PRINTED_KEY_S)
    if settings.log_format == "json":
        facts |= {} if text is None else {"api_key": text}
        print(format_event(now, "lipsync.server", "server starts", **facts), flush=True)  # noqa: T201
        return
    lines = [f"lipsync server: {url}   model: {settings.model}   data: {settings.data_dir}"]
    if text is not None:
        lines += [
            f"your API key, shown only once: {text}",
            *([] if sys.stdout.isatty() else ["it expires in 24 hours: create others with it"]),
            "try it:",
            f"  curl {url}/api/v3/balance -H 'Authorization: Bearer {text}'",
        ]
    print("\n".join(lines), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
