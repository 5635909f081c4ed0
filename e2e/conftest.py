"""Fixtures of the suite: the cluster that `make cluster` brought up, and the hand that breaks its nodes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.nodes import NodeController
from e2e.cluster.paths import default_paths
from e2e.harness.kube import Kubectl, fresh_namespace


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    """KUBECONFIG, else that of the local cluster. Never brings a cluster up: that is `make cluster`."""
    path = Path(os.environ.get("KUBECONFIG") or default_paths().kubeconfig)
    if not path.exists():
        pytest.fail("no cluster: run `make cluster`, or set KUBECONFIG")
    return path


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Kubectl:
    """kubectl, in no namespace."""
    return Kubectl(kubeconfig)


@pytest.fixture
def nodes() -> Iterator[NodeController]:
    """The nodes and their faults; whatever the test breaks is whole again for the next one."""
    controller = NodeController()
    yield controller
    controller.heal()


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a fresh namespace that admits only restricted pods."""
    with fresh_namespace(kubectl, "test") as here:
        yield here
