# `make demo` and `make test` are the two commands of the README; everything else serves them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow soak campaign lint clean

setup: $(VENV)/.installed

# torch first and by exact version: where a wheel of that version is already at hand pip takes it,
# and the later resolution then has nothing newer to prefer.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	mkdir -p demo_output
	$(BIN)/lipsync sync demo/presenter.mp4 demo/voice.wav -o demo_output/result.mp4 \
		--side-by-side demo_output/side_by_side.mp4
	$(BIN)/python scripts/eval_sync.py video demo_output/result.mp4 --truth demo/truth.json

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

# What would make the suite too long for every day.
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

soak: MINUTES ?= 3
soak: setup
	$(BIN)/python scripts/soak.py --minutes $(MINUTES) --seed 1

# Hostile input of every kind, about twenty minutes; the suite has a small share of it.
campaign: setup
	cd scripts && PYTHONPATH=.. ../$(BIN)/python -m campaign --out ../benchmarks/hostile.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo_output build *.egg-info
