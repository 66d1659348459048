"""Whether a video or picture may be worked on: its content, as a classifier sees a few of its frames.

    off       nothing is looked at (default: the weights do not come with the program)
    flag      the result says what was found
    refuse    such a job fails before any work

What is looked at is the source: lips alone make no picture other than it was.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import torch

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, InputError, ParameterError
from lipsync_engine.models.nsfw import NsfwClassifier
from lipsync_engine.weights import FileState, WeightsStore

CLASSIFIER = "nsfw-image-detection"
SAMPLES = 8
"""Frames that are looked at, evenly over the video."""

MAX_SIDE = 448
THRESHOLD = 0.5

UNCHECKED = (
    "The content was not checked: the classifier's weights are not here. Run `lipsync weights pull "
    f"{CLASSIFIER}`, or set content_check=off."
)


class ContentPolicy(StrEnum):
    OFF = "off"
    FLAG = "flag"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class ContentFinding:
    """Attributes:
    is_nsfw: some frame is not safe for work; None: nobody looked.
    warning: why nobody did, though it was asked for.
    """

    is_nsfw: bool | None = None
    warning: str | None = None


class ContentGuard:
    """Looks at sources.

    Args:
        policy: what happens to what is found.
        classifier: None where its weights are not here.
        threshold: a frame with a higher probability counts as not safe for work.
    """

    def __init__(
        self, policy: ContentPolicy, classifier: NsfwClassifier | None, threshold: float = THRESHOLD
    ) -> None:
        self._policy, self._classifier, self._threshold = policy, classifier, threshold

    @classmethod
    def from_environment(cls, store: WeightsStore, device: torch.device) -> Self:
        """As LIPSYNC_CONTENT_CHECK and LIPSYNC_CONTENT_THRESHOLD say.

        Raises:
            ParameterError: one of them cannot be used.
            WeightsError: refusing is asked for without weights, or the weights do not fit.
        """
        told = os.environ.get("LIPSYNC_CONTENT_CHECK") or ContentPolicy.OFF
        given = os.environ.get("LIPSYNC_CONTENT_THRESHOLD") or str(THRESHOLD)
        try:
            policy, threshold = ContentPolicy(told), float(given)
        except ValueError:
            raise ParameterError(
                f"LIPSYNC_CONTENT_CHECK={told} LIPSYNC_CONTENT_THRESHOLD={given} cannot be used: say off, "
                "flag or refuse, and a number from 0 to 1."
            ) from None
        if policy is ContentPolicy.OFF:
            return cls(policy, None)
        is_here = all(report.state is not FileState.MISSING for report in store.file_reports(CLASSIFIER))
        if policy is ContentPolicy.FLAG and not is_here:
            return cls(policy, None)
        folder = store.verified_files(CLASSIFIER)["content_config"].parent
        return cls(policy, NsfwClassifier(folder, device), threshold)

    def look(self, video: media.VideoInfo) -> ContentFinding:
        """Look at a source.

        Raises:
            InputError: CONTENT_REFUSED.
            MediaError: it cannot be decoded.
        """
        if self._policy is ContentPolicy.OFF:
            return ContentFinding()
        if self._classifier is None:
            return ContentFinding(warning=UNCHECKED)
        scores = self._classifier.classify(media.sample_frames(video, SAMPLES, MAX_SIDE))
        is_nsfw = max(scores) > self._threshold
        if is_nsfw and self._policy is ContentPolicy.REFUSE:
            raise InputError(
                ErrorCode.CONTENT_REFUSED,
                "The video or picture is refused for its content (not safe for work): use another one, or "
                "ask the operator of this installation.",
            )
        return ContentFinding(is_nsfw)
