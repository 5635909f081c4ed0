# Everything one does with this project. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
LOCKS := requirements/dev.lock requirements/operator.lock requirements/sidecar.lock

.PHONY: help setup lint format test unit integration demo demo-down cluster cluster-down images e2e bench lock clean

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## Make .venv from the lock file (installs python3-venv where it is missing)

$(VENV)/.ready: requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: $$($(PYTHON) --version)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "installing the Debian package python3-venv"; apt-get update -qq; apt-get install -y -qq python3-venv; }
	@echo "making .venv (about a minute the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lint: setup  ## Format check, ruff, mypy --strict, import contracts, helm lint
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	"$$($(PY) -m e2e.cluster.programs helm)" lint --quiet charts/savepoint

format: setup  ## Let ruff format and mend what it can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

test: setup  ## Unit tests, then integration tests with a real API server and real S3 servers
	$(PY) -m pytest -n auto tests/unit tests/contracts
	$(PY) -m e2e.cluster.programs etcd kube-apiserver kubectl helm versitygw minio >/dev/null
	$(PY) -m pytest tests/integration

unit: setup  ## Unit tests only: no network, under a minute
	$(PY) -m pytest -n auto tests/unit tests/contracts

integration: setup  ## Integration tests only
	$(PY) -m pytest tests/integration

cluster: setup  ## Bring up a kind cluster: one control plane, two workers
	$(PY) -m e2e.cluster up

cluster-down:  ## Take the cluster away: no process, mount, link, chain or cgroup stays
	$(PYTHON) -m e2e.cluster down

images: setup  ## Build the project's images from its Dockerfiles and load them into the cluster
	$(PY) -m e2e.cluster images
	$(PY) -m e2e.cluster load

e2e: cluster images  ## End-to-end tests on the cluster
	$(PY) -m pytest e2e

demo: setup  ## See it work: an agent is killed, drained and moved, and goes on
	$(PY) -m e2e.demo

demo-down: cluster-down  ## Undo make demo

bench: setup  ## Measure pause, bytes, memory and latency; prints a table
	$(PY) -m bench

lock: setup  ## Resolve the lock files again
	@for extra in dev operator sidecar; do uv pip compile -q pyproject.toml --extra $$extra --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-package savepoint-agents --custom-compile-command "make lock" -o requirements/$$extra.lock; done

clean:  ## Remove what the build made here (not the caches)
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
