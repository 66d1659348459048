"""Which source frame each output frame shows, and how the work is cut into windows and segments.

Output frame i is shown at i / fps. Three layers stand on that:

* **source order**: output frame → decoded source frame, whatever the source's (variable) rate, and what
  happens when the voice and the picture differ in length;
* **windows**: the groups of frames that the model sees together, never across a shot cut or a gap without a
  face, overlapping so that they can be blended;
* **segments**: stretches of whole window groups, rendered independently of each other.

Pure: no I/O, no pictures, no sound. Times are seconds, rates are fractions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from lipsync_engine.errors import ParameterError
from lipsync_engine.params import LoopMode, Tail

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

MODEL_FPS = 25
"""Frame spacing that LatentSync's motion modules were trained with."""


# --- rates and lengths ---


def audio_frames(audio_duration_s: float, fps: Fraction) -> int:
    """Output frames needed so that the picture lasts as long as the audio: the last frame covers its end."""
    return max(1, math.ceil(round(audio_duration_s * fps, 6)))


def reference_audio_frames(feature_steps: int) -> int:
    """LatentSync's own length at 25 fps from the number of 50 Hz audio steps (parity section 5)."""
    return feature_steps // 2 + 2


def conform(pts_s: FloatArray, fps: Fraction, nominal_rate: Fraction) -> IntArray:
    """The decoded frame on screen in the middle of each output tick.

    Args:
        pts_s: (N,) start time of every decoded frame, ascending.
        fps: rate of the result.
        nominal_rate: the source's own rate; it gives the duration of the last frame.

    Returns:
        (M,) indices into `pts_s`; the identity when the source already has that rate.
    """
    start = float(pts_s[0])
    duration_s = float(pts_s[-1]) - start + float(1 / nominal_rate)
    length = max(1, round(duration_s * float(fps)))
    middles = start + (np.arange(length) + 0.5) / float(fps)
    return np.clip(np.searchsorted(pts_s, middles, side="right") - 1, 0, len(pts_s) - 1).astype(np.int64)


def source_order(
    n_source: int, n_audio: int, loop_mode: LoopMode, tail: Tail, *, repeat_ends: bool = False
) -> IntArray:
    """Conformed source frame of every output frame.

    Args:
        n_source: conformed source frames.
        n_audio: frames that the audio needs.
        loop_mode: rule when the audio is longer.
        tail: rule when the audio is shorter.
        repeat_ends: ping-pong as the reference does it, where each turn shows the end frame twice.

    Returns:
        (n_audio,) indices, or (n_source,) when a longer video is kept.
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
    """Frames that the model sees together.

    Attributes:
        index: position in the plan; names the window's random draws.
        frames: output frame numbers, ascending.
        weights: blend weight of each frame; over all windows a frame's weights sum to 1.
        own: the frames that become complete with this window, and are decoded with it.
    """

    index: int
    frames: tuple[int, ...]
    weights: tuple[float, ...]
    own: tuple[int, ...]


def phases(fps: Fraction) -> int:
    """Into how many interleaved sequences a fast video is split before windowing.

    The motion modules know neighbours 40 ms apart. At 50 or 60 fps every second frame forms one sequence and
    the frames between form another, each spaced 33 to 40 ms; both see the sound at their own exact times.
    """
    return max(1, round(fps / MODEL_FPS))


def runs(
    weight: npt.NDArray[np.float32], shots: IntArray, order: IntArray, usual_step: int
) -> list[tuple[int, int]]:
    """Stretches [start, stop) of output frames that have a usable face and no cut or jump inside.

    Args:
        weight: (N,) 0 where the frame stays untouched.
        shots: (N,) shot number of each output frame.
        order: (N,) source frame of each output frame; a jump in it (a loop's restart) ends a run.
        usual_step: source frames from one output frame to the next.
    """
    active = weight > 0
    breaks = (np.diff(shots) != 0) | (np.abs(np.diff(order)) > 2 * usual_step + 1)
    found: list[tuple[int, int]] = []
    start: int | None = None
    for i in range(len(active)):
        if start is not None and (not active[i] or breaks[i - 1]):
            found.append((start, i))
            start = None
        if start is None and active[i]:
            start = i
    if start is not None:
        found.append((start, len(active)))
    return found


def plan_windows(
    stretches: Sequence[tuple[int, int]], n_phases: int, window_frames: int, overlap: int
) -> tuple[Window, ...]:
    """Cut runs into overlapping windows.

    With an overlap the last window of a run is moved back to full length, because a short window behaves
    differently (its norms pool over fewer frames). Without one the windows follow each other and the last is
    short, as in the reference.
    """
    if not 0 <= overlap < window_frames:
        raise ParameterError(
            f"window_overlap={overlap} must be smaller than the window of {window_frames} frames."
        )
    windows: list[Window] = []
    for start, stop in stretches:
        for phase in range(n_phases):
            frames = range(start + phase, stop, n_phases)
            if frames:
                windows.extend(_windows_of_sequence(frames, window_frames, overlap))
    # Order by the first own frame, so that interleaved sequences advance together.
    windows.sort(key=lambda window: window.own[0])
    return tuple(
        Window(index=i, frames=window.frames, weights=window.weights, own=window.own)
        for i, window in enumerate(windows)
    )


def _windows_of_sequence(frames: Sequence[int], window_frames: int, overlap: int) -> list[Window]:
    n = len(frames)
    starts = list(range(0, max(1, n - overlap), window_frames - overlap))
    if overlap and n > window_frames:
        starts = [s for s in starts if s + window_frames < n] + [n - window_frames]
    stops = [min(s + window_frames, n) for s in starts]
    raw = [_trapezoid(starts, stops, k) for k in range(len(starts))]
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
                own=tuple(frames[s:next_start]),
            )
        )
    return result


def _trapezoid(starts: Sequence[int], stops: Sequence[int], k: int) -> FloatArray:
    """1 in the middle, rising and falling linearly over what is shared with the neighbours."""
    position = np.arange(starts[k], stops[k], dtype=np.float64)
    weight = np.ones_like(position)
    if k > 0 and (shared := stops[k - 1] - starts[k]) > 0:
        weight = np.minimum(weight, (position - starts[k] + 1) / (shared + 1))
    if k + 1 < len(starts) and (shared := stops[k] - starts[k + 1]) > 0:
        weight = np.minimum(weight, (stops[k] - position) / (shared + 1))
    return weight


# --- segments ---


@dataclass(frozen=True, slots=True)
class Share:
    """What a segment needs of one speaker's windows, in the order in which to compute them.

    `lead` windows show nothing in the segment and are computed again for the blend at its first frames.
    """

    lead: tuple[int, ...]
    windows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Output frames [start, stop), and of each speaker the windows that they need."""

    index: int
    start: int
    stop: int
    shares: tuple[Share, ...]


def plan_segments(
    n_frames: int, windows: Sequence[Sequence[Window]], fps: Fraction, first_s: float, usual_s: float
) -> tuple[Segment, ...]:
    """Cut [0, n_frames) into segments of about `usual_s`; the first of about `first_s`.

    Args:
        windows: of each speaker. The first one's own frames are never split; a window of another speaker that
            lies across a border is computed for both segments.
    """
    allowed = np.ones(n_frames + 1, dtype=bool)
    for window in windows[0]:
        allowed[window.own[0] + 1 : window.own[-1] + 1] = False
    first, usual = (max(1, round(length_s * float(fps))) for length_s in (first_s, usual_s))
    borders = [0]
    while borders[-1] < n_frames:
        target = usual if borders[-1] > 0 else first
        candidates = np.flatnonzero(allowed[borders[-1] + target :])
        nearest = borders[-1] + target + int(candidates[0]) if len(candidates) else n_frames
        # A short rest would cost a lead window for nothing: it joins the last segment.
        borders.append(n_frames if n_frames - nearest < target // 2 else nearest)
    shares = [_shares(of_speaker, borders) for of_speaker in windows]
    return tuple(
        Segment(index, start, stop, tuple(of_speaker[index] for of_speaker in shares))
        for index, (start, stop) in enumerate(itertools.pairwise(borders))
    )


def settled_segments(
    segments: Sequence[Segment], n_frames: int, fps: Fraction, window_frames: int, usual_s: float
) -> tuple[Segment, ...]:
    """Those that stay as they are when more frames follow the `n_frames` that they were planned for.

    A run that goes on moves its last two windows, and a short rest joins the segment before it.
    """
    margin = max(3 * window_frames * phases(fps), round(usual_s * float(fps)) // 2 + 1)
    return tuple(segment for segment in segments if segment.stop <= n_frames - margin)


def _shares(windows: Sequence[Window], borders: Sequence[int]) -> list[Share]:
    covering: dict[int, list[int]] = {}
    for window in windows:
        for frame in window.frames:
            covering.setdefault(frame, []).append(window.index)
    found: list[Share] = []
    for start, stop in itertools.pairwise(borders):
        inside = tuple(w.index for w in windows if any(start <= frame < stop for frame in w.own))
        needed = {k for i in inside for frame in windows[i].own for k in covering[frame]}
        found.append(Share(lead=tuple(sorted(needed - set(inside))), windows=inside))
    return found
