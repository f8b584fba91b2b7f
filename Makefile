# Needs Python 3.11 or newer, make and git. Each target makes the virtual environment .venv first.

VENV := .venv
BIN := $(VENV)/bin
ARCH ?=
# cpu: the build of PyTorch without CUDA, where the index has one for this machine
TORCH ?=
WORKERS ?= 2

INDEX := $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)

# The first interpreter that runs and is new enough; a name on PATH may be a shim without a version behind it.
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench clean

help: ## Show this list
	@sed -nE 's/^([a-z]+):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed ## All analyses on bundled photos, and a report (ARCH=efb0 for the other detector; TORCH=cpu)
	$(BIN)/python src/demo.py $(if $(ARCH),--arch $(ARCH))

# One torch thread a worker: more only compete for the cores.
test: $(VENV)/.installed-dev ## Run all tests (WORKERS=2 processes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-dev ## Check style, format, types and the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if [ -x $(BIN)/hadolint ]; then echo '$(BIN)/hadolint Dockerfile'; $(BIN)/hadolint Dockerfile; \
	else echo 'Dockerfile not checked: hadolint has no wheel for this machine'; fi

bench: $(VENV)/.installed-dev ## Measure speed and memory, and write benchmarks/RESULTS.md (about half an hour)
	$(BIN)/python benchmarks/relevance.py --write
	$(BIN)/python benchmarks/ffrs.py --write
	$(BIN)/python benchmarks/analyses.py --write
	$(BIN)/python benchmarks/precision.py --write
	$(BIN)/python benchmarks/processes.py --write

clean: ## Remove the virtual environment, caches and output
	rm -rf $(VENV) output build .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo 'error: no Python 3.11 or newer found; install it or call make PYTHON=/path/to/python' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(INDEX) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(INDEX) -r requirements-dev.txt
	@touch $@
