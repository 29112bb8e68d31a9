# Two commands set everything up on a machine with Python 3.11 or newer: `make demo` and `make test`.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo ui quick test test-browser test-slow test-faults check clean

# One query over the nights of the demo.
define ASK
from nightgate.database.transactions import Database
from nightgate.home import open_home
query = """
SELECT n.night, n.status, SUM(c.rows_seen) AS rows_seen, n.rows_total, n.test_f1, n.champion_f1,
       SUBSTR(n.reason, 1, 72) AS reason
FROM nights AS n LEFT JOIN refresh_counts AS c ON c.run_id = n.run_id
WHERE n.pipeline = 'sample'
GROUP BY n.night, n.status, n.rows_total, n.test_f1, n.champion_f1, n.reason ORDER BY n.night;
"""
with Database.open(open_home()) as db:
    print(query, db.frame(query).convert_dtypes().astype(object).fillna("").to_string(index=False), sep="\n")
endef
export ASK

demo: $(VENV)/.demo
	$(BIN)/nightgate db upgrade
	@echo "--- 1 of 3: the first night"
	$(BIN)/nightgate run sample --night 2026-01-05
	@echo "--- 2 of 3: half of the rows are gone and stars count from 0; the night must be stopped"
	! $(BIN)/nightgate run sample --night 2026-01-06
	@echo "--- 3 of 3: the export is mended, with twice as many reviews and checked stars"
	$(BIN)/nightgate run sample --night 2026-01-07
	@echo
	@$(BIN)/python -c "$$ASK"
	@echo
	@echo "Where to look next:"
	@echo "  the report:          $$(ls -t $${NIGHTGATE_HOME:-.nightgate}/runs/*/report.html | head -n 1)"
	@echo "  epochs and slices:   $(BIN)/nightgate history sample --epochs, or --slices"
	@echo "  the UI:              make ui"
	@echo "  data of your own:    docs/own-data.md"

# Prefect's UI with the nights of the demo, and the pipeline `sample` every night from now on. Until Ctrl-C.
ui: $(VENV)/.demo
	$(BIN)/nightgate serve sample

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
