"""Raw objects from the API server into the values of ``model.objects``. Unknown fields are ignored."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from savepoint.contract.names import CONTAINER_SIDECAR, LABEL_AGENT

from savepoint_operator.model.objects import (
    AgentObject,
    CheckpointObject,
    Interval,
    Meta,
    Node,
    Owner,
    Pod,
    Policy,
    RestoreObject,
    S3Spec,
    Store,
    Workload,
)
from savepoint_operator.model.views import AgentRef
from savepoint_operator.rules.admission.policy import LabelSelector

Raw = Mapping[str, Any]
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_NO_IMAGE = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_NO_CONTAINER = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


def time_of(text: str | None) -> datetime | None:
    """A Kubernetes timestamp, None when there is none."""
    return datetime.fromisoformat(text) if text else None


def meta_of(raw: Raw) -> Meta:
    """Metadata of any object."""
    metadata = raw["metadata"]
    return Meta(
        namespace=metadata.get("namespace") or "",
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        version=int(metadata.get("resourceVersion") or 0),
        generation=metadata.get("generation") or 0,
        created=time_of(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
        deleting=bool(metadata.get("deletionTimestamp")),
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        generated=bool(metadata.get("generateName")),
    )


def owner_of(raw: Raw) -> Owner | None:
    """The controller among the owner references."""
    for reference in raw["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return Owner(reference["kind"], reference["name"], reference["uid"])
    return None


def pod_of(raw: Raw) -> Pod:
    """A pod."""
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    return Pod(
        meta=meta_of(raw),
        node=spec.get("nodeName") or "",
        phase=status.get("phase") or "Pending",
        owner=owner_of(raw),
        injected=any(each.get("name") == CONTAINER_SIDECAR for each in spec.get("initContainers") or ()),
        ready=_condition(status, "Ready") == "True",
        disruption=_disruption(status),
        blocked=next(filter(None, map(_blocked, _container_statuses(status))), ""),
        restart_policy=spec.get("restartPolicy") or "Always",
        exited=_exited(spec, status),
        deletion_asked=_deletion_asked(raw["metadata"]),
    )


def workload_of(raw: Raw) -> Workload:
    """A Deployment, ReplicaSet, StatefulSet or Job."""
    kind, spec = raw.get("kind", ""), raw.get("spec") or {}
    template = (spec.get("template") or {}).get("metadata") or {}
    strategy = (spec.get("strategy") or {}).get("type", "RollingUpdate")
    replicas = spec.get("parallelism" if kind == "Job" else "replicas")
    return Workload(
        meta=meta_of(raw),
        kind=kind,
        replicas=1 if replicas is None else replicas,
        indexed=kind == "StatefulSet" or spec.get("completionMode") == "Indexed",
        rolling=kind == "Deployment" and strategy != "Recreate",
        owner=owner_of(raw),
        template_labelled=LABEL_AGENT in (template.get("labels") or {}),
    )


def node_of(raw: Raw) -> Node:
    """A node."""
    taints = (raw.get("spec") or {}).get("taints") or ()
    ready = _condition(raw.get("status") or {}, "Ready") == "True"
    return Node(meta_of(raw), lost=not ready or any(taint.get("key") == OUT_OF_SERVICE for taint in taints))


def policy_of(raw: Raw) -> Policy:
    """A policy, as the API server has validated and defaulted it."""
    spec = raw.get("spec") or {}
    quiesce = spec.get("quiesce") or {}
    intervals = [each["interval"] for each in spec.get("triggers") or () if "interval" in each]
    interval: Interval | None = Interval()
    if intervals:
        interval = Interval(intervals[0]["periodSeconds"], intervals[0].get("jitterSeconds"))
    elif "triggers" in spec:
        interval = None
    return Policy(
        meta=meta_of(raw),
        selector=LabelSelector.parse(spec.get("selector") or {}),
        store_name=spec.get("storeName"),
        exclude=tuple((spec.get("state") or {}).get("exclude") or ()),
        quiesce_timeout_seconds=quiesce.get("timeoutSeconds", 10),
        hold_seconds=quiesce.get("holdSeconds", 5),
        interval=interval,
        keep_last=(spec.get("retention") or {}).get("keepLast", 12),
        suspend=bool(spec.get("suspend")),
        status=raw.get("status") or {},
    )


def store_of(raw: Raw) -> Store:
    """A store."""
    spec = raw["spec"]
    s3, allowed = spec["s3"], spec.get("allowedNamespaces") or {}
    return Store(
        meta=meta_of(raw),
        s3=S3Spec(
            endpoint=s3["endpoint"].rstrip("/"),
            bucket=s3["bucket"],
            pod_endpoint=(s3.get("podEndpoint") or "").rstrip("/"),
            prefix=s3.get("prefix") or "",
            region=s3.get("region") or "us-east-1",
            addressing=s3.get("addressing") or "Path",
            credentials_secret=s3.get("credentialsSecretName") or "",
            ca_secret=s3.get("caSecretName") or "",
        ),
        default=bool(spec.get("default")),
        allowed_names=frozenset(allowed["names"]) if "names" in allowed else None,
        allowed_selector=LabelSelector.parse(allowed["selector"]) if "selector" in allowed else None,
        spec=spec,
        status=raw.get("status") or {},
    )


def checkpoint_of(raw: Raw) -> CheckpointObject:
    """An AgentCheckpoint."""
    meta, spec, status = meta_of(raw), raw["spec"], raw.get("status") or {}
    return CheckpointObject(
        meta=meta,
        agent=AgentRef(meta.namespace, spec["agent"]),
        hold=(spec.get("retention") or {}).get("hold") == "Keep",
        attempt=status.get("attempt") or "",
        reason=status.get("reason") or "",
        ready=_condition(status, "Ready") == "True",
        number=status.get("number") or 0,
        sequence=status.get("sequence") or 0,
        trigger=(status.get("trigger") or {}).get("type") or "",
        status=status,
    )


def restore_of(raw: Raw) -> RestoreObject:
    """An AgentRestore."""
    spec, status = raw["spec"], raw.get("status") or {}
    source, targets = spec.get("source") or {}, status.get("targets") or [{}]
    succeeded = _condition(status, "Succeeded")
    return RestoreObject(
        meta=meta_of(raw),
        mode=spec["mode"],
        checkpoint_name=source.get("checkpointName") or "",
        agent_name=status.get("agent") or source.get("agent") or "",
        reason=status.get("reason") or "",
        finished=bool(status.get("completionTime")),
        succeeded=succeeded == "True",
        epoch=status.get("epoch") or 0,
        pod_uid=targets[0].get("podUID") or "",
        status=status,
    )


def agent_of(raw: Raw) -> AgentObject:
    """A ProtectedAgent."""
    status = raw.get("status") or {}
    head = status.get("head") or {}
    pin = (head["sequence"], head["recordDigest"]) if head.get("sequence") and head.get("recordDigest") else None
    return AgentObject(
        meta=meta_of(raw), reason=status.get("reason") or "", epoch=status.get("epoch") or 0, pin=pin, status=status
    )


def _disruption(status: Raw) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return str(condition.get("reason", ""))
    return ""


def _exited(spec: Raw, status: Raw) -> datetime | None:
    terminated = [(each.get("state") or {}).get("terminated") or {} for each in status.get("containerStatuses") or ()]
    times = [time_of(each.get("finishedAt")) for each in terminated]
    told = [time for time in times if time is not None]
    return max(told) if told and len(told) == len(spec.get("containers") or ()) else None


def _deletion_asked(metadata: Raw) -> datetime | None:
    shown = time_of(metadata.get("deletionTimestamp"))
    return None if shown is None else shown - timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)


def _container_statuses(status: Raw) -> Iterator[Raw]:
    for kind in ("initContainerStatuses", "containerStatuses"):
        yield from status.get(kind) or ()


def _blocked(container: Raw) -> str:
    """The kubelet's reason changes to and fro between two words while it tries again: they are told as one."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, name = waiting.get("reason") or "", container.get("name")
    if reason in _NO_IMAGE:
        return (
            f"Container {name} cannot start, since its image {container.get('image')} cannot be pulled. Correct the "
            "image, make it available to the node, or name the pull secret that it needs."
        )
    if reason in _NO_CONTAINER:
        said = waiting.get("message") or "the kubelet does not say why"
        return f"Container {name} cannot start ({reason}): {said}. Correct the pod's specification."
    return ""


def _condition(status: Raw, kind: str) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("type") == kind:
            return str(condition.get("status"))
    return ""
