"""Makes the folders that `test_older_work_dirs.py` opens, with the engine of commit e5b2546.

git worktree add ../before e5b2546
cd ../before && PYTHONPATH=. python .../tests/support/engine_dirs_e5b2546/make.py .../engine_dirs_e5b2546

inputs/       a video of the drawn presenter and voices
job/          the work folder of a job that was interrupted after its first segment, without its audio
              features, which are large
batch/        the output folder of a batch: row 1 done, row 2 failed, a line that a crash has cut
params.jsonl  a preset or options, and the JSON that job keys and plans contain
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

from pydantic import TypeAdapter

from lipsync_engine import LipSyncPipeline, SyncParams, media
from lipsync_engine.batch import Loading, run_batch
from lipsync_engine.params import FaceChoice, LoopMode, Shortcuts, Solver, Tail


def main(target: Path) -> None:
    for name in ("inputs", "job", "batch"):
        shutil.rmtree(target / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIPSYNC_CREDENTIALS_DIR"] = f"{folder}/credentials"
        make_inputs(target / "inputs")
        make_job(target, Path(folder) / "cache")
        make_batch(target, Path(folder) / "cache")
    make_params(target / "params.jsonl")
    for path in (target / "job" / "plan.json", target / "batch" / "results.jsonl"):
        path.write_text(path.read_text().replace(str(target), "/data"))


def make_inputs(inputs: Path) -> None:
    inputs.mkdir()

    def ffmpeg(*arguments: object) -> None:
        subprocess.run([media.find_ffmpeg(), "-v", "error", "-y", *map(str, arguments)], check=True)

    demo = Path("demo")
    scale = "scale=136:-2,crop=96:96:20:10"
    ffmpeg("-i", demo / "presenter.mp4", "-t", 0.4, "-an", "-vf", scale, "-crf", 30, inputs / "clip.mp4")
    voice = ("-ar", 16000, "-ac", 1, "-c:a", "libmp3lame", "-b:a", "16k")
    ffmpeg("-ss", 0.2, "-i", demo / "voice.wav", "-t", 4, *voice, inputs / "voice.mp3")
    ffmpeg("-ss", 0.2, "-i", demo / "voice.wav", "-t", 0.4, *voice, inputs / "short.mp3")
    ffmpeg("-f", "lavfi", "-i", "color=gray:size=64x64:rate=25", "-t", 0.4, inputs / "wall.mp4")


def make_job(target: Path, cache: Path) -> None:
    cache.mkdir()
    pipeline = LipSyncPipeline.from_pretrained("tiny", device="cpu", cache_dir=cache)
    params = SyncParams(num_inference_steps=1, guidance_scale=1.0, seed=7, shortcuts=Shortcuts(Solver.UNIPC))
    inputs = target / "inputs"
    steps = pipeline.run(inputs / "clip.mp4", inputs / "voice.mp3", cache / "out.mp4", params)
    next(progress for progress in steps if progress.watchable is not None)
    (job,) = (path for path in (cache / "jobs").iterdir() if path.is_dir())
    (target / "job").mkdir()
    for name in ("plan.json", "plan.npz", "segment-00000.mp4"):
        shutil.copy(job / name, target / "job" / name)
    steps.close()


def make_batch(target: Path, cache: Path) -> None:
    manifest, out = target / "inputs" / "list.jsonl", target / "batch"
    rows = [
        {"video": "clip.mp4", "audio": "short.mp3", "output": "talk.mp4", "consent": "release 17"},
        {"video": "wall.mp4", "audio": "short.mp3", "output": "wall.mp4", "seed": 3},
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = SyncParams.preset("fastest", num_inference_steps=1)
    for _ in run_batch(manifest, out, params, loading=Loading(cache_dir=cache)):
        pass
    (out / "talk.mp4").write_bytes(b"a result")  # only its presence counts
    shutil.rmtree(out / "thumbnails")
    (out / "report.html").unlink()
    (out / "workers.log").unlink(missing_ok=True)
    with (out / "results.jsonl").open("a") as file:
        file.write('{"row":')


def make_params(path: Path) -> None:
    options = {
        "num_inference_steps": 12,
        "guidance_scale": 1.25,
        "seed": 99,
        "fps": "30000/1001",
        "loop_mode": "loop",
        "tail": "keep",
        "face": "640,300@1.5",
        "max_short_side": 720,
        "label": True,
        "watermark": True,
    }
    custom = {**options, "fps": Fraction("30000/1001"), "face": FaceChoice.parse("640,300@1.5")}
    custom |= {"loop_mode": LoopMode.LOOP, "tail": Tail.KEEP}
    adapter = TypeAdapter(SyncParams)
    with path.open("w") as file:
        for preset in ("default", "lossless", "reference", "fast", "fastest"):
            stored = adapter.dump_json(SyncParams.preset(preset)).decode()
            file.write(json.dumps({"preset": preset, "options": {}, "stored": stored}) + "\n")
        stored = adapter.dump_json(SyncParams.preset("fastest", **custom)).decode()
        file.write(json.dumps({"preset": "fastest", "options": options, "stored": stored}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
