# `make demo`, `make test` and `make bench` do all of their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench clean

demo: $(VENV)/.installed
	$(BIN)/brainspeech run demo --out runs/demo

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null || \
	  { echo "brainspeech needs Python 3.11 or newer; say which: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing brainspeech and what it needs into $(VENV) (about 6 GB, a few minutes, once)."
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "Installing brainspeech with its test tools into $(VENV) (about 6 GB, a few minutes, once)."
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

# The benchmarks of minutes; losses.py, phantom.py, scorers.py and gpu.py take longer and are started by hand.
BENCHMARKS := events preprocess_memory losses_memory preprocessing training_step input retrieval interval_coverage

bench: $(VENV)/.installed
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || failed="$$failed $$name"; done; \
	  test -z "$$failed" || { echo "missed what is wanted of them:$$failed" >&2; exit 1; }
