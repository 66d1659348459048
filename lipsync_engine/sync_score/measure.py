"""Sync score: from faces and audio to the confidence and offset of lips and voice.

Each clip of 0.2 s of face is compared with the audio at the same time and up to 15 frames to either side.
Distances are averaged over time. If lips and voice belong together, one offset stands out. This is the
published measure (distance "LSE-D", confidence "LSE-C"), except that audio beyond the edges of a window is
the real audio instead of zeros. This module does not know files.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from lipsync_engine.sync_score.cepstrum import FRAME_LENGTH, HOP, compute_mfcc
from lipsync_engine.sync_score.network import CLIP_FRAMES, CLIP_STEPS, SyncNet
from lipsync_engine.utils import FloatArray

FPS = 25
"""Frame rate of SyncNet's input."""

MAX_OFFSET = 15
"""Largest measured offset of the lips, frames."""

CURVE_STEP, CURVE_REACH = 5, 12
"""The curve has a point every 0.2 s, which averages half a second to either side."""

COLUMNS_PER_FRAME = 4
BATCH = 32


@dataclass(frozen=True, slots=True)
class SyncScore:
    """How well lips and voice belong together.

    Attributes:
        confidence: how far the best offset stands out; near 0 if the lips do not follow the voice.
        offset_frames: delay of the lips in frames of 40 ms; negative: the lips are early.
        distance: between face and audio at this offset; smaller is better.
        frames: compared frames of 40 ms.
        network: name of the weights; values of different weights are not comparable.
        curve: (seconds of the video, confidence of the best offset there), for all measured times.
    """

    confidence: float
    offset_frames: int
    distance: float
    frames: int
    network: str
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreWindow:
    """Consecutive crops of one face at 25 per second, and the audio around them.

    Attributes:
        faces: uint8 (n, side, side, 3) RGB.
        samples: int16, 16 kHz; zeros where a file has no audio.
        lead: samples before the time of the first face, a whole number of frames of 640 samples.
        start_s: time of the first face in the video.
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
        self.net, self.name, self._device = net.to(device), name, device
        self.side = net.config.side

    def score(self, windows: Iterable[ScoreWindow]) -> SyncScore | None:
        """Compute the score over all windows; None if they contain no whole clip of five frames."""
        measured = [(w.start_s, self.distances(w)) for w in windows if len(w.faces) >= CLIP_FRAMES]
        if not measured:
            return None
        score = compute_score(np.concatenate([distances for _, distances in measured]), self.name)
        curves = (compute_curve(distances, score.offset_frames, start_s) for start_s, distances in measured)
        return replace(score, curve=tuple(itertools.chain.from_iterable(curves)))

    @torch.inference_mode()
    def distances(self, window: ScoreWindow) -> FloatArray:
        """Compute (clips, 31) distances of each clip's face to the audio.

        The columns are delays of the lips by -15 … 15 frames; NaN: there is no audio.
        """
        clips = len(window.faces) - CLIP_FRAMES + 1
        face_vectors = np.concatenate(list(self._embed_faces(window.faces, clips)))
        lead = window.lead // (HOP * COLUMNS_PER_FRAME)
        audio_clips = _count_audio_clips(window.samples) - lead
        first, stop = max(-MAX_OFFSET, -lead), min(clips + MAX_OFFSET, audio_clips)
        audio_vectors = np.concatenate(list(self._embed_audio(window.samples, first + lead, stop + lead)))
        table = np.full((clips, 2 * MAX_OFFSET + 1), np.nan, dtype=np.float32)
        for column, delay in enumerate(range(-MAX_OFFSET, MAX_OFFSET + 1)):
            low, high = max(0, first + delay), min(clips, stop + delay)
            if high > low:
                difference = (
                    face_vectors[low:high] - audio_vectors[low - delay - first : high - delay - first]
                )
                # The published figures use torch's pairwise distance, which adds 1e-6.
                table[low:high, column] = np.linalg.norm(difference + np.float32(1e-6), axis=1)
        return table

    def _embed_faces(self, faces: npt.NDArray[np.uint8], clips: int) -> Iterator[FloatArray]:
        for start in range(0, clips, BATCH):
            stop = min(clips, start + BATCH)
            batch = torch.from_numpy(faces[start : stop + CLIP_FRAMES - 1, :, :, ::-1].copy()).to(
                self._device
            )
            yield self.net.embed_faces(batch.permute(3, 0, 1, 2)[None].float())[0].cpu().numpy()

    def _embed_audio(self, samples: npt.NDArray[np.int16], first: int, stop: int) -> Iterator[FloatArray]:
        columns = (stop - 1 - first) * COLUMNS_PER_FRAME + CLIP_STEPS
        mfcc = torch.from_numpy(compute_mfcc(samples, first * COLUMNS_PER_FRAME, columns)).to(self._device)
        clips = mfcc.unfold(1, CLIP_STEPS, COLUMNS_PER_FRAME).permute(1, 0, 2)[:, None]
        for batch in clips.split(BATCH):
            yield self.net.embed_audio(batch).cpu().numpy()


def compute_score(distances: FloatArray, network: str) -> SyncScore:
    """Compute the score of (clips, 31) distances from `SyncScorer.distances`."""
    mean = _mean_over_time(distances)
    best = int(np.nanargmin(mean))
    return SyncScore(
        confidence=float(np.nanmedian(mean) - mean[best]),
        offset_frames=best - MAX_OFFSET,
        distance=float(mean[best]),
        frames=len(distances),
        network=network,
    )


def compute_curve(distances: FloatArray, offset_frames: int, start_s: float) -> list[tuple[float, float]]:
    """Compute the confidence of one offset over the time of one window, as `SyncScore.curve`."""
    points = []
    for clip in range(0, len(distances), CURVE_STEP):
        nearby = distances[max(0, clip - CURVE_REACH) : clip + CURVE_REACH + 1]
        mean = _mean_over_time(nearby)
        best = mean[offset_frames + MAX_OFFSET]
        if np.isfinite(best):
            value = np.nanmedian(mean) - best
            points.append((round(start_s + (clip + CLIP_FRAMES / 2) / FPS, 3), round(float(value), 3)))
    return points


def _mean_over_time(distances: FloatArray) -> FloatArray:
    """Average (clips, 31) → (31,); NaN where no clip has audio at that offset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(distances, axis=0), dtype=np.float32)


def _count_audio_clips(samples: npt.NDArray[np.int16]) -> int:
    """Count the clips of 0.2 s, one per frame, in the samples."""
    columns = (len(samples) - FRAME_LENGTH) // HOP + 1
    return max(0, (columns - CLIP_STEPS) // COLUMNS_PER_FRAME + 1)
