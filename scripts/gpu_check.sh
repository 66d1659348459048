#!/usr/bin/env bash
# Everything that needs a GPU, in one run of less than ten minutes and without a network: the tests marked `gpu`, then
# the benchmark, compiled code too, then windows of several jobs in one run. PYTHON names an interpreter with a CUDA
# build of torch and this project's dependencies; OUT takes gpu.json, gpu.png and batching.json, which are written after
# every part, so that what was measured stays when time runs out. Arguments go to bench_gpu.py: --reference FOLDER times
# the public implementation as well, in minutes of its own (LIMIT_S).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
timeout 180 "$PYTHON" -m pytest -m gpu -p no:cacheprovider -q tests/gpu
timeout "${LIMIT_S:-300}" "$PYTHON" scripts/bench_gpu.py --compiled --out "${OUT:-benchmarks}" "$@"
timeout 100 "$PYTHON" scripts/bench_batching.py --device cuda:0 --steps 2 --repeats 1 --out "${OUT:-benchmarks}"
