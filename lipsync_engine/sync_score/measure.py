"""From pictures of a face and the sound beside them to one number: how well lips and voice belong together.

Every 0.2 s of face is compared with the sound at the same time and up to 15 frames to either side; distances
are averaged over time. Where lips and voice belong together one offset stands out. This is the published
measure (distance "LSE-D", confidence "LSE-C"), but sound beyond a stretch's edges is the true sound instead
of zeros. It knows no files.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from lipsync_engine.sync_score.cepstrum import LENGTH, STEP, cepstrum
from lipsync_engine.sync_score.network import CLIP_FRAMES, CLIP_STEPS, SyncNet

FPS = 25
"""Pictures per second that SyncNet sees."""

MAX_OFFSET = 15
"""Frames by which lips may be off."""

CURVE_STEP, CURVE_REACH = 5, 12
"""A point of the curve every 0.2 s, over half a second to either side."""

COLUMNS_PER_FRAME = 4
BATCH = 32

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SyncScore:
    """How well lips and voice belong together.

    Attributes:
        confidence: how far the best offset stands out; near 0 where the lips say something else.
        offset_frames: by how many frames of 40 ms the lips come late; negative: early.
        distance: of face and voice at that offset; smaller is better.
        frames: of 40 ms that were compared.
        network: name of the weights; values of different ones cannot be compared.
        curve: (seconds of the film, confidence at the best offset there), wherever it was measured.
    """

    confidence: float
    offset_frames: int
    distance: float
    frames: int
    network: str
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive pictures of one face at 25 per second, and the sound around them.

    Attributes:
        faces: uint8 (n, side, side, 3) RGB.
        samples: int16, 16 kHz; silence stands where a file has no sound.
        lead: of the samples lie before the first picture's time: a whole number of frames of 640.
        start_s: the first picture's time in the film.
    """

    faces: npt.NDArray[np.uint8]
    samples: npt.NDArray[np.int16]
    lead: int
    start_s: float = 0.0


class SyncScorer:
    """A loaded SyncNet.

    Args:
        net: in evaluation mode.
        name: of its weights.
        device: where it runs.
    """

    def __init__(self, net: SyncNet, name: str, device: torch.device) -> None:
        self._net, self.name, self._device = net.to(device), name, device
        self.side = net.config.side

    def measure(self, stretches: Iterable[Stretch]) -> SyncScore | None:
        """The score over all stretches; None where they hold no whole clip of five pictures."""
        found = [(s.start_s, self.distances(s)) for s in stretches if len(s.faces) >= CLIP_FRAMES]
        if not found:
            return None
        score = judge(np.concatenate([distances for _, distances in found]), self.name)
        curves = (curve(distances, score.offset_frames, start_s) for start_s, distances in found)
        return replace(score, curve=tuple(itertools.chain.from_iterable(curves)))

    @torch.inference_mode()
    def distances(self, stretch: Stretch) -> FloatArray:
        """(clips, 31): of each clip's face to the sound, lips late by -15 … 15 frames; NaN: no sound."""
        clips = len(stretch.faces) - CLIP_FRAMES + 1
        seen = np.concatenate(list(self._see(stretch.faces, clips)))
        lead = stretch.lead // (STEP * COLUMNS_PER_FRAME)
        first, stop = max(-MAX_OFFSET, -lead), min(clips + MAX_OFFSET, _clips_heard(stretch.samples) - lead)
        heard = np.concatenate(list(self._hear(stretch.samples, first + lead, stop + lead)))
        table = np.full((clips, 2 * MAX_OFFSET + 1), np.nan, dtype=np.float32)
        for column, late in enumerate(range(-MAX_OFFSET, MAX_OFFSET + 1)):
            low, high = max(0, first + late), min(clips, stop + late)
            if high > low:
                # torch's pairwise distance, which the published figures were made with, adds 1e-6
                apart = seen[low:high] - heard[low - late - first : high - late - first] + np.float32(1e-6)
                table[low:high, column] = np.linalg.norm(apart, axis=1)
        return table

    def _see(self, faces: npt.NDArray[np.uint8], clips: int) -> Iterator[FloatArray]:
        for start in range(0, clips, BATCH):
            stop = min(clips, start + BATCH)
            part = torch.from_numpy(faces[start : stop + CLIP_FRAMES - 1, :, :, ::-1].copy()).to(self._device)
            yield self._net.see(part.permute(3, 0, 1, 2)[None].float())[0].cpu().numpy()

    def _hear(self, samples: npt.NDArray[np.int16], first: int, stop: int) -> Iterator[FloatArray]:
        columns = (stop - 1 - first) * COLUMNS_PER_FRAME + CLIP_STEPS
        whole = torch.from_numpy(cepstrum(samples, first * COLUMNS_PER_FRAME, columns)).to(self._device)
        clips = whole.unfold(1, CLIP_STEPS, COLUMNS_PER_FRAME).permute(1, 0, 2)[:, None]
        for part in clips.split(BATCH):
            yield self._net.hear(part).cpu().numpy()


def judge(distances: FloatArray, network: str) -> SyncScore:
    """The score of (clips, 31) distances, as `SyncScorer.distances` gives them."""
    mean = _over_time(distances)
    best = int(np.nanargmin(mean))
    return SyncScore(
        confidence=float(np.nanmedian(mean) - mean[best]),
        offset_frames=best - MAX_OFFSET,
        distance=float(mean[best]),
        frames=len(distances),
        network=network,
    )


def curve(distances: FloatArray, offset_frames: int, start_s: float) -> list[tuple[float, float]]:
    """How far an offset stands out from moment to moment of one stretch, as `SyncScore.curve`."""
    points = []
    for clip in range(0, len(distances), CURVE_STEP):
        near = distances[max(0, clip - CURVE_REACH) : clip + CURVE_REACH + 1]
        mean = _over_time(near)
        at_best = mean[offset_frames + MAX_OFFSET]
        if np.isfinite(at_best):
            value = np.nanmedian(mean) - at_best
            points.append((round(start_s + (clip + CLIP_FRAMES / 2) / FPS, 3), round(float(value), 3)))
    return points


def _over_time(distances: FloatArray) -> FloatArray:
    """(clips, 31) → (31,); NaN where no clip could be compared at that offset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(distances, axis=0), dtype=np.float32)


def _clips_heard(samples: npt.NDArray[np.int16]) -> int:
    """How many clips of 0.2 s, one every frame, lie in the samples."""
    columns = (len(samples) - LENGTH) // STEP + 1
    return max(0, (columns - CLIP_STEPS) // COLUMNS_PER_FRAME + 1)
