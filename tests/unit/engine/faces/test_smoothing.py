"""Tests of smoothing: scripted detections in, one path out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lipsync_engine.faces import (
    Detection,
    FaceTracker,
    UntouchedReason,
    choose_speaker,
    covered_intervals,
    merge_shots,
)
from lipsync_engine.faces.tracking import MIN_FACE_PX
from lipsync_engine.planning import timeline
from tests.support.scripted_faces import FPS, HEIGHT, LARGEST, WIDTH, ScriptedDetector, face, track

Image = npt.NDArray[np.uint8]


def test_smoothing_removes_noise_without_lag_or_flattening() -> None:
    rng = np.random.default_rng(1)
    t = np.arange(200) / FPS
    nod = 10 * np.sin(2 * np.pi * t)
    noise = rng.normal(0, 1.0, (200, 2))
    script = [
        [face(300 + float(nx), 150 + float(n) + float(ny))] for n, (nx, ny) in zip(nod, noise, strict=True)
    ]
    path = choose_speaker(track(script), LARGEST, 60.0)
    nose = path.points[:, 2]
    jitter = np.abs(np.diff(nose[:, 0], 2)).mean() / np.abs(np.diff(noise[:, 0], 2)).mean()
    assert jitter < 1 / 3
    inside = slice(15, -15)
    size = np.dot(nose[inside, 1] - 150, nod[inside]) / np.dot(nod[inside], nod[inside])
    assert 0.95 < size < 1.05

    fast = choose_speaker(track([[face(60 + 2.5 * i, 150)] for i in range(200)]), LARGEST, 60.0)
    assert np.abs(fast.points[:, 2, 0] - (60 + 2.5 * np.arange(200))).max() < 0.1


def test_single_misdetection_is_not_followed() -> None:
    script = [[face(300, 150)] for _ in range(60)]
    script[30] = [face(340, 150)]
    path = choose_speaker(track(script), LARGEST, 60.0)
    assert np.abs(path.points[:, 2, 0] - 300).max() < 1.0
    assert path.weight.min() == 1.0


def test_short_gap_is_bridged_and_long_gap_fades() -> None:
    short = choose_speaker(
        track([[face(300, 150)] if not 40 <= i < 48 else [] for i in range(100)]), LARGEST, 60.0
    )
    assert short.weight.min() == 1.0
    long = choose_speaker(
        track([[face(300, 150)] if not 40 <= i < 70 else [] for i in range(100)]), LARGEST, 60.0
    )
    assert np.all(long.weight[40:70] == 0)
    assert np.all(np.diff(long.weight[30:41]) <= 0)
    assert 0 < long.weight[39] < 0.5
    assert long.weight[0] == long.weight[-1] == 1.0  # the clip's own ends do not fade


def test_head_that_turns_away_fades_out() -> None:
    script = [[face(300, 150, yaw_deg=min(80.0, max(0.0, 2.0 * (i - 20))))] for i in range(100)]
    path = choose_speaker(track(script), LARGEST, 60.0)
    assert path.weight[40] == 1.0
    assert path.weight[60] == 0.0
    assert np.abs(np.diff(path.weight)).max() < 0.45


# --- cuts inside one shot ---


def scene(shift: int = 0, *, is_mirrored: bool = False, seed: int = 0) -> Image:
    """A textured room with sensor noise; mirrored, it has the same colours in the same places."""
    texture = np.random.default_rng(7).integers(60, 200, (HEIGHT // 8, WIDTH // 8, 3))
    room = np.roll(np.kron(texture, np.ones((8, 8, 1))), shift, axis=1)
    noise = np.random.default_rng(seed).normal(0, 2, room.shape)
    return np.clip((room[::-1] if is_mirrored else room) + noise, 0, 255).astype(np.uint8)


def test_punch_in_breaks_path_and_nothing_before_it_is_used_after_it() -> None:
    faces = [face(300, 150, size=80)] * 40 + [face(320, 170, size=108)] * 40
    images = [scene(is_mirrored=i >= 40, seed=i) for i in range(80)]
    tracks = track([[each] for each in faces], images)
    assert len(tracks.tracks) == 1
    assert set(tracks.shots.tolist()) == {0}
    path = choose_speaker(tracks, LARGEST, 60.0)
    assert path.shots.tolist() == [0] * 40 + [1] * 40
    for number, each in enumerate(faces):
        np.testing.assert_allclose(path.points[number], each.points, atol=1e-3)
    assert path.weight.min() == 1.0
    runs = timeline.find_face_runs(path.weight, path.shots, np.arange(80), 1)
    assert runs == [(0, 40), (40, 80)]


def test_movement_without_a_cut_keeps_the_path() -> None:
    """The face jumps and the image does not, the image changes and the face does not, both move fast."""
    still = [face(300, 150)] * 80
    misdetected = [face(300, 150)] * 40 + [face(325, 150)] * 40
    fast = [face(200 + 3.0 * i, 150) for i in range(80)]
    for faces, images in (
        (misdetected, [scene(seed=i) for i in range(80)]),
        (still, [scene(is_mirrored=i >= 40, seed=i) for i in range(80)]),
        (fast, [scene(shift=3 * i, seed=i) for i in range(80)]),
    ):
        path = choose_speaker(track([[each] for each in faces], images), LARGEST, 60.0)
        assert set(path.shots.tolist()) == {0}


def test_stutter_of_dropped_frames_is_no_cut() -> None:
    """30 fps made 25 by dropping every sixth frame: every fifth step is twice as large."""
    places = np.cumsum([12.0 if i % 5 == 0 else 6.0 for i in range(60)])
    images = [scene(shift=round(place), seed=i) for i, place in enumerate(places)]
    path = choose_speaker(track([[face(80 + p, 150)] for p in places], images), LARGEST, 60.0)
    assert set(path.shots.tolist()) == {0}


def test_shots_of_several_speakers_break_where_any_path_does() -> None:
    images = [scene(is_mirrored=i >= 30, seed=i) for i in range(60)]
    script = [
        [face(150, 150), face(450, 150)] if i < 30 else [face(180, 170), face(450, 150)] for i in range(60)
    ]
    tracks = track(script, images)
    paths = [choose_speaker(tracks, LARGEST.parse(side), 60.0) for side in ("left", "right")]
    assert [path.shots[-1] for path in paths] == [1, 0]
    assert merge_shots(paths).tolist() == [0] * 30 + [1] * 30


# --- untouched frames ---


def reasons_of(script: list[list[Detection]], max_yaw_deg: float = 60.0) -> list[UntouchedReason]:
    path = choose_speaker(track(script), LARGEST, max_yaw_deg)
    assert ((path.weight == 0) == (path.reasons != UntouchedReason.NONE)).all()
    return [UntouchedReason(reason) for reason in path.reasons]


def test_untouched_frames_have_reasons() -> None:
    size = MIN_FACE_PX
    script = [[face(300, 150)] for _ in range(120)]
    script[20:40] = [[] for _ in range(20)]
    script[50:70] = [[face(300, 150, presence=0.2)] for _ in range(20)]
    script[80:100] = [[face(300, 150, size=size - 2)] for _ in range(20)]
    script[110:] = [[face(300, 150, yaw_deg=75)] for _ in range(10)]
    reasons = reasons_of(script)
    expected = [UntouchedReason.NONE] * 120
    expected[20:40] = [UntouchedReason.NO_FACE] * 20
    expected[50:70] = [UntouchedReason.LOW_PRESENCE] * 20
    expected[80:100] = [UntouchedReason.SMALL] * 20
    expected[110:] = [UntouchedReason.TURNED] * 10
    assert reasons == expected


def test_one_frame_of_low_presence_stays_untouched() -> None:
    script = [[face(300, 150, presence=0.3 if i == 25 else 1.0)] for i in range(50)]
    reasons = reasons_of(script)
    assert [i for i, reason in enumerate(reasons) if reason] == [25]
    assert reasons[25] is UntouchedReason.LOW_PRESENCE


def test_path_marks_frames_with_a_covered_face() -> None:
    script = [[face(300, 150, presence=0.7 if 20 <= i < 35 else 0.95)] for i in range(60)]
    script[40:42] = [[], []]
    path = choose_speaker(track(script), LARGEST, 60.0)
    assert np.flatnonzero(path.is_covered).tolist() == list(range(20, 35))
    assert (path.weight == 1).all(), "a face that is covered in part is still replaced"


def test_short_dips_of_presence_are_no_occlusion() -> None:
    times_s = np.arange(50) / 25
    covered = np.zeros(50, dtype=bool)
    covered[5:7] = True
    covered[20:31] = True
    assert covered_intervals(covered, times_s) == ((0.8, 1.2),)


def test_points_of_low_presence_are_not_used() -> None:
    script = [[face(300, 150)] for _ in range(60)]
    script[30:34] = [[face(260, 190, presence=0.1)] for _ in range(4)]
    path = choose_speaker(track(script), LARGEST, 60.0)
    shown = path.weight > 0
    assert np.abs(path.points[shown, 2] - (300, 150)).max() < 1e-3


def test_flickering_presence_and_size_do_not_flicker_in_the_path() -> None:
    for each in ({"presence": 0.3}, {"size": MIN_FACE_PX - 1}):
        script = [
            [face(300, 150, **({"size": 60.0} | (each if 20 <= i < 60 and i % 3 else {})))] for i in range(80)
        ]
        untouched = np.array(reasons_of(script)) != UntouchedReason.NONE
        assert untouched[20:59].all()
        assert np.count_nonzero(np.diff(untouched)) == 2


def test_width_of_the_fit_is_the_detectors() -> None:
    class SteadyDetector(ScriptedDetector):
        smooth_s = 0.04

    rng = np.random.default_rng(2)
    script = [[face(300 + float(x), 150)] for x in rng.normal(0, 1, 100)]
    left = {}
    for detector in (ScriptedDetector(script), SteadyDetector(script)):
        tracker = FaceTracker(detector, WIDTH, HEIGHT)
        for i in range(len(script)):
            tracker.add(i / FPS, scene())
        path = choose_speaker(tracker.snapshot(is_complete=True), LARGEST, 60.0)
        left[detector.smooth_s] = np.abs(np.diff(path.points[:, 2, 0], 2)).mean()
    assert left[0.12] < 0.4 * left[0.04]
