"""Deletion of namespaces, with an explanation of what delays it.

Usually it takes 17 to 49 s. The API server first lets pods end. A pod with an agent may take its whole grace period of
30 s: no object can be created in a namespace that is being deleted, so its final checkpoint gets none; the sidecar
offers the checkpoint again until its time is over, and then leaves it for the operator. The namespace controller checks
again after half the longest grace period plus one second, that is every 16 s. Slower deletions are reported with their
cause.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from e2e.harness.kube import CommandFailed, Kubectl

SLOW_SECONDS, TIMEOUT_SECONDS = 75.0, 180.0
OVERDUE_SECONDS = 10.0
"""A pod that exceeds its grace period by more is reported: the kubelet itself takes some seconds."""

Object = dict[str, Any]
Say = Callable[[str], None]


class PodWatch:
    """Reports pods of the deleted namespaces that ended long after their grace period."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._pods: dict[str, Object] = {}

    def observe(self, pods: list[Object], now: datetime) -> None:
        """Compare the pods with those of the previous call; report each that has ended too late since."""
        present = {str(pod["metadata"]["uid"]): pod for pod in pods}
        for uid, pod in self._pods.items():
            late = overdue(pod, now)
            if uid not in present and late > OVERDUE_SECONDS:
                self._say(f"ended {late:.0f} s after its grace period: {describe_pod(pod, now)}")
        self._pods = present


def remove(kubectl: Kubectl, *names: str, say: Say = print) -> None:
    """Delete namespaces and wait until they no longer exist. Raises TimeoutError with what delays the deletion."""
    kubectl("delete", "namespace", *names, "--wait=false", "--ignore-not-found")
    began, reported, watch = time.monotonic(), False, PodWatch(say)
    while remaining := [found for name in names if (found := kubectl.maybe("namespace", name))]:
        pods = [pod for each in remaining for pod in kubectl.within(each["metadata"]["name"]).items("pods")]
        watch.observe(pods, datetime.now(UTC))
        took = time.monotonic() - began
        if took > TIMEOUT_SECONDS:
            raise TimeoutError(f"not deleted within {TIMEOUT_SECONDS:.0f} s:\n{_describe(kubectl, remaining)}")
        if took > SLOW_SECONDS and not reported:
            reported = True
            say(f"not deleted after {took:.0f} s:\n{_describe(kubectl, remaining)}")
        time.sleep(1)
    watch.observe([], datetime.now(UTC))


def _describe(kubectl: Kubectl, namespaces: list[Object]) -> str:
    now, lines = datetime.now(UTC), []
    for namespace in namespaces:
        namespaced = kubectl.within(namespace["metadata"]["name"])
        lines += describe_namespace(namespace)
        lines += [f"  {describe_pod(pod, now)}" for pod in namespaced.items("pods")]
        lines += [f"  {describe_object(each)}" for each in _objects(namespaced) if each["kind"] not in ("Pod", "Event")]
    return "\n".join(lines)


def _objects(namespaced: Kubectl) -> list[Object]:
    """Return all objects in a namespace; a kind that cannot be listed is represented by its error."""
    kinds = namespaced("api-resources", "--namespaced", "--verbs=list,delete", "-o", "name").split()
    found: list[Object] = []
    for kind in kinds:
        try:
            found += namespaced.items(kind)
        except CommandFailed as error:
            found.append({"kind": kind, "metadata": {"name": f"cannot be listed: {error}"}})
    return found


# -- descriptions of plain objects ----------------------------------------------------------------------------------


def describe_namespace(namespace: Object) -> list[str]:
    """Return lines with the namespace's finalizers and the conditions that delay its deletion."""
    finalizers = ", ".join(namespace.get("spec", {}).get("finalizers", [])) or "none"
    lines = [f"namespace {namespace['metadata']['name']}, finalizers: {finalizers}"]
    for entry in namespace.get("status", {}).get("conditions", []):
        if entry["status"] == "True":
            lines.append(f"  {entry['type']}: {entry['reason']}: {entry['message']}")
    return lines


def describe_pod(pod: Object, now: datetime) -> str:
    """Return a line with the pod's node, its grace period and how much of it is left, and its containers' states."""
    metadata, status = pod["metadata"], pod.get("status", {})
    parts = [f"pod {metadata['name']} on {pod.get('spec', {}).get('nodeName', 'no node')}, {status.get('phase', '')}"]
    grace = metadata.get("deletionGracePeriodSeconds")
    if "deletionTimestamp" not in metadata:
        parts.append("not being deleted")
    else:
        late = overdue(pod, now)
        parts.append(f"grace period {grace} s, " + (f"exceeded by {late:.0f} s" if late > 0 else f"{-late:.0f} s left"))
    parts.append(_finalizers(pod))
    for entry in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        for state, more in entry.get("state", {}).items():
            detail = f" {more['exitCode']} at {more.get('finishedAt', '?')}" if "exitCode" in more else ""
            parts.append(f"{entry['name']} {state}{detail}")
    return "; ".join(part for part in parts if part)


def describe_object(each: Object) -> str:
    """Return a line with the object's kind and name, whether it is being deleted, and its finalizers."""
    metadata = each["metadata"]
    deleting = "being deleted" if "deletionTimestamp" in metadata else ""
    return "; ".join(part for part in (f"{each['kind']} {metadata['name']}", deleting, _finalizers(each)) if part)


def _finalizers(each: Object) -> str:
    found = each["metadata"].get("finalizers", [])
    return f"finalizers: {', '.join(found)}" if found else ""


def overdue(pod: Object, now: datetime) -> float:
    """Return the seconds since the end of a pod's grace period; negative before, -inf if it is not being deleted."""
    at = pod["metadata"].get("deletionTimestamp")
    return (now - datetime.fromisoformat(at)).total_seconds() if at else float("-inf")
