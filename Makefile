# SPDX-License-Identifier: Apache-2.0
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# ip, bpftool and sshd live there; Debian's user shells do not look there.
export PATH := $(PATH):/usr/sbin:/sbin

PY := .venv/bin/python
PYTEST_ARGS ?=
# Tests wait for the kernel more than they compute; PYTEST_WORKERS=0 runs them one after the other, and says which one leaked.
PYTEST_WORKERS ?= 3

.PHONY: help setup packages probe demo test test-kernels torture coverage bench lint format docs lock wheel clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

setup:  ## install what is missing: Debian packages, .venv, .venv/bin/reconciler; build the packet probe of the tests
	@scripts/setup.sh
	@if [[ -f tests/probe/Makefile ]]; then $(MAKE) -C tests/probe; fi

packages: setup  ## compile bpf/ into build/packages
	@if [[ -f reconciler/__main__.py ]]; then $(MAKE) -C bpf; else echo "packages: not before reconciler/__main__.py"; fi

probe: setup

demo: setup packages  ## watch it work, on two network namespaces that are removed afterwards
	@if [[ -x demo/run ]]; then demo/run; else echo "demo: there is no demo/run yet" >&2; exit 1; fi

test: setup packages probe  ## all tests; PYTEST_ARGS='-k word' chooses
	@echo "test: running pytest (kernel tests need root; RECONCILER_REQUIRE_KERNEL=1 makes their skips fail)"
	@$(PY) -m pytest -n $(PYTEST_WORKERS) --dist worksteal --durations=15 $(PYTEST_ARGS)

torture: setup packages probe  ## kill and break it everywhere, for as long as it takes; PYTEST_ARGS='-k word' chooses
	@$(PY) -m pytest -s -m torture --timeout=7200 $(PYTEST_ARGS)

test-kernels: setup packages probe  ## Debian's kernels in virtual machines, with a reboot; SUITES='bookworm sid' chooses
	@tests/vm/run.sh $(SUITES)

coverage: setup packages probe  ## tests with branch coverage: 100 % of the pure core, 90 % overall
	@scripts/coverage.sh $(PYTEST_ARGS)

bench: setup packages probe  ## measure beside baselines; writes benchmarks/results.json
	@if [[ -x benchmarks/run ]]; then benchmarks/run; else echo "bench: there is no benchmarks/run yet" >&2; exit 1; fi

lint: setup  ## ruff, mypy, import contract, generated documents
	@echo "lint: ruff check"; .venv/bin/ruff check --quiet .
	@echo "lint: ruff format"; .venv/bin/ruff format --quiet --check .
	@echo "lint: mypy"; .venv/bin/mypy --no-error-summary
	@echo "lint: imports"; out=$$(.venv/bin/lint-imports --no-logo --no-cache 2>&1) || { echo "$$out"; exit 1; }
	@echo "lint: generated documents"; scripts/check_generated.sh

format: setup  ## ruff's formatting and safe fixes
	@.venv/bin/ruff check --quiet --fix .; .venv/bin/ruff format .

docs: setup  ## generate docs/manifests.md and docs/configuration.md from schema/
	@if [[ -f scripts/generate_docs.py ]]; then $(PY) scripts/generate_docs.py; fi

lock:  ## resolve pyproject.toml anew into requirements.lock, with hashes
	@.venv/bin/pip-compile --quiet --upgrade --extra dev --generate-hashes --allow-unsafe --strip-extras --no-header \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file requirements.lock pyproject.toml

wheel: setup packages  ## dist/*.whl, which holds schemas, policies and packages
	@$(PY) -m build --wheel --no-isolation --outdir dist .

clean:  ## remove what was built (not .venv)
	@rm -rf build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
