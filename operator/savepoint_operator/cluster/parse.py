"""Parses objects from the API server into the values of ``model.objects``. Unknown fields are ignored."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from savepoint.contract.names import CONTAINER_SIDECAR, LABEL_AGENT
from savepoint.contract.shrinkage import DEFAULT_PERCENT
from savepoint.contract.vocabulary import ChangeDetection, OnContainerRestart, OnUnknownFiles
from savepoint.repository.history.retention import RetentionRules

from savepoint_operator.model.objects import (
    AgentObject,
    CheckpointObject,
    ContainerExit,
    Interval,
    Meta,
    Node,
    Owner,
    Pod,
    Policy,
    RestoreObject,
    S3Spec,
    StatePath,
    Store,
    Workload,
)
from savepoint_operator.model.selector import LabelSelector
from savepoint_operator.model.views import AgentRef
from savepoint_operator.rules.quantity import parse_quantity

Raw = Mapping[str, Any]
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_STAGE_MEDIA = {"Disk": "", "Memory": "Memory"}
"""Medium of the stage in a policy to emptyDir.medium."""
_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONTAINER_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


def time_of(text: str | None) -> datetime | None:
    """Return a Kubernetes timestamp, or None if there is none."""
    return datetime.fromisoformat(text) if text else None


def meta_of(raw: Raw) -> Meta:
    """Return the metadata of any object."""
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
    """Return the controller among the owner references."""
    for reference in raw["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return Owner(reference["kind"], reference["name"], reference["uid"])
    return None


def pod_of(raw: Raw) -> Pod:
    """Return the pod."""
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
        deletion_requested=_deletion_requested(raw["metadata"]),
        exits=tuple(filter(None, map(_container_exit, status.get("containerStatuses") or ()))),
    )


def workload_of(raw: Raw) -> Workload:
    """Return the Deployment, ReplicaSet, StatefulSet or Job."""
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
    """Return the node."""
    taints = (raw.get("spec") or {}).get("taints") or ()
    ready = _condition(raw.get("status") or {}, "Ready") == "True"
    return Node(meta_of(raw), lost=not ready or any(taint.get("key") == OUT_OF_SERVICE for taint in taints))


def policy_of(raw: Raw) -> Policy:
    """Return the policy; the API server has validated it and filled in its defaults."""
    spec = raw.get("spec") or {}
    stage, injection, state, quiesce, retention = (
        spec.get(name) or {} for name in ("stage", "injection", "state", "quiesce", "retention")
    )
    return Policy(
        meta=meta_of(raw),
        selector=LabelSelector.parse(spec.get("selector") or {}),
        store_name=spec.get("storeName"),
        exclude=tuple(state.get("exclude") or ()),
        quiesce_timeout_seconds=quiesce.get("timeoutSeconds", 10),
        hold_seconds=quiesce.get("holdSeconds", 5),
        interval=_interval(spec),
        retention=_retention(retention),
        shrink_percent=retention.get("shrinkPercent", DEFAULT_PERCENT),
        change_detection=state.get("changeDetection", ChangeDetection.AUTO),
        on_container_restart=(spec.get("restore") or {}).get("onContainerRestart", OnContainerRestart.KEEP_LOCAL),
        on_unknown_files=(spec.get("restore") or {}).get("onUnknownFiles", OnUnknownFiles.REFUSE),
        suspend=bool(spec.get("suspend")),
        container_name=spec.get("containerName"),
        state_volumes=tuple(state["volumes"]) if "volumes" in state else None,
        state_paths=tuple(StatePath(item["mountPath"], item.get("sizeLimit")) for item in state.get("paths") or ()),
        state_moved=tuple((item["from"], item["to"]) for item in state.get("moved") or ()),
        state_dropped=tuple(state.get("dropped") or ()),
        stage_size_limit=stage.get("sizeLimit"),
        stage_medium=_STAGE_MEDIA.get(stage.get("medium", "Disk"), ""),
        resources=injection.get("resources"),
        run_as_user=injection.get("runAsUser"),
        status=raw.get("status") or {},
    )


def _interval(spec: Raw) -> Interval | None:
    """Return the first interval trigger; the default one if no trigger is listed, None if others are."""
    intervals = [each["interval"] for each in spec.get("triggers") or () if "interval" in each]
    if intervals:
        return Interval(intervals[0]["periodSeconds"], intervals[0].get("jitterSeconds"))
    return None if "triggers" in spec else Interval()


def _retention(raw: Raw) -> RetentionRules:
    default = RetentionRules()
    size = parse_quantity(raw["maxSize"]) if "maxSize" in raw else None
    return RetentionRules(
        keep_last=raw.get("keepLast", default.keep_last),
        hourly=raw.get("hourly", default.hourly),
        daily=raw.get("daily", default.daily),
        weekly=raw.get("weekly", default.weekly),
        max_age_seconds=raw.get("maxAgeSeconds"),
        max_bytes=None if size is None else int(size),
        min_known_good=raw.get("minKnownGood", default.min_known_good),
    )


def store_of(raw: Raw) -> Store:
    """Return the store."""
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
    """Return the AgentCheckpoint."""
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
    """Return the AgentRestore."""
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
    """Return the ProtectedAgent."""
    status = raw.get("status") or {}
    head = status.get("head") or {}
    pin = (head["sequence"], head["recordDigest"]) if head.get("sequence") and head.get("recordDigest") else None
    return AgentObject(
        meta=meta_of(raw), reason=status.get("reason") or "", epoch=status.get("epoch") or 0, pin=pin, status=status
    )


def _disruption(status: Raw) -> str:
    """Return the reason of condition DisruptionTarget; empty if it does not hold."""
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return str(condition.get("reason", ""))
    return ""


def _exited(spec: Raw, status: Raw) -> datetime | None:
    """Return when the last regular container ended; None while the status lacks the time of one."""
    terminated = [(each.get("state") or {}).get("terminated") or {} for each in status.get("containerStatuses") or ()]
    times = [time_of(each.get("finishedAt")) for each in terminated]
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(spec.get("containers") or ()) else None


def _container_exit(container: Raw) -> ContainerExit | None:
    """Return the last exit of a container that was restarted; None if it was not."""
    restarts, state = container.get("restartCount") or 0, container.get("state") or {}
    last = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    if not restarts or not last:
        return None
    since = time_of((state.get("running") or {}).get("startedAt"))
    return ContainerExit(container["name"], restarts, last.get("exitCode") or 0, last.get("reason") or "", since)


def _deletion_requested(metadata: Raw) -> datetime | None:
    """Return when the deletion was requested: deletionTimestamp is later by the grace period."""
    deadline = time_of(metadata.get("deletionTimestamp"))
    return None if deadline is None else deadline - timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)


def _container_statuses(status: Raw) -> Iterator[Raw]:
    for kind in ("initContainerStatuses", "containerStatuses"):
        yield from status.get(kind) or ()


def _blocked(container: Raw) -> str:
    """Return why the container cannot start, and the remedy; empty if it is not blocked.

    The kubelet alternates between two reasons while it retries; both give the same text.
    """
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, name = waiting.get("reason") or "", container.get("name")
    if reason in _IMAGE_REASONS:
        return (
            f"Container {name} cannot start: image {container.get('image')} cannot be pulled. Correct the image name, "
            "make the image available to the node, or name the pull secret that it needs."
        )
    if reason in _CONTAINER_REASONS:
        cause = waiting.get("message") or "the kubelet gives no cause"
        return f"Container {name} cannot start ({reason}): {cause}. Correct the pod's specification."
    return ""


def _condition(status: Raw, kind: str) -> str:
    """Return the condition's status; empty if there is no such condition."""
    for condition in status.get("conditions") or ():
        if condition.get("type") == kind:
            return str(condition.get("status"))
    return ""
