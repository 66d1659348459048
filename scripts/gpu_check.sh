#!/usr/bin/env bash
# Everything that needs a GPU, in one run of about eight minutes and without a network: the tests marked `gpu`, then
# the benchmark. PYTHON names an interpreter with a CUDA build of torch and this project's dependencies; OUT takes
# gpu.json and gpu.png.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
timeout 150 "$PYTHON" -m pytest -m gpu -p no:cacheprovider -q tests/gpu
timeout 330 "$PYTHON" scripts/bench_gpu.py --out "${OUT:-benchmarks}" "$@"
