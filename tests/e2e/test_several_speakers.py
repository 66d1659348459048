"""Several speakers in one video: each mouth follows its own voice and rests while the other speaks."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import (
    FaceChoice,
    LipSyncPipeline,
    Speaker,
    SpeakerOrder,
    SyncParams,
    make_dialogue,
    media,
)
from lipsync_engine.errors import ErrorCode, LipSyncError, ParameterError
from lipsync_engine.planning.speakers import SpeakerMix
from tests.support import mouth_score
from tests.support.mouth_score import Truth
from tests.support.paths import DEMO

SECONDS = 3.0
N = round(SECONDS * 25)
SECOND_AT_S = 3.48
"""Where the second voice begins in the sentence: what the lips do in the two has nothing in common."""

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def couple(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    """The demo's presenter twice, side by side."""
    path = tmp_path_factory.mktemp("couple") / "couple.mp4"
    twice = "[0:v]split[a][b];[a][b]hstack"
    ffmpeg("-i", DEMO / "presenter.mp4", "-filter_complex", twice, "-crf", 12, path)
    return path


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> tuple[Path, Path]:
    """Two stretches of the demo's sentence."""
    folder = tmp_path_factory.mktemp("voices")
    paths = folder / "first.wav", folder / "second.wav"
    for number, path in enumerate(paths):
        ffmpeg("-i", DEMO / "voice.wav", "-ss", number * SECOND_AT_S, "-t", SECONDS, path)
    return paths


@pytest.fixture(scope="module")
def truths() -> tuple[Truth, Truth]:
    """What the lips should do with each; the head's poses are always those of the clip."""
    whole = Truth.load(DEMO / "truth.json")
    return whole, dataclasses.replace(
        whole,
        openness=whole.openness[round(SECOND_AT_S * 25) :],
        events=[(start - SECOND_AT_S, viseme) for start, viseme in whole.events],
    )


def mouths(path: Path, folder: Path, truth: Truth, ffmpeg: Ffmpeg) -> list[np.ndarray]:
    """(n,) openness of the left and of the right mouth."""
    matches = []
    for number in range(2):
        half = folder / f"half-{number}.mp4"
        ffmpeg("-i", path, "-vf", f"crop=iw/2:ih:{number}*iw/2:0", "-qp", 0, "-preset", "ultrafast", half)
        matches.append(mouth_score.read_video(half, truth))
    return matches


def test_two_concurrent_speakers_follow_their_voices(
    couple: Path,
    voices: tuple[Path, Path],
    truths: tuple[Truth, Truth],
    tmp_path: Path,
    ffmpeg: Ffmpeg,
    lipsync: Run,
) -> None:
    output = tmp_path / "made.mp4"
    left, right = (f"{side}={path}" for side, path in zip(("left", "right"), voices, strict=True))
    result = lipsync("multi", couple, "-o", output, "--speaker", left, "--speaker", right, "--steps", 2)
    assert result.returncode == 0, result.stderr[-2000:]
    read = mouths(output, tmp_path, truths[0], ffmpeg)
    table = [[mouth_score.correlation(lips[:N], truth.openness[:N]) for truth in truths] for lips in read]
    print(np.round(table, 2))
    for person in range(2):
        assert table[person][person] > 0.8
        assert table[person][1 - person] < 0.3


@pytest.mark.slow
def test_listener_keeps_the_mouth_closed(
    couple: Path, voices: tuple[Path, Path], tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    truth = Truth.load(DEMO / "truth.json")
    speakers = make_dialogue(*voices, SpeakerOrder.RIGHT_LEFT)
    result = pipeline(couple, speakers, tmp_path / "made.mp4", SyncParams(num_inference_steps=2))
    assert result.frames == 2 * N
    assert list((tmp_path / "cache" / "jobs").iterdir()) == []
    there_and_back = dataclasses.replace(truth, poses=truth.poses + truth.poses[-2:0:-1])
    left, right = mouths(result.output, tmp_path, there_and_back, ffmpeg)
    rest = 10  # frames around the change of turns
    for silent, speaking in ((left[: N - rest], right[: N - rest]), (right[N + rest :], left[N + rest :])):
        assert silent.mean() < 0.15
        assert silent.std() < 0.3 * speaking.std()
    audio = np.concatenate(list(media.read_audio(result.output))).astype(float)
    parts = [np.concatenate(list(media.read_audio(path))).astype(float) for path in (voices[1], voices[0])]
    expected = np.concatenate(parts)
    n = min(len(audio), len(expected))
    assert mouth_score.correlation(audio[:n], expected[:n]) > 0.98


# --- people who cross ---

HEAD_PX, ROOM_PX, LEFT_PX, WAY_PX = 270, 960, 46, 600
"""Width of a person's picture and of the room; where they stand, and how far each walks."""

STARTS_S, WALKS_S = 0.4, 2.0
WALK = f"{WAY_PX}*(0.5-0.5*cos(PI*clip((t-{STARTS_S})/{WALKS_S}\\,0\\,1)))"
PLACES = f"{LEFT_PX}+{WALK}", f"{LEFT_PX + WAY_PX}-{WALK}"


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    """One goes from left to right, the other from right to left, behind."""
    path = tmp_path_factory.mktemp("crossing") / "crossing.mp4"
    people = (
        f"[0:v]trim=0:{SECONDS},crop={HEAD_PX}:384,split[a][b];"
        f"color=c=0x5a6a70:s={ROOM_PX}x384:r=25:d={SECONDS}[room];"
        f"[room][b]overlay=x='{PLACES[1]}':eval=frame[c];[c][a]overlay=x='{PLACES[0]}':eval=frame"
    )
    ffmpeg("-i", DEMO / "presenter.mp4", "-filter_complex", people, "-crf", 10, "-t", SECONDS, path)
    return path


@pytest.mark.slow
def test_crossing_speakers_keep_their_voices(
    crossing: Path,
    voices: tuple[Path, Path],
    truths: tuple[Truth, Truth],
    tmp_path: Path,
    ffmpeg: Ffmpeg,
) -> None:
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    faces = [FaceChoice.parse(text) for text in ("180,190@0", "780,190@0")]
    speakers = [Speaker(face, voice) for face, voice in zip(faces, voices, strict=True)]
    output = pipeline(crossing, speakers, tmp_path / "made.mp4").output
    times_s = np.arange(N) / 25
    walked = 0.5 - 0.5 * np.cos(np.pi * np.clip((times_s - STARTS_S) / WALKS_S, 0, 1))
    # Who is behind is hidden while they meet; next to that the mouth fades out and in.
    hidden = times_s[np.abs(WAY_PX - 2 * WAY_PX * walked) < HEAD_PX]
    rows = np.ones(N, dtype=bool), (times_s < hidden[0] - 0.2) | (times_s > hidden[-1] + 0.2)
    assert (rows[1] & (times_s > hidden[-1])).sum() > 20
    table = []
    for number, place in enumerate(PLACES):
        alone = tmp_path / f"alone-{number}.mp4"
        follow = f"crop={HEAD_PX}:384:'{place}':0:exact=1,pad=384:384:-1:0"
        ffmpeg("-i", output, "-vf", follow, "-qp", 0, "-preset", "ultrafast", alone)
        lips = mouth_score.read_video(alone, truths[0])[rows[number]]
        table.append([mouth_score.correlation(lips, truth.openness[:N][rows[number]]) for truth in truths])
    print(np.round(table, 2))
    for person in range(2):
        assert table[person][person] > 0.5  # lower than at rest: they walk, and one is hidden in between
        assert table[person][1 - person] < 0.3


# --- who and when ---


def test_dialogue_times_and_tracks(voices: tuple[Path, Path], tmp_path: Path) -> None:
    left, right = FaceChoice.parse("left"), FaceChoice.parse("right")
    mix = SpeakerMix.from_speakers(
        [Speaker(left, voices[0], 1.0, 0.5), Speaker(right, voices[1]), Speaker(left, voices[1], 2.0)]
    )
    assert mix.duration_s == pytest.approx(2.0 + SECONDS, abs=0.01)
    tracks = mix.write_tracks(tmp_path)
    assert [face for face, _ in tracks] == [left, right]
    for _, info in tracks:
        assert info.duration_s == pytest.approx(mix.duration_s, abs=0.01)
    samples = np.concatenate(list(media.read_audio(tracks[0][1].path))).astype(float)
    first = np.concatenate(list(media.read_audio(voices[0]))).astype(float)
    assert not samples[:15900].any()
    assert np.abs(samples[16100:23900] - first[100:7900]).max() < 400
    assert not samples[24100:31900].any()
    # What is heard: one file twice, at the start and from two seconds on.
    audio = np.concatenate(list(media.read_audio(mix.write_mix(tmp_path)))).astype(float)
    again = np.concatenate(list(media.read_audio(voices[1]))).astype(float)
    assert np.abs(audio[1600:14400] - again[1600:14400]).max() < 400
    assert np.abs(audio[51200:76800] - again[19200:44800]).max() < 400


def test_impossible_dialogue_is_rejected(
    voices: tuple[Path, Path], couple: Path, tmp_path: Path, lipsync: Run
) -> None:
    remaining = FaceChoice.parse("left")
    with pytest.raises(ParameterError, match="same person"):
        SpeakerMix.from_speakers([Speaker(remaining, voices[0]), Speaker(remaining, voices[1], 1.0)])
    with pytest.raises(ParameterError, match="speakers"):
        SpeakerMix.from_speakers([])
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    with pytest.raises(LipSyncError) as same:
        pipeline(DEMO / "presenter.mp4", make_dialogue(*voices, SpeakerOrder.TOGETHER), tmp_path / "out.mp4")
    assert same.value.code is ErrorCode.FACE_CHOICE_UNMATCHED
    for wrong in (
        ["--speaker", "left"],
        ["--speaker", f"left={voices[0]}", "--order", "left_right"],
        ["--segment", f"0:04-0:02,face=left,audio={voices[0]}"],
        ["--segment", "x,y"],
        [],
    ):
        rejection = lipsync("multi", couple, "-o", tmp_path / "out.mp4", *wrong)
        assert rejection.returncode != 0
        assert "parameter_invalid" in rejection.stderr
    assert not (tmp_path / "out.mp4").exists()
