"""Cross-job batching: denoising steps of several jobs run as one forward pass of the network.

Each job samples in its own thread with its own noise and schedule. Only the forward passes are shared. A
batch starts when every active sampling session waits for its next step, so no timer is involved, and a new
window joins at the next step (continuous batching). Steps may differ in noise level, step count and guidance
scale; steps of one batch have equal shapes. This module knows neither schedules nor jobs.

No operation of the network mixes windows, so a window's result does not depend on the others in its batch,
except that libraries may round differently in larger batches (docs/speed.md has the measured differences).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lipsync_engine.models.latentsync.sampling import Denoiser
from lipsync_engine.models.latentsync.unet import AudioContext, AudioKV, Prediction

log = logging.getLogger("lipsync.model")


class _PendingStep:
    """One step of a window that waits for its forward pass, and then its result or error."""

    def __init__(
        self, sample: Tensor, timestep: Tensor, audio_context: AudioContext, cached_features: Tensor | None
    ) -> None:
        self.sample, self.timestep = sample, timestep
        self.audio_context, self.cached_features = audio_context, cached_features
        self.result: Prediction | Exception | None = None

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Equal for steps that can share a forward pass."""
        audio_kv = self.audio_context[0][0]
        features_shape = None if self.cached_features is None else self.cached_features.shape
        return self.sample.shape, audio_kv.key.shape, audio_kv.num_unconditional, features_shape


class BatchedDenoiser:
    """Batches the denoising steps of several threads into single forward passes of `denoiser`.

    Args:
        denoiser: runs in the thread whose step completes the batch.
        max_windows: windows per forward pass; halved when a device fails with so many.
    """

    def __init__(self, denoiser: Denoiser, max_windows: int) -> None:
        self.denoiser, self.max_windows = denoiser, max_windows
        self._changed = threading.Condition()
        self._sessions = 0
        self._pending: list[_PendingStep] = []
        self.batch_sizes: Counter[int] = Counter()
        """Number of forward passes by number of windows."""

    @contextlib.contextmanager
    def sampling_session(self) -> Iterator[None]:
        """Register the calling thread as one that samples a window; `predict` needs it."""
        with self._changed:
            self._sessions += 1
        try:
            yield
        finally:
            with self._changed:
                self._sessions -= 1
                self._changed.notify_all()  # the others no longer wait for this session

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold off all forward passes, for example while the network itself is changed."""
        with self._changed:
            yield

    def precompute_audio_kv(self, audio: Tensor, num_unconditional: int = 0) -> AudioContext:
        return self.denoiser.precompute_audio_kv(audio, num_unconditional)

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        audio_context: AudioContext,
        cached_features: Tensor | None = None,
    ) -> Prediction:
        """Predict as `LatentSyncUNet.predict` does, for one window inside a `sampling_session`."""
        step = _PendingStep(sample, timestep, audio_context, cached_features)
        with self._changed:
            self._pending.append(step)
            while step.result is None:
                if len(self._pending) >= self._sessions:
                    self._run_pending()
                    self._changed.notify_all()
                else:
                    self._changed.wait()
        if isinstance(step.result, Exception):
            raise step.result
        return step.result

    def _run_pending(self) -> None:
        """Run all pending steps. The caller holds the lock, so later steps wait for the next call."""
        groups: dict[tuple[object, ...], list[_PendingStep]] = {}
        for step in self._pending:
            groups.setdefault(step.batch_key, []).append(step)
        self._pending = []
        for steps in groups.values():
            while steps:
                batch, steps = steps[: self.max_windows], steps[self.max_windows :]
                self._resolve(batch)

    def _resolve(self, batch: Sequence[_PendingStep]) -> None:
        """Run a batch; if it fails, run each step alone, so that only the job at fault gets the error.

        Where every step succeeds alone, the size of the batch was at fault, and later batches are smaller.
        """
        try:
            results = self._run_batch(batch)
        except Exception as error:  # noqa: BLE001  (a thread boundary: raised again in the window's thread)
            if len(batch) == 1:
                batch[0].result = error
                return
            cause = _first_line(error)
        else:
            for step, result in zip(batch, results, strict=True):
                step.result = result
            return
        for step in batch:  # outside the except block: the exception keeps the failed pass's tensors alive
            self._resolve([step])
        if not any(isinstance(step.result, Exception) for step in batch):
            self.max_windows = max(1, len(batch) // 2)
            log.warning(
                "forward pass of %d windows failed, each alone succeeded; continuing with at most %d: %s",
                len(batch),
                self.max_windows,
                cause,
            )

    def _run_batch(self, batch: Sequence[_PendingStep]) -> list[Prediction]:
        self.batch_sizes[len(batch)] += 1
        first = batch[0]
        if len(batch) == 1:
            return [
                self.denoiser.predict(
                    first.sample, first.timestep, first.audio_context, first.cached_features
                )
            ]
        caches = [step.cached_features for step in batch if step.cached_features is not None]
        noise_pred, features = self.denoiser.predict(
            torch.cat([step.sample for step in batch]),
            torch.stack([step.timestep for step in batch]),
            _concat_contexts([step.audio_context for step in batch]),
            _interleave_items(caches) if caches else None,
        )
        return list(
            zip(_split_windows(noise_pred, len(batch)), _split_windows(features, len(batch)), strict=True)
        )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _concat_contexts(contexts: Sequence[AudioContext]) -> AudioContext:
    """Concatenate the audio contexts of several windows; all unconditional rows come first."""
    return tuple(
        tuple(
            AudioKV(
                torch.cat([kv.key for kv in layer_kvs]),
                torch.cat([kv.value for kv in layer_kvs]),
                sum(kv.num_unconditional for kv in layer_kvs),
            )
            for layer_kvs in zip(*block_kvs, strict=True)
        )
        for block_kvs in zip(*contexts, strict=True)
    )


def _interleave_items(windows: Sequence[Tensor]) -> Tensor:
    """Concatenate windows of (unconditional, conditional) items: all unconditional items come first."""
    return torch.cat(
        [item for items in zip(*(window.split(1) for window in windows), strict=True) for item in items]
    )


def _split_windows(batch: Tensor, count: int) -> list[Tensor]:
    """Invert `_interleave_items`: return the items of each window."""
    return [batch[number::count] for number in range(count)]
