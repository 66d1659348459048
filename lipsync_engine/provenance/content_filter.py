"""Content filter: a classifier checks a few frames of the source for NSFW content.

    off       nothing is checked (default, because the weights do not ship with the package)
    flag      the result carries the classification
    refuse    a job with an NSFW source fails before any work

Only the source is checked, because generated lips do not change the kind of content.
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import torch

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, InputError, ParameterError
from lipsync_engine.models.nsfw import NsfwClassifier
from lipsync_engine.weights import FileState, WeightsStore

CLASSIFIER = "nsfw-image-detection"
SAMPLE_INTERVAL_S = 1.0
MIN_SAMPLES, MAX_SAMPLES = 8, 60
"""A frame of every second is classified, at a random time in it; of longer videos 60 in all. No stretch of
two seconds, or of a thirtieth of the length, stays unseen, and which moments are seen cannot be foretold."""

MAX_SIDE = 448
THRESHOLD = 0.5

UNCHECKED_WARNING = (
    "The content was not checked because the classifier's weights are missing. Run `lipsync weights pull "
    f"{CLASSIFIER}`, or set content_check=off."
)


class ContentPolicy(StrEnum):
    """What happens to sources with NSFW content."""

    OFF = "off"
    FLAG = "flag"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class ContentResult:
    """Result of a content check.

    Attributes:
        is_nsfw: at least one frame is not safe for work; None: not checked.
        warning: why the source was not checked although the policy requests it.
    """

    is_nsfw: bool | None = None
    warning: str | None = None


class ContentFilter:
    """Checks sources for NSFW content.

    Args:
        policy: what happens to sources with NSFW content.
        classifier: None if its weights are missing.
        threshold: a frame with a higher probability counts as not safe for work.
    """

    def __init__(
        self, policy: ContentPolicy, classifier: NsfwClassifier | None, threshold: float = THRESHOLD
    ) -> None:
        self._policy, self._classifier, self._threshold = policy, classifier, threshold

    @classmethod
    def from_environment(cls, store: WeightsStore, device: torch.device) -> Self:
        """Configure a filter from LIPSYNC_CONTENT_CHECK and LIPSYNC_CONTENT_THRESHOLD.

        Raises:
            ParameterError: a value is invalid.
            WeightsError: the policy is `refuse` and the weights are missing, or the weights do not fit.
        """
        policy_text = os.environ.get("LIPSYNC_CONTENT_CHECK") or ContentPolicy.OFF
        threshold_text = os.environ.get("LIPSYNC_CONTENT_THRESHOLD") or str(THRESHOLD)
        try:
            policy, threshold = ContentPolicy(policy_text), float(threshold_text)
        except ValueError:
            raise ParameterError(
                f"LIPSYNC_CONTENT_CHECK={policy_text} LIPSYNC_CONTENT_THRESHOLD={threshold_text} is invalid: "
                "use off, flag or refuse, and a number from 0 to 1."
            ) from None
        if policy is ContentPolicy.OFF:
            return cls(policy, None)
        is_installed = all(report.state is not FileState.MISSING for report in store.file_reports(CLASSIFIER))
        if policy is ContentPolicy.FLAG and not is_installed:
            return cls(policy, None)
        folder = store.verified_files(CLASSIFIER)["content_config"].parent
        return cls(policy, NsfwClassifier(folder, device), threshold)

    def check(self, video: media.VideoInfo) -> ContentResult:
        """Classify a source.

        Raises:
            InputError: CONTENT_REFUSED.
            MediaError: the source cannot be decoded.
        """
        if self._policy is ContentPolicy.OFF:
            return ContentResult()
        if self._classifier is None:
            return ContentResult(warning=UNCHECKED_WARNING)
        scores = self._classifier.classify(
            media.sample_frames(video, _sample_times(video.duration_s), MAX_SIDE)
        )
        is_nsfw = max(scores) > self._threshold
        if is_nsfw and self._policy is ContentPolicy.REFUSE:
            raise InputError(
                ErrorCode.CONTENT_REFUSED,
                "The video or image is refused for its content (not safe for work): use another one, or "
                "contact the operator of this installation.",
            )
        return ContentResult(is_nsfw)


def _sample_times(duration_s: float) -> list[float]:
    """Return one random time in each of equal intervals."""
    count = min(max(math.ceil(duration_s / SAMPLE_INTERVAL_S), MIN_SAMPLES), MAX_SAMPLES)
    draw = random.SystemRandom().random
    return [(number + draw()) * duration_s / count for number in range(count)]
