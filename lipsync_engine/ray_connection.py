"""Joining a Ray cluster as a program that asks it for something: found at once, or told apart at once.

It does not know what is asked. Ray comes with an extra, so it is imported only when a cluster is wanted.
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

CONNECT_WITHIN_S = 5.0


def connect(address: str = "auto", namespace: str | None = None) -> None:
    """Join the cluster.

    Args:
        address: HOST:PORT of its head; auto: what RAY_ADDRESS says, else the cluster of this machine.

    Raises:
        ConnectionError: there is none, or it does not take this machine's programs.
    """
    import ray

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _of_this_machine()
    require(address)
    try:
        with _signals_kept():
            ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(f"the cluster at {address} cannot be used: {error}") from error


def require(address: str) -> None:
    """Returns where somebody answers at HOST:PORT; Ray itself would try for minutes.

    Raises:
        ConnectionError: nobody does.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_WITHIN_S).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no cluster answers at {address}: {error}") from error


def _of_this_machine() -> str:
    """Where `ray start` has noted it, perhaps of a cluster that is gone."""
    folder = os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp"
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        raise ConnectionError("this machine belongs to no cluster") from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, where the caller may have other plans."""
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, kept)
