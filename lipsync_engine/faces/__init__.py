"""Who speaks, and where that face is in every frame: detect → track → choose and smooth.

It knows neither codecs nor models; pictures come in as arrays, and three points per frame go out.
"""

from lipsync_engine.faces.cache import AnalysisCache, analysis_key
from lipsync_engine.faces.detect import Detection, FaceDetector, Landmark106Detector, YuNetDetector
from lipsync_engine.faces.selection import FacePath, choose_speaker, load_faces_file
from lipsync_engine.faces.tracking import FaceTracker, FaceTracks, Track

__all__ = [
    "AnalysisCache",
    "Detection",
    "FaceDetector",
    "FacePath",
    "FaceTracker",
    "FaceTracks",
    "Landmark106Detector",
    "Track",
    "YuNetDetector",
    "analysis_key",
    "choose_speaker",
    "load_faces_file",
]
