"""The examples for a cluster, applied as their READMEs say; only the image is one that the nodes have."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.harness import installation
from e2e.harness.installation import condition
from e2e.harness.kube import Kubectl, fresh_namespace, until
from e2e.scenarios.faulty_agents import BUSYBOX, Object

pytestmark = pytest.mark.timeout(420)
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[Kubectl]:
    """A fresh namespace on a cluster with Savepoint."""
    installation.install(kubectl)
    with fresh_namespace(kubectl, "examples") as fresh:
        yield fresh


def found_notes(namespace: Kubectl) -> int:
    """Return how many notes the running pod of the example found when it started."""

    def found() -> str:
        pods = namespace.items("pods", "app=notes")
        running = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
        if len(running) != 1 or condition(running[0], "Ready").get("status") != "True":
            return ""
        return namespace("logs", running[0]["metadata"]["name"], "-c", "agent")

    return int(until("the agent reports what it found", found, seconds=120).split()[1])


def test_deployment_policy_and_rollback(namespace: Kubectl) -> None:
    deployment = (EXAMPLES / "04-deployment" / "deployment.yaml").read_text()
    namespace.apply(deployment.replace("busybox:1.36", BUSYBOX))
    namespace("wait", "--for=condition=Protected", "pagent/notes", "--timeout=120s", timeout=130)
    assert found_notes(namespace) == 0

    namespace("delete", "pod", "-l", "app=notes", "--timeout=60s")
    first = found_notes(namespace)
    assert first > 0

    namespace.apply((EXAMPLES / "05-policy" / "policy.yaml").read_text())
    namespace("patch", "deployment", "notes", "-p", '{"spec":{"template":{"metadata":{"labels":{"team":"writing"}}}}}')
    until("the policy applies", lambda: _protected_by(namespace, "writing"), seconds=120)
    assert found_notes(namespace) > first

    manifest = EXAMPLES / "06-rollback" / "checkpoint.yaml"
    name = namespace("create", "-f", str(manifest), "-o", "name").strip()
    namespace("wait", "--for=condition=Ready", name, "--timeout=120s", timeout=130)
    oldest = min(_ready(namespace), key=lambda item: int(item["status"]["sequence"]))["metadata"]["name"]
    rollback = yaml.safe_load((EXAMPLES / "06-rollback" / "rollback.yaml").read_text())
    rollback["spec"]["source"]["checkpointName"] = oldest
    restore = namespace("create", "-f", "-", "-o", "name", stdin=yaml.safe_dump(rollback)).strip()
    namespace("wait", "--for=condition=Succeeded", restore, "--timeout=120s", timeout=130)
    assert found_notes(namespace) <= first


def _ready(namespace: Kubectl) -> list[Object]:
    checkpoints = namespace.items("agentcheckpoints", "savepoint.dev/agent=notes")
    return [item for item in checkpoints if condition(item, "Ready").get("status") == "True"]


def _protected_by(namespace: Kubectl, policy: str) -> bool:
    agent = namespace.maybe("protectedagent", "notes") or {}
    status = agent.get("status", {})
    return status.get("policyName") == policy and condition(agent, "Protected").get("status") == "True"
