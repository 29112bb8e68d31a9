# Two commands set everything up on a machine with Python 3.11 or newer: `make demo` and `make test`.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo quick test test-browser test-slow test-faults check clean

demo: $(VENV)/.demo
	$(BIN)/nightgate db upgrade
	$(BIN)/nightgate run sample --night 2026-01-05 --night 2026-01-06
	@echo
	$(BIN)/nightgate history sample
	@echo
	@echo "Where to look next:"
	@echo "  the report:          $$(ls -t $${NIGHTGATE_HOME:-.nightgate}/runs/*/report.html | head -n 1)"
	@echo "  epochs and slices:   $(BIN)/nightgate history sample --epochs, or --slices"
	@echo "  the UI:              $(BIN)/nightgate serve sample"
	@echo "  data of your own:    docs/own-data.md"

# For every change, under a minute: lint, types, and the tests that train nothing and start no process.
quick: $(VENV)/.dev check
	$(BIN)/python -m pytest -q -m "not process and not database and not flow and not browser and not faults and not slow" --numprocesses 2

# The tests of a file stay in one process: they share slow fixtures.
test: $(VENV)/.dev check
	$(BIN)/python -m pytest -m "not faults and not browser and not slow" --numprocesses 2 --dist loadfile

# Prefect's UI in the system's headless Chromium; says how to install one if it is missing. Minutes.
test-browser: $(VENV)/.dev
	@$(BIN)/python -m tests.support.prefect_ui
	$(BIN)/python -m pytest -m browser

# Tests that take minutes but kill no process.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# Slow: these kill processes and wait for time limits.
test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest -m faults

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Nightgate needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV): minutes the first time; README.md says how the CPU build of torch saves 4 GB"
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) -e '.[demo,dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info
