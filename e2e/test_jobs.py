"""Pods that run once, on the cluster: which exit ends a run, and which one is gone on from.

The agent is a shell that has never heard of Savepoint. It says what it finds in its folder, and leaves something there.
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
"""Does its work and exits with 0."""
SECOND_TRY = f"{FIND}; if [ -e /data/work ]; then exit 0; fi; echo half >/data/work; exit 1"
"""Fails half-way, and does the rest with what it had."""
POLITE = f"{FIND}; echo half >/data/work; trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"
"""Told to stop, it exits with 0."""


@pytest.fixture(scope="module")
def place(kubectl: Kubectl) -> Iterator[Kubectl]:
    """The chart installed, and a namespace for the agents."""
    installation.install(kubectl)
    with fresh_namespace(kubectl, "jobs") as here:
        yield here


def agent(name: str, script: str) -> AgentPod:
    return AgentPod(name, name, command=("sh", "-c", script), state="/data", grace=20)


def run_once(made: Object, policy: str) -> Object:
    """The pod, or template, with a restart policy."""
    return {**made, "spec": {**made["spec"], "restartPolicy": policy}}


def job(pod: AgentPod, *, tries: int = 1, policy: str = "Never") -> Object:
    template = run_once(pod.template(), policy)
    spec = {"backoffLimit": tries - 1, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": pod.name}, "spec": spec}


def completes(place: Kubectl, made: Object) -> list[Object]:
    """Create the Job and wait for its end; its pods, oldest first."""
    name = made["metadata"]["name"]
    place.apply(json.dumps(made))
    place("wait", "--for=condition=Complete", f"job/{name}", "--timeout=120s", timeout=130)
    pods = place.items("pods", f"job-name={name}")
    return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def said(place: Kubectl, pod: Object) -> str:
    return place("logs", pod["metadata"]["name"], "-c", "agent").strip()


def completed(place: Kubectl, name: str) -> None:
    """The agent's ProtectedAgent says so, and its last checkpoint is Ready."""

    def told() -> bool:
        found = condition(place.maybe("protectedagent", name) or {}, "Protected")
        return (found.get("status"), found.get("reason")) == ("True", "Completed")

    until(f"the run of {name} is completed", told, seconds=60)
    checkpoints = place.items("agentcheckpoints", f"savepoint.dev/agent={name}")
    assert "True" in [condition(each, "Ready").get("status") for each in checkpoints]


def starts(place: Kubectl, name: str) -> list[str]:
    """How each start of the agent ended, by epoch."""

    def told() -> list[Any]:
        found = place.items("agentrestores", f"savepoint.dev/agent={name}")
        return found if found and all(each.get("status", {}).get("completionTime") for each in found) else []

    found = until(f"every start of {name} is told", told, seconds=30)
    return [each["status"]["reason"] for each in sorted(found, key=lambda each: int(each["status"]["epoch"]))]


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
def test_a_job_that_exits_with_0_starts_fresh_when_it_runs_again(place: Kubectl, policy: str) -> None:
    name = f"nightly-{policy.lower()}"
    made = job(agent(name, ONCE), policy=policy)
    (first,) = completes(place, made)
    assert said(place, first) == "nothing"
    completed(place, name)
    place("delete", "job", name, "--wait=true", "--timeout=60s")
    (second,) = completes(place, made)
    assert said(place, second) == "nothing"
    assert starts(place, name) == ["Fresh", "Fresh"]
    completed(place, name)


def test_a_job_that_is_deleted_at_once_starts_fresh_all_the_same(place: Kubectl) -> None:
    made = job(agent("hasty", ONCE))
    for _ in range(2):
        (pod,) = completes(place, made)
        assert said(place, pod) == "nothing"
        place("delete", "job", "hasty", "--wait=true", "--timeout=60s")
    assert starts(place, "hasty") == ["Fresh", "Fresh"]


def test_a_job_that_fails_once_goes_on_in_its_next_pod(place: Kubectl) -> None:
    first, second = completes(place, job(agent("flaky", SECOND_TRY), tries=3))
    assert [said(place, pod) for pod in (first, second)] == ["nothing", "found half"]
    assert starts(place, "flaky") == ["Fresh", "Restored"]
    completed(place, "flaky")


def lives(place: Kubectl, made: Object) -> Object:
    """The pod from its creation to its deletion, for as long as it takes to look around; as it was when it ran."""
    name = made["metadata"]["name"]
    place.apply(json.dumps(made))
    place("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s", timeout=100)
    pod: Object = place.get("pod", name)
    pod["said"] = until("it has looked", lambda: said(place, pod), seconds=20)
    place("delete", "pod", name, "--wait=true", "--timeout=60s")
    return pod


def warnings(place: Kubectl, pod: Object) -> list[str]:
    """Reasons of the Warnings about the pod that are not the kubelet's."""
    about = f"involvedObject.uid={pod['metadata']['uid']},type=Warning"
    found = place.get("events", "--field-selector", about)["items"]
    return [str(each["reason"]) for each in found if each["source"].get("component") == "savepoint"]


def test_a_pod_that_is_told_to_stop_and_exits_with_0_goes_on(place: Kubectl) -> None:
    first, second = (lives(place, run_once(agent("polite", POLITE).pod(), each)) for each in ("Never", "OnFailure"))
    assert [first["said"], second["said"]] == ["nothing", "found half"]
    assert starts(place, "polite") == ["Fresh", "Restored"]
    assert "ConfigurationChanged" not in warnings(place, second)


def test_another_configuration_gets_the_state_and_a_warning(place: Kubectl) -> None:
    lives(place, agent("changed", POLITE).pod())
    other = lives(place, agent("changed", f": version 2; {POLITE}").pod())
    assert other["said"] == "found half"
    until("the pod's Warning", lambda: "ConfigurationChanged" in warnings(place, other), seconds=30)
    assert starts(place, "changed") == ["Fresh", "Restored"]
