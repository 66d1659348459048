# Targets for users: demo. For contributors: setup, lint, test, test-slow, lock (CONTRIBUTING.md).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow soak campaign lint lock audit sbom clean

setup: $(VENV)/.installed

# torch comes first, by exact version only, so that pip accepts any build of it (for example, one for the CPU). All other
# libraries are those of requirements-dev.lock, checked by hash. The last line installs only this package.
$(VENV)/.installed: pyproject.toml constraints.txt requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	mkdir -p demo_output
	$(BIN)/lipsync sync demo/presenter.mp4 demo/voice.wav -o demo_output/result.mp4 \
		--side-by-side demo_output/side_by_side.mp4
	$(BIN)/python -m scripts.eval.sync video demo_output/result.mp4 --truth demo/truth.json

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal

# Tests that take too long for every day.
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" -n 2 --dist worksteal

soak: MINUTES ?= 3
soak: setup
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed 1

# Hostile input of every kind, for about half an hour. The daily suite runs a small part of it.
campaign: setup
	$(BIN)/python -m tests.fuzz.campaign --out benchmarks/hostile.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Run this after changing constraints.txt or the dependencies in pyproject.toml. The first lock is for the server on a
# machine with a GPU. The second is what `make setup` installs beside torch, so it excludes torch and its CUDA libraries.
LOCK := $(BIN)/uv pip compile pyproject.toml -c constraints.txt --generate-hashes --universal \
	--python-version 3.11 --no-annotate --no-header --quiet --no-emit-package pip
TORCHS_OWN = $(shell grep -oE '^(torch|cuda-[a-z]+|nvidia-[a-z0-9-]+)==' constraints.txt | tr -d =)
lock: setup
	$(LOCK) --extra postgresql --extra ray -o requirements.lock
	$(LOCK) --extra dev $(TORCHS_OWN:%=--no-emit-package %) -o requirements-dev.lock

# Known vulnerabilities of the locked libraries.
audit: setup
	$(BIN)/python scripts/release/audit.py requirements.lock requirements-dev.lock

# Software bill of materials: libraries and weights, as CycloneDX 1.6.
sbom: setup
	$(BIN)/python scripts/release/sbom.py build/sbom.json

clean:
	rm -rf $(VENV) demo_output build *.egg-info
