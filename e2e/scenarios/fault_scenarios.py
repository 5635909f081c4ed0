"""Scenarios in which something goes wrong, and the steps that most of them take.

A few scenarios run at a time, because their deadlines hold only on a machine that keeps up. test_bad_input.py judges
what they observed.
"""

import json
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from e2e.harness.kube import until
from e2e.scenarios.fault_setup import CLOSED_PORT, S3, FaultScenarios, fill_volume, manifests
from e2e.scenarios.faulty_agents import SLEEP, AgentPod, Object, delete_pod, never_ran, policy

START_SECONDS = 60
"""A pod that cannot start reports the cause within this time after its creation."""
STORE_SECONDS = 150
"""A checkpoint fails within this time if its store does not answer."""
FILL = f"head -c 8388608 /dev/urandom >/data/precious; {SLEEP}"


# -- steps of the scenarios; each function returns its observations -------------------------------------------------


def _stuck(faults: FaultScenarios) -> tuple[Object, Object, list[str]]:
    """A checkpoint is requested while the agent is in a long step."""
    pod = faults.restricted.wait_ready("stuck")
    logs = partial(faults.restricted.kubectl, "logs", "stuck", "-c", "agent")
    until("the agent is in its step", lambda: "in the step" in logs(), seconds=60, every=1)
    failed = faults.restricted.wait_failed(faults.restricted.request_checkpoint("stuck"), seconds=25)
    kinds = faults.restricted.record_kinds("stuck")
    until("the agent continues", lambda: "turn 0" in logs(), seconds=60, every=2)
    return pod, failed, kinds


def _stopped(faults: FaultScenarios) -> tuple[Object, Object, list[str], Object]:
    """A checkpoint is requested while the agent's process is stopped, another one after it was continued."""
    pod = faults.restricted.wait_ready("stopped")
    failed = faults.restricted.wait_failed(faults.restricted.request_checkpoint("stopped"), seconds=25)
    kinds = faults.restricted.record_kinds("stopped")
    faults.restricted.kubectl("exec", "stopped", "-c", "agent", "--", "touch", "/tmp/go")
    return pod, failed, kinds, faults.restricted.ready_checkpoint("stopped")


def _mute(faults: FaultScenarios) -> tuple[Object, float]:
    """An agent without the SDK ignores SIGTERM."""
    faults.restricted.wait_ready("mute")
    checkpoint = faults.restricted.ready_checkpoint("mute")
    return checkpoint, delete_pod(faults.restricted.kubectl, "mute", seconds=60)


def _large(faults: FaultScenarios) -> tuple[Object, Object]:
    """The state is larger than the stage."""
    pod = faults.restricted.wait_ready("large")
    return pod, faults.restricted.wait_failed(faults.restricted.request_checkpoint("large"), seconds=60)


def _foreign(faults: FaultScenarios) -> tuple[Object, Object]:
    """The sidecar cannot read a file of the agent."""
    pod = faults.baseline.wait_ready("foreign")
    return pod, faults.baseline.wait_failed(faults.baseline.request_checkpoint("foreign"), seconds=60)


def _twins(faults: FaultScenarios) -> Object:
    """A second pod of the same agent is created."""
    faults.restricted.wait_ready("twins-1")
    faults.restricted.create(AgentPod("twins-2", "twins", state="/data").pod())
    found: Object = faults.restricted.kubectl.get("pod", "twins-2")
    return found


def _nosidecar(faults: FaultScenarios) -> None:
    """The image of the injected container is changed before the pod may be scheduled."""
    kubectl = faults.restricted.kubectl
    kubectl("set", "image", "pod/nosidecar", "savepoint-restore=savepoint.local/no-such:dev")
    kubectl("patch", "pod", "nosidecar", "--type=merge", "-p", '{"spec":{"schedulingGates":[]}}')


def _with_checkpoint(faults: FaultScenarios, agent: str, store_kind: str = "healthy") -> AgentPod:
    """Deploy an agent with 8 MiB of files and a checkpoint of them."""
    pod = AgentPod(agent, agent, command=("sh", "-c", FILL), state="/data")
    faults.restricted.create(policy(agent, f"{faults.name}-{store_kind}"), pod.pod())
    faults.restricted.wait_ready(agent)
    faults.restricted.ready_checkpoint(agent)
    return pod


def _failing_successor(faults: FaultScenarios, pod: AgentPod, reason: str) -> tuple[Object, Object]:
    """Replace the agent's pod by one whose restore must report the reason in time; return the pod and the restore."""
    successor = faults.restricted.replace(pod)
    return successor, faults.restricted.wait_restore(successor["metadata"]["uid"], reason, START_SECONDS)


def _small(faults: FaultScenarios) -> tuple[Object, Object]:
    """The volume of the next pod is too small for the state."""
    _with_checkpoint(faults, "small")
    return _failing_successor(faults, AgentPod("small", "small", state="/data", size="4Mi"), "NoSpace")


def _filled(faults: FaultScenarios) -> tuple[Object, Object]:
    """The volume of the next pod contains foreign files."""
    _with_checkpoint(faults, "filled")
    return _failing_successor(faults, AgentPod("filled", "filled", state="/data", claim="filled"), "TargetNotEmpty")


def _renamed(faults: FaultScenarios) -> tuple[Object, Object]:
    """The next pod mounts its volume at another path."""
    _with_checkpoint(faults, "renamed")
    return _failing_successor(faults, AgentPod("renamed", "renamed", state="/moved"), "StateLeftBehind")


def _deleted(faults: FaultScenarios) -> tuple[Object, Object]:
    """The AgentCheckpointStore does not exist when the next pod starts, and is created again."""
    faults.restricted.create(faults.store("deleted"))
    pod = _with_checkpoint(faults, "deleted", "deleted")
    faults.kubectl("delete", "agentcheckpointstore", f"{faults.name}-deleted")
    successor = faults.restricted.replace(pod)
    waiting = faults.restricted.wait_restore(successor["metadata"]["uid"], "NoStore", START_SECONDS)
    assert never_ran(faults.restricted.kubectl, "deleted")
    faults.restricted.create(faults.store("deleted"))
    return waiting, faults.restricted.wait_restore(successor["metadata"]["uid"], "Restored", START_SECONDS)


def _unreached(faults: FaultScenarios) -> tuple[Object, Object, Object]:
    """Pods, but not the operator, are given an address where no store answers; then the right one."""

    def set_pod_endpoint(endpoint: str) -> None:
        body = json.dumps({"spec": {"s3": {"podEndpoint": endpoint}}})
        faults.kubectl("patch", "agentcheckpointstore", f"{faults.name}-unreached", "--type=merge", "-p", body)

    faults.restricted.create(faults.store("unreached"))
    pod = _with_checkpoint(faults, "unreached", "unreached")
    set_pod_endpoint(CLOSED_PORT)
    successor, waiting = _failing_successor(faults, pod, "StoreUnavailable")
    assert never_ran(faults.restricted.kubectl, "unreached")
    set_pod_endpoint(S3)
    restored = faults.restricted.wait_restore(successor["metadata"]["uid"], "Restored", START_SECONDS)
    return successor, waiting, restored


def _lost(faults: FaultScenarios) -> tuple[Object, Object, Object]:
    """The bucket does not exist when the next pod starts, and is replaced by an empty one."""
    pod = _with_checkpoint(faults, "lost", "lost")
    bucket, client = f"{faults.name}-2", faults.restricted.bucket
    faults.restricted.kubectl("delete", "pod", "lost", "--wait=true")
    for each in client.list_objects(bucket, recursive=True):
        client.remove_object(bucket, str(each.object_name))
    client.remove_bucket(bucket)
    faults.restricted.create(pod.pod())
    successor: Object = faults.restricted.kubectl.get("pod", "lost")
    missing = faults.restricted.wait_restore(successor["metadata"]["uid"], "StoreMisconfigured", START_SECONDS)
    assert never_ran(faults.restricted.kubectl, "lost")
    client.make_bucket(bucket)
    emptied = faults.restricted.wait_restore(successor["metadata"]["uid"], "RollbackDetected", 120)
    return successor, missing, emptied


def _store_fails_later(faults: FaultScenarios, kind: str, s3: Object) -> tuple[Object, Object, Object]:
    """The store becomes faulty under a running agent, a checkpoint is requested, and the store is repaired."""
    name = f"{faults.name}-{kind}"
    good = faults.store(kind)
    faults.restricted.create(good)
    _with_checkpoint(faults, kind, kind)
    pod: Object = faults.restricted.kubectl.get("pod", kind)
    body = json.dumps({"spec": {"s3": s3}})
    faults.kubectl("patch", "agentcheckpointstore", name, "--type=merge", "-p", body)
    faults.kubectl("wait", "--for=condition=Ready=False", f"agentcheckpointstore/{name}", "--timeout=60s")
    faults.restricted.kubectl("exec", kind, "-c", "agent", "--", "touch", "/data/news")
    failed = faults.restricted.wait_failed(faults.restricted.request_checkpoint(kind), STORE_SECONDS)
    faults.restricted.create(good)
    faults.kubectl("wait", "--for=condition=Ready", f"agentcheckpointstore/{name}", "--timeout=60s")
    return pod, failed, faults.restricted.ready_checkpoint(kind)


def _denied_later(faults: FaultScenarios) -> tuple[Object, Object, Object]:
    return _store_fails_later(faults, "denied-later", {"credentialsSecretName": f"{faults.name}-wrong"})


def _cut_off(faults: FaultScenarios) -> tuple[Object, Object, Object]:
    return _store_fails_later(faults, "cut-off", {"endpoint": CLOSED_PORT})


STEPS: dict[str, Callable[[FaultScenarios], Any]] = {
    # The longest first, so that none of them runs alone at the end.
    "cut-off": _cut_off,
    "lost": _lost,
    "denied-later": _denied_later,
    "unreached": _unreached,
    "deleted": _deleted,
    "stuck": _stuck,
    "stopped": _stopped,
    "small": _small,
    "filled": _filled,
    "renamed": _renamed,
    "large": _large,
    "foreign": _foreign,
    "mute": _mute,
    "twins": _twins,
    "nosidecar": _nosidecar,
}


def start(faults: FaultScenarios, scenarios: Collection[str], threads: Executor) -> None:
    """Deploy each scenario and run its steps in a thread; the executor limits how many run at a time."""
    begin_with = manifests(faults)
    if unknown := set(scenarios) - begin_with.keys() - STEPS.keys():
        raise ValueError(f"unknown scenarios: {sorted(unknown)}")
    if "filled" in scenarios:
        fill_volume(faults)
    for scenario in dict.fromkeys((*STEPS, *begin_with)):
        if scenario in scenarios:
            faults.running[scenario] = threads.submit(_run, faults, scenario, begin_with.get(scenario, ()))


def _run(faults: FaultScenarios, scenario: str, begin_with: Sequence[Object]) -> Any:
    if begin_with:
        namespace = faults.baseline if scenario == "foreign" else faults.restricted
        namespace.create(*begin_with)
    steps = STEPS.get(scenario)
    return steps(faults) if steps else None
