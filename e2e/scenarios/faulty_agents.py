"""Pods, policies and stores with a deliberate fault, and queries for what the cluster reports about them.

Objects and queries only; fault_scenarios.py combines them, and test_bad_input.py judges what is reported.
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
from e2e.scenarios.main_job import IN_PROGRESS

BUSYBOX = "savepoint.local/busybox:dev"
PYTHON = "savepoint.local/researcher:dev"
"""An image with the SDK."""
CODER = "savepoint.local/coder:dev"
"""An image that sets uid 1000 itself."""
UID = 1000
SLEEP = "trap 'exit 143' TERM; while :; do sleep 1 & wait $!; done"
API = "savepoint.dev/v1alpha1"
LABEL = "scenario"
"""Label through which a policy selects the pods of one agent."""

Object = dict[str, Any]


@dataclass(frozen=True)
class AgentPod:
    """A pod that opts in and that namespaces with the restricted standard admit by default."""

    name: str
    agent: str
    image: str = BUSYBOX
    command: Sequence[str] = ("sh", "-c", SLEEP)
    uid: int | None = UID
    non_root: bool = True
    state: str = ""
    """Mount path of an emptyDir in memory, or of ``claim``."""
    size: str = "32Mi"
    claim: str = ""
    gated: bool = False
    grace: int = 5
    labels: Mapping[str, str] = field(default_factory=dict)

    def template(self) -> Object:
        """Return metadata and spec, as in the template of a Deployment."""
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
        labels = {"savepoint.dev/agent": self.agent, LABEL: self.agent, **self.labels}
        return {"metadata": {"labels": {name: value for name, value in labels.items() if value}}, "spec": spec}

    def pod(self) -> Object:
        """Return the manifest of a pod without a controller."""
        manifest = self.template()
        manifest["metadata"]["name"] = self.name
        return {"apiVersion": "v1", "kind": "Pod", **manifest}

    def deployment(self, replicas: int = 1) -> Object:
        """Return the manifest of a Deployment."""
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": self.name},
            "spec": {
                "replicas": replicas,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": {LABEL: self.agent}},
                "template": self.template(),
            },
        }


def policy(agent: str, store: str, **spec: Any) -> Object:
    """Return the manifest of a policy for one agent, without scheduled checkpoints."""
    return {
        "apiVersion": API,
        "kind": "AgentCheckpointPolicy",
        "metadata": {"name": agent},
        "spec": {
            "selector": {"matchLabels": {LABEL: agent}},
            "storeName": store,
            "triggers": [],
            **spec,
        },
    }


def store(name: str, bucket: str, secret: str, endpoint: str, prefix: str = "") -> Object:
    """Return the manifest of a store at an S3 endpoint, which may be deleted while agents use it."""
    s3 = {"endpoint": endpoint, "bucket": bucket, "region": "us-east-1", "credentialsSecretName": secret}
    metadata = {"name": name, "annotations": {"savepoint.dev/confirm-delete": "true"}}
    spec = {"s3": {**s3, "prefix": prefix}}
    return {"apiVersion": API, "kind": "AgentCheckpointStore", "metadata": metadata, "spec": spec}


@dataclass(frozen=True)
class FaultyNamespace:
    """A namespace with faulty agents, and the bucket of those whose store is healthy."""

    kubectl: Kubectl
    bucket: Minio
    bucket_name: str

    # -- actions ------------------------------------------------------------------------------------------------

    def create(self, *objects: Object) -> None:
        """Run ``kubectl apply`` on all objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl.apply(json.dumps(listed))

    def request_checkpoint(self, agent: str) -> str:
        """Create an AgentCheckpoint and return its name."""
        body = {"apiVersion": API, "kind": "AgentCheckpoint", "metadata": {"generateName": f"{agent}-"}}
        body["spec"] = {"agent": agent}
        created = self.kubectl("create", "-f", "-", "-o", "name", stdin=json.dumps(body))
        return created.strip().rpartition("/")[2]

    def ready_checkpoint(self, agent: str, seconds: float = 90) -> Object:
        """Request a checkpoint and return it once it is Ready."""
        name = self.request_checkpoint(agent)
        found = until(f"checkpoint {name} ends", lambda: self.ended(name), seconds=seconds, every=1)
        assert condition(found, "Ready")["status"] == "True", condition(found, "Ready")
        return found

    def replace(self, pod: AgentPod) -> Object:
        """Delete the agent's pod, create its successor under the same name and return the new pod."""
        self.kubectl("delete", "pod", pod.name, "--wait=true", "--timeout=60s")
        self.create(pod.pod())
        found: Object = self.kubectl.get("pod", pod.name)
        return found

    # -- queries ------------------------------------------------------------------------------------------------

    def wait_ready(self, pod: str, seconds: float = 90) -> Object:
        """Return the pod once all its containers are ready."""

        def ready() -> Object | None:
            found = self.kubectl.maybe("pod", pod)
            return found if found and condition(found, "Ready").get("status") == "True" else None

        return until(f"pod {pod} is ready", ready, seconds=seconds, every=1)

    def ended(self, checkpoint: str) -> Object | None:
        """Return the AgentCheckpoint if it is Ready or has failed, otherwise None."""
        found: Object = self.kubectl.get("agentcheckpoint", checkpoint)
        return found if found.get("status", {}).get("reason", "") not in ("", "Pending", *IN_PROGRESS) else None

    def wait_failed(self, checkpoint: str, seconds: float) -> Object:
        """Return the AgentCheckpoint once it has ended; it must have failed."""
        found = until(f"checkpoint {checkpoint} ends", lambda: self.ended(checkpoint), seconds=seconds, every=1)
        assert condition(found, "Ready")["status"] == "False", condition(found, "Ready")
        assert "sequence" not in found["status"] and "integrity" not in found["status"]
        return found

    def wait_restore(self, pod_uid: str, reason: str, seconds: float, text: str = "") -> Object:
        """Return the AgentRestore of a pod once it has the reason, and the text in its message."""

        def restore() -> Object | None:
            for each in self.kubectl.items("agentrestores"):
                target: Object = next(iter(each.get("status", {}).get("targets") or ()), {})
                if target.get("podUID") != pod_uid or each["status"].get("reason") != reason:
                    continue
                if text in condition(each, "Succeeded").get("message", ""):
                    return each
            return None

        return until(f"an AgentRestore with reason {reason} and {text!r}", restore, seconds=seconds, every=1)

    def wait_unprotected(self, agent: str, text: str, seconds: float) -> Object:
        """Return the agent's condition Protected once it is False with the text in its message."""

        def unprotected() -> Object | None:
            found = condition(self.kubectl.maybe("protectedagent", agent) or {}, "Protected")
            return found if found.get("status") == "False" and text in found.get("message", "") else None

        return until(f"agent {agent} is not Protected: {text!r}", unprotected, seconds=seconds, every=1)

    def wait_warning(self, uid: str, reason: str, text: str, seconds: float = 30) -> str:
        """Return the message of a Warning about an object once there is one with the reason and the text."""

        def warning() -> str | None:
            events = self.kubectl.get("events", "--field-selector", f"involvedObject.uid={uid},type=Warning")["items"]
            messages = [str(each["message"]) for each in events if each["reason"] == reason]
            return next((message for message in messages if text in message), None)

        return until(f"a Warning {reason} with {text!r}", warning, seconds=seconds, every=1)

    def record_kinds(self, agent: str) -> list[str]:
        """Return the kinds of the commit records in the agent's chain, in order."""
        folder = f"{self.kubectl.namespace}/{agent}/commits/"
        prefixes = (folder, f"{agent}/{folder}")  # the second: of a store of the agent's own
        found_objects = (each for prefix in prefixes for each in self.bucket.list_objects(self.bucket_name, prefix))
        keys = sorted(str(each.object_name) for each in found_objects)
        found: list[str] = []
        for key in keys:
            with self.bucket.get_object(self.bucket_name, key) as answer:
                found.append(commit.decode(answer.read(), key).kind)
        return found

    def assert_no_checkpoint(self, agent: str) -> None:
        """Assert that no checkpoint is Ready, none is the latest, and none is in the chain."""
        for each in self.kubectl.items("agentcheckpoints", f"savepoint.dev/agent={agent}"):
            assert condition(each, "Ready").get("status") != "True", each["metadata"]["name"]
        protected = self.kubectl.maybe("protectedagent", agent) or {}
        assert not protected.get("status", {}).get("latest")
        assert set(self.record_kinds(agent)) <= {"grant"}


def never_ran(kubectl: Kubectl, pod: str) -> bool:
    """Return whether the agent's container has never been started."""
    status: Object = kubectl.get("pod", pod)["status"]
    entry: Object = next((each for each in status.get("containerStatuses", ()) if each["name"] == "agent"), {})
    return not entry.get("started") and "waiting" in entry.get("state", {"waiting": {}}) and not entry.get("lastState")


def seconds_until(found: Object, kind: str, since: str) -> float:
    """Return the seconds from a timestamp to the last transition of a condition, by the cluster's clocks."""
    at = datetime.fromisoformat(condition(found, kind)["lastTransitionTime"])
    return (at - datetime.fromisoformat(since)).total_seconds()


def delete_pod(kubectl: Kubectl, pod: str, seconds: float) -> float:
    """Delete a pod and wait; return how many seconds it took to end."""
    began = time.monotonic()
    kubectl("delete", "pod", pod, "--wait=true", f"--timeout={seconds:.0f}s", timeout=seconds + 10)
    return time.monotonic() - began
