PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED ?= 0

.PHONY: help install demo test check lint types unit bench-quick clean

help:
	@echo "make demo    install, write the embedded data set, train a federation, print a table and the paths of the results"
	@echo "make test    install what the tests need and run all of them"
	@echo "make check   lint, types and tests"
	@echo "make bench-quick   the benchmarks of speed, small, into outputs/benchmarks; the peers' environments are made first (minutes, once)"
	@echo "make clean   remove the virtual environment, demo data and caches"

$(VENV)/installed: requirements.txt requirements-towers.txt requirements-fedops.txt
	$(PYTHON) -c 'import sys; sys.exit("FedMAP needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-towers.txt -r requirements-fedops.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

install: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/python -m fedmap.demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

check: lint types test

# Small versions of the benchmarks in docs/performance.md, beside the recorded results and not in their place.
QUICK := outputs/benchmarks
BENCHMARKS := aggregation search server_memory start wire round deployed scale

.peer/venv/bin/python:
	$(BIN)/python -m benchmarks.make_peer_venv

.peer/scale/bin/python:
	$(BIN)/python -m benchmarks.make_scale_venv

bench-quick: $(VENV)/installed-dev .peer/venv/bin/python .peer/scale/bin/python
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --quick --out $(QUICK)/$$name.json; done

clean:
	rm -rf $(VENV) demo .fedmap .mypy_cache .ruff_cache .pytest_cache .hypothesis
