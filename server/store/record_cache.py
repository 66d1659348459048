"""Jobs that were read a moment ago: hundreds of clients ask for theirs every second, and little changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """What was read from a database that nobody else writes, until it is changed.

    Threads may share it. A reading that a change overtakes is not kept.

    Args:
        size: how many are kept; the ones that were not asked for longest go first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._changes = 0
        self._lock = threading.Lock()

    def get(self, name: str, read: Callable[[str], T | None]) -> T | None:
        """What is kept, else what is read; that there is nothing is not remembered."""
        with self._lock:
            changes = self._changes
            if (kept := self._kept.get(name)) is not None:
                self._kept.move_to_end(name)
                return kept
        found = read(name)
        with self._lock:
            if found is not None and changes == self._changes:
                self._kept[name] = found
                while len(self._kept) > self._size:
                    self._kept.popitem(last=False)
        return found

    def changed(self, names: Iterable[str]) -> None:
        """To be called when the change is committed."""
        with self._lock:
            self._changes += 1
            for name in names:
                self._kept.pop(name, None)
