"""Face detectors by name."""

from __future__ import annotations

from pathlib import Path

from lipsync_engine import faces
from lipsync_engine.errors import ParameterError
from lipsync_engine.faces.drawn import DrawnFaceDetector
from lipsync_engine.weights import WeightsStore


def check_detector(model: str, detector: str, store: WeightsStore) -> None:
    """Refuse a model of drawn presenters with a detector of photographed people.

    Raises:
        ParameterError: the model would paint a drawn mouth on a person.
    """
    if store.entry(model).detector == "drawn" and detector != "drawn":
        raise ParameterError(
            f"The model {model} knows drawn presenters only and cannot lip-sync people "
            f"(detector={detector}): use --model latentsync-1.6 after `lipsync weights pull latentsync-1.6`."
        )


def load_detector(name: str, store: WeightsStore) -> faces.FaceDetector:
    """Load a face detector.

    Args:
        name: `yunet` (photographed people), `drawn` (our drawn presenters), or `landmarks106:PATH` with an
            ONNX file of the 106-point model for those who hold its licence.
        store: where detector weights come from.

    Raises:
        ParameterError: no such detector.
        WeightsError: its files are missing or damaged.
    """
    if name == "yunet":
        search_model = store.verified_files("yunet")["detector"]
        mesh_model = store.verified_files("face-mesh")["landmarks"]
        return faces.FaceMeshDetector(search_model, mesh_model)
    if name == "drawn":
        return DrawnFaceDetector(store.verified_files("tiny")["detector"])
    kind, _, path = name.partition(":")
    if kind == "landmarks106" and path:
        return faces.Landmark106Detector(load_detector("yunet", store), Path(path))
    raise ParameterError(f"detector={name!r} does not exist: use yunet, drawn or landmarks106:PATH.")
