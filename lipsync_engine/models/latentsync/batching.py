"""One network for several jobs at once: what their windows ask of it at the same time is one run.

Each job samples in a thread of its own, with its own noise and schedule; only runs of the network meet here.
A round begins when every window that is being sampled waits for its next step, so nobody waits for a clock,
and a new window joins at the next step. Steps may differ in noise level, number and guidance: what shares a
run is equal in shape. It knows neither sampling nor jobs.

A window's numbers do not depend on its company, for no operation of the network mixes windows; but libraries
may round differently in batches of other sizes (docs/speed.md has what was measured).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from lipsync_engine.models.latentsync.sampling import Network
from lipsync_engine.models.latentsync.unet import Heard, Sound

log = logging.getLogger("lipsync.model")

Predicted = tuple[Tensor, Tensor]
AGAIN: Final = "the device's memory does not hold %d windows at once: %d from now on"


class _Asked:
    """A window's next step: what is given, and what comes back, a result or an error."""

    def __init__(self, sample: Tensor, timestep: Tensor, heard: Heard, deep: Tensor | None) -> None:
        self.sample, self.timestep, self.heard, self.deep = sample, timestep, heard, deep
        self.result: Predicted | Exception | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for steps that may share a run."""
        first = self.heard[0][0]
        deep = None if self.deep is None else self.deep.shape
        return self.sample.shape, first.key.shape, first.silent, deep


class SharedNetwork:
    """Says what `network` says, to several threads at once.

    Args:
        network: runs in whichever thread arrives last.
        most: windows in one run; halved when memory does not hold so many.
    """

    def __init__(self, network: Network, most: int) -> None:
        self.network, self.most = network, most
        self._changed = threading.Condition()
        self._sampling = 0
        self._waiting: list[_Asked] = []
        self.runs: Counter[int] = Counter()
        """How many runs were of how many windows."""

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        """Around the sampling of one window."""
        with self._changed:
            self._sampling += 1
        try:
            yield
        finally:
            with self._changed:
                self._sampling -= 1
                self._changed.notify_all()  # nobody waits for this one any more

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """While nothing runs: for changes of the network itself."""
        with self._changed:
            yield

    def listen(self, audio: Tensor, silent: int = 0) -> Heard:
        return self.network.listen(audio, silent)

    def predict(
        self, sample: Tensor, timestep: Tensor, heard: Heard, deep: Tensor | None = None
    ) -> Predicted:
        """See `LatentSyncUNet.predict`; inside of `window`, with one item."""
        asked = _Asked(sample, timestep, heard, deep)
        with self._changed:
            self._waiting.append(asked)
            while asked.result is None:
                if len(self._waiting) >= self._sampling:
                    self._round()
                    self._changed.notify_all()
                else:
                    self._changed.wait()
        if isinstance(asked.result, Exception):
            raise asked.result
        return asked.result

    def _round(self) -> None:
        """One step of every window that waits. The lock is held: a newcomer's turn is the next round."""
        kinds: dict[tuple[object, ...], list[_Asked]] = {}
        for asked in self._waiting:
            kinds.setdefault(asked.kind, []).append(asked)
        self._waiting = []
        for same in kinds.values():
            while same:
                taken, same = same[: self.most], same[self.most :]
                self._answer(taken)

    def _answer(self, taken: Sequence[_Asked]) -> None:
        """Run together; where that fails, each alone, so that an error reaches only whose it is."""
        try:
            results = self._run(taken)
        except Exception as error:  # noqa: BLE001  (a thread boundary: raised again in the window's own)
            if len(taken) == 1:
                taken[0].result = error
                return
            if isinstance(error, torch.OutOfMemoryError):
                self.most = max(1, len(taken) // 2)
                log.warning(AGAIN, len(taken), self.most)
        else:
            for asked, result in zip(taken, results, strict=True):
                asked.result = result
            return
        for asked in taken:  # outside of the except block: the exception keeps the failed run's tensors alive
            self._answer([asked])

    def _run(self, taken: Sequence[_Asked]) -> list[Predicted]:
        self.runs[len(taken)] += 1
        first = taken[0]
        if len(taken) == 1:
            return [self.network.predict(first.sample, first.timestep, first.heard, first.deep)]
        predicted, deep = self.network.predict(
            torch.cat([asked.sample for asked in taken]),
            torch.stack([asked.timestep for asked in taken]),
            _together([asked.heard for asked in taken]),
            None
            if first.deep is None
            else _by_sound([asked.deep for asked in taken if asked.deep is not None]),
        )
        return list(zip(_apart(predicted, len(taken)), _apart(deep, len(taken)), strict=True))


def _together(heard: Sequence[Heard]) -> Heard:
    """What several windows hear; those that hear follow all the silent ones."""
    return tuple(
        tuple(
            Sound(
                torch.cat([sound.key for sound in same]),
                torch.cat([sound.value for sound in same]),
                sum(sound.silent for sound in same),
            )
            for same in zip(*blocks, strict=True)
        )
        for blocks in zip(*heard, strict=True)
    )


def _by_sound(parts: Sequence[Tensor]) -> Tensor:
    """Each window's items, silent before heard, in one batch: all silent ones, then all that hear."""
    return torch.cat(
        [item for items in zip(*(part.split(1) for part in parts), strict=True) for item in items]
    )


def _apart(batch: Tensor, windows: int) -> list[Tensor]:
    """The reverse: of every window its items."""
    return [batch[number::windows] for number in range(windows)]
