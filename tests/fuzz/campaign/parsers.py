"""Our own parsers under a coverage-guided fuzzer: whatever comes, an answer or the parser's own error.

    python -m tests.fuzz.campaign.parsers TARGET [options of libFuzzer]

One target per process, as the fuzzer ends its process; `strike_all` runs them all.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.campaign.report import Part
from tests.support.paths import ROOT

LONGEST_S = 5
"""Of one input of at most LARGEST bytes."""

LARGEST = 4096


WORDS = (
    b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b'"\\u0000"', b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"{}", b"[]", b"null", b"true",
    b'"audio":', b'"video":', b'"face":', b'"segments":', b'"start":', b'"end":', b'"webhook":',
    b'"formState":', b"-1",
    b"data:video/mp4;base64,", b"AAAA", b"====", b"https://", b"://", b"@", b"[::1]", b"%00",
    b"\x00\x00webhook=",
    b"../", b"uploads/", b".mp4", b"video,audio,output\n", b'"output":', b"\xef\xbb\xbf", b"ftyp",
    b"RIFF", b'"kind":"job_succeeded"',
    b'"kind":"job_failed"', b"99999999999999999999", b"0.5,0.5@1", b"30000/1001",
)  # fmt: skip
"""What the fuzzer puts together besides what it finds out itself."""


FIELDS = (
    "x",
    "seed",
    "fps",
    "face",
    "segments",
    "consent",
    "webhook_url",
    "audio",
    "guidance_scale",
    "resolution",
)


def _whole(data: bytes) -> bytes:
    """A body: as it is, or good but for one value, for those are hard to hit on by chance."""
    if not data or data.startswith(b"{"):
        return data
    good = {"video": "https://a.example/v.mp4", "image": "UklGRg==", "audio": "UklGRg=="}
    good |= {"left_audio": "UklGRg==", "right_audio": "UklGRg=="}
    field = FIELDS[data[0] % len(FIELDS)].encode()
    return json.dumps(good)[:-1].encode() + b',"' + field + b'":' + data[1:] + b"}"


def submission(data: bytes) -> None:
    """A WaveSpeed body: JSON, data URIs, base64, options, webhook in the query."""
    from server.api import wavespeed
    from server.api.errors import ApiError
    from server.api.wavespeed_models import MODELS

    body, _, query = _whole(data).partition(b"\0\0")
    try:
        result = wavespeed.read_submission(
            next(iter(MODELS.values())), body, query.decode("latin-1"), vendor_limits=True
        )
        _require_answerable(result.echoed_input)
    except ApiError as error:
        _require(400 <= error.status < 500, error)


def form_state(data: bytes) -> None:
    """A lipsync.studio body."""
    from server.api import studio
    from server.api.errors import ApiError
    from server.api.schemas import parse_json_object

    try:
        result = studio.read_submission(
            studio.ENDPOINTS["lipsync-image-multi"], parse_json_object(b'{"formState":' + _whole(data) + b"}")
        )
        _require_answerable(result.echoed_input)
    except ApiError as error:
        _require(400 <= error.status < 500, error)


def inline(data: bytes) -> None:
    """A data URI, or base64."""
    from server.api.errors import ApiError
    from server.api.schemas import InputFiles
    from server.jobs.request import MediaLimits, Role

    try:
        InputFiles().add("video", Role.VIDEO, data.decode("utf-8", "surrogateescape"), MediaLimits())
    except ApiError as error:
        _require(error.status == 400, error)


def manifest_jsonl(data: bytes) -> None:
    _manifest(data, "jsonl")


def manifest_csv(data: bytes) -> None:
    _manifest(data, "csv")


def _manifest(data: bytes, suffix: str) -> None:
    from lipsync_engine.batch.manifest import read_manifest
    from lipsync_engine.errors import LipSyncError
    from lipsync_engine.params import SyncParams

    folder = Path(_folder().name)
    path, output = folder / f"m.{suffix}", folder / "out"
    path.write_bytes(data)
    try:
        result = read_manifest(path, SyncParams(), output)
    except LipSyncError:
        return
    root = output.resolve()
    for row in result.rows:
        _require((root / row.output).resolve().is_relative_to(root), row.output)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """For files to be read; one for all, as making one takes longer than reading."""
    return tempfile.TemporaryDirectory()


def from_worker(data: bytes) -> None:
    """A line of a worker, which hostile media may have taken over."""
    from pydantic import ValidationError

    from server.workers.messages import decode_event

    try:
        decode_event(data)
    except ValidationError:
        return


def url(data: bytes) -> None:
    """Where an input lies; what is taken must lead to one host and port."""
    from server.storage import transport

    try:
        _, host, port = transport._parse_url(data.decode("utf-8", "surrogateescape"))
    except transport.TransportError:
        return
    _require(bool(host) and 0 < port < 65536 and not set(host) & set(" /@\\?#\0\r\n"), (host, port))


def first_bytes(data: bytes) -> None:
    from server.storage.transport import sniff

    sniff(data)


def blob_name(data: bytes) -> None:
    """No name leaves its folder."""
    from server.storage import blobs

    text = data.decode("utf-8", "surrogateescape")
    try:
        name = blobs._validate(text)
    except ValueError:
        return
    _require(".." not in name and not name.startswith("/") and "\\" not in name and name.isprintable(), name)


def options(data: bytes) -> None:
    """Words of the command line."""
    from lipsync_engine.errors import LipSyncError
    from lipsync_engine.media.rates import parse_rate
    from lipsync_engine.params import FaceChoice

    text = data.decode("utf-8", "surrogateescape")
    for read in (FaceChoice.parse, parse_rate):
        try:
            read(text)
        except LipSyncError:
            continue


TARGETS: dict[str, tuple[Callable[[bytes], None], tuple[bytes, ...]]] = {
    "submission": (
        submission,
        (
            b'{"video":"https://a.example/v.mp4","audio":"data:audio/wav;base64,UklGRg==","seed":1,"x":0}',
            b'{"video":"https://a.example/v.mp4","segments":[{"audio":"UklGRg==","face":"left","start":0.5,"end":2}]}',
            b'{"video":"UklGRg==","audio":"UklGRg==","consent":"a","enable_sync_mode":true}\0\0webhook=http://b.example/',
            b"\x00[]",
            b"\x00[1,2.5]",
        ),
    ),
    "form_state": (
        form_state,
        (
            b'{"image":"UklGRg==","left_audio":"UklGRg==","right_audio":"UklGRg==","order":"left_right"}',
            b"\x00[]",
            b"\x00[1,2.5]",
        ),
    ),
    "inline": (inline, (b"data:video/mp4;base64,AAAA", b"AAAA", b"https://a.example/")),
    "manifest_jsonl": (
        manifest_jsonl,
        (b'{"video":"a.mp4","audio":"a.wav","output":"b/c.mp4","face":"0.5,0.5@1","fps":"30000/1001"}\n',),
    ),
    "manifest_csv": (manifest_csv, (b'video,audio,output,seed\n"a.mp4",a.wav,../x.mp4,1\n',)),
    "from_worker": (
        from_worker,
        (b'{"kind":"job_progress","job_id":"a","stage":"render","done":1,"total":2,"per_s":1.5}\n',),
    ),
    "url": (url, (b"https://user@a.example:80/b?c#d", b"http://[::1%25eth0]/", b"http://0x7f.1/")),
    "first_bytes": (first_bytes, (b"\0\0\0\x18ftypisom", b"RIFF\0\0\0\0WAVE", b"\xff\xfb\x90")),
    "blob_name": (blob_name, (b"uploads/a/0123456789abcdef.mp4", b"results/a.mp4")),
    "options": (options, (b"0.5,0.5@1.5", b"30000/1001", b"largest")),
}  # fmt: skip


def _require_answerable(said: dict[str, object]) -> None:
    """What is stored of a body is said back in every later answer."""
    json.dumps(said, allow_nan=False, ensure_ascii=False).encode()


def _require(holds: bool, what: object) -> None:
    if not holds:
        raise AssertionError(f"{what!r}")


def strike_all(runs: int, seed: int) -> Part:
    """Every target in a process of its own."""
    part = Part("parsers", seed)
    if importlib.util.find_spec("atheris") is None:
        part.facts["skipped"] = "atheris has no wheel for this Python and system"
        return part
    with tempfile.TemporaryDirectory() as name:
        words = Path(name) / "words"
        lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS)
        words.write_text("".join(f'"{line}"\n' for line in lines))
        for target, (_, samples) in TARGETS.items():
            corpus = Path(name) / target
            corpus.mkdir()
            for number, sample in enumerate(samples):
                (corpus / str(number)).write_bytes(sample)
            command = [
                sys.executable,
                "-m",
                "tests.fuzz.campaign.parsers",
                target,
                str(corpus),
                f"-runs={runs}",
            ]
            command += [
                f"-seed={seed}",
                f"-max_len={LARGEST}",
                f"-timeout={LONGEST_S}",
                f"-artifact_prefix={name}/",
                f"-dict={words}",
            ]
            result = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=3600
            )
            executed = [int(text) for text in re.findall(r"^#(\d+)\s+DONE", result.stderr, re.M)]
            if result.returncode == 0 and executed:
                part.counts[target]["answered"] += executed[0]
            else:
                tail = result.stderr[-1500:]
                part.count(target, "crash", f"{target} ended with {result.returncode}: {tail}")
    return part


def main() -> None:
    import atheris

    target = TARGETS[sys.argv[1]][0]
    with atheris.instrument_imports(include=["server", "lipsync_engine", "json"]):
        target(b"")  # imports what it needs
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
