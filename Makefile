# Avenue's commands. Each target sets up what it needs (scripts/setup.py), in no time if that is already done, so
# `make demo` and `make test` work on a fresh clone. CI runs the same targets: see .ci/run.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Targets run in the order in which they are written: what fails fastest first, pytest and its summary last.
.NOTPARALLEL:

# The first Python on PATH that is new enough. It only makes .venv; everything else runs inside that.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
SETUP = $(if $(PYTHON),$(PYTHON),$(error Python 3.11 or newer is needed; name it with PYTHON=...)) scripts/setup.py
RUN := .venv/bin/python
RUN_BROWNIE := .venv-brownie/bin/python scripts/run_brownie.py

# Real binaries (forge, anvil; node and npm where the machine has none) come before npm's launchers.
export PATH := $(CURDIR)/.setup/bin:$(PATH)

PYTEST_ARGS ?=
DEMO_ARGS ?=

.PHONY: help setup setup-python setup-solidity setup-brownie build test test-contracts test-artefacts test-brownie \
	test-python lint demo bench bench-exact bench-quality brownie campaign clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup: ## Set up everything: .venv, node_modules, .venv-brownie
	@$(SETUP)
setup-python:
	@$(SETUP) python
setup-solidity:
	@$(SETUP) solidity
setup-brownie:
	@$(SETUP) solidity brownie

build: setup-python setup-solidity ## Compile the contracts and write protocol/abi/*.json
	$(RUN) scripts/build_contracts.py

test: test-contracts test-artefacts test-brownie test-python ## Every test

test-contracts: setup-solidity ## Forge: unit, fuzz, invariants, and the gas snapshots in git
	FORGE_SNAPSHOT_CHECK=true scripts/forge test

test-artefacts: setup-python setup-solidity ## Are protocol/abi/*.json what the sources give?
	$(RUN) scripts/build_contracts.py --check

test-brownie: setup-brownie ## Brownie's tests, in its own environment
	$(RUN_BROWNIE) test

# Two workers for two cores; a file's tests stay together because they share an Anvil. Files start in their order (e2e
# first): xdist would otherwise start those with the most tests first, and the longest, a single test, would come last.
test-python: setup ## pytest; choose with PYTEST_ARGS="tests/unit -k merkle"
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: setup-python setup-solidity ## ruff, mypy --strict, import layers, forge fmt
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	scripts/forge fmt --check

demo: setup-python setup-solidity ## The main job: a market, nodes and a real training task on this machine
	$(RUN) -m scripts.demo $(DEMO_ARGS)

campaign: setup-python setup-solidity ## Long runs of fuzzers, invariants and properties (about half an hour)
	FOUNDRY_PROFILE=deep scripts/forge test --fuzz-seed $$RANDOM$$RANDOM
	for round in {1..20}; do OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 tests/property; done

bench: setup-python setup-solidity ## Every short measurement under scripts/bench/
	for name in gas mnist_quality exact_step; do echo "== $$name"; $(RUN) -m "scripts.bench.$$name"; done

bench-exact: setup-python ## What exact steps cost beside float32 (5 minutes): build/bench/exact.json
	$(RUN) -m scripts.bench.exact_step --out build/bench/exact.json

bench-quality: setup-python ## Does exact train as well as float32? About half an hour; goes on where it was cut short
	OMP_NUM_THREADS=1 $(RUN) -m scripts.bench.quality

brownie: setup-brownie ## Brownie: compile, test, deploy to its own chain
	$(RUN_BROWNIE) compile
	$(RUN_BROWNIE) test
	$(RUN_BROWNIE) run deploy

clean: ## Remove what was built (keeps the environments)
	rm -rf build .brownie .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv*' -not -path './node_modules/*' -type d -prune -exec rm -rf {} +
