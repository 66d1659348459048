"""Source order, windows and segments: which source frame each output frame shows and how work is divided.

Output frame i is shown at i / fps. Three layers build on that:

* **source order**: output frame → decoded source frame, for constant and variable source rates, and for audio
  that is longer or shorter than the video;
* **windows**: groups of frames that the model denoises together. They never span a shot cut or a gap without
  a face, and they overlap so that they can be blended;
* **segments**: runs of output frames that are rendered independently of each other.

Pure: no I/O, no pixels, no audio samples. Times are seconds, rates are fractions.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipsync_engine.errors import ParameterError
from lipsync_engine.params import LoopMode, Tail
from lipsync_engine.utils import Float64Array, FloatArray, IntArray, runs_of

MODEL_FPS = 25
"""Frame rate that LatentSync's motion modules were trained with."""


# --- rates and lengths ---


def count_audio_frames(audio_duration_s: float, fps: Fraction) -> int:
    """Return how many output frames cover the audio; the last one contains its end."""
    return max(1, math.ceil(round(audio_duration_s * fps, 6)))


def count_reference_audio_frames(feature_steps: int) -> int:
    """Return LatentSync's own length at 25 fps for a number of 50 Hz audio steps (parity section 5)."""
    return feature_steps // 2 + 2


def conform_to_rate(pts_s: Float64Array, fps: Fraction, nominal_rate: Fraction) -> IntArray:
    """Return the decoded frame that is on screen in the middle of each output frame.

    Args:
        pts_s: (N,) start time of every decoded frame, ascending.
        fps: rate of the result.
        nominal_rate: of the source; it gives the duration of the last frame.

    Returns:
        (M,) indices into `pts_s`; the identity if the source already has that rate.
    """
    start = float(pts_s[0])
    duration_s = float(pts_s[-1]) - start + float(1 / nominal_rate)
    length = max(1, round(duration_s * float(fps)))
    middles = start + (np.arange(length) + 0.5) / float(fps)
    return np.clip(np.searchsorted(pts_s, middles, side="right") - 1, 0, len(pts_s) - 1).astype(np.int64)


def source_order(
    n_source: int, n_audio: int, loop_mode: LoopMode, tail: Tail, *, repeat_ends: bool = False
) -> IntArray:
    """Return the conformed source frame of every output frame.

    Args:
        n_source: conformed source frames.
        n_audio: output frames that cover the audio.
        loop_mode: rule for audio that is longer than the video.
        tail: rule for audio that is shorter.
        repeat_ends: repeat the end frame at each turn of a ping-pong, as the reference does.

    Returns:
        (n_audio,) indices, or (n_source,) if a longer video is kept.
    """
    if n_source <= 0 or n_audio <= 0:
        raise ParameterError("The video and the audio must each last at least one frame.")
    if n_audio <= n_source:
        return np.arange(n_source if tail is Tail.KEEP else n_audio, dtype=np.int64)
    i = np.arange(n_audio, dtype=np.int64)
    match loop_mode:
        case LoopMode.LOOP:
            return i % n_source
        case LoopMode.FREEZE:
            return np.minimum(i, n_source - 1)
        case LoopMode.REMAP:
            return (2 * i + 1) * n_source // (2 * n_audio)
        case LoopMode.PINGPONG:
            period = 2 * n_source if repeat_ends else max(1, 2 * n_source - 2)
            phase = i % period
            return np.minimum(phase, period - phase - 1 if repeat_ends else period - phase)


# --- windows ---


@dataclass(frozen=True, slots=True)
class Window:
    """Frames that the model denoises together.

    Attributes:
        index: position in the plan; it seeds the window's random draws.
        frames: output frame numbers, ascending.
        weights: blend weight of each frame; over all windows a frame's weights sum to 1.
        output_frames: the frames that are complete after this window and are decoded with it.
    """

    index: int
    frames: tuple[int, ...]
    weights: tuple[float, ...]
    output_frames: tuple[int, ...]


def count_phases(fps: Fraction) -> int:
    """Return how many interleaved sequences a fast video is split into before windowing.

    The motion modules were trained with neighbours 40 ms apart. At 50 or 60 fps every second frame forms one
    sequence and the frames between form another, each spaced 33 to 40 ms. Each frame keeps its own exact
    audio time.
    """
    return max(1, round(fps / MODEL_FPS))


def find_face_runs(
    weight: FloatArray, shots: IntArray, order: IntArray, source_step: int
) -> list[tuple[int, int]]:
    """Return runs [start, stop) of output frames with a usable face and without a cut or jump inside.

    Args:
        weight: (N,) 0 where the frame stays untouched.
        shots: (N,) shot number of each output frame.
        order: (N,) source frame of each output frame; a jump in it (a loop's restart) ends a run.
        source_step: usual number of source frames from one output frame to the next.
    """
    is_cut = np.diff(shots) != 0
    is_jump = np.abs(np.diff(order)) > 2 * source_step + 1
    return runs_of(weight > 0, is_cut | is_jump)


def plan_windows(
    runs: Sequence[tuple[int, int]], n_phases: int, window_frames: int, overlap: int
) -> tuple[Window, ...]:
    """Cut runs of frames into overlapping windows.

    With an overlap the last window of a run is moved back to full length, because a short window behaves
    differently (its norms pool over fewer frames). Without one the windows follow each other and the last is
    short, as in the reference.
    """
    if not 0 <= overlap < window_frames:
        raise ParameterError(
            f"window_overlap={overlap} is too large: it must be smaller than the model's window of "
            f"{window_frames} frames."
        )
    windows: list[Window] = []
    for start, stop in runs:
        for phase in range(n_phases):
            frames = range(start + phase, stop, n_phases)
            if frames:
                windows.extend(_windows_of_sequence(frames, window_frames, overlap))
    # Sort by the first output frame, so that interleaved sequences advance together.
    windows.sort(key=lambda window: window.output_frames[0])
    return tuple(dataclasses.replace(window, index=index) for index, window in enumerate(windows))


def _windows_of_sequence(frames: Sequence[int], window_frames: int, overlap: int) -> list[Window]:
    n = len(frames)
    starts = list(range(0, max(1, n - overlap), window_frames - overlap))
    if overlap and n > window_frames:
        starts = [s for s in starts if s + window_frames < n] + [n - window_frames]
    stops = [min(s + window_frames, n) for s in starts]
    raw = [_trapezoid_weights(starts, stops, k) for k in range(len(starts))]
    total = np.zeros(n)
    for s, e, w in zip(starts, stops, raw, strict=True):
        total[s:e] += w
    result: list[Window] = []
    for k, (s, e) in enumerate(zip(starts, stops, strict=True)):
        next_start = starts[k + 1] if k + 1 < len(starts) else n
        result.append(
            Window(
                index=-1,
                frames=tuple(frames[s:e]),
                weights=tuple(float(w) for w in raw[k] / total[s:e]),
                output_frames=tuple(frames[s:next_start]),
            )
        )
    return result


def _trapezoid_weights(starts: Sequence[int], stops: Sequence[int], k: int) -> Float64Array:
    """Return weights of window k: 1 in the middle, linear ramps over frames shared with its neighbours."""
    position = np.arange(starts[k], stops[k], dtype=np.float64)
    weight = np.ones_like(position)
    if k > 0 and (n_shared := stops[k - 1] - starts[k]) > 0:
        weight = np.minimum(weight, (position - starts[k] + 1) / (n_shared + 1))
    if k + 1 < len(starts) and (n_shared := stops[k] - starts[k + 1]) > 0:
        weight = np.minimum(weight, (stops[k] - position) / (n_shared + 1))
    return weight


# --- segments ---


@dataclass(frozen=True, slots=True)
class SegmentWindows:
    """Windows of one speaker that a segment needs, by index, in the order in which they are denoised.

    Attributes:
        context_windows: have no output frames in the segment; they are denoised again to blend its first
            frames.
        windows: have output frames in the segment.
    """

    context_windows: tuple[int, ...]
    windows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Output frames [start, stop) that are rendered into one file, and each speaker's windows for them."""

    index: int
    start: int
    stop: int
    speaker_windows: tuple[SegmentWindows, ...]


def plan_segments(
    n_frames: int, windows: Sequence[Sequence[Window]], fps: Fraction, first_s: float, target_s: float
) -> tuple[Segment, ...]:
    """Cut [0, n_frames) into segments of about `target_s`; the first of about `first_s`.

    Args:
        windows: of each speaker. The output frames of the first speaker's windows are never split. A window
            of another speaker that spans a border is denoised for both segments.
    """
    can_split = np.ones(n_frames + 1, dtype=bool)
    for window in windows[0]:
        can_split[window.output_frames[0] + 1 : window.output_frames[-1] + 1] = False
    first, later = (max(1, round(length_s * float(fps))) for length_s in (first_s, target_s))
    borders = [0]
    while borders[-1] < n_frames:
        target = later if borders[-1] > 0 else first
        candidates = np.flatnonzero(can_split[borders[-1] + target :])
        nearest = borders[-1] + target + int(candidates[0]) if len(candidates) else n_frames
        # A short remainder would cost a context window of its own, so it joins the last segment.
        borders.append(n_frames if n_frames - nearest < target // 2 else nearest)
    by_speaker = [_windows_per_segment(of_speaker, borders) for of_speaker in windows]
    return tuple(
        Segment(index, start, stop, tuple(per_segment[index] for per_segment in by_speaker))
        for index, (start, stop) in enumerate(itertools.pairwise(borders))
    )


def settled_segments(
    segments: Sequence[Segment], n_frames: int, fps: Fraction, window_frames: int, target_s: float
) -> tuple[Segment, ...]:
    """Return the segments that do not change when more frames follow the `n_frames` of their plan.

    A run that continues moves its last two windows, and a short remainder joins the segment before it.
    """
    margin = max(3 * window_frames * count_phases(fps), round(target_s * float(fps)) // 2 + 1)
    return tuple(segment for segment in segments if segment.stop <= n_frames - margin)


def _windows_per_segment(windows: Sequence[Window], borders: Sequence[int]) -> list[SegmentWindows]:
    covering: dict[int, list[int]] = {}
    for window in windows:
        for frame in window.frames:
            covering.setdefault(frame, []).append(window.index)
    per_segment: list[SegmentWindows] = []
    for start, stop in itertools.pairwise(borders):
        inside = tuple(w.index for w in windows if any(start <= frame < stop for frame in w.output_frames))
        blended_with = {k for i in inside for frame in windows[i].output_frames for k in covering[frame]}
        context = tuple(sorted(blended_with - set(inside)))
        per_segment.append(SegmentWindows(context_windows=context, windows=inside))
    return per_segment
