"""A job's plan: frozen data, saved to a folder and loaded from it.

A `Plan` holds every decision of a job: which source frame each output frame shows, where the speaker's face
is in it, how strongly it is replaced, which audio features drive it, and how the work is divided. With it any
process can render any segment, in any order, to the same pixels. Its folder lets a job resume after a crash.
`planner` makes plans.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from lipsync_engine import faces, media
from lipsync_engine.audio import features as audio_features
from lipsync_engine.media import VideoInfo
from lipsync_engine.models import ModelInfo
from lipsync_engine.params import SyncParams, Tail
from lipsync_engine.planning import timeline
from lipsync_engine.planning.timeline import Segment, Window
from lipsync_engine.utils import BoolArray, Float64Array, FloatArray, IntArray, runs_of

SEGMENT_S = 6.0
"""Target length of a segment: long enough that its context window is cheap, short enough that a crash loses
little."""

FIRST_SEGMENT_S = 2.0
"""Target length of the first segment, which a viewer may be waiting for."""


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """The part of a plan that is stored as JSON (`plan.json`).

    Attributes:
        n_audio: output frames that the audio covers; later ones show the source untouched.
        analysis_cached: the face tracks came from an earlier job on the same video.
        matte: set if the matte is a video.
        is_gate_bypassed: the voice gate of a speaker stays open because most of the loud audio contains no
            detected speech.
        covered_s: (start, stop) in seconds of the source where a generated mouth may lie over a hand or
            whatever else covers the face.
        people: list of the faces where several are visible at once and no choice was made; else empty.
    """

    video: VideoInfo
    params: SyncParams
    model: ModelInfo
    fps: Fraction
    n_audio: int
    analysis_cached: bool
    matte: VideoInfo | None
    is_gate_bypassed: bool = False
    covered_s: tuple[tuple[float, float], ...] = ()
    people: str = ""


@dataclass(frozen=True, slots=True)
class PlanArrays:
    """The part of a plan that is stored as arrays (`plan.npz`).

    S decoded source frames, N output frames, K speakers.

    Attributes:
        pts_s: (S,) times of the decoded source frames.
        matrices: (K, S, 2, 3) source frame → crop; NaN where there is no face.
        order: (N,) source frame of each output frame.
        shots: (N,) shot number.
        weight: (K, N) opacity of the generated face; 0 leaves the frame untouched.
        gate: (K, N) 1 where the speaker speaks, 0 where the mouth rests.
        reasons: (K, N) int8, `faces.UntouchedReason` of each frame.
        matte_pts_s: (M,) times of the matte video's frames; empty without one.
    """

    pts_s: Float64Array
    matrices: FloatArray
    order: IntArray
    shots: IntArray
    weight: FloatArray
    gate: FloatArray
    reasons: npt.NDArray[np.int8]
    matte_pts_s: Float64Array


class Plan:
    """All decisions of a job. Windows, one row per speaker, and segments follow from header and arrays.

    Args:
        folder: holds the plan's files and the speakers' audio features.
        is_complete: False for a draft that was made before the whole clip was read. Only the
            `ready_segments` of a draft are equal to those of the complete plan.
    """

    def __init__(
        self, folder: Path, header: PlanHeader, arrays: PlanArrays, *, is_complete: bool = True
    ) -> None:
        self.folder, self.header, self.arrays, self.is_complete = folder, header, arrays, is_complete
        source_step = max(1, round(header.video.frame_rate / header.fps))
        self.windows: tuple[tuple[Window, ...], ...] = tuple(
            timeline.plan_windows(
                timeline.find_face_runs(weight, arrays.shots, arrays.order, source_step),
                timeline.count_phases(header.fps),
                header.model.window_frames,
                min(header.params.window_overlap, header.model.window_frames - 1),
            )
            for weight in arrays.weight
        )
        self.segments: tuple[Segment, ...] = timeline.plan_segments(
            len(arrays.order), self.windows, header.fps, FIRST_SEGMENT_S, SEGMENT_S
        )

    @property
    def ready_segments(self) -> tuple[Segment, ...]:
        """Segments that can be rendered now."""
        if self.is_complete:
            return self.segments
        window_frames = self.header.model.window_frames
        return timeline.settled_segments(
            self.segments, self.n_frames, self.header.fps, window_frames, SEGMENT_S
        )

    @property
    def n_frames(self) -> int:
        """Number of output frames in this plan."""
        return len(self.arrays.order)

    @property
    def n_frames_expected(self) -> int:
        """Number of output frames of the complete plan; an estimate while this is a draft."""
        if self.is_complete:
            return self.n_frames
        video, params = self.header.video, self.header.params
        n_source = round(video.duration_s * float(self.header.fps))
        return max(self.header.n_audio, n_source if params.tail is Tail.KEEP else 0)

    @property
    def frames_without_face(self) -> int:
        """Number of output frames during the audio that stay untouched for want of a usable face."""
        return int(np.count_nonzero(self._is_untouched))

    @property
    def untouched(self) -> dict[str, int]:
        """Number of output frames during the audio that stay untouched, by reason; no zeros."""
        return faces.count_reasons(self.arrays.reasons[0, : self.header.n_audio][self._is_untouched])

    @property
    def _is_untouched(self) -> BoolArray:
        """bool (n_audio,): no speaker's generated face shows in the frame."""
        return np.asarray(self.arrays.weight[:, : self.header.n_audio].max(axis=0) == 0)

    @property
    def pauses_s(self) -> tuple[tuple[float, float], ...]:
        """(start, stop) in seconds of the output where the voice gate is closed for every speaker."""
        is_closed = self.arrays.gate[:, : self.header.n_audio].max(axis=0) < 0.5
        fps = float(self.header.fps)
        return tuple((start / fps, stop / fps) for start, stop in runs_of(is_closed))

    def open_audio_features(self, speaker: int) -> audio_features.AudioFeatures:
        """Open the audio features that drive a speaker's lips."""
        return audio_features.AudioFeatures.open(features_path(self.folder, speaker))

    def read_mattes(self, order: IntArray) -> Generator[FloatArray | None, None, None]:
        """Yield the protected area of each source frame in `order`: float32 (H, W), 1 keeps the source.

        Combines `matte` (what is in front of the mouth) and the inverse of `mask_image`; None without both.
        """
        path, video = self.header.params.mask_image, self.header.video.format
        protected_area = None
        if path is not None:
            protected_area = 1.0 - media.read_mask(path, video.width, video.height).astype(np.float32) / 255.0
        for matte in self._read_foreground_mattes(order):
            if protected_area is None:
                yield matte
            else:
                yield protected_area if matte is None else np.maximum(matte, protected_area)

    def _read_foreground_mattes(self, order: IntArray) -> Generator[FloatArray | None, None, None]:
        path, matte, video = self.header.params.matte, self.header.matte, self.header.video.format
        if path is None:
            yield from itertools.repeat(None, len(order))
        elif matte is None:
            still = media.read_mask(path, video.width, video.height).astype(np.float32) / 255.0
            yield from itertools.repeat(still, len(order))
        else:
            times_s = self.arrays.pts_s[order] + 1e-3  # a matte frame of the same time is already on screen
            numbers = np.searchsorted(self.arrays.matte_pts_s, times_s, side="right") - 1
            full_scale = np.float32(2**matte.format.bit_depth - 1)
            with media.FrameReader(matte, self.arrays.matte_pts_s) as reader:
                for frame in reader.read(np.maximum(numbers, 0).tolist()):
                    luma = cv2.resize(frame.y, (video.width, video.height), interpolation=cv2.INTER_LINEAR)
                    yield np.clip(luma.astype(np.float32) / full_scale, 0.0, 1.0)

    def save(self) -> None:
        """Write the plan to its folder; `plan.json` appears last, so that it marks a complete plan."""
        np.savez(self.folder / "plan.npz", **{name: getattr(self.arrays, name) for name in _ARRAY_NAMES})
        part = self.folder / "plan.json.part"
        part.write_bytes(_header_adapter().dump_json(self.header, by_alias=True))
        part.replace(self.folder / "plan.json")

    def portable_files(self) -> dict[str, Path]:
        """Return the files that another process needs to render segments, by their names in its folder."""
        files = {path.name: path for path in (self.folder / "plan.json", self.folder / "plan.npz")}
        files |= {path.name: path for path in self.folder.glob("features-*")}
        params = self.header.params
        inputs = {"video": self.header.video.path, "mask_image": params.mask_image, "matte": params.matte}
        return files | {name: path for name, path in inputs.items() if path is not None}

    @classmethod
    def load_portable(cls, folder: Path) -> Plan:
        """Load the plan from a folder that holds the files of `portable_files`."""
        header = _header_adapter().validate_json((folder / "plan.json").read_bytes())
        names = ("mask_image", "matte")
        masks: dict[str, Any] = {name: folder / name for name in names if getattr(header.params, name)}
        video = dataclasses.replace(header.video, path=folder / "video")
        plan = cls.load(folder, video, dataclasses.replace(header.params, **masks))
        if plan is None:
            raise AssertionError(f"{folder / 'plan.json'} disappeared while it was read")
        return plan

    @classmethod
    def load(cls, folder: Path, video: VideoInfo, params: SyncParams) -> Plan | None:
        """Load the complete plan in `folder`; return None if there is none.

        Args:
            video, params: of the job. They equal those in the plan except for file paths, because the plan
                may have been made elsewhere.
        """
        path = folder / "plan.json"
        if not path.exists():
            return None
        header = _header_adapter().validate_json(path.read_bytes())
        matte = header.matte
        if matte is not None and params.matte is not None:
            matte = dataclasses.replace(matte, path=params.matte)
        header = dataclasses.replace(header, video=video, params=params, matte=matte)
        with np.load(folder / "plan.npz", allow_pickle=False) as arrays:
            if not set(_ARRAY_NAMES) <= set(arrays.files):  # of an older version: the job is planned again
                return None
            return cls(folder, header, PlanArrays(**{name: arrays[name] for name in _ARRAY_NAMES}))


_ARRAY_NAMES = tuple(field.name for field in dataclasses.fields(PlanArrays))


def features_path(folder: Path, speaker: int) -> Path:
    """Return the file of a speaker's audio features in a plan's folder."""
    return folder / f"features-{speaker}"


def _header_adapter() -> TypeAdapter[PlanHeader]:
    return TypeAdapter(PlanHeader)
