# Everything runs in .venv, made by the first target that needs it. PYTHON: 3.11, 3.12 or 3.13.
# `make demo` and `make test` are complete on a fresh machine: Python, pip and the network.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -c constraints.txt
STAMP := $(VENV)/.complete

.PHONY: help setup demo test test-slurm faults lint types bench bench-gpu clean

help:  ## Show this list
	@sed -nE 's/^([a-z-]+):.*##[ ]+(.*)$$/  make \1\t\2/p' Makefile | expand -t 16

setup: $(STAMP)  ## Make .venv with the pinned packages (also done by the targets below)

demo: $(STAMP)  ## Train table 5's arms with two seeds on text found here, and report: under 5 minutes
	$(PY) -m dsv3 train recipe=table5_balance model=moe_nano seed=1,2 \
	  launcher.parallel=null launcher.threads_per_rank=1
	$(PY) -m dsv3 report table5_balance

# In the order of the directories: files of many processes first, small ones fill up the end.
test: $(STAMP)  ## Run all tests but those of `make faults`
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# As root on Debian or Ubuntu, where it installs slurm-wlm and munge if they are missing; fails elsewhere.
test-slurm: $(STAMP)  ## Run the tests that need a Slurm on one that they start here
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/slurm -m slurm -o faulthandler_timeout=900 $(PYTEST_ARGS)

faults: $(STAMP)  ## Run the long fault tests, an hour or two: 300 kills and more
	OMP_NUM_THREADS=1 $(PY) -m pytest -m faults -s -o faulthandler_timeout=0 $(PYTEST_ARGS)

lint: $(STAMP)  ## Check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP)  ## Check types
	$(PY) -m mypy

bench: $(STAMP)  ## Measure speed here; times are printed, never asserted
	$(PY) -m bench

bench-gpu: $(STAMP)  ## Measure 1B and 3B on a GPU, BF16 and FP8, beside transformers; exits 3 without
	$(PY) -m bench.gpu

clean:  ## Remove .venv, caches and build products; runs/ and sweeps/ stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The order matters. torch comes alone and first, so that whichever wheel of the pinned version this
# machine offers (CPU or CUDA) is the one deepspeed is built beside; deepspeed is a source package
# whose build reads the installed torch, hence no isolation, and it compiles its kernels at use.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "dsv3 needs Python 3.11 to 3.13, found $$("$(PYTHON)" --version 2>&1); use make PYTHON=..." >&2; exit 2; }
	test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	$(PIP) --upgrade pip setuptools wheel hatchling
	$(PIP) torch
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed
	$(PIP) --no-build-isolation -e '.[dev]'
	touch $@
