"""Images of every accepted kind, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsync_engine import media
from lipsync_engine.errors import LipSyncError


def write_image(kind: str, folder: Path, base: Image.Image) -> Path:
    path = folder / f"picture.{kind.rpartition(' ')[2]}"
    match kind:
        case "rotated jpg":
            exif = Image.Exif()
            exif[0x0112] = 6  # shown turned right by a quarter
            base.rotate(90, expand=True).save(path, exif=exif, quality=95)
        case "cmyk jpg":
            base.convert("CMYK").save(path, quality=95)
        case "grey png":
            base.convert("L").save(path)
        case "16-bit png":
            Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257).save(path)
        case "transparent webp" | "transparent png":
            base = base.convert("RGBA")
            base.putalpha(Image.fromarray(np.full((base.height, base.width), 255, np.uint8)))
            base.paste((0, 0, 0, 0), (0, 0, 8, 8))
            base.save(path, **({"lossless": True} if "webp" in kind else {}))
        case _:
            base.save(path)
    return path


KINDS = [
    "rotated jpg",
    "cmyk jpg",
    "grey png",
    "16-bit png",
    "transparent png",
    "transparent webp",
    "plain bmp",
]


@pytest.mark.parametrize("kind", KINDS)
def test_image_of_every_kind_is_read(kind: str, tmp_path: Path) -> None:
    y, x = np.mgrid[:31, :49]
    base = Image.fromarray(np.stack([5 * x, 8 * y, 255 - 4 * x], axis=-1).astype(np.uint8))
    read = media.read_image(write_image(kind, tmp_path, base))
    assert read.shape in ((30, 48, 3), (32, 50, 3), (32, 48, 3), (30, 50, 3))
    small = Image.fromarray(read).resize((49, 31))
    expected = np.asarray(base.convert("L").convert("RGB") if kind in KINDS[2:4] else base).astype(int)
    assert np.abs(np.asarray(small).astype(int)[10:, 10:] - expected[10:, 10:]).mean() < 12
    if "transparent" in kind:
        assert read[2, 2].min() > 245


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"GIF89a" + bytes(100)], ids=["empty", "text", "gif"]
)
def test_file_that_is_no_image_is_rejected(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(content)
    with pytest.raises(LipSyncError) as error:
        media.read_image(path)
    assert error.value.code.startswith(("media_", "input_"))
