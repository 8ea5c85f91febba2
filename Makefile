# `make demo`, `make test`, `make bench` and `make bench-long` do all of their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench bench-long clean

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

# Every script of benchmarks/ stands in one of these. `make bench` takes some fifteen minutes on two cores, `make bench-long` some four hours
# and 14 GB; with ROOT=DIR (gwilliams2022 and brennan2019 in it) also the one on event files.
# gpu.py is in full where nvidia-smi answers, elsewhere only to see that it works.
GPU = $(if $(shell nvidia-smi >/dev/null 2>&1 && echo yes),gpu,'gpu --quick')
BENCH := preprocessing preprocess_memory input features retrieval startup training_step losses_memory interval_coverage
BENCH_LONG = 'preprocessing --hours 1' 'preprocess_memory --highpass 0.5' 'retrieval --full' 'losses_memory --full' 'training_step --clock cpu' regression_null \
  'scorers null' 'scorers gain' $(GPU) spreading 'losses --out runs/losses' phantom $(if $(ROOT),'events --root $(ROOT)')

# All of them run, whatever one of them finds; the names of those that miss what is wanted come last.
define run_benchmarks
@failed=; for script in $(1); do set -- $$script; name=$$1; shift; echo "== $$script"; \
  $(BIN)/python benchmarks/$$name.py "$$@" || failed="$$failed $$name"; done; \
  test -z "$$failed" || { echo "missed what is wanted of them, or failed:$$failed" >&2; exit 1; }
endef

bench: $(VENV)/.installed
	$(call run_benchmarks,$(BENCH))

bench-long: $(VENV)/.installed
	$(call run_benchmarks,$(BENCH_LONG))
