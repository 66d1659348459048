"""The options of a job as one immutable value, with their ranges and the named presets.

Pure: no I/O, no clock. It does not know models: options left at None take the model's own default later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

from lipsync_engine.errors import ParameterError


def _require_range(name: str, value: float | Fraction | None, low: float, high: float) -> None:
    if value is None:
        return
    if not low <= value <= high:  # also refuses NaN
        raise ParameterError(f"{name}={value} is out of range: it must lie between {low} and {high}.")


class LoopMode(StrEnum):
    """What to show when the audio outlasts the video."""

    PINGPONG = "pingpong"  # forward, backward, forward …
    LOOP = "loop"  # from the start again
    FREEZE = "freeze"  # hold the last frame
    REMAP = "remap"  # stretch the video's time to the audio's


class Tail(StrEnum):
    """What to do with the rest of the video when the audio ends first."""

    CUT = "cut"
    KEEP = "keep"  # the rest follows untouched


class Order(StrEnum):
    """When two people speak."""

    TOGETHER = "together"
    LEFT_RIGHT = "left_right"  # the left one first
    RIGHT_LEFT = "right_left"


class Motion(StrEnum):
    """What a still portrait does besides speaking."""

    STILL = "still"
    NATURAL = "natural"  # sways and nods with the voice, breathes, blinks
    GENERATED = "generated"  # what an image-to-video model makes of it


class Engine(StrEnum):
    """Where the workers of a batch run."""

    LOCAL = "local"  # processes on this machine
    RAY = "ray"  # on the machines of a Ray cluster


class Quality(StrEnum):
    """The one lossy video encode of a job."""

    DEFAULT = "default"  # visually transparent
    LOSSLESS = "lossless"


class FaceRule(StrEnum):
    LARGEST = "largest"
    LEFT = "left"
    RIGHT = "right"
    INDEX = "index"
    POINT = "point"


@dataclass(frozen=True, slots=True)
class FaceChoice:
    """Which person speaks.

    Attributes:
        rule: how to choose.
        index: for INDEX, the position from left to right, counted from 0.
        x, y: for POINT, displayed pixels of the source video.
        time_s: for POINT, when that point lies on the face, seconds of the source video.
    """

    rule: FaceRule = FaceRule.LARGEST
    index: int = 0
    x: float = 0.0
    y: float = 0.0
    time_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> FaceChoice:
        """Read `largest`, `left`, `right`, a number, or `X,Y@SECONDS`."""
        if text in (FaceRule.LARGEST, FaceRule.LEFT, FaceRule.RIGHT):
            return cls(rule=FaceRule(text))
        if text.isascii() and text.isdigit():
            return cls(rule=FaceRule.INDEX, index=int(text))
        place, _, time = text.partition("@")
        try:
            x, y = (float(part) for part in place.split(","))
            return cls(rule=FaceRule.POINT, x=x, y=y, time_s=float(time) if time else 0.0)
        except ValueError:
            raise ParameterError(
                f"face={text!r} is not understood: use largest, left, right, a number counted from the left "
                "(0 is the leftmost), or X,Y@SECONDS such as 640,300@1.5."
            ) from None


@dataclass(frozen=True, slots=True)
class Speaker:
    """One person's voice in a video with several.

    Attributes:
        face: which person; entries with equal faces are one person who speaks several times.
        audio: file with the voice.
        start_s: where in the result it begins to sound.
        length_s: how much of the file is spoken; None: all.
    """

    face: FaceChoice
    audio: Path
    start_s: float = 0.0
    length_s: float | None = None

    def __post_init__(self) -> None:
        _require_range("start_s", self.start_s, 0.0, 6 * 3600.0)
        _require_range("length_s", self.length_s, 0.01, 6 * 3600.0)


class Solver(StrEnum):
    """How a step follows from what the network said; the network is the same."""

    DDIM = "ddim"  # LatentSync's own
    DPM = "dpm"  # DPM-Solver++ 2M
    UNIPC = "unipc"


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """What may be left out of the model's work, at a cost in likeness that `docs/speed.md` measures.

    Attributes:
        solver: with fewer steps the higher-order ones stay closer.
        reuse_within: what the coarse layers said is used again, and only the finest one runs, until the
            share of signal in the latents (0 is noise, 1 is clean) has changed by more than this, 0-1. The
            first and the last step are always whole.
        guide_every: of the steps at which the whole network runs, it also runs without sound at every n-th,
            1-10; between them the last difference is used again.
    """

    solver: Solver = Solver.DDIM
    reuse_within: float = 0.0
    guide_every: int = 1

    def __post_init__(self) -> None:
        _require_range("reuse_within", self.reuse_within, 0.0, 1.0)
        _require_range("guide_every", self.guide_every, 1, 10)

    def schedule(self, levels: Sequence[float], *, guided: bool) -> list[tuple[bool, bool]]:
        """For each step, whether it also runs without sound, and whether the whole network runs.

        Args:
            levels: the share of signal in the latents that each step starts from.
        """
        found, wholes, last_level = [], 0, 0.0
        for number, level in enumerate(levels):
            is_end = number in (0, len(levels) - 1)
            whole = is_end or self.reuse_within == 0 or abs(level - last_level) > self.reuse_within
            found.append((whole and guided and wholes % self.guide_every == 0, whole))
            if whole:
                wholes, last_level = wholes + 1, level
        return found


EXACT = Shortcuts()
"""None of them."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a caller knows of a job that decides no pixel; hashes of it are signed with the result.

    Attributes:
        consent: reference to the consent of the person shown, 1 to 200 printable characters.
        job: the caller's name of the job; None: one made of its inputs and options.
    """

    consent: str | None = None
    job: str | None = None

    def __post_init__(self) -> None:
        if self.consent is not None and not (0 < len(self.consent) <= 200 and self.consent.isprintable()):
            raise ParameterError(
                "consent must have 1 to 200 printable characters: give a reference, not a text."
            )


@dataclass(frozen=True, slots=True)
class SyncParams:
    """Everything a caller may choose about one job; frozen, so that it can name cached work.

    Attributes:
        num_inference_steps: denoising steps, 1-200; None: the model's default.
        guidance_scale: weight of the audio guidance, 0-20 (1 and below: off); None: the model's default.
        seed: of all random draws, 0 … 2**63-1.
        fps: output frame rate; None keeps the source's.
        loop_mode: when the audio is longer than the video.
        tail: when the audio is shorter than the video.
        face: which person speaks.
        faces_file: JSON of per-frame boxes or landmarks; the detector is not used then.
        face_mask: an image, white where the speaker's face is; it selects the face that it covers most.
        mask_image: an image, white where the picture may change, black where not; unless the speaker is
            chosen otherwise, it is the one whose face the white covers most.
        matte: image or video, white where something stands before the mouth; there the source's pixels stay.
        max_yaw_deg: a head turned further than this is left untouched, with a soft fade.
        window_overlap: frames shared by neighbouring model windows, 0-12.
        voice_gate: let the mouth rest where nobody speaks.
        sample_posterior: draw VAE latents as the reference does instead of taking the mean.
        reference_numerics: the reference's own mask edge, rounding, paste-back and loop rule.
        max_short_side: pixels; a larger picture is scaled down to it, a smaller one never up; None: as it is.
        quality: of the final encode.
        shortcuts: what may be left out for speed.
        label: show in a corner of every picture that it is generated.
        watermark: put an unseen mark into generated faces that can be found again.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 1247
    fps: Fraction | None = None
    loop_mode: LoopMode = LoopMode.PINGPONG
    tail: Tail = Tail.CUT
    face: FaceChoice = FaceChoice()
    faces_file: Path | None = None
    face_mask: Path | None = None
    mask_image: Path | None = None
    matte: Path | None = None
    max_yaw_deg: float = 60.0
    window_overlap: int = 4
    voice_gate: bool = True
    sample_posterior: bool = False
    reference_numerics: bool = False
    max_short_side: int | None = None
    quality: Quality = Quality.DEFAULT
    shortcuts: Shortcuts = EXACT
    label: bool = False
    watermark: bool = False

    def __post_init__(self) -> None:
        _require_range("num_inference_steps", self.num_inference_steps, 1, 200)
        _require_range("guidance_scale", self.guidance_scale, 0.0, 20.0)
        _require_range("seed", self.seed, 0, 2**63 - 1)
        _require_range("fps", self.fps, 1, 240)
        _require_range("max_yaw_deg", self.max_yaw_deg, 1.0, 90.0)
        _require_range("window_overlap", self.window_overlap, 0, 12)
        _require_range("max_short_side", self.max_short_side, 64, 8192)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> SyncParams:
        """A named preset with single options changed; None in `overrides` means "as the preset has it"."""
        if name not in PRESETS:
            raise ParameterError(f"preset={name!r} does not exist: use one of {', '.join(PRESETS)}.")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(overrides) - known):
            raise ParameterError(
                f"Unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))}."
            )
        chosen = {key: value for key, value in overrides.items() if value is not None}
        return cls(**{**PRESETS[name], **chosen})


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "lossless": {"quality": Quality.LOSSLESS},
    "reference": {
        "fps": Fraction(25),
        "window_overlap": 0,
        "voice_gate": False,
        "sample_posterior": True,
        "reference_numerics": True,
    },
    "fast": {"num_inference_steps": 8, "shortcuts": Shortcuts(Solver.UNIPC, guide_every=2)},
    "fastest": {
        "num_inference_steps": 8,
        "shortcuts": Shortcuts(Solver.UNIPC, reuse_within=0.3, guide_every=2),
    },
}
"""`default` is ours; `reference` repeats LatentSync's own choices so that its numbers can be compared; `fast`
and `fastest` are for LatentSync's weights, whose own way takes 20 steps; their cost: docs/speed.md."""
