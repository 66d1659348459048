"""Source order, windows and segments: promises checked on many shapes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_engine.errors import ErrorCode, ParameterError
from lipsync_engine.media.rates import snap_rate
from lipsync_engine.params import LoopMode, Tail
from lipsync_engine.planning import timeline


def test_output_lasts_as_long_as_the_audio_to_the_frame() -> None:
    assert timeline.count_audio_frames(9.6, Fraction(25)) == 240
    assert timeline.count_audio_frames(9.601, Fraction(25)) == 241
    assert timeline.count_audio_frames(1 / 3, Fraction(30)) == 10
    assert timeline.count_audio_frames(10.01, Fraction(30000, 1001)) == 300
    assert timeline.count_audio_frames(0.001, Fraction(25)) == 1


def test_reference_length_matches_the_published_examples() -> None:
    assert [timeline.count_reference_audio_frames(n) for n in (617, 1851, 10)] == [310, 927, 7]


def test_conform_is_the_identity_at_the_source_rate(subtests: pytest.Subtests) -> None:
    for fps in [Fraction(25), Fraction(30000, 1001), Fraction(60), Fraction(12)]:
        with subtests.test(fps=fps):
            pts = np.arange(700) / float(fps)
            assert timeline.conform_to_rate(pts, fps, fps).tolist() == list(range(700))


def test_conform_of_a_variable_rate_shows_each_frame_while_it_lasts() -> None:
    pts = np.array([0.0, 0.04, 0.5, 0.52, 0.54])  # the second frame is held for 0.46 s
    shown = timeline.conform_to_rate(pts, Fraction(25), Fraction(50))
    assert shown.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 4]


def test_conform_changes_rate_without_changing_duration() -> None:
    pts = np.arange(300) / 30.0
    shown = timeline.conform_to_rate(pts, Fraction(25), Fraction(30))
    assert len(shown) == 250
    assert np.all(np.diff(shown) >= 1)
    assert np.abs(pts[shown] - np.arange(250) / 25).max() <= 1 / 30


def test_loop_modes(subtests: pytest.Subtests) -> None:
    for mode, expected in [
        (LoopMode.PINGPONG, [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]),
        (LoopMode.LOOP, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]),
        (LoopMode.FREEZE, [0, 1, 2, 3, 3, 3, 3, 3, 3, 3]),
        (LoopMode.REMAP, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
    ]:
        with subtests.test(mode=mode, expected=expected):
            assert timeline.source_order(4, 10, mode, Tail.CUT).tolist() == expected


def test_reference_pingpong_repeats_the_end_frames() -> None:
    order = timeline.source_order(3, 10, LoopMode.PINGPONG, Tail.CUT, repeat_ends=True)
    assert order.tolist() == [0, 1, 2, 2, 1, 0, 0, 1, 2, 2]


def test_one_frame_video_and_tails() -> None:
    assert timeline.source_order(1, 4, LoopMode.PINGPONG, Tail.CUT).tolist() == [0, 0, 0, 0]
    assert timeline.source_order(9, 4, LoopMode.PINGPONG, Tail.CUT).tolist() == [0, 1, 2, 3]
    assert timeline.source_order(9, 4, LoopMode.PINGPONG, Tail.KEEP).tolist() == list(range(9))


def test_phases_keep_the_model_near_25_fps() -> None:
    expected = {
        Fraction(10): 1,
        Fraction(24): 1,
        Fraction(25): 1,
        Fraction(30): 1,
        Fraction(50): 2,
        Fraction(60): 2,
    }
    assert {fps: timeline.count_phases(fps) for fps in expected} == expected
    for fps in (Fraction(48), Fraction(60000, 1001), Fraction(72), Fraction(100), Fraction(120)):
        assert 20 <= fps / timeline.count_phases(fps) <= 31


def test_runs_end_at_gaps_cuts_and_loop_restarts() -> None:
    weight = np.array([1, 1, 0, 1, 1, 1, 1, 1, 1], dtype=np.float32)
    shots = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    order = np.array([0, 1, 2, 3, 4, 5, 6, 0, 1])
    assert timeline.find_face_runs(weight, shots, order, 1) == [(0, 2), (3, 5), (5, 7), (7, 9)]


def test_reference_windows_follow_each_other_and_the_last_is_short() -> None:
    windows = timeline.plan_windows([(0, 12)], 1, 8, 0)
    assert [w.frames for w in windows] == [tuple(range(8)), tuple(range(8, 12))]
    assert all(weight == 1.0 for w in windows for weight in w.weights)


def test_overlapping_windows_are_all_full_and_blend_linearly() -> None:
    windows = timeline.plan_windows([(10, 40)], 1, 16, 4)
    assert [(w.frames[0], len(w.frames)) for w in windows] == [(10, 16), (22, 16), (24, 16)]
    first, second, _ = windows
    assert first.output_frames == tuple(range(10, 22))
    assert np.allclose(first.weights[:12], 1.0)
    assert first.weights[12] == pytest.approx(0.8)
    assert second.weights[0] == pytest.approx(0.2)


def test_overlap_as_large_as_the_window_is_refused() -> None:
    with pytest.raises(ParameterError) as error:
        timeline.plan_windows([(0, 9)], 1, 8, 8)
    assert error.value.code is ErrorCode.PARAMETER_INVALID


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 130), st.integers(0, 9)), min_size=1, max_size=4),
    n_phases=st.integers(1, 4),
    window_frames=st.integers(2, 16),
    overlap=st.integers(0, 12),
    first_s=st.sampled_from([0.2, 2.0]),
    target_s=st.sampled_from([0.2, 1.0, 6.0]),
)
def test_every_frame_is_made_once_and_segments_stand_alone(
    lengths: list[tuple[int, int]],
    n_phases: int,
    window_frames: int,
    overlap: int,
    first_s: float,
    target_s: float,
) -> None:
    overlap = min(overlap, window_frames - 1)
    stretches, position = [], 0
    for length, gap in lengths:
        stretches.append((position, position + length))
        position += length + gap
    active = sorted(i for start, stop in stretches for i in range(start, stop))
    windows = timeline.plan_windows(stretches, n_phases, window_frames, overlap)

    assert sorted(i for w in windows for i in w.output_frames) == active
    total = np.zeros(position)
    for w in windows:
        assert len(w.frames) <= window_frames
        assert set(w.output_frames) <= set(w.frames)
        assert {b - a for a, b in zip(w.frames, w.frames[1:], strict=False)} <= {n_phases}
        np.add.at(total, list(w.frames), w.weights)
    assert np.allclose(total[active], 1.0)

    # Another speaker is seen a little later each time, so that windows do not meet at the same frames.
    later = [(min(start + 5, stop - 1), stop) for start, stop in stretches]
    others = timeline.plan_windows(later, n_phases, window_frames, overlap)
    segments = timeline.plan_segments(position, [windows, others], Fraction(25), first_s, target_s)
    assert [s.start for s in segments] == [0] + [s.stop for s in segments[:-1]]
    assert segments[-1].stop == position
    assert sorted(k for s in segments for k in s.speaker_windows[0].windows) == list(range(len(windows)))
    for s in segments:
        for of_speaker, share in zip((windows, others), s.speaker_windows, strict=True):
            output = {*share.context_windows, *share.windows}
            for k in share.windows:
                for frame in of_speaker[k].output_frames:  # every window that the frame is blended from
                    assert {w.index for w in of_speaker if frame in w.frames} <= {i for i in output if i <= k}
            shown = {n for k in share.windows for n in of_speaker[k].output_frames if s.start <= n < s.stop}
            assert shown == {n for w in of_speaker for n in w.output_frames if s.start <= n < s.stop}
        assert all(k < min(s.speaker_windows[0].windows) for k in s.speaker_windows[0].context_windows)
        for k in s.speaker_windows[0].windows:
            assert s.start <= windows[k].output_frames[0]
            assert windows[k].output_frames[-1] < s.stop


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 40)), min_size=1, max_size=5),
    rate=st.sampled_from([24, 25, 50, 60]),
    window_frames=st.integers(2, 16),
    overlap=st.integers(0, 12),
    first_s=st.sampled_from([0.5, 2.0]),
    target_s=st.sampled_from([1.0, 2.0]),
    share=st.floats(0.1, 1.0),
)
def test_settled_segments_stay_when_more_frames_come(
    lengths: list[tuple[int, int]],
    rate: int,
    window_frames: int,
    overlap: int,
    first_s: float,
    target_s: float,
    share: float,
) -> None:
    fps, overlap = Fraction(rate), min(overlap, window_frames - 1)
    stretches, n_frames = [], 0
    for length, gap in lengths:
        stretches.append((n_frames, n_frames + length))
        n_frames += length + gap

    def planned(n: int) -> tuple[list[tuple[timeline.Window, ...]], tuple[timeline.Segment, ...]]:
        windows = []
        for shift in (0, 5):  # another speaker is seen a little later each time
            cut = [(min(a + shift, b - 1), min(b, n)) for a, b in stretches]
            cut = [(a, b) for a, b in cut if a < b]
            windows.append(timeline.plan_windows(cut, timeline.count_phases(fps), window_frames, overlap))
        return windows, timeline.plan_segments(n, windows, fps, first_s, target_s)

    windows, segments = planned(n_frames)
    n_known = max(1, round(share * n_frames))
    early_windows, early = planned(n_known)
    settled = timeline.settled_segments(early, n_known, fps, window_frames, target_s)
    assert settled == segments[: len(settled)]
    for segment in settled:
        for speaker, needed in enumerate(segment.speaker_windows):
            for k in (*needed.context_windows, *needed.windows):
                assert early_windows[speaker][k] == windows[speaker][k]
    if n_known - len(settled) * target_s * rate > 10 * target_s * rate + 6 * 16 * 3:
        assert settled  # enough is known for some


def test_snapping() -> None:
    assert snap_rate(Fraction("29.97")) == Fraction(30000, 1001)
    assert snap_rate(Fraction("23.98")) == Fraction(24000, 1001)
    assert snap_rate(Fraction("59.94")) == Fraction(60000, 1001)
    assert snap_rate(Fraction(25)) == 25
    assert snap_rate(Fraction("12.5")) == Fraction(25, 2)
