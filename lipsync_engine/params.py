"""The options of a job as one immutable value, with their ranges and the named presets.

Pure: no I/O, no clock. The module does not know models: options that are None take the model's default later.
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

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
"""A file with one of these suffixes is a still image; a matte with any other suffix is a video."""


def stored_as(**names: str) -> dict[str, Any]:
    """Return the pydantic configuration of a dataclass whose fields are stored under other names.

    Plans, results and job keys of earlier versions contain these names, so they never change.

    Args:
        names: stored name of each field that has one.
    """
    return {"alias_generator": lambda field: names.get(field, field), "serialize_by_alias": True}


def _require_range(name: str, value: float | Fraction | None, low: float, high: float) -> None:
    if value is None:
        return
    if not low <= value <= high:  # also refuses NaN
        raise ParameterError(f"{name}={value} is out of range: use a value between {low} and {high}.")


class LoopMode(StrEnum):
    """Which frames to show if the audio is longer than the video."""

    PINGPONG = "pingpong"  # forward, backward, forward …
    LOOP = "loop"  # from the start again
    FREEZE = "freeze"  # hold the last frame
    REMAP = "remap"  # stretch the video's time to the audio's


class Tail(StrEnum):
    """What to do with the rest of the video if the audio ends first."""

    CUT = "cut"
    KEEP = "keep"  # the rest follows untouched


class SpeakerOrder(StrEnum):
    """Whether two people speak at the same time or in turn."""

    TOGETHER = "together"
    LEFT_RIGHT = "left_right"  # the left one first
    RIGHT_LEFT = "right_left"


class Motion(StrEnum):
    """How the head in a still portrait moves."""

    STILL = "still"
    NATURAL = "natural"  # sways and nods with the voice, breathes, blinks
    GENERATED = "generated"  # by an image-to-video model


class BatchEngine(StrEnum):
    """Where the workers of a batch run."""

    LOCAL = "local"  # processes on this machine
    RAY = "ray"  # on the machines of a Ray cluster


class Quality(StrEnum):
    """Quality of the final video encode."""

    DEFAULT = "default"  # visually transparent
    LOSSLESS = "lossless"


class VideoCodec(StrEnum):
    """Codec of the result."""

    H264 = "h264"  # 8 bits, plays everywhere
    HEVC10 = "hevc10"  # HEVC Main 10, tagged hvc1


class HdrMode(StrEnum):
    """Treatment of HDR sources (PQ, HLG)."""

    TONEMAP = "tonemap"  # to SDR, with a warning
    REFUSE = "refuse"


class FaceRule(StrEnum):
    """How to choose the person who speaks."""

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
        time_s: for POINT, time at which the point is on the face, seconds of the source video.
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
        point, _, time = text.partition("@")
        try:
            x, y = (float(part) for part in point.split(","))
            return cls(rule=FaceRule.POINT, x=x, y=y, time_s=float(time) if time else 0.0)
        except ValueError:
            raise ParameterError(
                f"face={text!r} is invalid: use largest, left, right, a number counted from the left "
                "(0 is the leftmost), or X,Y@SECONDS such as 640,300@1.5."
            ) from None

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        match self.rule:
            case FaceRule.INDEX:
                return str(self.index)
            case FaceRule.POINT:
                return f"{self.x:g},{self.y:g}@{self.time_s:g}"
            case rule:
                return rule.value


@dataclass(frozen=True, slots=True)
class Speaker:
    """One person's audio in a video with several speakers.

    Attributes:
        face: which person; entries with equal faces are one person who speaks several times.
        audio: file with the voice.
        start_s: start of the audio in the result.
        length_s: how much of the file is used; None: all of it.
    """

    face: FaceChoice
    audio: Path
    start_s: float = 0.0
    length_s: float | None = None

    def __post_init__(self) -> None:
        _require_range("start_s", self.start_s, 0.0, 6 * 3600.0)
        _require_range("length_s", self.length_s, 0.01, 6 * 3600.0)


class Solver(StrEnum):
    """Diffusion scheduler: how a denoising step follows from the network's noise prediction."""

    DDIM = "ddim"  # LatentSync's own
    DPM = "dpm"  # DPM-Solver++ 2M
    UNIPC = "unipc"


@dataclass(frozen=True, slots=True)
class FastSampling:
    """Approximations that make sampling faster at a cost in fidelity, which `docs/speed.md` measures.

    Attributes:
        solver: with few steps the higher-order solvers stay closer to the exact result.
        feature_cache_threshold: DeepCache: reuse the U-Net's coarse features and run only its finest level
            until the signal level of the latents (0 is noise, 1 is clean) has changed by more than this, 0-1.
            The first and the last step always run the whole network.
        guidance_interval: of the steps that run the whole network, every n-th also runs the unconditional
            pass of classifier-free guidance, 1-10. The steps between reuse the last guidance difference.
    """

    __pydantic_config__ = stored_as(feature_cache_threshold="reuse_within", guidance_interval="guide_every")

    solver: Solver = Solver.DDIM
    feature_cache_threshold: float = 0.0
    guidance_interval: int = 1

    def __post_init__(self) -> None:
        _require_range("feature_cache_threshold", self.feature_cache_threshold, 0.0, 1.0)
        _require_range("guidance_interval", self.guidance_interval, 1, 10)

    def schedule_steps(
        self, signal_levels: Sequence[float], *, use_guidance: bool
    ) -> list[tuple[bool, bool]]:
        """Return for each step whether the unconditional pass runs, and whether the whole network runs.

        Args:
            signal_levels: of the latents that each step starts from.
            use_guidance: classifier-free guidance is on.
        """
        schedule, n_full, last_level = [], 0, 0.0
        for number, level in enumerate(signal_levels):
            is_first_or_last = number in (0, len(signal_levels) - 1)
            is_full = (
                is_first_or_last
                or self.feature_cache_threshold == 0
                or abs(level - last_level) > self.feature_cache_threshold
            )
            runs_unconditional = is_full and use_guidance and n_full % self.guidance_interval == 0
            schedule.append((runs_unconditional, is_full))
            if is_full:
                n_full, last_level = n_full + 1, level
        return schedule


EXACT_SAMPLING = FastSampling()
"""No approximation: every step runs the whole network, with guidance."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Facts about a job that do not change its pixels; their hashes are signed with the result.

    Attributes:
        consent: reference to the consent of the person shown, 1 to 200 printable characters.
        job: the caller's name for the job; None: a name derived from its inputs and options.
    """

    consent: str | None = None
    job: str | None = None

    def __post_init__(self) -> None:
        if self.consent is not None and not (0 < len(self.consent) <= 200 and self.consent.isprintable()):
            raise ParameterError(
                f"consent has {len(self.consent)} characters or is not printable: use a reference of 1 to "
                "200 printable characters, not a text."
            )


@dataclass(frozen=True, slots=True)
class SyncParams:
    """Every option of one job; frozen, because it is part of the key of cached work.

    Attributes:
        num_inference_steps: denoising steps, 1-200; None: the model's default.
        guidance_scale: weight of the audio guidance, 0-20 (1 and below: off); None: the model's default.
        seed: of all random draws, 0 to 2**63-1.
        fps: output frame rate; None keeps the source's.
        loop_mode: which frames to show if the audio is longer than the video.
        tail: what to do with the rest of the video if the audio is shorter.
        face: which person speaks.
        faces_file: JSON of per-frame boxes or landmarks, used in place of the detector.
        face_mask: an image, white over the speaker's face; it selects the face that it covers most.
        mask_image: an image, white where pixels may change, black elsewhere. Unless `face` or `face_mask` is
            set, the speaker is the person whose face the white area covers most.
        matte: image or video, white where something is in front of the mouth; the source's pixels stay there.
        max_yaw_deg: a head turned further than this is left untouched, with a soft fade.
        window_overlap: frames shared by neighbouring model windows, 0-12.
        voice_gate: rest the mouth where the audio contains no speech.
        sample_posterior: sample the VAE's posterior as the reference does instead of taking its mean.
        reference_numerics: use the reference's own mask edge, rounding, paste-back and loop rule.
        max_short_side: scale larger frames down to this short side, pixels; None keeps the size. Frames are
            never scaled up.
        quality: of the final encode.
        video_codec: of the result; h264 encodes sources of more than 8 bits with 8, dithered, unless
            `quality` is lossless.
        hdr: whether HDR sources (PQ, HLG) are tone-mapped to SDR or refused.
        fast_sampling: approximations that make sampling faster.
        label: draw a visible “AI-generated” label in a corner of every frame.
        watermark: add an invisible watermark to generated faces that can be detected later.
    """

    __pydantic_config__ = stored_as(fast_sampling="shortcuts")

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
    video_codec: VideoCodec = VideoCodec.H264
    hdr: HdrMode = HdrMode.TONEMAP
    fast_sampling: FastSampling = EXACT_SAMPLING
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

    def new_options_at_default(self) -> set[str]:
        """Return the options that version 0.1.0 did not have and that are not used.

        Hashes of options leave them out, so that batches of that version are resumed.
        """
        defaults = SyncParams()
        return {name for name in ("video_codec", "hdr") if getattr(self, name) == getattr(defaults, name)}

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> SyncParams:
        """Return a named preset with some options changed; None in `overrides` keeps the preset's value."""
        if name not in PRESETS:
            raise ParameterError(f"preset={name!r} does not exist: use one of {', '.join(PRESETS)}.")
        options = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(overrides) - options):
            raise ParameterError(
                f"Unknown option {', '.join(unknown)}: use one of {', '.join(sorted(options))}."
            )
        changes = {key: value for key, value in overrides.items() if value is not None}
        return cls(**{**PRESETS[name], **changes})


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
    "fast": {
        "num_inference_steps": 8,
        "fast_sampling": FastSampling(Solver.UNIPC, guidance_interval=2),
    },
    "fastest": {
        "num_inference_steps": 8,
        "fast_sampling": FastSampling(Solver.UNIPC, feature_cache_threshold=0.3, guidance_interval=2),
    },
}
"""`reference` repeats LatentSync's own choices, so that results can be compared with its numbers. `fast` and
`fastest` are for LatentSync's weights, which take 20 steps by default; docs/speed.md measures their cost."""
