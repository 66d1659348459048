"""The report on a video's faces: what it measures, what it warns of, what it draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from lipsync_engine import media, report_faces
from lipsync_engine.errors import LipSyncError
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.weights import WeightsStore

Ffmpeg = Callable[..., None]


def test_report_measures_the_presenter_of_a_clip(clip: Path, tmp_path: Path) -> None:
    detector = load_detector("drawn", WeightsStore())
    report = report_faces(clip, detector, folder=tmp_path, overlay=tmp_path / "overlay.mp4")
    assert (report.width, report.height, report.frames, report.shots) == (320, 320, 50, 1)
    (track,) = report.tracks
    assert track.frames == 50
    assert 60 < track.size_px < 320
    assert report.untouched == {}
    assert report.warnings == ()
    assert track.thumbnail is not None
    assert cv2.imread(str(track.thumbnail)).shape[0] > 50
    overlay = media.probe_video(tmp_path / "overlay.mp4")
    assert (overlay.format.width, overlay.frame_rate) == (320, 25)
    (_, plain), (_, drawn) = (
        next(media.scan_frames(info, 320)) for info in (media.probe_video(clip), overlay)
    )
    changed = np.abs(plain.astype(int) - drawn).max(axis=-1) > 60
    assert 0.005 < changed.mean() < 0.1, "lines are drawn, and only lines"


def test_video_without_a_face_is_reported_with_a_remedy(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    empty = tmp_path / "empty.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x120:r=25:d=0.4", empty)
    report = report_faces(empty, load_detector("yunet", WeightsStore()))
    assert report.tracks == ()
    assert report.untouched == {"no_face": 10}
    assert "shows no face" in report.warnings[0]


def test_two_people_at_once_are_named(tmp_path: Path, ffmpeg: Ffmpeg, clip: Path) -> None:
    pair = tmp_path / "pair.mp4"
    ffmpeg("-i", clip, "-t", 0.4, "-filter_complex", "split[a][b];[a][b]hstack", pair)
    report = report_faces(pair, load_detector("drawn", WeightsStore()))
    assert len(report.tracks) == 2
    (warning,) = [one for one in report.warnings if "2 people are visible at once: face 0 at " in one]
    assert "face 1 at " in warning


def test_command_writes_json_thumbnails_and_overlay(
    clip: Path, tmp_path: Path, lipsync: Callable[..., object]
) -> None:
    done = lipsync("faces", clip, "--detector", "drawn", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["tracks"][0]["frames"] == 50
    assert json.loads((tmp_path / "out" / "faces.json").read_text()) == report
    assert Path(report["tracks"][0]["thumbnail"]).is_file()


def test_real_person_is_measured_without_a_download(real_media: Path) -> None:
    detector = load_detector("yunet", WeightsStore())
    (video,) = real_media.glob("talking_person_*.mp4")
    report = report_faces(video, detector)
    (track,) = report.tracks
    assert track.frames == report.frames == 250
    assert 170 < track.size_px < 220
    assert track.roll_deg is not None
    assert track.roll_deg[1] - track.roll_deg[0] > 15, "the head tilts by about 20 degrees"
    assert report.warnings == ()


def test_unusable_video_raises_a_coded_error(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video at all")
    with pytest.raises(LipSyncError):
        report_faces(tmp_path / "x.mp4", load_detector("drawn", WeightsStore()))
