# Everything one does with this project; `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
UNIT := tests/unit tests/contracts
# A test, file or folder to run instead of all of a target's tests: make unit T=tests/unit/cli
T ?=
# The kind node image for `make cluster`, where a container engine answers; empty: the one that kind was released with.
NODE_IMAGE ?=

.PHONY: help setup lint format test unit integration demo demo-down cluster cluster-down build-images images e2e bench lock clean

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## Create .venv from the lock file (installs python3-venv if it is missing)

$(VENV)/.ready: requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is required, this is $$($(PYTHON) --version); set PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "installing the Debian package python3-venv"; apt-get update -qq; apt-get install -y -qq python3-venv; }
	@echo "creating .venv (about a minute the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lint: setup  ## Check formatting, ruff, mypy --strict, import contracts and the chart
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	"$$($(PY) -m e2e.cluster.programs helm)" lint --quiet charts/savepoint

format: setup  ## Format the code and apply ruff's safe fixes
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

test: setup  ## Run unit tests, then integration tests with a real API server and real S3 servers
	$(PY) -m pytest -n auto $(UNIT)
	$(PY) -m e2e.cluster.programs etcd kube-apiserver kubectl helm versitygw minio >/dev/null
	$(PY) -m pytest tests/integration

unit: setup  ## Run unit tests, or T=PATH[::TEST]; no network, under a minute
	$(PY) -m pytest $(if $(T),$(T),-n auto $(UNIT))

integration: setup  ## Run integration tests, or T=PATH[::TEST]
	$(PY) -m pytest $(or $(T),tests/integration)

cluster: setup  ## Start a kind cluster: one control plane, two workers
	$(PY) -m e2e.cluster up $(if $(NODE_IMAGE),--node-image $(NODE_IMAGE))

cluster-down:  ## Remove the cluster: no process, mount, link, chain or cgroup remains
	$(PYTHON) -m e2e.cluster down

build-images: setup  ## Build the project's images from its Dockerfiles
	$(PY) -m e2e.cluster images

images: build-images  ## Build the project's images and load them into the cluster
	$(PY) -m e2e.cluster load

e2e: cluster images  ## Run end-to-end tests on the cluster, or T=PATH[::TEST]
	$(PY) -m pytest $(or $(T),e2e)

demo: setup  ## Watch an agent being killed, drained and moved, and continuing each time
	$(PY) -m e2e.demo

demo-down: cluster-down  ## Undo make demo

bench: setup  ## Measure pause, bytes, memory and latency; print a table
	$(PY) -m bench

lock: setup  ## Resolve the lock files again
	@for extra in dev operator sidecar; do uv pip compile -q pyproject.toml --extra $$extra --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-package savepoint-agents --custom-compile-command "make lock" -o requirements/$$extra.lock; done

clean:  ## Remove what the build created here (not the caches)
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
