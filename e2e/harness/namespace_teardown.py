"""Taking namespaces away, and saying what holds one that does not go.

What is usual: the API server lets pods end first. One with an agent may take its whole grace of 30 s, because nothing
new can be made in a namespace that is on its way out, so its last checkpoint gets no object, is offered again until the
sidecar's time is over, and is then left for the operator. The namespace controller looks again after half the longest
grace and a second: every 16 s. So 17 to 49 s are usual, and what takes longer is told with its cause.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from e2e.harness.kube import CommandFailed, Kubectl

SLOW_SECONDS, SECONDS = 75.0, 180.0
OVERDUE_SECONDS = 10.0
"""After its grace, a pod that is still there is worth a word: the kubelet takes some seconds itself."""

Object = dict[str, Any]
Say = Callable[[str], None]


class NamespaceTeardown:
    """The pods of namespaces that are being deleted, as they were last seen."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._pods: dict[str, Object] = {}

    def seen(self, pods: list[Object], now: datetime) -> None:
        """Say of each pod that has gone since, and was later than its grace allows, how much later."""
        present = {str(pod["metadata"]["uid"]): pod for pod in pods}
        for uid, pod in self._pods.items():
            late = overdue(pod, now)
            if uid not in present and late > OVERDUE_SECONDS:
                self._say(f"ended {late:.0f} s after its grace: {of_pod(pod, now)}")
        self._pods = present


def remove(kubectl: Kubectl, *names: str, say: Say = print) -> None:
    """Delete namespaces and wait until they are gone. TimeoutError says what holds them."""
    kubectl("delete", "namespace", *names, "--wait=false", "--ignore-not-found")
    began, told, leaving = time.monotonic(), False, NamespaceTeardown(say)
    while left := [found for name in names if (found := kubectl.maybe("namespace", name))]:
        pods = [pod for each in left for pod in kubectl.within(each["metadata"]["name"]).items("pods")]
        leaving.seen(pods, datetime.now(UTC))
        took = time.monotonic() - began
        if took > SECONDS:
            raise TimeoutError(f"not deleted within {SECONDS:.0f} s:\n{_holding(kubectl, left)}")
        if took > SLOW_SECONDS and not told:
            told = True
            say(f"still there after {took:.0f} s:\n{_holding(kubectl, left)}")
        time.sleep(1)
    leaving.seen([], datetime.now(UTC))


def _holding(kubectl: Kubectl, namespaces: list[Object]) -> str:
    now, lines = datetime.now(UTC), []
    for namespace in namespaces:
        here = kubectl.within(namespace["metadata"]["name"])
        lines += of_namespace(namespace)
        lines += [f"  {of_pod(pod, now)}" for pod in here.items("pods")]
        lines += [f"  {of_object(each)}" for each in _objects(here) if each["kind"] not in ("Pod", "Event")]
    return "\n".join(lines)


def _objects(here: Kubectl) -> list[Object]:
    """Everything else in a namespace; what cannot be listed is told as it is."""
    kinds = here("api-resources", "--namespaced", "--verbs=list,delete", "-o", "name").split()
    found: list[Object] = []
    for kind in kinds:
        try:
            found += here.items(kind)
        except CommandFailed as error:
            found.append({"kind": kind, "metadata": {"name": f"cannot be listed: {error}"}})
    return found


# -- words, of plain objects ----------------------------------------------------------------------------------------


def of_namespace(namespace: Object) -> list[str]:
    """Its name, and what the namespace controller says: what is left, which finalizers, which calls failed."""
    finalizers = ", ".join(namespace.get("spec", {}).get("finalizers", [])) or "none"
    lines = [f"namespace {namespace['metadata']['name']}, finalizers: {finalizers}"]
    for entry in namespace.get("status", {}).get("conditions", []):
        if entry["status"] == "True":
            lines.append(f"  {entry['type']}: {entry['reason']}: {entry['message']}")
    return lines


def of_pod(pod: Object, now: datetime) -> str:
    """Its node, how long it has been asked to end, its grace, and what each of its containers does."""
    metadata, status = pod["metadata"], pod.get("status", {})
    words = [f"pod {metadata['name']} on {pod.get('spec', {}).get('nodeName', 'no node')}, {status.get('phase', '')}"]
    grace = metadata.get("deletionGracePeriodSeconds")
    if "deletionTimestamp" not in metadata:
        words.append("not asked to end")
    else:
        late = overdue(pod, now)
        words.append(f"grace {grace} s, " + (f"over for {late:.0f} s" if late > 0 else f"{-late:.0f} s of it left"))
    words.append(_finalizers(pod))
    for entry in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        for state, more in entry.get("state", {}).items():
            detail = f" {more['exitCode']} at {more.get('finishedAt', '?')}" if "exitCode" in more else ""
            words.append(f"{entry['name']} {state}{detail}")
    return "; ".join(word for word in words if word)


def of_object(each: Object) -> str:
    """Kind, name, whether it is on its way out, and its finalizers."""
    metadata = each["metadata"]
    going = "being deleted" if "deletionTimestamp" in metadata else ""
    return "; ".join(word for word in (f"{each['kind']} {metadata['name']}", going, _finalizers(each)) if word)


def _finalizers(each: Object) -> str:
    found = each["metadata"].get("finalizers", [])
    return f"finalizers: {', '.join(found)}" if found else ""


def overdue(pod: Object, now: datetime) -> float:
    """Seconds since the end of a pod's grace; negative before it, and for a pod that nobody has asked to end."""
    at = pod["metadata"].get("deletionTimestamp")
    return (now - datetime.fromisoformat(at)).total_seconds() if at else float("-inf")
