"""A commit record: the small object that makes an epoch, a checkpoint, a rollback or a completion exist.

Values and bytes only. Where records are kept and who wins a sequence is for ``chain``; when one may be written, for
``lineage``.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal

from savepoint.repository.format import canonical
from savepoint.repository.format.canonical import FORMAT, Fields
from savepoint.repository.format.manifest import MAX_MANIFEST_BYTES

MAX_RECORD_BYTES = 4096
MAX_COUNT = 2**53
"""Of everything that is counted up: every JSON reader knows it exactly."""
MAX_GAP = 10**9
"""Between the numbers of two checkpoints: a forged record must not use up what can be counted."""

Kind = Literal["grant", "checkpoint", "rollback", "completed"]
_KINDS: tuple[Kind, ...] = ("grant", "checkpoint", "rollback", "completed")


@dataclass(frozen=True, slots=True)
class ManifestName:
    """Which manifest object a record points to."""

    name: str
    size: int
    """Bytes of the object."""


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """One record of an agent's chain."""

    kind: Kind
    namespace: str
    agent: str
    sequence: int
    epoch: int
    pod_uid: str
    node: str
    attempt: str | None
    manifest: ManifestName | None
    previous: str | None
    """Digest of the previous record; None only at sequence 1."""
    time: str
    number: int
    """Rises with every checkpoint, with gaps where an attempt that failed has used one."""
    name: str | None
    """What people call the newest checkpoint up to here, such as coder-41."""
    trigger: str
    run: int
    """Epoch of the grant that began the present run from nothing."""


@dataclass(frozen=True, slots=True)
class Head:
    """A record together with the digest of its bytes."""

    record: CommitRecord
    digest: str


def encode(record: CommitRecord) -> bytes:
    """The record's bytes; ValueError if they exceed 4 KiB."""
    manifest = record.manifest
    content = canonical.encode(
        {
            "format": FORMAT,
            "kind": record.kind,
            "namespace": record.namespace,
            "agent": record.agent,
            "sequence": record.sequence,
            "epoch": record.epoch,
            "podUID": record.pod_uid,
            "node": record.node,
            "attempt": record.attempt,
            "manifest": manifest and {"name": manifest.name, "size": manifest.size},
            "previous": record.previous,
            "time": record.time,
            "number": record.number,
            "name": record.name,
            "run": record.run,
            "trigger": record.trigger,
        }
    )
    if len(content) > MAX_RECORD_BYTES:
        raise ValueError(f"a commit record of {len(content)} bytes is larger than {MAX_RECORD_BYTES}")
    return content


def decode(content: bytes, where: str) -> CommitRecord:
    """The record in these bytes; IntegrityError naming ``where``."""
    fields = Fields(canonical.decode_canonical(content, where), where)
    fields.format()
    kind = fields.text("kind")
    known = next((each for each in _KINDS if each == kind), None)
    if known is None:
        fields.refuse(f"has an unknown kind {kind!r}")
    record = CommitRecord(
        kind=known,
        namespace=fields.text("namespace"),
        agent=fields.text("agent"),
        sequence=fields.integer("sequence", least=1, most=MAX_COUNT),
        epoch=fields.integer("epoch", least=1, most=MAX_COUNT),
        pod_uid=fields.text("podUID"),
        node=fields.text("node"),
        attempt=fields.text_or_none("attempt"),
        manifest=_manifest_of(fields.take("manifest"), where),
        previous=fields.hexadecimal_or_none("previous"),
        time=fields.time("time"),
        number=fields.integer("number", most=MAX_COUNT),
        name=fields.text_or_none("name"),
        run=fields.integer("run", least=1, most=MAX_COUNT),
        trigger=fields.text("trigger"),
    )
    fields.end()
    return record


def digest(content: bytes) -> str:
    """What pins a record, and all before it."""
    return hashlib.sha256(content).hexdigest()


def head_of(record: CommitRecord) -> Head:
    """The record with its digest."""
    return Head(record, digest(encode(record)))


def grant(head: Head | None, namespace: str, agent: str, *, pod_uid: str, node: str, time: str) -> CommitRecord:
    """The record that makes the next epoch exist, for one pod."""
    last = head.record if head else None
    epoch = last.epoch + 1 if last else 1
    return CommitRecord(
        kind="grant",
        namespace=namespace,
        agent=agent,
        sequence=last.sequence + 1 if last else 1,
        epoch=epoch,
        pod_uid=pod_uid,
        node=node,
        attempt=None,
        manifest=None if last is None or last.kind == "completed" else last.manifest,
        previous=head.digest if head else None,
        time=time,
        number=last.number if last else 0,
        name=last.name if last else None,
        trigger="",
        run=epoch if last is None or _ends_run(last) else last.run,
    )


def checkpoint(
    head: Head,
    *,
    attempt: str,
    manifest: ManifestName,
    time: str,
    trigger: str,
    number: int | None = None,
    name: str | None = None,
) -> CommitRecord:
    """The record that makes a checkpoint exist; by default it takes the next number and is named after it."""
    number = head.record.number + 1 if number is None else number
    name = f"{head.record.agent}-{number}" if name is None else name
    record = _next(head, "checkpoint", attempt=attempt, manifest=manifest, time=time, trigger=trigger)
    return replace(record, number=number, name=name)


def rollback(head: Head, *, attempt: str | None, manifest: ManifestName | None, time: str) -> CommitRecord:
    """The record that lets the lineage go on from an older manifest, or from nothing."""
    return _next(head, "rollback", attempt=attempt, manifest=manifest, time=time, trigger="")


def completed(head: Head, *, time: str) -> CommitRecord:
    """The record that ends a run: the next grant starts fresh."""
    return _next(head, "completed", attempt=None, manifest=head.record.manifest, time=time, trigger="")


def follows(record: CommitRecord, head: Head | None) -> str:
    """Why the record cannot come after the head, or an empty string."""
    last = head.record if head else None
    sequence, epoch = (last.sequence, last.epoch) if last else (0, 0)
    expected_epoch = epoch + 1 if record.kind == "grant" else epoch
    expected_run = expected_epoch if last is None or (record.kind == "grant" and _ends_run(last)) else last.run
    carried = None if last is None or last.kind == "completed" else last.manifest
    problems = {
        "its sequence does not follow": record.sequence != sequence + 1,
        "its link is not the digest of the record before": record.previous != (head.digest if head else None),
        "its epoch does not follow": record.epoch != expected_epoch or record.epoch < 1,
        "its number or name does not follow": not _names_follow(record, last),
        "its run does not follow": record.run != expected_run,
        "it belongs to another agent": last is not None
        and (record.namespace, record.agent) != (last.namespace, last.agent),
        "a checkpoint needs a manifest and an attempt": record.kind == "checkpoint"
        and (record.manifest is None or record.attempt is None),
        "a grant carries the manifest before": record.kind == "grant" and record.manifest != carried,
        "a completion repeats the manifest before": record.kind == "completed"
        and record.manifest != (last and last.manifest),
    }
    return next((problem for problem, present in problems.items() if present), "")


def _ends_run(record: CommitRecord) -> bool:
    """Whether the grant after it begins from nothing: after a completion or a reset."""
    return record.kind == "completed" or (record.kind == "rollback" and record.manifest is None)


def _names_follow(record: CommitRecord, last: CommitRecord | None) -> bool:
    number, name = (last.number, last.name) if last else (0, None)
    if record.kind == "checkpoint":
        return number < record.number <= number + MAX_GAP and bool(record.name)
    return (record.number, record.name) == (number, name)


def _next(
    head: Head,
    kind: Kind,
    *,
    attempt: str | None,
    manifest: ManifestName | None,
    time: str,
    trigger: str,
) -> CommitRecord:
    """A record after the head that keeps what it does not change."""
    last = head.record
    return CommitRecord(
        kind=kind,
        namespace=last.namespace,
        agent=last.agent,
        sequence=last.sequence + 1,
        epoch=last.epoch,
        pod_uid=last.pod_uid,
        node=last.node,
        attempt=attempt,
        manifest=manifest,
        previous=head.digest,
        time=time,
        number=last.number,
        name=last.name,
        trigger=trigger,
        run=last.run,
    )


def _manifest_of(value: Any, where: str) -> ManifestName | None:
    if value is None:
        return None
    fields = Fields(value, where)
    manifest = ManifestName(fields.hexadecimal("name"), fields.integer("size", least=1, most=MAX_MANIFEST_BYTES))
    fields.end()
    return manifest
