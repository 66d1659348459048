#!/usr/bin/env bash
# Everything that needs a GPU, in one run of less than eight minutes and without a network, what matters most first:
# the tests marked `gpu`; stages, whole jobs, presets, plans of smaller cards; windows of several jobs in one run;
# compiled code; FP8. Each part may run until its share of LIMIT_S has passed and leaves what it does not need to the
# next. Reports (gpu.json, gpu.png, batching.json, in OUT) are written after every number, so a part that is cut off
# keeps what it has. PYTHON names an interpreter with a CUDA build of torch and this project's dependencies. Arguments
# go to the GPU benchmark: --reference FOLDER times the public implementation as well, before the smaller cards.
# The exit status is 0 only where every part came to its end.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks}
LIMIT_S=${LIMIT_S:-470}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
TORCHINDUCTOR_CACHE_DIR=$(mktemp -d)
export TORCHINDUCTOR_CACHE_DIR
trap 'rm -rf "$TORCHINDUCTOR_CACHE_DIR"' EXIT

status=0
by() { # by PERCENT COMMAND…
  local left=$((LIMIT_S * $1 / 100 - SECONDS))
  shift
  timeout -k 5 $((left > 1 ? left : 1)) "$PYTHON" "$@" || { echo "ended with status $?: $*" >&2; status=1; }
}
by 20 -m pytest -m gpu -p no:cacheprovider -q tests/gpu
by 66 -m scripts.bench gpu --out "$OUT" "$@"
by 78 -m scripts.bench batching --device cuda:0 --steps 2 --repeats 1 --out "$OUT"
by 90 -m scripts.bench gpu --parts compiled --out "$OUT"
by 100 -m scripts.bench gpu --parts fp8 --out "$OUT"
exit $status
