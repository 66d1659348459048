"""Several speakers: when each one speaks, one audio track per person, and the mix of all voices.

The module knows neither faces nor models.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lipsync_engine import media
from lipsync_engine.errors import ParameterError
from lipsync_engine.media import AudioClip, AudioInfo
from lipsync_engine.params import FaceChoice, Speaker, SpeakerOrder

MAX_SPEAKERS = 8
MAX_OVERLAP_S = 0.04
"""Two audio files of one person may overlap by one frame, which rounding of their lengths can cause."""


def make_dialogue(left: Path, right: Path, order: SpeakerOrder) -> tuple[Speaker, Speaker]:
    """Return the leftmost and the rightmost person as speakers, at the same time or in turn.

    Args:
        left, right: the audio file of each.

    Raises:
        MediaError: a file has no usable audio.
    """
    left_s = right_s = 0.0
    if order is SpeakerOrder.LEFT_RIGHT:
        right_s = media.probe_audio(left).duration_s
    elif order is SpeakerOrder.RIGHT_LEFT:
        left_s = media.probe_audio(right).duration_s
    return (
        Speaker(FaceChoice.parse("left"), left, left_s),
        Speaker(FaceChoice.parse("right"), right, right_s),
    )


@dataclass(frozen=True, slots=True)
class SpeakerMix:
    """The speakers of a job and how their audio is combined.

    Attributes:
        speakers: with their lengths; entries with equal faces are one person.
        duration_s: until the last one ends.
    """

    speakers: tuple[Speaker, ...]
    duration_s: float

    @classmethod
    def from_speakers(cls, speakers: Sequence[Speaker]) -> SpeakerMix:
        """Probe the speakers' audio and check that they can be combined.

        Raises:
            ParameterError: no speaker, too many, or one person with two audio files at the same time.
            MediaError: a file has no usable audio.
        """
        if not speakers or len({speaker.face for speaker in speakers}) > MAX_SPEAKERS:
            raise ParameterError(f"Name 1 to {MAX_SPEAKERS} speakers, each with a face and an audio file.")
        with_lengths = []
        for speaker in speakers:
            file_s = media.probe_audio(speaker.audio).duration_s
            length_s = file_s if speaker.length_s is None else min(file_s, speaker.length_s)
            with_lengths.append(dataclasses.replace(speaker, length_s=length_s))
        for one, other in itertools.combinations(with_lengths, 2):
            if one.face == other.face and _overlap_s(one, other) > MAX_OVERLAP_S:
                raise ParameterError(
                    f"{one.audio.name!r} and {other.audio.name!r} belong to the same person and overlap: "
                    "move one of them."
                )
        return cls(tuple(with_lengths), max(map(_stop_s, with_lengths)))

    def write_tracks(self, folder: Path) -> list[tuple[FaceChoice, AudioInfo]]:
        """Write one audio track per person: the person's audio where there is some, silence elsewhere."""
        by_face: dict[FaceChoice, list[Speaker]] = {}
        for speaker in self.speakers:
            by_face.setdefault(speaker.face, []).append(speaker)
        tracks = []
        for number, (face, parts) in enumerate(by_face.items()):
            path = folder / f"voice-{number}.flac"
            media.mix_audio([_audio_clip(part) for part in parts], self.duration_s, path)
            tracks.append((face, media.probe_audio(path)))
        return tracks

    def write_mix(self, folder: Path) -> Path:
        """Write the mix of all voices and return its path."""
        path = folder / "mix.flac"
        media.mix_audio([_audio_clip(speaker) for speaker in self.speakers], self.duration_s, path)
        return path


def _audio_clip(speaker: Speaker) -> AudioClip:
    return AudioClip(speaker.audio, speaker.start_s, speaker.length_s)


def _stop_s(speaker: Speaker) -> float:
    return speaker.start_s + (speaker.length_s or 0.0)


def _overlap_s(one: Speaker, other: Speaker) -> float:
    return min(_stop_s(one), _stop_s(other)) - max(one.start_s, other.start_s)
