"""The faces of a video: tracks, sizes, angles, warnings and an overlay, before any model weights are needed.

    report = report_faces(Path("talk.mp4"), FaceMeshDetector(...), folder=Path("faces"))

The report uses the tracks that a job on the same video would use.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lipsync_engine import faces, media
from lipsync_engine.faces.align import crop_size, solve_matrix, square_matrix
from lipsync_engine.faces.smoothing import UntouchedReason, row_reasons
from lipsync_engine.faces.tracking import MIN_FACE_PX, Track
from lipsync_engine.media import VideoInfo
from lipsync_engine.models.latentsync.mask import load_fixed_mask
from lipsync_engine.params import FaceChoice, SyncParams
from lipsync_engine.planning.planner import ANALYSIS_MAX_SIDE
from lipsync_engine.utils import Float64Array, FloatArray, ImageArray

THUMBNAIL_SIDE = 160
OVERLAY_RESOLUTION = 256

GREEN, RED, WHITE, YELLOW = (80, 220, 100), (240, 70, 60), (255, 255, 255), (250, 210, 60)


@dataclass(frozen=True, slots=True)
class Interval:
    """A part of the video, seconds."""

    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True)
class TrackReport:
    """One face through one shot.

    Attributes:
        track: number of the track.
        start_s, stop_s: from its first to its last frame.
        frames: number of frames in which it was found.
        size_px: shorter side of its box, median, pixels of the video.
        yaw_deg, roll_deg: 5th and 95th percentile of turn and tilt; None where it is not measured.
        untouched: frames that a job would leave as they are, by reason.
        covered: intervals in which something seems to hide a part of the face.
        thumbnail: JPEG of the face; None without a folder.
    """

    track: int
    start_s: float
    stop_s: float
    frames: int
    size_px: int
    yaw_deg: tuple[float, float]
    roll_deg: tuple[float, float] | None
    untouched: dict[str, int]
    covered: tuple[Interval, ...]
    thumbnail: Path | None


@dataclass(frozen=True, slots=True)
class FaceReport:
    """All faces of a video.

    Attributes:
        width, height: pixels.
        duration_s, frames, shots: of the video.
        tracks: largest face first.
        untouched: frames that a job for the largest face would leave as they are, by reason.
        warnings: sentences for whoever judges the video.
        overlay: video with points, crop and mask drawn in; None if it was not asked for.
    """

    width: int
    height: int
    duration_s: float
    frames: int
    shots: int
    tracks: tuple[TrackReport, ...]
    untouched: dict[str, int]
    warnings: tuple[str, ...]
    overlay: Path | None


def report_faces(
    video: Path,
    detector: faces.FaceDetector,
    *,
    folder: Path | None = None,
    overlay: Path | None = None,
    max_yaw_deg: float = SyncParams().max_yaw_deg,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> FaceReport:
    """Find all faces of a video and judge how well they can be lip-synced.

    Args:
        video: mp4, mov, mkv or webm.
        detector: see `faces.registry.load_detector`.
        folder: thumbnails are written there, `face-0.jpg` and so on.
        overlay: .mp4 to write, with points, crop and mask of the face that a job selects.
        max_yaw_deg: heads turned further count as turned.
        on_progress: called with frames done and the expected number of frames.

    Raises:
        InputError, MediaError: the video cannot be used.
    """
    info = media.probe_video(video)
    tracker = faces.FaceTracker(detector, info.format.width, info.format.height)
    expected = round(info.duration_s * float(info.frame_rate))
    thumbnails: dict[int, ImageArray] = {}
    with closing(media.scan_frames(info, ANALYSIS_MAX_SIDE)) as frames:
        for number, (pts_s, image) in enumerate(frames, start=1):
            tracker.add(pts_s, image)
            on_progress(number, expected)
    tracks = tracker.snapshot(is_complete=True)
    path = faces.choose_speaker(tracks, FaceChoice(), max_yaw_deg) if tracks.tracks else None
    ordered = sorted(tracks.tracks, key=lambda track: -len(track.frames) * _size_px(track))
    if folder is not None and ordered:
        folder.mkdir(parents=True, exist_ok=True)
        thumbnails = _cut_thumbnails(info, ordered)
    reports = []
    for place, track in enumerate(ordered):
        thumbnail = None
        if folder is not None and track.track_id in thumbnails:
            thumbnail = folder / f"face-{place}.jpg"
            thumbnail.write_bytes(_encode_jpeg(thumbnails[track.track_id]))
        reports.append(_report_track(track, tracks.pts_s, max_yaw_deg, thumbnail))
    untouched = faces.count_reasons(path.reasons) if path is not None else {"no_face": len(tracks.pts_s)}
    if overlay is not None:
        _draw_overlay(info, path, overlay)
    return FaceReport(
        width=info.format.width,
        height=info.format.height,
        duration_s=info.duration_s,
        frames=len(tracks.pts_s),
        shots=len(np.unique(tracks.shots)),
        tracks=tuple(reports),
        untouched=untouched,
        warnings=tuple(_warnings(reports, untouched, tracks)),
        overlay=overlay,
    )


def _report_track(
    track: Track, pts_s: Float64Array, max_yaw_deg: float, thumbnail: Path | None
) -> TrackReport:
    reasons = row_reasons(track)
    is_turned = np.abs(track.yaw_deg) > max_yaw_deg
    reasons[is_turned & (reasons == UntouchedReason.NONE)] = UntouchedReason.TURNED
    times_s = pts_s[track.frames]
    rolls = track.roll_deg[np.isfinite(track.roll_deg)]
    return TrackReport(
        track=track.track_id,
        start_s=round(float(times_s[0]), 3),
        stop_s=round(float(times_s[-1]), 3),
        frames=len(track.frames),
        size_px=_size_px(track),
        yaw_deg=_percentiles(track.yaw_deg),
        roll_deg=_percentiles(rolls) if len(rolls) else None,
        untouched=faces.count_reasons(reasons),
        covered=tuple(Interval(*one) for one in faces.covered_intervals(track.is_covered, times_s)),
        thumbnail=thumbnail,
    )


def _size_px(track: Track) -> int:
    return round(float(np.median((track.boxes[:, 2:] - track.boxes[:, :2]).min(axis=1))))


def _percentiles(values: FloatArray) -> tuple[float, float]:
    low, high = np.percentile(values, [5, 95])
    return round(float(low), 1), round(float(high), 1)


def _warnings(reports: list[TrackReport], untouched: dict[str, int], tracks: faces.FaceTracks) -> list[str]:
    if not reports:
        return [
            "The video shows no face. Use a video in which the face is turned to the camera and at least "
            f"{MIN_FACE_PX} px wide."
        ]
    warnings = []
    main = reports[0]
    if main.size_px < MIN_FACE_PX:
        warnings.append(
            f"The face is {main.size_px} px wide. Faces under {MIN_FACE_PX} px are left untouched: use a "
            "closer shot or a larger video."
        )
    n_people = faces.count_people(tracks)
    if n_people > 1:
        warnings.append(
            f"{n_people} people are visible at once: {faces.describe_people(tracks)}. The largest face is "
            "selected: choose another with --face and its number, left or right."
        )
    if untouched:
        n_untouched, text = sum(untouched.values()), faces.describe_untouched(untouched)
        warnings.append(f"{n_untouched} of {len(tracks.pts_s)} frames will be left untouched: {text}.")
    if main.covered:
        parts = ", ".join(f"{one.start_s:g}-{one.stop_s:g} s" for one in main.covered[:5])
        warnings.append(
            f"Something seems to cover the face at {parts}: check these moments, and give a --matte if the "
            "mouth is hidden."
        )
    return warnings


def _cut_thumbnails(info: VideoInfo, tracks: list[Track]) -> dict[int, ImageArray]:
    """Cut the face out of the frame in the middle of each track."""
    tracks_by_frame: dict[int, list[Track]] = {}
    for track in tracks:
        tracks_by_frame.setdefault(int(track.frames[len(track.frames) // 2]), []).append(track)
    thumbnails = {}
    with closing(media.scan_frames(info, ANALYSIS_MAX_SIDE)) as frames:
        for number, (_, image) in enumerate(itertools.islice(frames, max(tracks_by_frame) + 1)):
            for track in tracks_by_frame.get(number, ()):
                scale = image.shape[1] / info.format.width
                x0, y0, x1, y1 = track.boxes[len(track.frames) // 2] * scale
                margin = 0.2 * max(x1 - x0, y1 - y0)
                top, bottom = max(0, int(y0 - margin)), int(y1 + margin)
                left, right = max(0, int(x0 - margin)), int(x1 + margin)
                face = image[top:bottom, left:right]
                if face.size:
                    factor = THUMBNAIL_SIDE / max(face.shape[:2])
                    resized = cv2.resize(face, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
                    thumbnails[track.track_id] = np.asarray(resized, dtype=np.uint8)
    return thumbnails


def _encode_jpeg(image: ImageArray) -> bytes:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return data.tobytes()


def _draw_overlay(info: VideoInfo, path: faces.FacePath | None, output: Path) -> None:
    """Write the video with the crop (white), the generated part (green) and the points (yellow) drawn in.

    Frames that a job leaves untouched have a red border and the reason.
    """
    mask = (load_fixed_mask(OVERLAY_RESOLUTION) < 0.5).astype(np.uint8)
    outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0], key=cv2.contourArea)
    with ExitStack() as stack:
        frames = stack.enter_context(closing(media.scan_frames(info, ANALYSIS_MAX_SIDE)))
        writer: media.RgbVideoWriter | None = None
        for number, (_, image) in enumerate(frames):
            height, width = (side // 2 * 2 for side in image.shape[:2])
            if writer is None:
                writer = stack.enter_context(media.RgbVideoWriter(output, width, height, info.frame_rate))
            picture = np.ascontiguousarray(image[:height, :width])
            if path is not None:
                _draw_face(picture, path, number, outline.reshape(-1, 2), width / info.format.width)
            writer.write(picture)


def _draw_face(
    image: ImageArray, path: faces.FacePath, number: int, outline: np.ndarray, scale: float
) -> None:
    points, weight = path.points[number] * scale, float(path.weight[number])
    line = max(1, image.shape[1] // 400)
    if np.isfinite(points).all():
        matrix = solve_matrix(points, OVERLAY_RESOLUTION)
        back = np.linalg.inv(np.vstack([square_matrix(matrix, OVERLAY_RESOLUTION), [0, 0, 1]]))[:2]
        width, height = crop_size(OVERLAY_RESOLUTION)
        to_image = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]])
        _draw_polygon(image, corners, to_image, WHITE, line)
        _draw_polygon(image, outline, back, GREEN if weight > 0 else RED, line)
        for x, y in points:
            cv2.circle(image, (round(float(x)), round(float(y))), 2 * line, YELLOW, -1)
    if weight == 0:
        reason = UntouchedReason(int(path.reasons[number])).name.lower().replace("_", " ")
        cv2.rectangle(image, (0, 0), (image.shape[1] - 1, image.shape[0] - 1), RED, 3 * line)
        cv2.putText(
            image, f"untouched: {reason}", (12, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, RED, 2, cv2.LINE_AA
        )


def _draw_polygon(
    image: ImageArray, corners: np.ndarray, matrix: np.ndarray, colour: tuple[int, int, int], line: int
) -> None:
    placed = np.hstack([corners, np.ones((len(corners), 1))]) @ matrix.T
    cv2.polylines(image, [np.rint(placed).astype(np.int32)], True, colour, line, cv2.LINE_AA)
