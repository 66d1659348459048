#!/usr/bin/env bash
# Download the wheels that a GPU machine without a network needs beside its own PyTorch to run scripts/gpu_check.sh:
#   scripts/release/carry_wheels.sh FOLDER
# The machine has x86-64 Linux, Python 3.12, PyTorch 2.10 or newer with Triton, transformers, huggingface_hub, numpy,
# OpenCV, psutil, pytest and matplotlib. Versions are those of constraints.txt, except for imageio-ffmpeg, of which an
# older version has a program of half the size. There:
#   python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl && PYTHONPATH=SITE scripts/gpu_check.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:?usage: carry_wheels.sh FOLDER}
PYTHON=${PYTHON:-python3}
NAMES="annotated-types diffusers ffmpeg-python future openai-whisper platformdirs pydantic pydantic_core typing-inspection"
WANTED=(imageio-ffmpeg==0.6.0)
for name in $NAMES; do
  WANTED+=("$(grep -i "^$name==" constraints.txt)")
done
mkdir -p "$OUT"
for package in "${WANTED[@]}"; do
  case $package in
    openai-whisper==*) "$PYTHON" -m pip wheel --quiet --no-deps -w "$OUT" "$package" ;; # it is published as source
    *) "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
      --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$OUT" "$package" ;;
  esac
done
du -ch "$OUT"/*.whl
