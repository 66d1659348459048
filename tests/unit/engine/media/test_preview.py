"""Previews: frames unchanged, the right part of the audio, both starting at 0."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lipsync_engine import LipSyncPipeline, SyncParams, media
from lipsync_engine.errors import LipSyncError
from lipsync_engine.params import Quality, VideoCodec
from lipsync_engine.progress import RenderedSegment

Ffmpeg = Callable[..., None]
N_FRAMES, FPS = 60, 25
LENGTH_S = N_FRAMES / FPS


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    """2.4 s at 25 fps, as a job leaves it."""
    folder = tmp_path_factory.mktemp("segment")
    source = folder / "source.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25", "-frames:v", N_FRAMES, "-c:v", "ffv1", source)
    info = media.probe_video(source)
    pts_s = np.array([pts for pts, _ in media.scan_frames(info, 32)])
    path = folder / "segment.mp4"
    with (
        media.FrameReader(info, pts_s) as reader,
        media.SegmentWriter(path, info, Fraction(FPS), Quality.DEFAULT) as writer,
    ):
        for frame in reader.read(range(N_FRAMES)):
            writer.write(frame)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg) -> Path:
    """Five seconds; a tone from 3.0 to 3.5 s, else silence."""
    path = tmp_path_factory.mktemp("sound") / "sound.wav"
    tone = "sine=f=440:r=44100:d=5,volume=enable='lt(t,3)+gt(t,3.5)':volume=0"
    ffmpeg("-f", "lavfi", "-i", tone, path)
    return path


def pictures(path: Path) -> tuple[np.ndarray, list[float]]:
    info = media.probe_video(path)
    pts_s = np.array([pts for pts, _ in media.scan_frames(info, 96)])
    with media.FrameReader(info, pts_s) as reader:
        return np.stack([frame.y for frame in reader.read(range(len(pts_s)))]), pts_s.tolist()


def loudness(path: Path) -> np.ndarray:
    """RMS of every 10 ms."""
    samples = np.concatenate(list(media.read_audio(path, 16000))) / 32768
    return np.sqrt(np.mean(samples[: len(samples) // 160 * 160].reshape(-1, 160) ** 2, axis=1))


def test_video_is_copied_and_begins_at_zero(segment: Path, sound: Path, tmp_path: Path) -> None:
    output = tmp_path / "fragment.mp4"
    media.write_fragment(segment, sound, 0.0, LENGTH_S, output)
    before, after = pictures(segment), pictures(output)
    assert np.array_equal(before[0], after[0])
    assert after[1] == pytest.approx([number / FPS for number in range(N_FRAMES)])


def test_hevc_segment_is_encoded_again_for_browsers(segment: Path, sound: Path, tmp_path: Path) -> None:
    info = media.probe_video(segment)
    hevc, output = tmp_path / "hevc.mp4", tmp_path / "fragment.mp4"
    with (
        media.FrameReader(info, np.arange(N_FRAMES) / FPS) as reader,
        media.SegmentWriter(hevc, info, Fraction(FPS), Quality.DEFAULT, codec=VideoCodec.HEVC10) as writer,
    ):
        for frame in reader.read(range(N_FRAMES)):
            writer.write(frame)
    media.write_fragment(hevc, sound, 0.0, LENGTH_S, output)
    result = media.probe_video(output)
    assert (result.codec, result.format.bit_depth) == ("h264", 8)
    assert pictures(output)[1] == pytest.approx([number / FPS for number in range(N_FRAMES)])


def test_audio_slice_matches_the_segment(segment: Path, sound: Path, tmp_path: Path) -> None:
    output = tmp_path / "fragment.mp4"
    media.write_fragment(segment, sound, 2.2, 2.2 + LENGTH_S, output)
    heard = loudness(output)
    loud = np.flatnonzero(heard > 0.03)
    assert loud[0] == pytest.approx(80, abs=2)
    assert loud[-1] == pytest.approx(129, abs=3)
    assert len(heard) == pytest.approx(100 * LENGTH_S, abs=3)


@pytest.mark.parametrize("start_s", [3.6, 4.96, 5.0, 60.0])
def test_silence_follows_the_end_of_the_audio(
    start_s: float, segment: Path, sound: Path, tmp_path: Path
) -> None:
    output = tmp_path / "fragment.mp4"
    media.write_fragment(segment, sound, start_s, start_s + LENGTH_S, output)
    heard = loudness(output)
    assert heard.max() < 0.01
    assert len(heard) == pytest.approx(100 * LENGTH_S, abs=3)


def test_fragment_has_the_layout_of_media_sources(segment: Path, sound: Path, tmp_path: Path) -> None:
    """A header, then whole fragments; one edit at most, so that pictures begin at zero there, too."""
    output = tmp_path / "fragment.mp4"
    media.write_fragment(segment, sound, 0.0, LENGTH_S, output)
    content, boxes, at = output.read_bytes(), [], 0
    while at < len(content):
        boxes.append(content[at + 4 : at + 8].decode())
        at += int.from_bytes(content[at : at + 4], "big")
    assert boxes[:2] == ["ftyp", "moov"]
    assert set(boxes[2:]) <= {"sidx", "moof", "mdat", "mfra"}
    assert boxes.count("moof") >= 1
    edits = content.split(b"elst")[1:]
    assert all(int.from_bytes(edit[4:8], "big") == 1 for edit in edits)


def test_still_is_a_small_jpeg(segment: Path, tmp_path: Path) -> None:
    still = tmp_path / "still.jpg"
    media.write_still(segment, 1.0, still)
    assert still.read_bytes()[:3] == b"\xff\xd8\xff"
    assert media.read_image(still, None).shape[1] <= 480


def test_broken_segment_leaves_no_file(sound: Path, tmp_path: Path) -> None:
    broken, output = tmp_path / "broken.mp4", tmp_path / "fragment.mp4"
    broken.write_bytes(b"no film")
    with pytest.raises(LipSyncError):
        media.write_fragment(broken, sound, 0.0, 1.0, output)
    assert not output.exists()


@pytest.mark.slow
def test_segments_of_an_interrupted_run_are_announced_again(
    clip: Path, voice: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    """In order, without a gap, while it is there; a run that goes on announces finished ones again."""
    long_voice = tmp_path / "voice.wav"
    ffmpeg("-stream_loop", -1, "-i", voice, "-t", 9.6, long_voice)
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=tmp_path / "cache")
    params = SyncParams(num_inference_steps=1)
    steps = pipeline.run(clip, long_voice, tmp_path / "out.mp4", params)
    first = next(progress.segment for progress in steps if progress.segment is not None)
    assert first.video.exists()
    steps.close()
    seen: list[RenderedSegment] = []
    for progress in pipeline.run(clip, long_voice, tmp_path / "out.mp4", params):
        if progress.segment is not None:
            assert progress.segment.video.exists()
            seen.append(progress.segment)
    assert (seen[0].index, seen[0].start_s, seen[0].stop_s) == (first.index, 0.0, first.stop_s)
    assert all(one.stop_s == other.start_s for one, other in pairwise(seen))
    assert (len(seen), seen[-1].stop_s, seen[0].audio) == (2, 9.6, long_voice)
