"""Sync score: SyncNet's confidence and offset of lips and voice, for a job or a video.

    network     SyncNet, at the published size or a smaller one, and its files
    cepstrum    its audio input (MFCC)
    crop        its face crops
    measure     distances → confidence and offset
    windows     a few seconds of faces and audio out of files
    video, job  faces are detected; faces are known from a plan

This package does not know how lips were generated, or its callers.
"""

from __future__ import annotations

import torch

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.sync_score.job import score_job
from lipsync_engine.sync_score.measure import SyncScore, SyncScorer
from lipsync_engine.sync_score.network import load_sync_net
from lipsync_engine.sync_score.video import score_video
from lipsync_engine.weights import FileState, WeightsStore

FAMILY = "sync-score"
"""Manifest family of the models that this package loads."""

__all__ = [
    "FAMILY",
    "SyncScore",
    "SyncScorer",
    "find_installed_scorer",
    "load_scorer",
    "score_job",
    "score_video",
]


def load_scorer(name: str, store: WeightsStore, device: torch.device) -> SyncScorer:
    """Load a scorer of the manifest.

    Raises:
        WeightsError: the entry does not exist, or its files are missing or do not fit.
    """
    entry = store.entry(name)
    if entry.family != FAMILY:
        names = ", ".join(other.name for other in store.entries() if other.family == FAMILY)
        raise WeightsError(
            ErrorCode.MODEL_UNKNOWN, f"{name} ({entry.family}) is not a sync score model: use one of {names}."
        )
    return SyncScorer(load_sync_net(store.verified_files(name)), name, device)


def find_installed_scorer(detector: str, store: WeightsStore, device: torch.device) -> SyncScorer | None:
    """Load the scorer for the faces of a detector, if its files are installed.

    Raises:
        WeightsError: the files are installed but cannot be used.
    """
    faces = "drawn" if detector == "drawn" else "yunet"  # all other detectors are for photographed people
    for entry in store.entries():
        suits = entry.family == FAMILY and entry.detector == faces
        if suits and all(report.state is not FileState.MISSING for report in store.file_reports(entry.name)):
            return load_scorer(entry.name, store, device)
    return None
