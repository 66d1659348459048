"""A worker process that sleeps like a GPU, in the place of the real one: for measuring everything around it.

With this folder on PYTHONPATH, `python -m server.workers.main` is this file. It speaks the worker's messages,
loads no model, makes no pictures: a job has as many segments as `num_inference_steps` says, a segment takes
STAND_IN_SEGMENT_S seconds of sleep, up to a part STAND_IN_SPREAD of it more or less, and its file says which
one it is, filled up to STAND_IN_BYTES. The result is all of them, one after the other. How long it waited for
the next segment of a film after it had finished one is written to STAND_IN_GAPS, a line each, in seconds.
With STAND_IN_PROBLEM it does not start, for that reason. With STAND_IN_RELEASE no segment ends before that
file exists.
"""

import os
import sys

if "server.workers.main" in sys.orig_argv[1:4]:
    import json
    import random
    import time
    from pathlib import Path

    SEGMENT_S, SPREAD = float(os.environ["STAND_IN_SEGMENT_S"]), float(os.environ.get("STAND_IN_SPREAD", 0))
    BYTES = int(os.environ["STAND_IN_BYTES"])
    GAPS = Path(os.environ["STAND_IN_GAPS"])
    RELEASE = Path(os.environ.get("STAND_IN_RELEASE", "/"))
    FRAMES, REPORT_INTERVAL_S = 150, 0.25
    SPEED = FRAMES / SEGMENT_S
    work = Path(sys.orig_argv[sys.orig_argv.index("--work-dir") + 1])

    def send(kind, **fields):
        sys.stdout.write(json.dumps({"kind": kind, **fields}) + "\n")
        sys.stdout.flush()

    def receive():
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        return json.loads(line)

    def segment(job, number, file, done, total):
        """Sleep, say how far it is, write the file."""
        end = time.monotonic() + SEGMENT_S * random.uniform(1 - SPREAD, 1 + SPREAD)
        while (left := end - time.monotonic()) > 0 or not RELEASE.exists():
            left = max(left, 0.01)
            part = max(0, int(FRAMES * (1 - left / SEGMENT_S)))
            send(
                "job_progress",
                job_id=job,
                stage="render",
                done=done + part,
                total=total,
                per_s=FRAMES / SEGMENT_S,
            )
            time.sleep(min(left, REPORT_INTERVAL_S))
        content = f"{job} {number}\n".encode()
        file.with_suffix(".part").write_bytes(content.ljust(BYTES, b"."))
        file.with_suffix(".part").replace(file)

    def shared(job, count):
        """Segments that others may render; their files."""
        folder = work / job
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"segment-{number:05d}.mp4" for number in range(count)]
        plan = folder / "plan.json"
        plan.write_text("{}")
        places = [[str(file), FRAMES] for file in files]
        send("segments_published", job_id=job, plan_key=job, files={"plan.json": str(plan)}, segments=places)
        while not all(file.exists() for file in files):
            requested_at = time.monotonic()
            send("next_segment", job_id=job)
            while (answer := receive())["kind"] != "segment_assigned":
                pass
            if answer["index"] is not None:
                note(requested_at)
                done = FRAMES * sum(file.exists() for file in files)
                segment(job, answer["index"], files[answer["index"]], done, FRAMES * count)
                send("segment_rendered", job_id=job, index=answer["index"], file=str(files[answer["index"]]))
        return files

    def note(since):
        with GAPS.open("a") as log:
            log.write(f"{time.monotonic() - since:.5f}\n")

    if problem := os.environ.get("STAND_IN_PROBLEM"):
        send("worker_failed", message=problem)
        sys.exit(1)
    send("worker_ready", device="cpu", model="stand-in", compatibility_key="stand-in")
    ended = None
    while True:
        command = receive()
        job = command.get("job_id")
        if command["kind"] == "render_segment":
            if ended is not None and ended[0] == job:
                note(ended[1])
            file = Path(command["folder"]) / f"segment-{command['index']:05d}.mp4"
            segment(job, command["index"], file, 0, FRAMES)
            send("segment_rendered", job_id=job, index=command["index"], file=str(file))
            ended = job, time.monotonic()
        elif command["kind"] == "run_job":
            count = command["options"]["num_inference_steps"]
            if count > 1:
                files = shared(job, count)
            else:
                files = [Path(command["output"]).with_name("segment.mp4")]
                segment(job, 0, files[0], 0, FRAMES)
            Path(command["output"]).write_bytes(b"".join(file.read_bytes() for file in files))
            media_s = FRAMES * count / 25
            send(
                "job_succeeded",
                job_id=job,
                device_s=SEGMENT_S * count,
                media_s=media_s,
                warnings=[],
                is_signed=False,
            )
            ended = None
