"""Hostile media through the engine: every file is looked at, what opens is read whole, some becomes films."""

from __future__ import annotations

import collections
import json
import os
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lipsync_engine import media
from lipsync_engine.errors import ErrorCode, LipSyncError
from lipsync_engine.media.process import DEFAULT_LIMITS
from tests.fuzz.campaign.mutations import AUDIO, IMAGE, VIDEO, Case, cases
from tests.fuzz.campaign.report import Part, resident_bytes
from tests.support.paths import ROOT

LONGEST_S = 3 * DEFAULT_LIMITS.probe_wall_s
"""A file is looked at by up to three children, each of which has its own limit."""

NOT_THE_FILES_FAULT = {ErrorCode.FFMPEG_MISSING, ErrorCode.DISK_FULL, ErrorCode.OUTPUT_NOT_WRITABLE}
SAME_EVERY_TIME = ("-fflags", "+bitexact", "-flags", "+bitexact")
MEMORY_GROWTH_BYTES = 64 << 20
SECRET_COLOUR = (200, 40, 160)


def make_seeds(folder: Path) -> list[Path]:
    """Small good files of every kind that is taken, with a drawn face where there is a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    video = ["-ss", 1, "-t", 0.6, "-i", ROOT / "demo/presenter.mp4"]
    sound = ["-t", 0.6, "-i", ROOT / "demo/voice.wav"]
    small = ["-vf", "scale=256:-2", "-threads", 1]
    aac = ["-c:a", "aac", "-shortest"]
    output = {
        "plain.mp4": [*video, *sound, *small, *aac],
        "start.mp4": [*video, *sound, *small, *aac, "-movflags", "faststart"],
        "pieces.mp4": [*video, *small, "-an", "-movflags", "frag_keyframe+empty_moov", "-g", 5],
        "apple.mov": [*video, *sound, *small, "-c:a", "pcm_s16le", "-shortest"],
        "open.mkv": [*video, *sound, *small, *aac],
        "web.webm": [*video, *small, "-an", "-c:v", "libvpx", "-deadline", "good", "-cpu-used", 4],
        "voice.wav": sound,
        "voice.mp3": sound,
        "voice.flac": sound,
        "voice.m4a": sound,
        "voice.ogg": [*sound, "-c:a", "libopus"],
        "face.png": [*video, *small, "-frames:v", 1, "-update", 1],
        "face.jpg": [*video, *small, "-frames:v", 1, "-update", 1],
        "face.webp": [*video, *small, "-frames:v", 1, "-update", 1],
        "face.bmp": [*video, *small, "-frames:v", 1, "-update", 1],
    }
    for name, arguments in output.items():
        _ffmpeg(*arguments, *SAME_EVERY_TIME, folder / name)
    return [folder / name for name in output]


def make_secret(folder: Path) -> Path:
    """A film that only a trap leads to."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "secret.mp4"
    red, green, blue = SECRET_COLOUR
    _ffmpeg("-f", "lavfi", "-i", f"color=0x{red:02x}{green:02x}{blue:02x}:s=96x96:r=25:d=0.4", path)
    return path


def _ffmpeg(*arguments: object) -> None:
    command = [str(media.find_ffmpeg()), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=120)


def strike(case: Case, folder: Path) -> tuple[str, float, str | None]:
    """Give a file to the engine as a job would.

    Returns:
        (its code, or "taken"), seconds, what is wrong with how the engine took it.
    """
    path = folder / case.name
    path.write_bytes(case.data)
    began = time.monotonic()
    wrong = None
    try:
        {VIDEO: _watch, AUDIO: _listen, IMAGE: media.read_image}[case.use](path)
        code = "taken"
        if case.is_trap:
            wrong = "a file that names another was taken"
    except LipSyncError as error:
        code = str(error.code)
        if len(error.message) < 20 or str(folder) in error.message:
            wrong = f"its message is no sentence, or tells a path: {error.message!r}"
        elif error.code in NOT_THE_FILES_FAULT:
            wrong = f"it was blamed on the machine: {error.message!r}"
    except Exception as error:  # noqa: BLE001  (that is what is looked for)
        code, wrong = "crash", f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    if wrong is None and seconds > LONGEST_S:
        wrong = f"it took {seconds:.0f} s"
    if wrong is None:
        path.unlink(missing_ok=True)
    return code, seconds, wrong and f"{case.kind} ({case.name}): {wrong}"


def _watch(path: Path) -> None:
    info = media.probe_video(path)
    times = [pts for pts, _ in media.scan_frames(info, 64)]
    with media.FrameReader(info, times) as reader:
        for _ in reader.read(range(min(3, len(times)))):
            pass
    if info.audio is not None:
        _listen(path)


def _listen(path: Path) -> None:
    media.probe_audio(path)
    for _ in media.read_audio(path):
        pass


def look(folder: Path, count: int, seed: int, threads: int = 2) -> Part:
    """All files; those films that were taken stay in `folder`/taken for `films`."""
    part = Part("media files", seed)
    inbox, taken = folder / "inbox", folder / "taken"
    for place in (inbox, taken):
        place.mkdir(parents=True)
    seeds, secret = make_seeds(folder / "seeds"), make_secret(folder / "secret")
    before, codes = _tree(folder), collections.Counter[str]()
    slowest, resident = 0.0, 0

    def one(numbered: tuple[int, Case]) -> None:
        nonlocal slowest, resident
        number, case = numbered
        code, seconds, wrong = strike(case, inbox)
        slowest = max(slowest, seconds)
        codes[code] += 1
        part.count(case.kind.partition(":")[0], code, wrong)
        if code == "taken" and case.use == VIDEO:
            (taken / f"{number:05}{Path(case.name).suffix}").write_bytes(case.data)
        if number == count // 5:
            resident = resident_bytes(os.getpid())

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, enumerate(cases(seeds, random.Random(seed), count, secret))))
    grown = resident_bytes(os.getpid()) - resident
    part.facts |= {"slowest_s": round(slowest, 1), "memory_growth_mib": grown >> 20}
    if grown > MEMORY_GROWTH_BYTES:
        part.broken.append(f"memory grew by {grown >> 20} MiB")
    remaining = sorted(_tree(folder) - before - {str(path) for path in taken.iterdir()})
    if remaining and not part.broken:
        part.broken.append(f"files were left: {remaining[:5]}")
    part.facts["codes"] = dict(codes.most_common())
    return part


def _tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.is_file()}


def films(folder: Path, count: int, seed: int) -> Part:
    """A share of the damaged films that open, as a batch: one bad film must not stop the others."""
    part = Part("films made of damaged videos", seed)
    taken = sorted((folder / "taken").iterdir())
    selection = random.Random(seed).sample(taken, min(count, len(taken)))
    voice = folder / "seeds" / "voice.wav"
    rows = [{"video": str(path), "audio": str(voice), "output": f"{path.stem}.mp4"} for path in selection]
    manifest, output = folder / "films.jsonl", folder / "films"
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    environment = os.environ | {
        "LIPSYNC_CACHE_DIR": str(folder / "cache"),
        "LIPSYNC_CREDENTIALS_DIR": str(folder / "credentials"),
    }
    command = [sys.executable, "-m", "lipsync_engine.cli", "batch", str(manifest), "-o", str(output)]
    command += ["--skip-bad", "--steps", "1", "--guidance-scale", "1"]
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=3600, check=False
    )
    if "Traceback" in process.stderr or process.returncode < 0:
        part.broken.append(f"the batch's process ended with {process.returncode}: {process.stderr[-500:]}")
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    results = {line["output"] or line.get("clip"): line for line in lines}
    for row in rows:
        result = results.get(row["output"])
        code = "no result" if result is None else result["code"] or "done"
        bad = result is None or code in ("internal_error", "worker_lost")
        part.count("films", code, f"{row['video']}: {code}, {result}" if bad else None)
    films_made = {path.name for path in output.glob("*.mp4")}
    if films_made != {name for name, line in results.items() if line["status"] == "done"}:
        part.broken.append("there are films without results, or results without films")
    hidden = [
        path.name
        for path in output.rglob("*")
        if path.name.startswith(".") and not re.search("lock", path.name)
    ]
    if hidden:
        part.broken.append(f"working files were left: {hidden[:5]}")
    return part
