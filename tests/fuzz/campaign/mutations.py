"""Media files that were damaged or made on purpose; the same for the same seed.

Knows file formats well enough to break them where it hurts. Reads and writes no other files than it is given.
"""

from __future__ import annotations

import functools
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"edts", b"moof", b"traf", b"mvex")
HEADERS = (
    b"tkhd", b"mvhd", b"mdhd", b"stsd", b"stts", b"stsc", b"stsz", b"stco", b"ctts", b"elst", b"hdlr",
    b"avcC", b"trun", b"tfhd", b"trex", b"esds", b"sidx",
)  # fmt: skip
VIDEO, AUDIO, IMAGE = "video", "audio", "image"


@dataclass(frozen=True, slots=True)
class Case:
    """A hostile file.

    Attributes:
        kind: how it was made.
        name: to write it under; its suffix may lie.
        use: what it is given as: video, audio or image.
        is_trap: it names other files, so it must be refused.
    """

    kind: str
    name: str
    use: str
    data: bytes
    is_trap: bool = False


def use_of(path: Path) -> str:
    return {".png": IMAGE, ".jpg": IMAGE, ".webp": IMAGE, ".bmp": IMAGE}.get(
        path.suffix, AUDIO if path.suffix in (".wav", ".mp3", ".flac", ".ogg", ".m4a") else VIDEO
    )


def cases(seeds: list[Path], rng: random.Random, count: int, secret: Path) -> Iterator[Case]:
    """`count` files: every trap and absurdity once, the rest mutations of the seeds in turn.

    Args:
        secret: a film that no file but itself may show.
    """
    output = [*traps(secret), *absurd()][:count]
    yield from output
    for number in range(count - len(output)):
        path = seeds[number % len(seeds)]
        kind, change = rng.choice(list(CHANGES.items()))
        other = rng.choice(seeds).read_bytes()
        data = change(bytearray(path.read_bytes()), rng, other)
        yield Case(kind, f"{number:05}{path.suffix}", use_of(path), bytes(data))


# --- mutations of a good file ---


def flip_bits(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    for _ in range(rng.choice((1, 4, 16, 64, 1000))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def flip_head(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    for _ in range(rng.choice((1, 2, 8))):
        data[rng.randrange(min(len(data), 512))] = rng.randrange(256)
    return data


def cut_off(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    return data[
        : rng.choice((rng.randrange(64), rng.randrange(len(data)), len(data) - 1 - rng.randrange(64)))
    ]


def cut_out(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 1 + len(data) // 2)]
    return data


def repeat(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 5000)] * rng.randrange(2, 40) + data[start:]


def blank(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    start, size = rng.randrange(len(data)), rng.randrange(1, 1 + len(data) // 4)
    size = min(size, len(data) - start)
    data[start : start + size] = bytes([rng.choice((0, 0xFF))]) * size
    return data


def splice(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def extreme_numbers(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Some four bytes of a header become a number that nobody expects."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        places = _places(data, HEADERS)
        start = (rng.choice(places) if places else 0) + rng.randrange(4, 64)
        data[start : start + 4] = struct.pack(">I", rng.choice(EXTREMES))
    return data


def box_sizes(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    places = _places(data, (*CONTAINERS, *HEADERS, b"mdat"))
    for place in rng.sample(places, min(len(places), rng.choice((1, 2, 4)))):
        data[place - 4 : place] = struct.pack(">I", rng.choice((*EXTREMES, rng.randrange(1 << 16))))
    return data


def swap_boxes(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Two neighbours change places, at the top or in a container; or one is named as another."""
    places = _places(data, (*CONTAINERS, *HEADERS))
    if len(places) < 2:
        return flip_head(data, rng, other)
    one, two = rng.sample(places, 2)
    if rng.random() < 0.5:
        data[one : one + 4], data[two : two + 4] = data[two : two + 4], data[one : one + 4]
        return data
    boxes = list(_top_boxes(bytes(data)))
    rng.shuffle(boxes)
    return bytearray(b"".join(boxes))


CHANGES = {
    "bits flipped": flip_bits, "head damaged": flip_head, "cut off": cut_off, "cut out": cut_out,
    "repeated": repeat, "blanked": blank, "two files spliced": splice, "extreme numbers": extreme_numbers,
    "box sizes": box_sizes, "boxes swapped": swap_boxes,
}  # fmt: skip


def _places(data: bytes | bytearray, names: tuple[bytes, ...]) -> list[int]:
    matches = []
    for name in names:
        start = data.find(name)
        while start >= 4:
            matches.append(start)
            start = data.find(name, start + 4)
    return sorted(matches)


def _top_boxes(data: bytes) -> Iterator[bytes]:
    while len(data) >= 8:
        size = int.from_bytes(data[:4], "big")
        size = size if 8 <= size <= len(data) else len(data)
        yield data[:size]
        data = data[size:]
    yield data


# --- files that name other files ---


def traps(secret: Path) -> Iterator[Case]:
    """Playlists and scripts under names of films, with what may stand before their first word."""
    texts = {
        "ffconcat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "ffconcat, a URL": f"ffconcat version 1.0\nfile 'file:{secret}'\n",
        "concat without its first line": f"file '{secret}'\n",
        "HLS": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "HLS, a path": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
        "HLS, a key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="file://{secret}"\n#EXTINF:9,\n{secret}\n',
        "HLS, a map": f'#EXTM3U\n#EXT-X-MAP:URI="{secret}"\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n',
        "HLS, the network": "#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "DASH": f'<?xml version="1.0"?><MPD type="static"><Period><AdaptationSet><Representation id="1">'
        f"<BaseURL>file://{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "IMF": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
        "SVG": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{secret}" width="9"/></svg>',
        "SVG, an entity": f'<!DOCTYPE svg [<!ENTITY x SYSTEM "file://{secret}">]><svg><text>&x;</text></svg>',
        "ASS": f"[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,0:00:00.00,0:00:09.00,{secret}\n",
        "subtitles": "1\n00:00:00,000 --> 00:00:09,000\nhello\n",
        "MVG": f"push graphic-context\nimage over 0,0 0,0 '{secret}'\npop graphic-context\n",
        "VQF, a link": f"[playlist]\nFile1={secret}\nNumberOfEntries=1\n",
        "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "ffmetadata": ";FFMETADATA1\ntitle=a\n",
        "AviSynth": f'DirectShowSource("{secret}")\n',
        "a path": f"{secret}\n",
        "a URL": f"concat:{secret}|{secret}\n",
        "subfile": f"subfile,,start,0,end,0,,:{secret}\n",
    }
    before = {
        "": b"",
        " behind a BOM": b"\xef\xbb\xbf",
        " behind lines": b"\r\n\t \n",
        " behind ID3": b"ID3" + bytes(7),
    }
    for number, (what, text) in enumerate(texts.items()):
        for place, (how, prefix) in enumerate(before.items()):
            use, suffix = ((VIDEO, ".mp4"), (AUDIO, ".wav"), (IMAGE, ".png"))[(number + place) % 3]
            yield Case(
                f"trap: {what}{how}", f"trap{number}-{place}{suffix}", use, prefix + text.encode(), True
            )
    film = secret.read_bytes()
    for name in ("url ", "urn ", "alis"):
        yield Case(
            f"trap: data reference {name}",
            f"reference-{name.strip()}.mp4",
            VIDEO,
            _referring(film, name, secret),
            True,
        )


def _referring(film: bytes, name: str, secret: Path) -> bytes:
    """The film's index without its data, which is said to lie in another file."""
    boxes = [box for box in _top_boxes(film) if box[4:8] in (b"ftyp", b"moov")]
    index = b"".join(boxes)
    entry = struct.pack(">I4sI", 12, b"url ", 1)
    place = f"file://{secret}\0".encode()
    wrong = struct.pack(">I4sI", 12 + len(place), name.encode(), 0) + place
    at = index.find(entry)
    if at < 0:
        raise ValueError("the film has no data reference")
    grown = len(wrong) - len(entry)
    data = bytearray(index.replace(entry, wrong))
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        for start in _places(data, (box,)):
            size = int.from_bytes(data[start - 4 : start], "big")
            inside = data[start : start + size + grown * 4].count(place)
            data[start - 4 : start] = struct.pack(">I", size + grown * inside)
    return bytes(data)


# --- numbers that no file has ---


def absurd() -> Iterator[Case]:
    """Small files that say they are huge."""
    for width, height in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (0, 0), (16_385, 16_385)):
        yield Case("absurd: PNG", f"png-{width}x{height}.png", IMAGE, png(width, height))
        yield Case("absurd: BMP", f"bmp-{width}x{height}.bmp", IMAGE, _bmp(width, height))
        yield Case("absurd: PNG as video", f"png-{width}x{height}.mp4", VIDEO, png(width, height))
    yield Case("absurd: WebP", "vp8x.webp", IMAGE, _webp())
    yield Case("absurd: GIF", "gif.png", IMAGE, b"GIF89a\xff\xff\xff\xff\xf7\0\0" + bytes(64))
    yield Case(
        "absurd: PNG text",
        "text.png",
        IMAGE,
        png(64, 64, ((b"zTXt", b"a\0\0" + _packed(1 << 24)),)),
    )
    for rate, channels, bits in (
        (2**32 - 1, 65535, 65535),
        (0, 0, 0),
        (1, 1, 8),
        (2**31, 2, 32),
        (48000, 65535, 16),
    ):
        name = f"wav-{rate}-{channels}-{bits}.wav"
        yield Case("absurd: WAV", name, AUDIO, _wav(rate, channels, bits))
    for depth in (10, 1000, 50_000):
        yield Case("absurd: boxes in boxes", f"deep-{depth}.mp4", VIDEO, _deep_boxes(depth))
    yield Case("absurd: many boxes", "many.mp4", VIDEO, _ftyp() + struct.pack(">I4s", 8, b"free") * 200_000)
    yield Case(
        "absurd: EBML", "ebml.mkv", VIDEO, b"\x1a\x45\xdf\xa3" + b"\x01" + b"\xff" * 7 + b"\x42\x86" * 2000
    )
    for name, data in (
        ("nothing", b""),
        ("one byte", b"\0"),
        ("zeros", bytes(1 << 20)),
        ("ID3 only", b"ID3\4\0\0\x7f\x7f\x7f\x7f"),
    ):
        for use, suffix in ((VIDEO, ".mp4"), (AUDIO, ".mp3"), (IMAGE, ".jpg")):
            yield Case(f"absurd: {name}", f"{name.replace(' ', '-')}-{use}{suffix}", use, data)


@functools.cache
def _packed(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def png(width: int, height: int, more: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A picture of one colour, a thousand times smaller than its pixels; of huge ones the first 16 MiB."""
    rows = _packed(min((width + 7) // 8 * height + height, 1 << 24))
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", head), *more, (b"IDAT", rows), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1000, 0, 0, 54) + info + bytes(1000)


def _webp() -> bytes:
    body = (
        b"WEBPVP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + b"\xff\xff\xff" * 2
        + b"VP8 "
        + struct.pack("<I", 100)
        + bytes(100)
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _wav(rate: int, channels: int, bits: int) -> bytes:
    head = struct.pack("<HHIIHH", 1, channels, rate, rate, max(1, channels * bits // 8) & 0xFFFF, bits)
    return (
        b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<I", 16) + head + b"data\xff\xff\xff\xff" + bytes(5000)
    )


def _ftyp() -> bytes:
    return struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0)


def _deep_boxes(depth: int) -> bytes:
    return _ftyp() + b"".join(struct.pack(">I4s", 8 * (depth - level), b"moov") for level in range(depth))
