"""Connection of a program to a Ray cluster, which fails within seconds if there is none.

The module does not know what the cluster is used for. Ray comes with an extra, so it is imported only when a
connection is made.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONNECT_TIMEOUT_S = 5.0


def connect_to_cluster(address: str = "auto", namespace: str | None = None) -> None:
    """Connect this program to a cluster.

    Args:
        address: HOST:PORT of its head; auto: RAY_ADDRESS, else the cluster of this machine.

    Raises:
        ConnectionError: there is none, or it refuses this machine's programs.
    """
    import ray

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _local_cluster_address()
    require_reachable(address)
    try:
        with _preserve_sigterm_handler():
            ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(f"the cluster at {address} refused the connection: {error}") from error


def require_reachable(address: str) -> None:
    """Open and close a connection to HOST:PORT, because Ray itself would retry for minutes.

    Raises:
        ConnectionError: no program listens there.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no cluster answers at {address}: {error}") from error


def _local_cluster_address() -> str:
    """Read the address that `ray start` has stored on this machine; the cluster may be gone."""
    folder = os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp"
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        raise ConnectionError("this machine belongs to no cluster") from None


@contextmanager
def _preserve_sigterm_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM afterwards, because Ray installs its own."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
