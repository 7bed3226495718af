# Two commands: `make demo` and `make test`. Everything lives in .venv.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# By file: what a file prepares once is not prepared by both workers.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --durations=25
# Compiled by LLVM without optimising, in two thirds of the time.
QUICK := --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.3
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo demo-real test test-all lint wheel bench docs fuzz plans clean

demo: .venv/.base
	$(BIN)/alanything demo

demo-real: .venv/.base
	$(BIN)/alanything demo --real

test: .venv/.test lint
	XLA_FLAGS="$(QUICK)" $(PYTEST) -m "not slow and not optimised"
	$(BIN)/python -m pytest -m "not slow and optimised" tests/models
	@echo "passed. next: make demo, make test-all (the long ones too)"

test-all: .venv/.test lint
	$(PYTEST)

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel: .venv/.base
	$(BIN)/pip wheel -q --no-deps -w dist .
	@ls dist

docs: .venv/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

fuzz: .venv/.test
	$(BIN)/python -m tests.data.test_fuzz_media 10000

plans: .venv/.test
	$(BIN)/python benchmarks/plans.py

bench: .venv/.test
	for b in dpo_vs_trl grpo_vs_trl generate_vs_hf; do $(BIN)/python benchmarks/$$b.py || exit; done

clean:
	rm -rf .venv .cache build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv .venv

.venv/.base: .venv/bin/python setup.py
	$(BIN)/pip install -q -e .
	@touch $@

# The CPU build of torch first: asked for by another package, pip would take CUDA's.
.venv/.test: .venv/.base setup.py
	$(BIN)/pip install -q torch==2.13.0 || \
	  $(BIN)/pip install -q torch --index-url https://download.pytorch.org/whl/cpu
	$(BIN)/pip install -q -e '.[test,peers,media,tpu,docs]'
	@touch $@
