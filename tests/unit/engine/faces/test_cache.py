"""Tests of stored analyses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from lipsync_engine import faces
from lipsync_engine.faces import FaceTracks
from tests.support.scripted_faces import face, track


def test_cache_returns_stored_tracks_and_removes_damaged_files(tmp_path: Path) -> None:
    cache, tracks = (
        faces.AnalysisCache(tmp_path),
        track([[face(150, 150), face(450, 150, size=110)] for _ in range(50)]),
    )
    key = faces.analysis_key("a" * 64, "scripted")
    assert cache.get(key) is None
    cache.put(key, tracks)
    again = cache.get(key)
    assert again is not None
    assert (again.smooth_s, again.is_complete) == (tracks.smooth_s, tracks.is_complete)
    np.testing.assert_array_equal(again.pts_s, tracks.pts_s)
    for one, other in zip(again.tracks, tracks.tracks, strict=True):
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(stored.read_bytes()[:200])
    assert cache.get(key) is None
    assert not stored.exists()
    assert key != faces.analysis_key("a" * 64, "other")


def test_tracks_without_faces_are_stored(tmp_path: Path) -> None:
    track([[]] * 5).save(tmp_path / "t.npz")
    assert FaceTracks.load(tmp_path / "t.npz").tracks == ()


def test_tracks_of_another_format_count_as_none(tmp_path: Path) -> None:
    """Files of an older version have other columns."""
    cache = faces.AnalysisCache(tmp_path)
    key = faces.analysis_key("a" * 64, "scripted")
    cache.put(key, track([[face(150, 150)]] * 5))
    (stored,) = tmp_path.iterdir()
    with np.load(stored) as file:
        arrays = dict(file)
    arrays["format"] = np.array(2)
    with stored.open("wb") as out:
        np.savez_compressed(out, **arrays)
    assert cache.get(key) is None
