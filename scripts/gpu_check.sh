#!/usr/bin/env bash
# Everything that needs a GPU, in one run of nine minutes and without a network, what matters most first: single
# operations; the tests marked `gpu`; stages, whole jobs, presets and number formats; LatentSync 1.6 compiled; windows of
# several jobs in one run; the public implementation and plans of smaller cards. Each part may run until its share of
# LIMIT_S has passed and leaves what it does not need to the next. Reports (gpu.json, gpu.png, batching.json, in OUT) are
# written after every number, so a part that is cut off keeps what it has.
#
# PYTHON names an interpreter with a CUDA build of torch. On a machine without a network, packages that it lacks can be
# carried (scripts/release/carry_wheels.sh) and named in PYTHONPATH; the project itself need not be installed. Arguments
# go to the GPU benchmark: --reference FOLDER times the public implementation as well. The exit status is 0 only where
# every part came to its end.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks}
LIMIT_S=${LIMIT_S:-540}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} PYTHONUNBUFFERED=1
export LIPSYNC_MARKING=off # carried packages do not include the libraries that sign
TORCHINDUCTOR_CACHE_DIR=$(mktemp -d)
export TORCHINDUCTOR_CACHE_DIR
trap 'rm -rf "$TORCHINDUCTOR_CACHE_DIR"' EXIT

status=0
by() { # by PERCENT COMMAND…
  local left=$((LIMIT_S * $1 / 100 - SECONDS))
  shift
  timeout -k 5 $((left > 1 ? left : 1)) "$PYTHON" "$@" || { echo "ended with status $?: $*" >&2; status=1; }
}
by 6 -m scripts.bench gpu --parts micro --out "$OUT"
by 18 -m pytest -m gpu -p no:cacheprovider -v -k "not compiled" tests/gpu
by 47 -m scripts.bench gpu --parts stages jobs modes precision --out "$OUT"
by 78 -m scripts.bench gpu --parts compiled --models latentsync-1.6 --out "$OUT"
# cuDNN would plan its attention anew in every thread.
TORCH_CUDNN_SDPA_DEPRIORITIZED=1 by 89 -m scripts.bench batching --device cuda:0 --steps 2 --repeats 1 --out "$OUT"
by 100 -m scripts.bench gpu --parts reference cards --out "$OUT" "$@"
exit $status
