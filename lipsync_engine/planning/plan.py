"""`analyse`: one pass over the picture and one over the voice, and from them the whole plan of a job.

A `Plan` holds every decision: which source frame each output frame shows, where the speaker's face lies in
it, how strongly it is replaced, what the model hears, and how the work is cut. With it any process can render
any segment, in any order, to the same pictures. It lives in a folder, so that a job can go on after a crash.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Generator, Sequence
from contextlib import closing
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
from lipsync_engine.audio import vad
from lipsync_engine.errors import ErrorCode, FaceError
from lipsync_engine.faces.compositor import compositor_for
from lipsync_engine.media import AudioInfo, VideoInfo
from lipsync_engine.models import LipSyncModel, ModelInfo
from lipsync_engine.params import FaceChoice, LoopMode, SyncParams, Tail
from lipsync_engine.planning import timeline
from lipsync_engine.planning.timeline import Segment, Window
from lipsync_engine.progress import Meter, Progress, Stage

FloatArray = npt.NDArray[np.float32]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})

SEGMENT_S = 6.0
"""Length of a segment: its lead window must cost little, and a crash must lose little."""

FIRST_SEGMENT_S = 2.0
"""Length of the first one, which somebody may be waiting to see."""

ANALYSIS_MAX_SIDE = 960
"""Faces are searched in frames scaled down to this longest side, pixels."""

FIRST_LOOK_S, LOOK_FACTOR = 13.0, 1.5
"""When a plan is first tried before the clip's end is known, and how much later again each time: so the tries
cost little, and the first one is late enough for a first segment (see `speaker.CHOICE_S`, `SEGMENT_S`).
"""

MATTE_SCAN_MAX_SIDE = 64
"""Only the times of a matte video's frames are wanted before rendering."""

TAIL_FADE_S = 0.2
"""Where the video goes on after the voice, the generated mouth fades into the source's over this time."""


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """The part of a plan that is not arrays.

    Attributes:
        n_audio: output frames that the voices last; later ones show the source untouched.
        analysis_cached: the face tracks came from an earlier job on the same video.
        matte: the matte where it is a video.
    """

    video: VideoInfo
    params: SyncParams
    model: ModelInfo
    fps: Fraction
    n_audio: int
    analysis_cached: bool
    matte: VideoInfo | None


@dataclass(frozen=True, slots=True)
class PlanArrays:
    """One row per decoded source frame (S) or per output frame (N); of each speaker (K) where faces matter.

    Attributes:
        pts_s: (S,) times of the decoded source frames.
        matrices: (K, S, 2, 3) source frame → crop; NaN where there is no face.
        order: (N,) source frame of each output frame.
        shots: (N,) shot number.
        weight: (K, N) how much of the generated face shows; 0 = the frame stays as it is.
        gate: (K, N) 1 where the person speaks, 0 where the mouth rests.
        matte_pts_s: (M,) times of the matte's frames; empty without a matte video.
    """

    pts_s: npt.NDArray[np.float64]
    matrices: npt.NDArray[np.float32]
    order: npt.NDArray[np.int64]
    shots: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    gate: npt.NDArray[np.float32]
    matte_pts_s: npt.NDArray[np.float64]


_ARRAY_NAMES = ("pts_s", "matrices", "order", "shots", "weight", "gate", "matte_pts_s")


class Plan:
    """All decisions of a job. Windows, one row per speaker, and segments follow from header and arrays.

    Args:
        is_complete: there will be no more frames; otherwise this is a draft, and `ready` are the segments
            that are the same in the complete plan.
    """

    def __init__(
        self, folder: Path, header: PlanHeader, arrays: PlanArrays, *, is_complete: bool = True
    ) -> None:
        self.folder, self.header, self.arrays, self.is_complete = folder, header, arrays, is_complete
        usual_step = max(1, round(header.video.frame_rate / header.fps))
        self.windows: tuple[tuple[Window, ...], ...] = tuple(
            timeline.plan_windows(
                timeline.runs(weight, arrays.shots, arrays.order, usual_step),
                timeline.phases(header.fps),
                header.model.window_frames,
                min(header.params.window_overlap, header.model.window_frames - 1),
            )
            for weight in arrays.weight
        )
        self.segments: tuple[Segment, ...] = timeline.plan_segments(
            len(arrays.order), self.windows, header.fps, FIRST_SEGMENT_S, SEGMENT_S
        )

    @property
    def ready(self) -> tuple[Segment, ...]:
        """Segments that can be rendered."""
        if self.is_complete:
            return self.segments
        window_frames = self.header.model.window_frames
        return timeline.settled_segments(
            self.segments, self.n_frames, self.header.fps, window_frames, SEGMENT_S
        )

    @property
    def n_frames(self) -> int:
        return len(self.arrays.order)

    @property
    def n_expected(self) -> int:
        """Frames of the complete plan, as far as that can be said."""
        if self.is_complete:
            return self.n_frames
        video, params = self.header.video, self.header.params
        n_source = round(video.duration_s * float(self.header.fps))
        return max(self.header.n_audio, n_source if params.tail is Tail.KEEP else 0)

    @property
    def frames_without_face(self) -> int:
        """Output frames under the voices that stay untouched because no usable face was seen."""
        shown = self.arrays.weight[:, : self.header.n_audio].max(axis=0)
        return int(np.count_nonzero(shown == 0))

    def features(self, speaker: int) -> audio_features.AudioFeatures:
        return audio_features.AudioFeatures.open(_features_path(self.folder, speaker))

    def mattes(self, order: npt.NDArray[np.int64]) -> Generator[FloatArray | None, None, None]:
        """What stays the source's in each source frame of `order`: float32 (H, W) 0..1, or None."""
        path, video = self.header.params.mask_image, self.header.video.format
        closed = None
        if path is not None:
            closed = 1.0 - media.read_mask(path, video.width, video.height).astype(np.float32) / 255.0
        for matte in self._in_front(order):
            yield matte if closed is None else closed if matte is None else np.maximum(matte, closed)

    def _in_front(self, order: npt.NDArray[np.int64]) -> Generator[FloatArray | None, None, None]:
        path, matte, video = self.header.params.matte, self.header.matte, self.header.video.format
        if path is None:
            yield from itertools.repeat(None, len(order))
        elif matte is None:
            still = media.read_mask(path, video.width, video.height).astype(np.float32) / 255.0
            yield from itertools.repeat(still, len(order))
        else:
            times_s = self.arrays.pts_s[order] + 1e-3  # a matte frame of the same time is already on screen
            shown = np.searchsorted(self.arrays.matte_pts_s, times_s, side="right") - 1
            full_scale = np.float32(2**matte.format.bit_depth - 1)
            with media.FrameReader(matte, self.arrays.matte_pts_s) as reader:
                for frame in reader.read(np.maximum(shown, 0).tolist()):
                    scaled = cv2.resize(frame.y, (video.width, video.height), interpolation=cv2.INTER_LINEAR)
                    yield np.clip(scaled.astype(np.float32) / full_scale, 0.0, 1.0)

    def save(self) -> None:
        """Write the plan; `plan.json` appears last, so that it marks a complete one."""
        np.savez(self.folder / "plan.npz", **{name: getattr(self.arrays, name) for name in _ARRAY_NAMES})
        part = self.folder / "plan.json.part"
        part.write_bytes(_header_adapter().dump_json(self.header))
        part.replace(self.folder / "plan.json")

    def carried(self) -> dict[str, Path]:
        """What another process needs to render segments, by the name that it has in that one's folder."""
        files = {path.name: path for path in (self.folder / "plan.json", self.folder / "plan.npz")}
        files |= {path.name: path for path in self.folder.glob("features-*")}
        params = self.header.params
        given = {"video": self.header.video.path, "mask_image": params.mask_image, "matte": params.matte}
        return files | {name: path for name, path in given.items() if path is not None}

    @classmethod
    def load_carried(cls, folder: Path) -> Plan:
        """The plan in a folder that has what `carried` names."""
        header = _header_adapter().validate_json((folder / "plan.json").read_bytes())
        masks = ("mask_image", "matte")
        given: dict[str, Any] = {name: folder / name for name in masks if getattr(header.params, name)}
        video = dataclasses.replace(header.video, path=folder / "video")
        plan = cls.load(folder, video, dataclasses.replace(header.params, **given))
        if plan is None:
            raise AssertionError("its header was there a moment ago")
        return plan

    @classmethod
    def load(cls, folder: Path, video: VideoInfo, params: SyncParams) -> Plan | None:
        """The complete plan in `folder`, or None.

        Args:
            video, params: as the plan was made with, but for the files' places: it may come from elsewhere.
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
            return cls(folder, header, PlanArrays(**{name: arrays[name] for name in _ARRAY_NAMES}))


def analyse(
    video: VideoInfo,
    speakers: Sequence[tuple[FaceChoice, AudioInfo]],
    params: SyncParams,
    *,
    model: LipSyncModel,
    detector: faces.FaceDetector,
    cache: faces.AnalysisCache,
    video_hash: str,
    folder: Path,
) -> Generator[Progress | Plan, None, Plan]:
    """Read the clip and the voices once and decide everything.

    Args:
        video: as probed.
        speakers: of each, which face and the voice, as probed.
        params: the caller's options; its `face` is not looked at.
        model: gives the audio encoder, the crop's geometry and the window.
        detector: finds faces, unless `params.faces_file` gives them.
        cache: of face tracks, by `video_hash`: a second voice on the same video skips detection.
        folder: private to the job; plan and audio features are left in it.

    Yields:
        Progress of the two stages; of a longer clip also drafts of the plan, whose ready segments can be
        rendered before the rest is read.

    Raises:
        MediaError: a file ends early or cannot be decoded.
        FaceError: nobody to lip-sync.
    """
    # 1. The voices: log-mel on disk, then the encoder's hidden states.
    heard = []
    for number, (_, voice) in enumerate(speakers):
        heard.append((yield from _hear(voice, params, model, folder, number)))

    # 2. The faces: every frame once, scaled down, until all that the result shows is known.
    planner = _Planner(video, [face for face, _ in speakers], params, model, folder, heard)
    key = faces.analysis_key(video_hash, "given" if params.faces_file is not None else detector.name)
    tracks = cache.get(key)
    plan = None if tracks is None else planner.plan(tracks, cached=True)
    if plan is None or not plan.is_complete:
        with closing(_see(video, params, detector)) as looks:
            for look in looks:
                if isinstance(look, Progress):
                    seen = look
                    yield look
                elif (plan := planner.plan(look)) is not None:
                    if plan.is_complete:
                        cache.put(key, look)
                        yield dataclasses.replace(seen, total=seen.done)  # the rest is not needed
                        break
                    yield plan
    if plan is None:
        raise AssertionError("tracks of a whole clip always give a plan")

    # 3. The whole plan.
    if not plan.arrays.weight.any(axis=1).all():
        raise FaceError(
            ErrorCode.FACE_NOT_FOUND,
            "No usable face is visible while the voice speaks: use a longer or another part of the video, "
            "or give the face with a faces file.",
        )
    plan.save()
    return plan


class _Planner:
    """From face tracks, of the whole clip or its beginning, to a plan.

    Args:
        choices: of each speaker.
        heard: of each speaker.
    """

    def __init__(
        self,
        video: VideoInfo,
        choices: Sequence[FaceChoice],
        params: SyncParams,
        model: LipSyncModel,
        folder: Path,
        heard: Sequence[tuple[audio_features.AudioFeatures, audio_features.Mel]],
    ) -> None:
        self._video, self._choices, self._params, self._model = video, choices, params, model
        self._folder, self._mels = folder, [mel for _, mel in heard]
        self._fps = params.fps or video.frame_rate
        if params.reference_numerics:
            self._n_audio = max(timeline.reference_audio_frames(features.length) for features, _ in heard)
        else:
            self._n_audio = max(
                timeline.audio_frames(features.duration_s, self._fps) for features, _ in heard
            )
        self._compositor = compositor_for(params, model.keep_mask, video)
        self._matte, self._matte_pts_s = _matte(params.matte)

    def plan(self, tracks: faces.FaceTracks, *, cached: bool = False) -> Plan | None:
        """The plan; None where nothing can be decided yet.

        Args:
            cached: the tracks came from an earlier job.
        """
        params, video, fps, ended = self._params, self._video, self._fps, tracks.is_complete
        size = video.format.width, video.format.height
        paths = faces.speaker_paths(tracks, params, size, self._choices)
        shown = timeline.conform(tracks.pts_s, fps, video.frame_rate)
        if ended:
            order = shown[
                timeline.source_order(
                    len(shown),
                    self._n_audio,
                    params.loop_mode,
                    params.tail,
                    repeat_ends=params.reference_numerics,
                )
            ]
        else:
            order = shown[: self._certain(int(np.searchsorted(shown, min(path.n_settled for path in paths))))]
        is_complete = ended or (params.tail is Tail.CUT and len(order) == self._n_audio)
        weight = np.stack([path.weight[order] for path in paths])
        weight *= _tail_fade(len(order), self._n_audio, fps) if ended or len(order) > self._n_audio else 1
        if not is_complete and not weight.any(axis=1).all():
            return None
        gate = np.ones(weight.shape, dtype=np.float32)
        if params.voice_gate:
            times_s = np.arange(len(order)) / float(fps)
            gate = np.stack([vad.voice_activity(mel, times_s) for mel in self._mels])
        header = PlanHeader(video, params, self._model.info, fps, self._n_audio, cached, self._matte)
        arrays = PlanArrays(
            pts_s=tracks.pts_s,
            matrices=np.stack([self._compositor.matrices(path.points) for path in paths]),
            order=order,
            shots=tracks.shots[order].astype(np.int64),
            weight=weight.astype(np.float32),
            gate=gate,
            matte_pts_s=self._matte_pts_s,
        )
        return Plan(self._folder, header, arrays, is_complete=is_complete)

    def _certain(self, n_settled: int) -> int:
        """How many output frames are certain while the video's end is not known: it may have any length."""
        params, n_audio = self._params, self._n_audio
        if params.loop_mode is LoopMode.REMAP:
            return 0
        if params.tail is Tail.CUT:
            return min(n_settled, n_audio)
        before_fade = n_audio - math.ceil(TAIL_FADE_S * float(self._fps))
        return n_settled if n_settled > n_audio else max(0, min(n_settled, before_fade))


def _hear(
    voice: AudioInfo, params: SyncParams, model: LipSyncModel, folder: Path, speaker: int
) -> Generator[Progress, None, tuple[audio_features.AudioFeatures, audio_features.Mel]]:
    writer = audio_features.MelWriter(folder / f"mel-{speaker}")
    with closing(media.read_audio(voice.path)) as samples:
        for chunk in samples:
            writer.add(chunk)
    mel = writer.finish()
    steps = audio_features.encode_mel(
        mel, model.audio_encoder, _features_path(folder, speaker), reference=params.reference_numerics
    )
    meter: Meter | None = None
    while True:
        try:
            done, total = next(steps)
        except StopIteration as finished:
            return finished.value, mel
        meter = meter or Meter(Stage.AUDIO, total)
        yield meter.at(done)


def _see(
    video: VideoInfo, params: SyncParams, detector: faces.FaceDetector
) -> Generator[Progress | faces.FaceTracks, None, None]:
    """Progress, and the tracks: of a long clip also before its end."""
    given = params.faces_file is not None
    tracker = faces.FaceTracker(None if given else detector, video.format.width, video.format.height)
    meter = Meter(Stage.FACES, round(video.duration_s * float(video.frame_rate)))
    next_look_s = float("inf") if given else FIRST_LOOK_S  # a file of faces speaks of the whole clip
    with closing(media.scan_frames(video, ANALYSIS_MAX_SIDE)) as frames:
        for done, (pts_s, image) in enumerate(frames, start=1):
            tracker.add(pts_s, image)
            yield meter.at(done)
            if pts_s >= next_look_s:
                next_look_s = LOOK_FACTOR * pts_s
                yield tracker.snapshot(is_complete=False)
    yield tracker.snapshot(is_complete=True)


def _matte(path: Path | None) -> tuple[VideoInfo | None, npt.NDArray[np.float64]]:
    if path is None or path.suffix.lower() in IMAGE_SUFFIXES:
        return None, np.empty(0)
    info = media.probe_video(path)
    return info, np.array([pts_s for pts_s, _ in media.scan_frames(info, MATTE_SCAN_MAX_SIDE)])


def _tail_fade(n_frames: int, n_audio: int, fps: Fraction) -> FloatArray:
    """1 under the voice, 0 after it; a raised cosine before the end where the video goes on."""
    fade = np.ones(n_frames, dtype=np.float32)
    if n_audio < n_frames:
        fade[n_audio:] = 0.0
        ramp = min(n_audio, max(1, round(TAIL_FADE_S * float(fps))))
        position = (np.arange(ramp) + 1) / (ramp + 1)
        fade[n_audio - ramp : n_audio] = 0.5 + 0.5 * np.cos(np.pi * position)
    return fade


def _features_path(folder: Path, speaker: int) -> Path:
    return folder / f"features-{speaker}"


def _header_adapter() -> TypeAdapter[PlanHeader]:
    return TypeAdapter(PlanHeader)
