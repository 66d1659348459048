"""Faces: who speaks, and where that face is in every frame. Detect → track → select → smooth → align → paste.

The package depends on neither codecs nor models: frames come in as arrays.
"""

from lipsync_engine.faces.cache import AnalysisCache, analysis_key
from lipsync_engine.faces.detect import Detection, FaceDetector, FaceMeshDetector, Landmark106Detector
from lipsync_engine.faces.selection import (
    choose_speaker,
    count_people,
    describe_people,
    load_faces_file,
    speaker_paths,
)
from lipsync_engine.faces.smoothing import (
    UNTOUCHED_TEXT,
    FacePath,
    UntouchedReason,
    count_reasons,
    covered_intervals,
    describe_untouched,
    merge_shots,
)
from lipsync_engine.faces.tracking import FaceTracker, FaceTracks, Track

__all__ = [
    "UNTOUCHED_TEXT",
    "AnalysisCache",
    "Detection",
    "FaceDetector",
    "FaceMeshDetector",
    "FacePath",
    "FaceTracker",
    "FaceTracks",
    "Landmark106Detector",
    "Track",
    "UntouchedReason",
    "analysis_key",
    "choose_speaker",
    "count_people",
    "count_reasons",
    "covered_intervals",
    "describe_people",
    "describe_untouched",
    "load_faces_file",
    "merge_shots",
    "speaker_paths",
]
