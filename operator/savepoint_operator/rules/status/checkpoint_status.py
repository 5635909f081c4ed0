"""The status of an AgentCheckpoint, as merge patches. Pure: it prints what happened, it decides nothing."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from savepoint.contract.control_protocol import Offer, Progress, Result, Timing
from savepoint.repository.format.commit import CommitRecord, Head

from savepoint_operator.model.views import Contents
from savepoint_operator.rules.status.conditions import Condition, merged, parsed_time, precise_stamp, stamp
from savepoint_operator.rules.status.texts import duration_text, size_text

Patch = dict[str, Any]

RUNNING: Final = frozenset({"Pending", "Quiescing", "Capturing", "Uploading", "Committing"})
"""Reasons of a checkpoint that has not ended; without any it is new."""
FORMAT_VERSION: Final = 1
_STAGE_WORDS: Final = {
    "Quiescing": "Waiting for the agent's next safe point.",
    "Capturing": "Reading the agent's state.",
    "Uploading": "The agent goes on; its state is being stored.",
    "Committing": "Everything is stored; the commit record is being written.",
}


def open_ended(reason: str) -> bool:
    """Whether a checkpoint with this reason may still become Ready."""
    return reason == "" or reason in RUNNING


def trigger_of(trigger: str, disruption: str) -> tuple[str, str]:
    """(type, reason) as users read it: a shutdown says who ended the pod, where the cluster tells."""
    if trigger == "Finish":
        return "Agent", "the agent has finished its run"
    if trigger == "Shutdown" and disruption:
        return ("Drain" if disruption == "EvictionByEvictionAPI" else "Shutdown"), disruption
    return trigger or "Agent", ""


def started(attempt: str, trigger: str, requested_by: str, why: str, pod: tuple[str, str, str]) -> Patch:
    """What is known from the beginning. ``pod``: name, uid, node."""
    patch: Patch = {"attempt": attempt, "trigger": {"type": trigger or "Agent"}}
    if requested_by:
        patch["trigger"]["requestedBy"] = requested_by
    if why:
        patch["trigger"]["reason"] = why[:1024]
    if pod[0]:
        patch["podRef"] = {"name": pod[0], "uid": pod[1]}
        patch["nodeName"] = pod[2]
    return patch


def running(stage: str, progress: Progress | None, message: str = "") -> tuple[Patch, Condition]:
    """On its way."""
    patch: Patch = {"reason": stage, "summary": {"progress": f"{progress.percent if progress else 0}%"}}
    if progress is not None:
        patch["progress"] = {
            "percent": min(max(progress.percent, 0), 100),
            "bytesDone": progress.bytes_done,
            "bytesTotal": progress.bytes_total,
        }
    return patch, Condition.of("Ready", False, stage, message or _STAGE_WORDS.get(stage, ""))


def committed(
    told: Offer | Contents | None, head: Head, store: str, parent: str, now: datetime
) -> tuple[Patch, Condition]:
    """Its record exists. ``told``: what its sidecar offered, or what its manifest says."""
    record = head.record
    patch: Patch = {
        "reason": "Ready",
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
    if told is not None:
        _tell_contents(patch, told)
    if isinstance(told, Offer):
        _tell_timing(patch, told.timing)
    where = f"sequence {record.sequence}, epoch {record.epoch}, store {store}"
    return patch, Condition.of("Ready", True, "Ready", f"Committed at {stamp(now)}: {where}.")


def manifest_key(record: CommitRecord) -> str:
    """Where the manifest is, below the store's prefix."""
    if record.manifest is None:
        return ""
    return f"{record.namespace}/{record.agent}/manifests/{record.manifest.name}"


def _tell_contents(patch: Patch, told: Offer | Contents) -> None:
    patch["consistency"] = told.consistency
    patch["type"] = "Full" if told.uploaded_bytes >= told.stored_bytes else "Incremental"
    patch["size"] = {"logical": told.logical_bytes, "stored": told.stored_bytes, "uploaded": told.uploaded_bytes}
    patch["progress"] |= {"bytesDone": told.uploaded_bytes, "bytesTotal": told.uploaded_bytes}
    patch["components"] = [
        {"name": each.name, "kind": each.kind, "digest": each.digest, "size": each.size} for each in told.components
    ]
    execution: dict[str, Any] = {"openOperations": told.open_operations}
    if told.step is not None:
        execution["step"] = told.step
    if told.uncertain_operations:
        execution["uncertainOperations"] = list(told.uncertain_operations)
    patch["execution"] = execution
    patch["summary"] |= {"size": size_text(told.logical_bytes), "uploaded": size_text(told.uploaded_bytes)}


def _tell_timing(patch: Patch, claimed: Timing) -> None:
    timing = _times(claimed)
    told = {"start": timing.start, "quiesced": timing.quiesced, "resumed": timing.resumed}
    patch["timing"] |= {name: time for name, time in told.items() if time}
    if timing.pause_milliseconds is not None:
        patch["timing"]["pauseMilliseconds"] = timing.pause_milliseconds
        patch["summary"]["pause"] = duration_text(timing.pause_milliseconds)


def _times(timing: Timing) -> Timing:
    """In one form; what is no time is left out."""
    found = [parsed_time(each) for each in (timing.start, timing.quiesced, timing.resumed)]
    start, quiesced, resumed = (precise_stamp(each) if each is not None else None for each in found)
    pause = timing.pause_milliseconds
    return Timing(start or "", quiesced, resumed, None if pause is None else max(pause, 0))


def unchanged(latest: Mapping[str, Any], latest_name: str, result: Result) -> tuple[Patch, Condition]:
    """Asked for, and nothing had changed: it is the same checkpoint as the latest one."""
    same = ("number", "sequence", "epoch", "run", "location", "integrity", "size", "formatVersion", "components")
    patch: Patch = {name: latest[name] for name in same if name in latest}
    summary = latest.get("summary") or {}
    patch |= {
        "reason": "Ready",
        "parentName": latest_name,
        "type": "Incremental",
        "progress": {"percent": 100},
        "summary": {"progress": "100%", "size": summary.get("size", ""), "uploaded": "0"},
    }
    if result.pause_milliseconds is not None:
        patch["timing"] = {"pauseMilliseconds": result.pause_milliseconds}
        patch["summary"]["pause"] = duration_text(result.pause_milliseconds)
    message = f"Nothing had changed since {latest_name}: this is the same checkpoint under another name."
    return patch, Condition.of("Ready", True, "Ready", message)


def failed(reason: str, message: str) -> tuple[Patch, Condition]:
    """It will never be Ready."""
    return {"reason": reason}, Condition.of("Ready", False, reason, message)


def status(current: Mapping[str, Any], patch: Patch, condition: Condition, generation: int, now: datetime) -> Patch:
    """The whole merge patch of the status."""
    conditions = merged(current.get("conditions") or (), (condition,), generation, now)
    return {**patch, "observedGeneration": generation, "conditions": conditions}
