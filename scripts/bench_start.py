"""Cold start: from the start of a process to the first window that is made, in its parts.

    python -m scripts.bench_start --model tiny --runs 3        # prints JSON

Each run is a process of its own. `loaded` is when the weights are on the device, `ready` when one window has
been denoised and decoded: what a server's worker does before it says that it is ready.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

CHILD = """
import json, sys, time
began = float(sys.argv[1])
def say(mark): print(json.dumps([mark, time.time() - began]), flush=True)
import torch
from lipsync_engine import LipSyncPipeline
say("imported")
model = LipSyncPipeline.from_pretrained(sys.argv[2], device=sys.argv[3] or None).model
say("loaded")
model.warm_up()
if model.device.type == "cuda": torch.cuda.synchronize()
say("ready")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="", help="empty: the best there is")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    marks: dict[str, list[float]] = {}
    for _ in range(arguments.runs):
        command = [sys.executable, "-c", CHILD, str(time.time()), arguments.model, arguments.device]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in told.splitlines():
            mark, after_s = json.loads(line)
            marks.setdefault(mark, []).append(after_s)
    print(json.dumps({f"{mark}_s": round(statistics.median(times), 2) for mark, times in marks.items()}))


if __name__ == "__main__":
    main()
