"""Content credentials embedded in a source file, which may be hostile.

They are looked for with a bounded walk over the file's boxes or segments, and read by c2pa in a sandboxed
child process first. Most sources have none, and c2pa then never parses them. Embedding: C2PA specification
2.1, appendix A.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lipsync_engine.media.sandbox import sandboxed

MAX_BOXES = 10_000
"""Boxes, chunks or segments of a file that are searched and given to c2pa, whose time grows with their
square, to 2 s for this many. A fragmented video of an hour has 7,200."""

CHILD_MEMORY_BYTES = 2 << 30
CHILD_CPU_S = 10

CONTAINERS = frozenset(
    (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"udta", b"moof", b"traf", b"edts")
)
"""Boxes that consist of boxes."""

C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")

OFFLINE = {"ocsp_fetch": False, "remote_manifest_fetch": False}
"""c2pa's settings against network access: a source's author would choose the address."""

CHILD_SETTINGS = {"verify": {"verify_trust": False, **OFFLINE}}
READ_MANIFEST = f"""
import sys
import c2pa
with (
    open(sys.argv[2], "rb") as content,
    c2pa.Context.from_dict({CHILD_SETTINGS!r}) as context,
    c2pa.Reader(sys.argv[1], content, context=context) as reader,
):
    reader.json()
"""

Part = tuple[bytes, bytes]
"""Type and first 16 bytes of a box, chunk or segment."""


class TooManyBoxesError(ValueError):
    """The file has more boxes, chunks or segments than are searched."""


def find_embedded_manifest(file: Path) -> str | None:
    """Return the media type of a file with embedded credentials, or None if it has none.

    Raises:
        TooManyBoxesError: more than `MAX_BOXES` boxes.
        OSError: the file cannot be read.
    """
    with file.open("rb") as content:
        head = content.read(12)
        content.seek(0)
        for media_type, is_type, parts, is_manifest in _FORMATS:
            if is_type(head):
                has_manifest = False
                for number, part in enumerate(parts(content)):
                    if number >= MAX_BOXES:
                        raise TooManyBoxesError(f"more than {MAX_BOXES} boxes")
                    has_manifest = has_manifest or is_manifest(part)
                return media_type if has_manifest else None
    return None


def is_manifest_readable(file: Path, media_type: str) -> bool:
    """Return whether c2pa reads the credentials in a sandbox: no network, no other files, 10 s, 2 GiB."""
    folders = {sys.prefix, sys.base_prefix, *filter(None, sys.path)}
    rules = ["s", *(f"r{path}" for path in (*sorted(folders), file.resolve()))]
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{READ_MANIFEST}"]
    try:
        completed = subprocess.run(
            sandboxed(
                [*command, media_type, str(file.resolve())],
                rules,
                memory_bytes=CHILD_MEMORY_BYTES,
                cpu_s=CHILD_CPU_S,
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=3 * CHILD_CPU_S,
            check=False,
            env={"LANG": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired:
        return False
    return completed.returncode == 0


def _iso_boxes(content: BinaryIO) -> Iterator[Part]:
    """Yield the boxes of an ISO base media file (ISO/IEC 14496-12, 4.2), those in `CONTAINERS` too."""
    while len(header := content.read(8)) == 8:
        size, kind = struct.unpack(">I4s", header)
        begin, header_bytes = content.tell() - 8, 8
        if size == 1:
            size, header_bytes = int.from_bytes(content.read(8), "big"), 16
        position = content.tell()
        yield kind, content.read(16)
        if size < header_bytes:  # 0: to the end of the file; smaller: damaged
            return
        content.seek(position if kind in CONTAINERS else begin + size)


def _png_chunks(content: BinaryIO) -> Iterator[Part]:
    content.seek(8)
    while len(header := content.read(8)) == 8:
        size, kind = struct.unpack(">I4s", header)
        yield kind, b""
        content.seek(size + 4, 1)


def _jpeg_segments(content: BinaryIO) -> Iterator[Part]:
    content.seek(2)
    while (
        len(header := content.read(4)) == 4 and header[0] == 0xFF and header[1] != 0xDA
    ):  # 0xDA: the picture
        size = int.from_bytes(header[2:], "big")
        yield header[1:2], b""
        content.seek(max(size - 2, 0), 1)


def _riff_chunks(content: BinaryIO) -> Iterator[Part]:
    content.seek(12)
    while len(header := content.read(8)) == 8:
        kind, size = struct.unpack("<4sI", header)
        yield kind, b""
        content.seek(size + size % 2, 1)


_Format = tuple[str, Callable[[bytes], bool], Callable[[BinaryIO], Iterator[Part]], Callable[[Part], bool]]

_FORMATS: tuple[_Format, ...] = (
    (
        "video/mp4",
        lambda head: head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"uuid"),
        _iso_boxes,
        lambda part: part == (b"uuid", C2PA_UUID),
    ),
    ("image/png", lambda head: head.startswith(b"\x89PNG"), _png_chunks, lambda part: part[0] == b"caBX"),
    (
        "image/jpeg",
        lambda head: head.startswith(b"\xff\xd8\xff"),
        _jpeg_segments,
        lambda part: part[0] == b"\xeb",
    ),
    (
        "image/webp",
        lambda head: head[:4] == b"RIFF" and head[8:] == b"WEBP",
        _riff_chunks,
        lambda part: part[0] == b"C2PA",
    ),
)
"""Media type, test of the first 12 bytes, parts, test of a part for credentials."""
