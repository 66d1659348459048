"""Tests of tracking: scripted detections in, tracks and shots out."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.support.scripted_faces import HEIGHT, WIDTH, face, image, track


def test_crossing_people_keep_their_tracks() -> None:
    script = []
    for i in range(100):
        a, b = face(120 + 4 * i, 150), face(520 - 4 * i, 190, size=76)
        result = [a, b] if i % 2 else [b, a]
        script.append(result if abs(a.box[0] - b.box[0]) > 20 else [a])  # one hides the other for a moment
    tracks = track(script)
    long = [t for t in tracks.tracks if len(t.frames) > 80]
    assert len(long) == 2
    for t in long:
        steps = np.diff(t.boxes[:, 0]) / np.diff(t.frames)
        assert np.all(np.sign(steps) == np.sign(steps[0]))


def test_face_lost_for_a_moment_keeps_its_track() -> None:
    tracks = track([[face(300 + i, 150)] if not 40 <= i < 58 else [] for i in range(100)])
    assert len(tracks.tracks) == 1


def test_cut_ends_tracks_and_flicker_does_not() -> None:
    shades = [60] * 30 + [150] * 30
    tracks = track([[face(300, 150)]] * 60, [image(s) for s in shades])
    assert tracks.shots.tolist() == [0] * 30 + [1] * 30
    assert [t.frames.tolist() for t in tracks.tracks] == [list(range(30)), list(range(30, 60))]
    rng = np.random.default_rng(0)
    noisy = [
        np.clip(image(100) + rng.normal(0, 6, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8) for _ in range(20)
    ]
    assert set(track([[]] * 20, noisy).shots.tolist()) == {0}


def test_pale_lips_are_covered_unless_all_lips_of_the_track_are_pale() -> None:
    (one,) = track([[face(150, 150)]] * 10).tracks
    assert not one.is_covered.any()  # the detector does not measure lips
    contrast = np.array([0.3, 0.28, 0.16, 0.1, np.nan, -0.1, 0.29, 0.31, 0.3, 0.27], np.float32)
    covered = dataclasses.replace(one, lip_contrast=contrast).is_covered
    assert np.flatnonzero(covered).tolist() == [3, 5]
    assert not dataclasses.replace(one, lip_contrast=contrast * 0.3).is_covered.any()
