"""Waits for what another thread or process brings about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object], message: str, timeout_s: float = 60, interval_s: float = 0.01
) -> None:
    """Poll until a condition is true.

    Raises:
        AssertionError: with `message`, when `timeout_s` has passed.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(message)
        threading.Event().wait(interval_s)
