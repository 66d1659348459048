"""Tests of the content filter with a tiny classifier that has learned that red is not safe for work."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from lipsync_engine import LipSyncPipeline, SyncParams, media
from lipsync_engine.errors import ErrorCode, InputError, ParameterError, WeightsError
from lipsync_engine.models.nsfw import NsfwClassifier
from lipsync_engine.provenance.content_filter import (
    CLASSIFIER,
    UNCHECKED_WARNING,
    ContentFilter,
    ContentResult,
)
from lipsync_engine.weights import WeightsStore
from tests.support import presenter

CPU = torch.device("cpu")
SAFE, NOT_SAFE = (40, 60, 200), (210, 40, 30)


def plain(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((48, 64, 3), colour, np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with the tiny classifier in place of the published one."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=16, id2label={0: "normal", 1: "nsfw"}, label2id={"normal": 0, "nsfw": 1},
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        red = torch.rand(16, 1, 1, 1).round()
        pictures = torch.cat([2 * red - 1, torch.zeros_like(red), 1 - 2 * red], dim=1).expand(-1, -1, 32, 32)
        loss = model(pixel_values=0.7 * pictures, labels=red.flatten().long()).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.save_pretrained(root / CLASSIFIER)
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(root / CLASSIFIER)
    return root


@pytest.fixture
def videos(tmp_path: Path) -> dict[str, Path]:
    """Ten seconds that are safe, and twenty of which two are not."""
    paths = {"safe": tmp_path / "safe.mp4", "unsafe": tmp_path / "unsafe.mp4"}
    presenter.encode([plain(SAFE)[:48, :48]] * 250, None, paths["safe"])
    presenter.encode(
        [plain(SAFE)[:48, :48]] * 65 + [plain(NOT_SAFE)[:48, :48]] * 50 + [plain(SAFE)[:48, :48]] * 385,
        None,
        paths["unsafe"],
    )
    return paths


def first_picture(film: Path) -> np.ndarray:
    return next(media.scan_frames(media.probe_video(film), 1000))[1].astype(float)


def make_filter(
    monkeypatch: pytest.MonkeyPatch, root: Path, check: str, threshold: str = "0.5"
) -> ContentFilter:
    monkeypatch.setenv("LIPSYNC_CONTENT_CHECK", check)
    monkeypatch.setenv("LIPSYNC_CONTENT_THRESHOLD", threshold)
    return ContentFilter.from_environment(WeightsStore(root), CPU)


def test_two_seconds_that_are_not_safe_are_seen(
    weights: Path, videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    safe, unsafe = (media.probe_video(videos[name]) for name in ("safe", "unsafe"))
    flagging = make_filter(monkeypatch, weights, "flag")
    assert flagging.check(safe) == ContentResult(False)
    assert flagging.check(unsafe) == ContentResult(True)
    assert make_filter(monkeypatch, weights, "flag", "1").check(unsafe) == ContentResult(False)
    refusing = make_filter(monkeypatch, weights, "refuse")
    assert refusing.check(safe) == ContentResult(False)
    with pytest.raises(InputError, match="not safe for work") as failed:
        refusing.check(unsafe)
    assert failed.value.code is ErrorCode.CONTENT_REFUSED


def test_missing_weights_are_a_warning_or_an_error(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsafe, empty = media.probe_video(videos["unsafe"]), tmp_path / "empty"
    assert make_filter(monkeypatch, empty, "off").check(unsafe) == ContentResult()
    assert make_filter(monkeypatch, empty, "flag").check(unsafe) == ContentResult(None, UNCHECKED_WARNING)
    with pytest.raises(WeightsError, match=f"lipsync weights pull {CLASSIFIER}"):
        make_filter(monkeypatch, empty, "refuse")
    for check, threshold in (("sometimes", "0.5"), ("flag", "much")):
        with pytest.raises(ParameterError, match="use off, flag or refuse"):
            make_filter(monkeypatch, empty, check, threshold)


def test_classifier_without_nsfw_label_is_rejected(weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(weights / CLASSIFIER, tmp_path / "other")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"nsfw"', '"cat"'))
    with pytest.raises(WeightsError, match="has no label 'nsfw'"):
        NsfwClassifier(folder, CPU)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        NsfwClassifier(folder, CPU)


def test_result_reports_the_classification(
    weights: Path, clip: Path, voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run whole jobs; with threshold 0 every frame counts as NSFW."""
    params = SyncParams(num_inference_steps=1)
    monkeypatch.setenv("LIPSYNC_MARKING", "off")
    base = LipSyncPipeline.from_pretrained("tiny", device="cpu", sync_score=False)

    def pipeline(check: str, root: Path) -> LipSyncPipeline:
        content_filter = make_filter(monkeypatch, root, check, "0")
        return LipSyncPipeline(
            base.model, base.detector, cache_dir=tmp_path / "cache", content_filter=content_filter
        )

    refusing = pipeline("refuse", weights)
    for one in (refusing, refusing.clone_for_thread(base.detector)):
        with pytest.raises(InputError) as failed:
            one(clip, voice, tmp_path / "out.mp4", params)
        assert failed.value.code is ErrorCode.CONTENT_REFUSED
    assert not (tmp_path / "out.mp4").exists()
    flagged = pipeline("flag", weights)(clip, voice, tmp_path / "out.mp4", params)
    assert (flagged.is_nsfw, flagged.sync) == (True, None)
    labelled = SyncParams(num_inference_steps=1, label=True)
    unchecked = pipeline("flag", tmp_path / "empty")(clip, voice, tmp_path / "again.mp4", labelled)
    assert unchecked.is_nsfw is None
    assert UNCHECKED_WARNING in unchecked.warnings
    plain_luma, labelled_luma = (
        first_picture(result.output).mean(axis=-1) for result in (flagged, unchecked)
    )
    height, width = labelled_luma.shape
    apart = np.abs(labelled_luma - plain_luma)
    assert apart[7 * height // 8 :, : width // 2].max() > 80
    assert apart[: 3 * height // 4].mean() < 1
