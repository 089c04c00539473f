# The two commands of the README. Both make .venv once and install into it all they need.
#   make demo    steers a real model round the ring of the months and draws what happens
#   make test    every check that a change must pass, cheapest first
# `make unit`, `make lint`, `make notebooks` and `make real` are the parts of `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo test lint unit notebooks real
.DEFAULT_GOAL := test

MODEL ?= smollm2-135m
EXTRAS ?= dev
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# The first Python on this machine that is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

# A plain torch brings gigabytes of CUDA packages, so without a GPU the pinned release comes first.
TORCH := $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)

# The tests run in one process per core, so one thread each.
UNIT := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PY) -m pytest -q

$(STAMP): pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet "$(TORCH)"
	$(PY) -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

demo: $(STAMP)
	mkdir -p out
	$(PY) -m benchmarks run months --model $(MODEL) --out out/months.json
	@echo "Numbers: out/months.json. Pictures:"
	@find out -name '*.png' -o -name '*.html' | sort

test: lint unit notebooks real

lint: $(STAMP)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright

# The doctests load tests.conftest by name, as they lie outside tests/: sockets are closed there too.
unit: $(STAMP)
	$(UNIT) -n auto --dist worksteal tests
	$(UNIT) -p tests.conftest --doctest-modules steer probes manifolds

notebooks: $(STAMP)
	$(PY) -m pytest -q -o addopts= --nbmake --nbmake-timeout=900 notebooks

real: $(STAMP)
	$(PY) -m pytest -q -m "real or slow" tests
