"""How well lips and a voice belong together: a SyncNet's confidence and offset, of a job or of any film.

    network    SyncNet, at the published size or a small one, and its files
    cepstrum   what it hears
    crop       what it sees of a picture
    measure    distances → confidence and offset
    stretches  a few seconds of pictures and sound out of files
    film, job  faces are found; faces are known from a plan

It knows neither how lips were made nor who asks.
"""

from __future__ import annotations

import torch

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.sync_score.job import score_job
from lipsync_engine.sync_score.measure import SyncScore, SyncScorer
from lipsync_engine.sync_score.network import load_sync_net
from lipsync_engine.sync_score.video import score_film
from lipsync_engine.weights import FileState, WeightsStore

FAMILY = "sync-score"
"""Of the manifest's entries that this package loads."""

__all__ = ["FAMILY", "SyncScore", "SyncScorer", "installed_scorer", "load_scorer", "score_film", "score_job"]


def load_scorer(name: str, store: WeightsStore, device: torch.device) -> SyncScorer:
    """The scorer of that name.

    Raises:
        WeightsError: no such entry, or its files are missing or do not fit.
    """
    entry = store.entry(name)
    if entry.family != FAMILY:
        known = ", ".join(other.name for other in store.entries() if other.family == FAMILY)
        raise WeightsError(
            ErrorCode.MODEL_UNKNOWN, f"{name} ({entry.family}) gives no sync score: use one of {known}."
        )
    return SyncScorer(load_sync_net(store.verified_files(name)), name, device)


def installed_scorer(detector: str, store: WeightsStore, device: torch.device) -> SyncScorer | None:
    """The scorer for the faces that a detector finds, where its files are here.

    Raises:
        WeightsError: the files are here and cannot be used.
    """
    faces = "drawn" if detector == "drawn" else "yunet"  # of photographed people, whatever finds them
    for entry in store.entries():
        suits = entry.family == FAMILY and entry.detector == faces
        if suits and all(report.state is not FileState.MISSING for report in store.file_reports(entry.name)):
            return load_scorer(entry.name, store, device)
    return None
