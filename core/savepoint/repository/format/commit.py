"""A commit record: the small object that makes an epoch, a checkpoint, a rollback or a completion exist.

Values and bytes only. ``chain`` stores the records and resolves races for a sequence; ``lineage`` decides when one may
be written.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal

from savepoint.repository.format import canonical
from savepoint.repository.format.canonical import FORMAT, Fields
from savepoint.repository.format.manifest import MAX_MANIFEST_BYTES

MAX_RECORD_BYTES = 4096
MAX_COUNT = 2**53
"""The largest sequence, epoch, number and run: every JSON reader represents it exactly."""
MAX_GAP = 10**9
"""The largest gap between the numbers of two checkpoints: a forged record must not use up the range."""

RecordKind = Literal["grant", "checkpoint", "rollback", "completed"]
_RECORD_KINDS: tuple[RecordKind, ...] = ("grant", "checkpoint", "rollback", "completed")


@dataclass(frozen=True, slots=True)
class ManifestName:
    """The name and size of the manifest object that a record points to."""

    name: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """One record of an agent's chain."""

    kind: RecordKind
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
    """Rises with every checkpoint; a failed attempt may leave a gap."""
    name: str | None
    """The name of the newest checkpoint up to this record, for people, such as coder-41."""
    trigger: str
    run: int
    """Epoch of the grant that started the current run from nothing."""


@dataclass(frozen=True, slots=True)
class ChainRecord:
    """A record of the chain, with the digest of its bytes."""

    record: CommitRecord
    digest: str


def encode(record: CommitRecord) -> bytes:
    """Return the record's bytes; raise ValueError if they exceed 4 KiB."""
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
    """Parse and check a record; raise IntegrityError naming ``where``."""
    fields = Fields(canonical.decode_canonical(content, where), where)
    fields.format()
    kind = fields.text("kind")
    known = next((each for each in _RECORD_KINDS if each == kind), None)
    if known is None:
        fields.refuse(f"has an unknown kind {kind!r}")
    record = CommitRecord(
        kind=known,
        namespace=fields.text("namespace"),
        agent=fields.text("agent"),
        sequence=fields.integer("sequence", minimum=1, maximum=MAX_COUNT),
        epoch=fields.integer("epoch", minimum=1, maximum=MAX_COUNT),
        pod_uid=fields.text("podUID"),
        node=fields.text("node"),
        attempt=fields.text_or_none("attempt"),
        manifest=_manifest_of(fields.take("manifest"), where),
        previous=fields.hexadecimal_or_none("previous"),
        time=fields.time("time"),
        number=fields.integer("number", maximum=MAX_COUNT),
        name=fields.text_or_none("name"),
        run=fields.integer("run", minimum=1, maximum=MAX_COUNT),
        trigger=fields.text("trigger"),
    )
    fields.end()
    return record


def digest(content: bytes) -> str:
    """Return the digest of a record's bytes, which pins the record and all records before it."""
    return hashlib.sha256(content).hexdigest()


def head_of(record: CommitRecord) -> ChainRecord:
    """Return the record with its digest."""
    return ChainRecord(record, digest(encode(record)))


def grant(head: ChainRecord | None, namespace: str, agent: str, *, pod_uid: str, node: str, time: str) -> CommitRecord:
    """Return the record that grants the next epoch to a pod."""
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
    head: ChainRecord,
    *,
    attempt: str,
    manifest: ManifestName,
    time: str,
    trigger: str,
    number: int | None = None,
    name: str | None = None,
) -> CommitRecord:
    """Return the record of a checkpoint. By default it takes the next number and is named after it."""
    number = head.record.number + 1 if number is None else number
    name = f"{head.record.agent}-{number}" if name is None else name
    record = _next_record(head, "checkpoint", attempt=attempt, manifest=manifest, time=time, trigger=trigger)
    return replace(record, number=number, name=name)


def rollback(head: ChainRecord, *, attempt: str | None, manifest: ManifestName | None, time: str) -> CommitRecord:
    """Return the record that moves the agent to an older manifest, or to nothing (a reset)."""
    return _next_record(head, "rollback", attempt=attempt, manifest=manifest, time=time, trigger="")


def completed(head: ChainRecord, *, time: str) -> CommitRecord:
    """Return the record that ends a run: the next grant starts fresh."""
    return _next_record(head, "completed", attempt=None, manifest=head.record.manifest, time=time, trigger="")


def link_problem(record: CommitRecord, head: ChainRecord | None) -> str:
    """Return why the record cannot come after the head, or an empty string if it can."""
    last = head.record if head else None
    sequence, epoch = (last.sequence, last.epoch) if last else (0, 0)
    expected_epoch = epoch + 1 if record.kind == "grant" else epoch
    expected_run = expected_epoch if last is None or (record.kind == "grant" and _ends_run(last)) else last.run
    carried = None if last is None or last.kind == "completed" else last.manifest
    problems = {
        "its sequence does not follow": record.sequence != sequence + 1,
        "its field 'previous' is not the digest of the previous record": record.previous
        != (head.digest if head else None),
        "its epoch does not follow": record.epoch != expected_epoch or record.epoch < 1,
        "its number or name does not follow": not _name_follows(record, last),
        "its run does not follow": record.run != expected_run,
        "it belongs to another agent": last is not None
        and (record.namespace, record.agent) != (last.namespace, last.agent),
        "it is a checkpoint without a manifest or an attempt": record.kind == "checkpoint"
        and (record.manifest is None or record.attempt is None),
        "it is a grant that does not repeat the previous manifest": record.kind == "grant"
        and record.manifest != carried,
        "it is a completion that does not repeat the previous manifest": record.kind == "completed"
        and record.manifest != (last and last.manifest),
    }
    return next((problem for problem, present in problems.items() if present), "")


def _ends_run(record: CommitRecord) -> bool:
    """Return whether the grant after this record starts from nothing: it is a completion or a reset."""
    return record.kind == "completed" or (record.kind == "rollback" and record.manifest is None)


def _name_follows(record: CommitRecord, last: CommitRecord | None) -> bool:
    number, name = (last.number, last.name) if last else (0, None)
    if record.kind == "checkpoint":
        return number < record.number <= number + MAX_GAP and bool(record.name)
    return (record.number, record.name) == (number, name)


def _next_record(
    head: ChainRecord,
    kind: RecordKind,
    *,
    attempt: str | None,
    manifest: ManifestName | None,
    time: str,
    trigger: str,
) -> CommitRecord:
    """Return the record after the head, with the fields that it does not change."""
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
    manifest = ManifestName(fields.hexadecimal("name"), fields.integer("size", minimum=1, maximum=MAX_MANIFEST_BYTES))
    fields.end()
    return manifest
