"""Several speakers: when each is heard, a track per person as long as the whole, and what is heard together.

It knows neither faces nor models.
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
from lipsync_engine.params import FaceChoice, Order, Speaker

MAX_SPEAKERS = 8


def dialogue(left: Path, right: Path, order: Order) -> tuple[Speaker, Speaker]:
    """The leftmost and the rightmost person, together or one after the other."""
    first, second = FaceChoice.parse("left"), FaceChoice.parse("right")
    starts = {
        Order.TOGETHER: lambda: (0.0, 0.0),
        Order.LEFT_RIGHT: lambda: (0.0, media.probe_audio(left).duration_s),
        Order.RIGHT_LEFT: lambda: (media.probe_audio(right).duration_s, 0.0),
    }[order]()
    return Speaker(first, left, starts[0]), Speaker(second, right, starts[1])


@dataclass(frozen=True, slots=True)
class Cast:
    """The voices of a job.

    Attributes:
        speakers: as asked for; entries with one face are one person.
        duration_s: until the last one ends.
    """

    speakers: tuple[Speaker, ...]
    duration_s: float

    @classmethod
    def of(cls, speakers: Sequence[Speaker]) -> Cast:
        """
        Raises:
            ParameterError: nobody, too many, or one person with two voices at once.
            MediaError: a voice cannot be used.
        """
        if not speakers or len({speaker.face for speaker in speakers}) > MAX_SPEAKERS:
            raise ParameterError(f"Name 1 to {MAX_SPEAKERS} speakers, each with a face and a voice.")
        timed = []
        for speaker in speakers:
            whole_s = media.probe_audio(speaker.audio).duration_s
            length_s = whole_s if speaker.length_s is None else min(whole_s, speaker.length_s)
            timed.append(dataclasses.replace(speaker, length_s=length_s))
        for one, other in itertools.combinations(timed, 2):
            if one.face == other.face and _overlap_s(one, other) > 0.04:
                raise ParameterError(
                    f"{one.audio.name!r} and {other.audio.name!r} are the same person's and sound at once: "
                    "move one of them."
                )
        return cls(tuple(timed), max(map(_stop_s, timed)))

    def record(self, folder: Path) -> list[tuple[FaceChoice, AudioInfo]]:
        """Of each person the track that drives the lips: the own voice where it sounds, else silence."""
        people: dict[FaceChoice, list[Speaker]] = {}
        for speaker in self.speakers:
            people.setdefault(speaker.face, []).append(speaker)
        found = []
        for number, (face, parts) in enumerate(people.items()):
            track = folder / f"voice-{number}.wav"
            media.mix_audio([_placed(part) for part in parts], self.duration_s, track)
            found.append((face, media.probe_audio(track)))
        return found

    def mix(self, folder: Path) -> Path:
        """What is heard: all voices."""
        track = folder / "mix.wav"
        media.mix_audio([_placed(speaker) for speaker in self.speakers], self.duration_s, track)
        return track


def _placed(speaker: Speaker) -> AudioClip:
    return AudioClip(speaker.audio, speaker.start_s, speaker.length_s)


def _stop_s(speaker: Speaker) -> float:
    return speaker.start_s + (speaker.length_s or 0.0)


def _overlap_s(one: Speaker, other: Speaker) -> float:
    return min(_stop_s(one), _stop_s(other)) - max(one.start_s, other.start_s)
