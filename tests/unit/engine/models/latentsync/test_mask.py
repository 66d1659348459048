"""Tests of the fixed mask: its published facts, and the soft edge and face check that depend on it."""

from __future__ import annotations

import numpy as np
import pytest

from lipsync_engine.faces import compositor
from lipsync_engine.models.latentsync.mask import downsample_mask, load_fixed_mask
from lipsync_engine.rendering.output_check import FaceCheck


def test_mask_is_the_published_one() -> None:
    mask = load_fixed_mask(256)
    assert mask.dtype == np.float64
    assert set(np.unique(mask)) == {0.0, 1.0}
    generated = mask == 0
    assert generated.sum() == 26673
    rows, columns = np.flatnonzero(generated.any(axis=1)), np.flatnonzero(generated.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (95, 242, 9, 247)
    assert not generated[95:128, 78:178].any()  # the nose
    for row, (first, last) in {128: (9, 247), 172: (13, 242), 216: (51, 207), 242: (131, 152)}.items():
        assert (np.flatnonzero(generated[row]) == np.arange(first, last + 1)).all()


def test_other_sizes_have_soft_edges() -> None:
    mask = load_fixed_mask(512)
    between = (mask > 0) & (mask < 1)
    assert 0.03 < between.mean() < 0.04
    assert mask.min() == 0
    assert mask.max() == 1


def test_latent_mask_has_the_published_counts(subtests: pytest.Subtests) -> None:
    for resolution, zeros, ones in [(256, 422, 602), (512, 1604, 2359)]:
        with subtests.test(resolution=resolution, zeros=zeros, ones=ones):
            small = downsample_mask(load_fixed_mask(resolution), 8)
            assert small.shape == (resolution // 8, resolution // 8)
            assert ((small == 0).sum(), (small == 1).sum()) == (zeros, ones)


def test_soft_edge_fades_out_inside_the_crop(subtests: pytest.Subtests) -> None:
    """The mask leaves a thirtieth of R beside the cheeks: next to the border little of the ramp is left."""
    for resolution, highest in [(64, 0.5), (128, 0.2), (256, 0.05), (512, 0.02)]:
        with subtests.test(resolution=resolution, highest=highest):
            mask = load_fixed_mask(resolution).astype(np.float32)
            weight = compositor.soft_mask(mask)
            assert (weight[mask < 0.5] == 1).all()
            edge = np.concatenate([weight[1], weight[-2], weight[:, 1], weight[:, -2]])
            assert edge.max() <= highest
            assert 0.4 < weight.mean() < 0.5


def test_face_check_detects_a_grey_mouth_at_every_size(subtests: pytest.Subtests) -> None:
    """A face equal to its source is good, and a grey mouth on it is seen."""
    for resolution in [64, 128, 256, 512]:
        with subtests.test(resolution=resolution):
            rng = np.random.default_rng(0)
            blocks = rng.uniform(60, 220, (16, 16, 3)).astype(np.float32)
            source = np.kron(blocks, np.ones((resolution // 16, resolution // 16, 1), dtype=np.float32))
            mask = load_fixed_mask(resolution).astype(np.float32)
            judge = FaceCheck(mask)
            assert judge.verdict_of(source, source) is None
            assert (
                judge.verdict_of(np.where(mask[..., None] < 0.5, 127.5, source).astype(np.float32), source)
                is not None
            )
