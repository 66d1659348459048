"""Many clips from one command: what is refused, what is made, what a crash and a second run leave alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from lipsync_engine import LipSyncPipeline, SyncParams
from lipsync_engine.batch import BatchProgress, ManifestError, ModelOptions, RowStatus, run_batch
from lipsync_engine.errors import EXIT_STATUS, ErrorCode, LipSyncError, ParameterError
from lipsync_engine.provenance import ManifestSigner, Verdict, verify_credentials
from lipsync_engine.utils import drain
from tests.support.cli_process import DEADLINE_S, start_cli, wait_while_running

Ffmpeg = Callable[..., None]
Run = Callable[..., subprocess.CompletedProcess[str]]

QUICK = ("--steps", "1", "--guidance-scale", "1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Ffmpeg, clip: Path, voice: Path) -> Path:
    """A folder with a clip, a picture of it, two voices and a clip without a face."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "talk.mp4").hardlink_to(clip)
    ffmpeg("-i", clip, "-frames:v", 1, "-update", 1, folder / "face.png")
    ffmpeg("-i", voice, "-t", 0.8, folder / "talk.wav")
    ffmpeg("-i", voice, "-t", 0.6, folder / "face.wav")
    ffmpeg("-f", "lavfi", "-i", "color=gray:size=160x120:rate=25", "-t", 1, folder / "wall.mp4")
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


def films(folder: Path) -> dict[str, int]:
    values = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}
    return {str(path.relative_to(folder)): time_ns for path, time_ns in values.items()}


def table_rows(report: Path) -> list[str]:
    return re.findall(r"<tr class=(\w+)>", report.read_text())


# --- what is made ---


def test_failed_clip_does_not_stop_the_batch(inputs: Path, tmp_path: Path, lipsync: Run) -> None:
    manifest, out = inputs / "list.csv", tmp_path / "out"
    manifest.write_text(
        "video,image,audio,output,seed,motion,consent\n"
        'talk.mp4,,talk.wav,"monday/<script>alert(1)&.mp4",7,,release 17\n'
        "wall.mp4,,talk.wav,,,,\n"
        "\n"
        ",face.png,face.wav,,,still,\n"
        "gone.mp4,,talk.wav,<b>gone.mp4,,,\n"
    )
    result = lipsync("batch", manifest, "-o", out, "--skip-bad", *QUICK)
    assert result.returncode == EXIT_STATUS[ErrorCode.BATCH_INCOMPLETE], result.stderr[-2000:]
    assert "2 of 4 clips are done" in result.stdout
    assert "row 2 failed: The video shows no face" in result.stderr
    assert set(films(out)) == {"monday/<script>alert(1)&.mp4", "face.mp4"}

    values = {line["row"]: line for line in lines(out)}
    assert {row: line["status"] for row, line in values.items()} == {
        1: "done", 2: "failed", 3: "done", 4: "refused",
    }  # fmt: skip
    assert (values[2]["code"], values[4]["code"]) == ("face_not_found", "input_not_found")
    assert values[1]["made"]["frames"] == 20
    assert values[1]["made"]["seconds"]["render"] > 0
    assert values[3]["made"]["seconds"]["motion"] > 0
    assert values[1]["inputs"]["audio"]["sha256"]
    assert (values[1]["consent"], values[3]["consent"]) == ("release 17", None)
    for row in (1, 3):
        assert values[row]["made"]["is_marked"]
        signed = verify_credentials(
            out / values[row]["output"], ManifestSigner.from_environment().trusted_roots()
        )
        assert (signed.verdict, len(signed.ingredients)) == (Verdict.TRUSTED, 1)
        assert ("consent_sha256" in (signed.generation or {})) == (row == 1)

    report = (out / "report.html").read_text()
    assert table_rows(out / "report.html") == ["done", "failed", "done", "refused"]
    assert "&lt;script&gt;alert(1)&amp;" in report
    assert "<script" not in report
    assert "<b>gone" not in report
    assert "gone.mp4&#x27; does not exist" in report
    assert not re.search(r"https?:|//", report)
    pictures = re.findall(r'src="\./(.*?)"', report)
    assert len(pictures) == 2
    assert all((out / picture).read_bytes()[:2] == b"\xff\xd8" for picture in pictures)
    names = {path.name for path in out.iterdir()}
    assert names == {"monday", "face.mp4", "results.jsonl", "report.html", "thumbnails"}


def test_unsignable_outputs_are_rejected_before_rendering(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, out = inputs / "list.jsonl", tmp_path / "out"
    manifest.write_text('{"video": "talk.mp4", "audio": "talk.wav", "output": "talk.mkv"}\n')
    with pytest.raises(ManifestError) as failed:
        list(run_batch(manifest, out))
    assert failed.value.problems[0].column == "output"
    assert "cannot hold content credentials" in failed.value.problems[0].message
    monkeypatch.setenv("LIPSYNC_REQUIRE_CONSENT", "1")
    for consent, codes in ((None, ["consent_required"]), ("release 17", ["parameter_invalid"])):
        with pytest.raises(ManifestError) as failed:
            list(run_batch(manifest, out, consent=consent))
        assert [problem.code for problem in failed.value.problems] == codes
    monkeypatch.setenv("LIPSYNC_SIGNING_CHAIN", str(tmp_path / "gone.pem"))
    monkeypatch.setenv("LIPSYNC_SIGNING_KEY", str(tmp_path / "gone.pem"))
    with pytest.raises(LipSyncError) as broken:
        list(run_batch(manifest, out, consent="release 17"))
    assert broken.value.code is ErrorCode.SIGNING_FAILED


def test_killed_batch_resumes_with_the_unfinished_clips(
    inputs: Path, tmp_path: Path, cache_dir: Path, environment: dict[str, str], lipsync: Run
) -> None:
    manifest, out = inputs / "list.jsonl", tmp_path / "out"
    rows = [
        {"video": "talk.mp4", "audio": "talk.wav", "seed": seed, "output": f"{seed}.mp4"} for seed in range(4)
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = start_cli(environment, "batch", manifest, "-o", out, *QUICK)
    wait_while_running(lambda: len(lines(out)) >= 1, first)
    second = lipsync("batch", manifest, "-o", out, *QUICK)
    workers = workers_of(first)
    first.kill()
    first.communicate(timeout=30)
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert second.returncode == EXIT_STATUS[ErrorCode.JOB_BUSY]
    assert "error [job_busy]" in second.stderr
    previous = {line["output"] for line in lines(out)}
    assert 1 <= len(previous) < 4, "nothing is left to do: the batch was killed too late"
    times = films(out)
    with (out / "results.jsonl").open("a") as file:
        file.write('{"row":')  # what a power cut leaves

    for path in cache_dir.glob("jobs/*/segment-*.part*"):  # of the killed run; the next is the second's
        path.unlink()
    again = start_cli(environment, "batch", manifest, "-o", out, *QUICK)
    wait_while_running(lambda: any(cache_dir.glob("jobs/*/segment-*.part*")), again)
    (worker,) = workers_of(again)
    worker.kill()
    printed, errors = again.communicate(timeout=DEADLINE_S)
    assert again.returncode == 0, errors[-2000:]
    assert f"4 of 4 clips are done, {len(previous)} of them before" in printed
    assert {name: films(out)[name] for name in previous} == {name: times[name] for name in previous}
    whole = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines() if line[-1] == "}"]
    assert sorted(line["output"] for line in whole) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    assert [line["attempts"] for line in whole if line["output"] not in previous].count(2) == 1
    assert table_rows(out / "report.html") == ["done"] * 4
    assert list((cache_dir / "jobs").iterdir()) == []


@pytest.mark.slow
def test_interrupted_batch_of_a_folder_is_finished_by_two_workers(
    inputs: Path, tmp_path: Path, cache_dir: Path, environment: dict[str, str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, source in (
        ("a.mp4", "talk.mp4"),
        ("a.wav", "talk.wav"),
        ("b.mp4", "talk.mp4"),
        ("b.wav", "face.wav"),
    ):
        (folder / name).hardlink_to(inputs / source)
    process = start_cli(environment, "batch", folder, "-o", out, *QUICK)
    wait_while_running(lambda: any(cache_dir.glob("jobs/*/segment-*.part*")), process)
    workers = workers_of(process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == EXIT_STATUS[ErrorCode.CANCELLED]
    assert "error [cancelled]" in errors
    assert "Traceback" not in errors
    assert not any(worker.is_running() for worker in workers)
    assert not list(cache_dir.rglob("*.part*"))
    assert lines(out) == []
    assert films(out) == {}
    assert table_rows(out / "report.html") == ["waiting", "waiting"]

    params = SyncParams(num_inference_steps=1, guidance_scale=1)
    steps = run_batch(folder, out, params, model_options=ModelOptions(cache_dir=cache_dir), workers=2)
    records: list[BatchProgress] = []
    result = drain(steps, records.append)
    assert [one.status for one in result.results] == [RowStatus.DONE, RowStatus.DONE]
    assert max(len(progress.running) for progress in records) == 2
    assert any(progress.eta_s is not None for progress in records)
    assert (records[-1].done, records[-1].rows) == (2, 2)

    # Nothing is left to do, so no model is loaded; a changed file is.
    times = films(out)
    *_, last = run_batch(folder, out, params)
    assert last.resumed == 2
    assert films(out) == times
    os.utime(folder / "a.wav")
    *_, last = run_batch(folder, out, params)
    assert last.resumed == 2, "its bytes are the same"
    (folder / "a.wav").unlink()
    with pytest.raises(ManifestError):
        list(run_batch(folder, out, params))


@pytest.mark.slow
def test_one_worker_renders_several_clips_concurrently(
    inputs: Path, tmp_path: Path, cache_dir: Path, likeness_db: Callable[[Path, Path], float]
) -> None:
    manifest, out = inputs / "several.csv", tmp_path / "out"
    rows = ("talk.mp4,talk.wav,a.mp4,7", "wall.mp4,talk.wav,b.mp4,7", "talk.mp4,face.wav,c.mp4,8")
    manifest.write_text("video,audio,output,seed\n" + "\n".join(rows) + "\n")
    params = SyncParams(num_inference_steps=1, guidance_scale=1)
    options = ModelOptions(cache_dir=cache_dir, jobs=3)
    records: list[BatchProgress] = []
    result = drain(run_batch(manifest, out, params, model_options=options, workers=4), records.append)
    assert [one.status for one in result.results] == [RowStatus.DONE, RowStatus.FAILED, RowStatus.DONE]
    assert max(len(progress.running) for progress in records) == 3
    alone = LipSyncPipeline.from_pretrained(cache_dir=tmp_path / "alone")
    alone(inputs / "talk.mp4", inputs / "face.wav", tmp_path / "c.mp4", replace(params, seed=8))
    assert likeness_db(out / "c.mp4", tmp_path / "c.mp4") > 55


@pytest.mark.slow
def test_clips_of_a_killed_worker_are_retried_one_by_one(
    inputs: Path, tmp_path: Path, cache_dir: Path, environment: dict[str, str]
) -> None:
    manifest, out = inputs / "killed.csv", tmp_path / "out"
    rows = "".join(f"talk.mp4,talk.wav,{seed}.mp4,{seed}\n" for seed in range(3))
    manifest.write_text(f"video,audio,output,seed\n{rows}")
    process = start_cli(environment, "batch", manifest, "-o", out, "--jobs-per-worker", 2, *QUICK)
    wait_while_running(lambda: len(list(cache_dir.glob("jobs/*/"))) == 2, process)
    (worker,) = workers_of(process)
    worker.kill()
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors[-2000:]
    assert [line["attempts"] for line in lines(out)] == [2, 2, 1]


@pytest.mark.slow
def test_equal_clips_run_one_after_the_other(inputs: Path, tmp_path: Path, cache_dir: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        for suffix in (".mp4", ".wav"):
            shutil.copy(inputs / f"talk{suffix}", folder / f"{name}{suffix}")
    params = SyncParams(num_inference_steps=1, guidance_scale=1)
    steps = run_batch(
        folder, tmp_path / "out", params, model_options=ModelOptions(cache_dir=cache_dir), workers=3
    )
    result = drain(steps)
    assert [(one.status, one.attempts) for one in result.results] == [(RowStatus.DONE, 1)] * 3


def test_jobs_per_worker_is_bounded(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="jobs=17"):
        next(run_batch(inputs, tmp_path / "out", model_options=ModelOptions(jobs=17)))


# --- what is refused ---


def test_invalid_rows_are_listed_and_nothing_starts(inputs: Path, tmp_path: Path, lipsync: Run) -> None:
    manifest, out = inputs / "bad.csv", tmp_path / "out"
    manifest.write_text(
        "video,audio,output,steps\n"
        "talk.mp4,talk.wav,1.mp4,\ntalk.wav,talk.wav,2.mp4,\ntalk.mp4,face.png,3.mp4,\ntalk.mp4,face.wav,4.mp4,0\n"
    )
    result = lipsync("batch", manifest, "-o", out)
    assert result.returncode == EXIT_STATUS[ErrorCode.MANIFEST_INVALID]
    assert "error [manifest_invalid]: 3 of 4 rows" in result.stderr
    for place in ("row 2, video: ", "row 3, audio: ", "row 4, steps: num_inference_steps=0"):
        assert place in result.stderr
    assert "[media_no_video]" in result.stderr
    assert list(out.iterdir()) == []
