"""An agent whose uid stands only in its image, protected by the README's own patch, continues under that uid."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.harness import installation
from e2e.harness.installation import condition
from e2e.harness.kube import Kubectl, fresh_namespace, until
from e2e.scenarios.faulty_agents import CODER, UID, Object

pytestmark = pytest.mark.timeout(420)
README = Path(__file__).parents[1] / "README.md"
STAYS_UP_SECONDS = 20


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[Kubectl]:
    """A fresh namespace that also admits pods without a uid, on a cluster with Savepoint."""
    installation.install(kubectl)
    with fresh_namespace(kubectl, "image-uid") as fresh:
        kubectl(
            "label", "namespace", str(fresh.namespace), "pod-security.kubernetes.io/enforce=baseline", "--overwrite"
        )
        yield fresh


def coder() -> Object:
    """Return the Deployment of the sample coder as a user has it before the patch."""
    container = {
        "name": "agent",
        "image": CODER,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "SERVICES_URL", "value": "http://127.0.0.1:9"}],  # no process listens there
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "coder"},
        "spec": {
            "selector": {"matchLabels": {"app": "coder"}},
            "template": {"metadata": {"labels": {"app": "coder"}}, "spec": {"containers": [container]}},
        },
    }


def readme_patch() -> str:
    """Return the patch that the README applies to the Deployment coder."""
    found = re.search(r"kubectl patch deployment coder -p '(.+?)'", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def running_pod(namespace: Kubectl, other_than: str = "") -> Object:
    """Return the coder's injected pod once it is ready; without a state folder the coder cannot start."""

    def ready() -> Object | None:
        pods = [
            pod for pod in namespace.items("pods", "savepoint.dev/agent=coder") if pod["metadata"]["uid"] != other_than
        ]
        is_ready = len(pods) == 1 and condition(pods[0], "Ready").get("status") == "True"
        return pods[0] if is_ready and not pods[0]["metadata"].get("deletionTimestamp") else None

    return until("the coder's pod is ready", ready, seconds=120)


def test_the_readmes_patch_keeps_an_agent_whose_uid_only_its_image_knows(namespace: Kubectl) -> None:
    namespace.apply(yaml.safe_dump(coder()))
    namespace("patch", "deployment", "coder", "-p", readme_patch())
    first = running_pod(namespace)
    namespace("wait", "--for=condition=Protected", "pagent/coder", "--timeout=120s", timeout=130)
    until(
        "the uid is found out",
        lambda: namespace.get("protectedagent", "coder")["status"].get("runAsUser") == UID,
        seconds=60,
    )

    namespace("delete", "pod", first["metadata"]["name"], "--timeout=60s")
    second = running_pod(namespace, first["metadata"]["uid"])
    contexts = [each["securityContext"] for each in second["spec"]["initContainers"]]
    assert [each["runAsUser"] for each in contexts] == [UID, UID] and all(each["runAsNonRoot"] for each in contexts)
    name = second["metadata"]["name"]
    owners = namespace("exec", name, "-c", "agent", "--", "find", "/workspace/project", "!", "-user", str(UID)).split()
    assert owners == [], "every file belongs to the agent again"
    turns = namespace("exec", name, "-c", "agent", "--", "wc", "-l", "/workspace/project/agent.log").split()[0]
    until(
        "the agent continues to write",
        lambda: (
            int(namespace("exec", name, "-c", "agent", "--", "wc", "-l", "/workspace/project/agent.log").split()[0])
            > int(turns)
        ),
        seconds=STAYS_UP_SECONDS,
    )
    statuses = namespace.get("pod", name)["status"]["containerStatuses"]
    assert [each["restartCount"] for each in statuses] == [0]
    assert "restartsSinceRestore" not in namespace.get("protectedagent", "coder")["status"]
