"""Pods that run once: which exits complete a run, and after which the next pod resumes it.

The agent is a shell script without the SDK. It prints what it finds in its volume, and writes something there.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.harness import installation
from e2e.harness.installation import condition
from e2e.harness.kube import Kubectl, fresh_namespace, until
from e2e.scenarios.faulty_agents import AgentPod, Object

pytestmark = pytest.mark.timeout(420)

FIND = "if [ -e /data/work ]; then echo found $(cat /data/work); else echo nothing; fi"
ONCE = f"{FIND}; echo done >/data/work"
"""Completes its work and exits with 0."""
SECOND_TRY = f"{FIND}; if [ -e /data/work ]; then exit 0; fi; echo half >/data/work; exit 1"
"""Fails halfway; the next pod resumes its work and exits with 0."""
EXIT_ON_TERM = f"{FIND}; echo half >/data/work; trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"
"""Runs until SIGTERM, then exits with 0."""


@pytest.fixture(scope="module")
def namespace(kubectl: Kubectl) -> Iterator[Kubectl]:
    """Install the chart; yield kubectl for a fresh namespace."""
    installation.install(kubectl)
    with fresh_namespace(kubectl, "jobs") as namespaced:
        yield namespaced


def agent(name: str, script: str) -> AgentPod:
    return AgentPod(name, name, command=("sh", "-c", script), state="/data", grace=20)


def with_restart_policy(manifest: Object, policy: str) -> Object:
    """Return the manifest of a pod, or a template, with a restart policy."""
    return {**manifest, "spec": {**manifest["spec"], "restartPolicy": policy}}


def job(pod: AgentPod, *, tries: int = 1, policy: str = "Never") -> Object:
    template = with_restart_policy(pod.template(), policy)
    spec = {"backoffLimit": tries - 1, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": pod.name}, "spec": spec}


def run_job(kubectl: Kubectl, manifest: Object) -> list[Object]:
    """Create the Job and wait until it is complete; return its pods, oldest first."""
    name = manifest["metadata"]["name"]
    kubectl.apply(json.dumps(manifest))
    kubectl("wait", "--for=condition=Complete", f"job/{name}", "--timeout=120s", timeout=130)
    pods = kubectl.items("pods", f"job-name={name}")
    return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def run_pod(kubectl: Kubectl, manifest: Object) -> tuple[Object, str]:
    """Create the pod, wait for the agent's output and delete the pod; return the running pod and the output."""
    name = manifest["metadata"]["name"]
    kubectl.apply(json.dumps(manifest))
    kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s", timeout=100)
    pod: Object = kubectl.get("pod", name)
    printed = until("the agent prints what it found", lambda: output(kubectl, pod), seconds=20)
    kubectl("delete", "pod", name, "--wait=true", "--timeout=60s")
    return pod, printed


def output(kubectl: Kubectl, pod: Object) -> str:
    """Return what the agent has printed."""
    return kubectl("logs", pod["metadata"]["name"], "-c", "agent").strip()


def assert_completed(kubectl: Kubectl, name: str) -> None:
    """Assert that the agent's ProtectedAgent is Completed and that the agent has a Ready checkpoint."""

    def completed() -> bool:
        found = condition(kubectl.maybe("protectedagent", name) or {}, "Protected")
        return (found.get("status"), found.get("reason")) == ("True", "Completed")

    until(f"the run of {name} is completed", completed, seconds=60)
    checkpoints = kubectl.items("agentcheckpoints", f"savepoint.dev/agent={name}")
    assert "True" in [condition(each, "Ready").get("status") for each in checkpoints]


def restore_reasons(kubectl: Kubectl, name: str) -> list[str]:
    """Return the reasons of the agent's AgentRestores, by epoch, once all have ended."""

    def ended() -> list[Any]:
        found = kubectl.items("agentrestores", f"savepoint.dev/agent={name}")
        return found if found and all(each.get("status", {}).get("completionTime") for each in found) else []

    found = until(f"every AgentRestore of {name} ends", ended, seconds=30)
    return [each["status"]["reason"] for each in sorted(found, key=lambda each: int(each["status"]["epoch"]))]


def warnings(kubectl: Kubectl, pod: Object) -> list[str]:
    """Return the reasons of Savepoint's Warnings about the pod."""
    about = f"involvedObject.uid={pod['metadata']['uid']},type=Warning"
    found = kubectl.get("events", "--field-selector", about)["items"]
    return [str(each["reason"]) for each in found if each["source"].get("component") == "savepoint"]


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
def test_a_job_that_exits_with_0_starts_fresh_when_it_runs_again(namespace: Kubectl, policy: str) -> None:
    name = f"nightly-{policy.lower()}"
    manifest = job(agent(name, ONCE), policy=policy)
    (first,) = run_job(namespace, manifest)
    assert output(namespace, first) == "nothing"
    assert_completed(namespace, name)
    namespace("delete", "job", name, "--wait=true", "--timeout=60s")
    (second,) = run_job(namespace, manifest)
    assert output(namespace, second) == "nothing"
    assert restore_reasons(namespace, name) == ["Fresh", "Fresh"]
    assert_completed(namespace, name)


def test_a_job_that_is_deleted_at_once_still_starts_fresh_when_it_runs_again(namespace: Kubectl) -> None:
    manifest = job(agent("hasty", ONCE))
    for _ in range(2):
        (pod,) = run_job(namespace, manifest)
        assert output(namespace, pod) == "nothing"
        namespace("delete", "job", "hasty", "--wait=true", "--timeout=60s")
    assert restore_reasons(namespace, "hasty") == ["Fresh", "Fresh"]


def test_a_job_that_fails_once_resumes_in_its_next_pod(namespace: Kubectl) -> None:
    first, second = run_job(namespace, job(agent("flaky", SECOND_TRY), tries=3))
    assert [output(namespace, pod) for pod in (first, second)] == ["nothing", "found half"]
    assert restore_reasons(namespace, "flaky") == ["Fresh", "Restored"]
    assert_completed(namespace, "flaky")


def test_a_pod_that_exits_with_0_on_sigterm_resumes(namespace: Kubectl) -> None:
    (_, first), (second_pod, second) = (
        run_pod(namespace, with_restart_policy(agent("polite", EXIT_ON_TERM).pod(), policy))
        for policy in ("Never", "OnFailure")
    )
    assert [first, second] == ["nothing", "found half"]
    assert restore_reasons(namespace, "polite") == ["Fresh", "Restored"]
    assert "ConfigurationChanged" not in warnings(namespace, second_pod)


def test_a_pod_with_another_configuration_resumes_with_a_warning(namespace: Kubectl) -> None:
    run_pod(namespace, agent("changed", EXIT_ON_TERM).pod())
    pod, printed = run_pod(namespace, agent("changed", f": version 2; {EXIT_ON_TERM}").pod())
    assert printed == "found half"
    until("the pod's Warning", lambda: "ConfigurationChanged" in warnings(namespace, pod), seconds=30)
    assert restore_reasons(namespace, "changed") == ["Fresh", "Restored"]
