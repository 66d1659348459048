"""Size and prompt of generated clips."""

from __future__ import annotations

import pytest

from lipsync_engine.models import image_to_video


def test_clip_size_keeps_the_aspect(subtests: pytest.Subtests) -> None:
    for picture, enlarge, size in [
        ((1280, 704), True, (1280, 704)),
        ((384, 384), True, (960, 960)),
        ((384, 384), False, (384, 384)),
        ((4000, 3000), True, (1088, 832)),
        ((1080, 1920), False, (704, 1280)),
        ((640, 360), False, (640, 352)),
        ((5000, 20), False, (5000 // 32 * 32, 32)),
    ]:
        with subtests.test(picture=picture, enlarge=enlarge, size=size):
            assert (
                image_to_video.fit_clip_size(*picture, area=1280 * 704, multiple=32, enlarge=enlarge) == size
            )


def test_prompt_always_asks_for_closed_lips() -> None:
    idle = image_to_video.build_prompt(None)
    assert image_to_video.build_prompt("  ") == idle
    assert "closed lips" in idle
    assert image_to_video.build_prompt(" She sings. ") == f"She sings. {idle}"
