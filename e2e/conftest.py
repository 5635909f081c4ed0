"""Fixtures of the suite: the cluster that `make cluster` started, and fault injection for its nodes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.nodes import NodeController
from e2e.cluster.paths import default_paths
from e2e.harness.kube import Kubectl, fresh_namespace


def pytest_configure(config: pytest.Config) -> None:
    """Register the suite's marker."""
    config.addinivalue_line("markers", "scenario(name): the fault scenario that the test checks (test_bad_input.py)")


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    """Return KUBECONFIG or the kubeconfig of the local cluster. Only `make cluster` starts a cluster."""
    path = Path(os.environ.get("KUBECONFIG") or default_paths().kubeconfig)
    if not path.exists():
        pytest.fail("no cluster is running: run `make cluster`, or set KUBECONFIG")
    return path


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Kubectl:
    """Return kubectl without a namespace."""
    return Kubectl(kubeconfig)


@pytest.fixture
def nodes() -> Iterator[NodeController]:
    """Yield the controller of the nodes; undo all faults after the test."""
    controller = NodeController()
    yield controller
    controller.heal()


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[Kubectl]:
    """Yield kubectl for a fresh namespace that admits only restricted pods."""
    with fresh_namespace(kubectl, "test") as namespaced:
        yield namespaced
