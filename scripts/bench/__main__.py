"""Benchmarks of the project: `python -m scripts.bench NAME`. Results go to benchmarks/.

Speed claims are ratios, measured side by side in one run. Absolute times need a named GPU.
"""

from __future__ import annotations

import argparse
import importlib
import sys

BENCHES = {
    "api": "submissions and polls beside a rendering worker; start to first answer",
    "batching": "windows of several jobs in one forward pass",
    "cluster": "a Ray cluster on this machine: scaling, killed nodes",
    "cluster-size": "where a large cluster saturates: measured costs, computed queues",
    "fast": "fidelity and speed of every shortcut",
    "flops": "floating-point operations of the networks",
    "gpu": "times, memory and utilisation on a GPU",
    "memory": "peak memory against the length of a video",
    "server-jobs": "several jobs at once in a server's worker",
    "stages": "the CPU stages beside the reference's own routines",
    "start": "cold start of the engine, first preview of a job",
    "watermark": "what the invisible watermark survives",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    chosen = next((name for name in sys.argv[1:] if name in BENCHES), None)
    for name, summary in BENCHES.items():
        command = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:  # importing all of them would take seconds
            bench = importlib.import_module(f"scripts.bench.{name.replace('-', '_')}")
            command.description = bench.__doc__
            bench.add_arguments(command)
            command.set_defaults(run_bench=bench.run)
    arguments = parser.parse_args()
    return int(arguments.run_bench(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())
