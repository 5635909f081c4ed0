"""The status of an AgentCheckpoint, as merge patches. Pure: it formats what happened and decides nothing."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from savepoint.contract.control_protocol import Offer, Progress, Result, Timing
from savepoint.contract.shrinkage import Shrinkage
from savepoint.contract.vocabulary import CheckpointPhase, Reason, Trigger
from savepoint.repository.format.commit import ChainRecord, CommitRecord

from savepoint_operator.model.views import Contents
from savepoint_operator.rules.status import capture_status
from savepoint_operator.rules.status.conditions import Condition, parsed_time, precise_stamp, stamp
from savepoint_operator.rules.status.texts import duration_text, size_text

Patch = dict[str, Any]

RUNNING: Final = frozenset({Reason.PENDING, *CheckpointPhase})
"""Reasons of a checkpoint in progress; an empty reason is that of a new one."""
FORMAT_VERSION: Final = 1
MAX_CAUSE: Final = 1024
_COPIED: Final = (
    "number", "sequence", "epoch", "run", "location", "integrity", "size", "formatVersion", "components", "consistency",
    "shrinkages", *capture_status.FIELDS,
)  # fmt: skip
"""Fields that a checkpoint under another name has in common with the original."""
_PHASE_MESSAGES: Final[Mapping[str, str]] = {
    CheckpointPhase.QUIESCING: "Waiting for the agent's next safe point.",
    CheckpointPhase.CAPTURING: "Reading the agent's state.",
    CheckpointPhase.UPLOADING: "The agent runs again; its state is being uploaded.",
    CheckpointPhase.COMMITTING: "Everything is stored; the commit record is being written.",
}


def in_progress(reason: str) -> bool:
    """Return whether a checkpoint with this reason may still become Ready."""
    return reason == "" or reason in RUNNING


def shown_trigger(trigger: str, disruption: str) -> tuple[str, str]:
    """Return (type, reason) as shown to users: a shutdown says who ended the pod, if the cluster reports it."""
    if trigger == Trigger.FINISH:
        return Trigger.AGENT, "the agent has finished its run"
    if trigger == Trigger.SHUTDOWN and disruption:
        return (Trigger.DRAIN if disruption == "EvictionByEvictionAPI" else Trigger.SHUTDOWN), disruption
    return trigger or Trigger.AGENT, ""


def started(attempt: str, trigger: str, requested_by: str, cause: str, pod: tuple[str, str, str]) -> Patch:
    """Return the fields known from the start. ``pod``: name, uid, node."""
    patch: Patch = {"attempt": attempt, "trigger": {"type": trigger or Trigger.AGENT}}
    if requested_by:
        patch["trigger"]["requestedBy"] = requested_by
    if cause:
        patch["trigger"]["reason"] = cause[:MAX_CAUSE]
    if pod[0]:
        patch["podRef"] = {"name": pod[0], "uid": pod[1]}
        patch["nodeName"] = pod[2]
    return patch


def running(phase: str, progress: Progress | None, message: str = "") -> tuple[Patch, Condition]:
    """Return the status of a checkpoint in progress."""
    patch: Patch = {"reason": phase, "summary": {"progress": f"{progress.percent if progress else 0}%"}}
    if progress is not None:
        patch["progress"] = {
            "percent": min(max(progress.percent, 0), 100),
            "bytesDone": progress.bytes_done,
            "bytesTotal": progress.bytes_total,
        }
    return patch, Condition.of("Ready", False, phase, message or _PHASE_MESSAGES.get(phase, ""))


def committed(
    described: Offer | Contents | None, head: ChainRecord, store: str, parent: str, now: datetime
) -> tuple[Patch, Condition]:
    """Return the status of a committed checkpoint, described by its sidecar's offer or by its manifest."""
    record = head.record
    patch: Patch = {
        "reason": Reason.READY,
        "number": record.number,
        "sequence": record.sequence,
        "epoch": record.epoch,
        "run": record.run,
        "formatVersion": FORMAT_VERSION,
        "location": {"storeName": store, "manifestKey": manifest_key(record)},
        "integrity": {
            "manifestDigest": record.manifest.name if record.manifest else "",
            "previousDigest": record.previous or "",
        },
        "timing": {"completion": record.time},
        "progress": {"percent": 100},
        "summary": {"progress": "100%"},
    }
    if parent:
        patch["parentName"] = parent
    if described is not None:
        _add_contents(patch, described)
    if isinstance(described, Offer):
        _add_timing(patch, described.timing)
    where = f"sequence {record.sequence}, epoch {record.epoch}, store {store}"
    return patch, Condition.of("Ready", True, Reason.READY, f"Committed at {stamp(now)}: {where}.")


def manifest_key(record: CommitRecord) -> str:
    """Return the manifest's key, relative to the store's prefix; empty if the record has none."""
    if record.manifest is None:
        return ""
    return f"{record.namespace}/{record.agent}/manifests/{record.manifest.name}"


def _add_contents(patch: Patch, described: Offer | Contents) -> None:
    patch["consistency"] = described.consistency
    patch["type"] = "Full" if described.uploaded_bytes >= described.stored_bytes else "Incremental"
    patch["size"] = {
        "logical": described.logical_bytes,
        "stored": described.stored_bytes,
        "uploaded": described.uploaded_bytes,
    }
    patch["progress"] |= {"bytesDone": described.uploaded_bytes, "bytesTotal": described.uploaded_bytes}
    patch["components"] = [
        {"name": each.name, "kind": each.kind, "digest": each.digest, "size": each.size}
        for each in described.components
    ]
    execution: dict[str, Any] = {"openOperations": described.open_operations}
    if described.step is not None:
        execution["step"] = described.step
    if described.uncertain_operations:
        execution["uncertainOperations"] = list(described.uncertain_operations)
        execution["uncertainCount"] = max(described.uncertain_count, len(described.uncertain_operations))
    patch["execution"] = execution
    if described.shrinkages:
        patch["shrinkages"] = [_shrinkage(each) for each in described.shrinkages]
    if described.capture is not None:
        patch |= capture_status.shown(described.capture)
    patch["summary"] |= {"size": size_text(described.logical_bytes), "uploaded": size_text(described.uploaded_bytes)}


def _shrinkage(shrinkage: Shrinkage) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "sequence": shrinkage.sequence,
        "component": shrinkage.component or None,
        "bytesBefore": shrinkage.bytes_before,
        "bytesNow": shrinkage.bytes_now,
        "filesBefore": shrinkage.files_before,
        "filesNow": shrinkage.files_now,
    }
    return {name: value for name, value in shown.items() if value is not None}


def _add_timing(patch: Patch, claimed: Timing) -> None:
    timing = _times(claimed)
    times = {"start": timing.start, "quiesced": timing.quiesced, "resumed": timing.resumed}
    patch["timing"] |= {name: time for name, time in times.items() if time}
    if timing.pause_milliseconds is not None:
        patch["timing"]["pauseMilliseconds"] = timing.pause_milliseconds
        patch["summary"]["pause"] = duration_text(timing.pause_milliseconds)


def _times(timing: Timing) -> Timing:
    """Return the times in one format, without those that are malformed."""
    found = [parsed_time(each) for each in (timing.start, timing.quiesced, timing.resumed)]
    start, quiesced, resumed = (precise_stamp(each) if each is not None else None for each in found)
    pause = timing.pause_milliseconds
    return Timing(start or "", quiesced, resumed, None if pause is None else max(pause, 0))


def unchanged(latest: Mapping[str, Any], latest_name: str, result: Result) -> tuple[Patch, Condition]:
    """Return the status of a requested checkpoint when nothing had changed: a copy of the latest one's."""
    patch: Patch = {name: latest[name] for name in _COPIED if name in latest}
    summary = latest.get("summary") or {}
    patch |= {
        "reason": Reason.READY,
        "parentName": latest_name,
        "type": "Incremental",
        "progress": {"percent": 100},
        "summary": {"progress": "100%", "size": summary.get("size", ""), "uploaded": "0"},
    }
    if result.pause_milliseconds is not None:
        patch["timing"] = {"pauseMilliseconds": result.pause_milliseconds}
        patch["summary"]["pause"] = duration_text(result.pause_milliseconds)
    message = f"Nothing has changed since {latest_name}; this is the same checkpoint under another name."
    return patch, Condition.of("Ready", True, Reason.READY, message)


def failed(reason: str, message: str) -> tuple[Patch, Condition]:
    """Return the status of a checkpoint that will never be Ready."""
    return {"reason": reason}, Condition.of("Ready", False, reason, message)
