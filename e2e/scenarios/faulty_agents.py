"""What goes wrong on purpose: pods, policies and stores with a fault in them, and what the cluster says of them.

Objects and look-ups only; which fault is shown, and what must be said of it, is the suite's (test_bad_input).
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from minio import Minio
from savepoint.repository.format import commit

from e2e.harness.installation import condition
from e2e.harness.kube import Kubectl, until

BUSYBOX = "savepoint.local/busybox:dev"
PYTHON = "savepoint.local/researcher:dev"
"""With the SDK in it."""
CODER = "savepoint.local/coder:dev"
"""Declares uid 1000 in the image alone."""
UID = 1000
SLEEP = "trap 'exit 143' TERM; while :; do sleep 1 & wait $!; done"
API = "savepoint.dev/v1alpha1"

Object = dict[str, Any]


@dataclass(frozen=True)
class AgentPod:
    """A pod that opts in, as restricted namespaces admit it."""

    name: str
    agent: str
    image: str = BUSYBOX
    command: Sequence[str] = ("sh", "-c", SLEEP)
    uid: int | None = UID
    non_root: bool = True
    state: str = ""
    """Folder of an emptyDir in memory, or of ``claim``."""
    size: str = "32Mi"
    claim: str = ""
    gated: bool = False
    grace: int = 5
    labels: Mapping[str, str] = field(default_factory=dict)

    def template(self) -> Object:
        """Metadata and spec, as a Deployment's template has them."""
        container: Object = {
            "name": "agent",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": list(self.command),
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        spec: Object = {
            "terminationGracePeriodSeconds": self.grace,
            "automountServiceAccountToken": False,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        }
        if self.non_root:
            spec["securityContext"]["runAsNonRoot"] = True
        if self.uid is not None:
            spec["securityContext"] |= {"runAsUser": self.uid, "runAsGroup": self.uid}
        if self.state:
            source = {"emptyDir": {"medium": "Memory", "sizeLimit": self.size}}
            if self.claim:
                source = {"persistentVolumeClaim": {"claimName": self.claim}}
            spec["volumes"] = [{"name": "state", **source}]
            container["volumeMounts"] = [{"name": "state", "mountPath": self.state}]
        if self.gated:
            spec["schedulingGates"] = [{"name": "example.com/wait"}]
        labels = {"savepoint.dev/agent": self.agent, "trouble": self.agent, **self.labels}
        return {"metadata": {"labels": {name: value for name, value in labels.items() if value}}, "spec": spec}

    def pod(self) -> Object:
        """A pod of its own."""
        made = self.template()
        made["metadata"]["name"] = self.name
        return {"apiVersion": "v1", "kind": "Pod", **made}

    def deployment(self, replicas: int = 1) -> Object:
        """The same in a Deployment."""
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": self.name},
            "spec": {
                "replicas": replicas,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": {"trouble": self.agent}},
                "template": self.template(),
            },
        }


def policy(agent: str, store: str, **spec: Any) -> Object:
    """Of one agent; no checkpoint is taken by time."""
    return {
        "apiVersion": API,
        "kind": "AgentCheckpointPolicy",
        "metadata": {"name": agent},
        "spec": {
            "selector": {"matchLabels": {"trouble": agent}},
            "storeName": store,
            "triggers": [],
            **spec,
        },
    }


def store(name: str, bucket: str, secret: str, endpoint: str) -> Object:
    """A store of the S3 server in the cluster, or of none."""
    s3 = {"endpoint": endpoint, "bucket": bucket, "region": "us-east-1", "credentialsSecretName": secret}
    return {"apiVersion": API, "kind": "AgentCheckpointStore", "metadata": {"name": name}, "spec": {"s3": s3}}


@dataclass(frozen=True)
class FaultyNamespace:
    """One namespace of troubled agents, and the bucket of those whose store is whole."""

    kubectl: Kubectl
    bucket: Minio
    bucket_name: str

    # -- doing --------------------------------------------------------------------------------------------------

    def create(self, *objects: Object) -> None:
        """``kubectl apply`` of all of them."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl.apply(json.dumps(listed))

    def ask(self, agent: str) -> str:
        """Ask for a checkpoint; the name of its object."""
        body = {"apiVersion": API, "kind": "AgentCheckpoint", "metadata": {"generateName": f"{agent}-"}}
        body["spec"] = {"agent": agent}
        made = self.kubectl("create", "-f", "-", "-o", "name", stdin=json.dumps(body))
        return made.strip().rpartition("/")[2]

    def ready_checkpoint(self, agent: str, seconds: float = 90) -> Object:
        """Ask for one, and wait until it is Ready."""
        name = self.ask(agent)
        found = until(f"checkpoint {name}", lambda: self.ended(name), seconds=seconds, every=1)
        assert condition(found, "Ready")["status"] == "True", condition(found, "Ready")
        return found

    def started(self, pod: str, seconds: float = 90) -> Object:
        """The pod, once all its containers are ready."""

        def ready() -> Object | None:
            found = self.kubectl.maybe("pod", pod)
            return found if found and condition(found, "Ready").get("status") == "True" else None

        return until(f"pod {pod} is ready", ready, seconds=seconds, every=1)

    def replace(self, pod: AgentPod) -> Object:
        """The next life of an agent under the same pod's name; the new pod."""
        self.kubectl("delete", "pod", pod.name, "--wait=true", "--timeout=60s")
        self.create(pod.pod())
        found: Object = self.kubectl.get("pod", pod.name)
        return found

    # -- looking ------------------------------------------------------------------------------------------------

    def ended(self, checkpoint: str) -> Object | None:
        """The AgentCheckpoint, once it is Ready or has failed."""
        found: Object = self.kubectl.get("agentcheckpoint", checkpoint)
        going_on = ("", "Pending", "Quiescing", "Capturing", "Uploading", "Committing")
        return found if found.get("status", {}).get("reason", "") not in going_on else None

    def failed(self, checkpoint: str, seconds: float) -> Object:
        """The AgentCheckpoint, which must fail within the bound."""
        found = until(f"{checkpoint} ends", lambda: self.ended(checkpoint), seconds=seconds, every=1)
        assert condition(found, "Ready")["status"] == "False", condition(found, "Ready")
        assert "sequence" not in found["status"] and "integrity" not in found["status"]
        return found

    def restore_of(self, pod_uid: str, reason: str, seconds: float, words: str = "") -> Object:
        """The AgentRestore of a pod's start, once it has the reason and its message the words."""

        def told() -> Object | None:
            for each in self.kubectl.items("agentrestores"):
                target: Object = next(iter(each.get("status", {}).get("targets") or ()), {})
                if target.get("podUID") != pod_uid or each["status"].get("reason") != reason:
                    continue
                if words in condition(each, "Succeeded").get("message", ""):
                    return each
            return None

        return until(f"an AgentRestore says {reason}: {words}", told, seconds=seconds, every=1)

    def protected(self, agent: str, words: str, seconds: float) -> Object:
        """Condition Protected of an agent, once it is False and its message holds the words."""

        def told() -> Object | None:
            found = condition(self.kubectl.maybe("protectedagent", agent) or {}, "Protected")
            return found if found.get("status") == "False" and words in found.get("message", "") else None

        return until(f"agent {agent} is said to be unprotected: {words}", told, seconds=seconds, every=1)

    def warning(self, uid: str, reason: str, words: str, seconds: float = 30) -> str:
        """The message of a Warning about an object, once there is one."""

        def told() -> str | None:
            events = self.kubectl.get("events", "--field-selector", f"involvedObject.uid={uid},type=Warning")["items"]
            texts = [str(each["message"]) for each in events if each["reason"] == reason]
            return next((text for text in texts if words in text), None)

        return until(f"a Warning {reason} with {words!r}", told, seconds=seconds, every=1)

    def kinds(self, agent: str) -> list[str]:
        """Of the records in the agent's chain, in order."""
        prefix = f"{self.kubectl.namespace}/{agent}/commits/"
        keys = sorted(str(each.object_name) for each in self.bucket.list_objects(self.bucket_name, prefix))
        found: list[str] = []
        for key in keys:
            with self.bucket.get_object(self.bucket_name, key) as answer:
                found.append(commit.decode(answer.read(), key).kind)
        return found

    def nothing_visible(self, agent: str) -> None:
        """No checkpoint: none is Ready, none is the latest, and none is in the chain."""
        for each in self.kubectl.items("agentcheckpoints", f"savepoint.dev/agent={agent}"):
            assert condition(each, "Ready").get("status") != "True", each["metadata"]["name"]
        protected = self.kubectl.maybe("protectedagent", agent) or {}
        assert not protected.get("status", {}).get("latest")
        assert set(self.kinds(agent)) <= {"grant"}


def never_ran(kubectl: Kubectl, pod: str) -> bool:
    """Whether the agent's container has not started once."""
    status: Object = kubectl.get("pod", pod)["status"]
    entry: Object = next((each for each in status.get("containerStatuses", ()) if each["name"] == "agent"), {})
    return not entry.get("started") and "waiting" in entry.get("state", {"waiting": {}}) and not entry.get("lastState")


def seconds_until(found: Object, kind: str, since: str) -> float:
    """From a timestamp until the condition became what it is, by the cluster's clocks."""
    at = datetime.fromisoformat(condition(found, kind)["lastTransitionTime"])
    return (at - datetime.fromisoformat(since)).total_seconds()


def gone(kubectl: Kubectl, pod: str, seconds: float) -> float:
    """Delete a pod; how many seconds it took to end."""
    began = time.monotonic()
    kubectl("delete", "pod", pod, "--wait=true", f"--timeout={seconds:.0f}s", timeout=seconds + 10)
    return time.monotonic() - began
