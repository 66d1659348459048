"""Who speaks, and where that face is in every frame: detect → track → choose and smooth.

It knows neither codecs nor models; pictures come in as arrays, and three points per frame go out.
"""

from lipsync_engine.faces.detect import Detection, FaceDetector

__all__ = ["Detection", "FaceDetector"]
