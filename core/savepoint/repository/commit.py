"""A commit record: the small object that makes an epoch, a checkpoint, a rollback or a completion exist.

Values and bytes only. Where records are kept and who wins a sequence is for ``chain``; when one may be written, for
``lineage``.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from savepoint.repository import canonical
from savepoint.repository.canonical import FORMAT, Fields
from savepoint.repository.manifest import MAX_MANIFEST_BYTES

MAX_RECORD_BYTES = 4096

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
    """How many checkpoints the chain holds up to here."""
    trigger: str

    @property
    def checkpoint_name(self) -> str:
        """The name that people see."""
        return f"{self.agent}-{self.number}"


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
        sequence=fields.integer("sequence", least=1),
        epoch=fields.integer("epoch", least=1),
        pod_uid=fields.text("podUID"),
        node=fields.text("node"),
        attempt=fields.text_or_none("attempt"),
        manifest=_manifest_of(fields.take("manifest"), where),
        previous=fields.hexadecimal_or_none("previous"),
        time=fields.time("time"),
        number=fields.integer("number"),
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
    return CommitRecord(
        kind="grant",
        namespace=namespace,
        agent=agent,
        sequence=last.sequence + 1 if last else 1,
        epoch=last.epoch + 1 if last else 1,
        pod_uid=pod_uid,
        node=node,
        attempt=None,
        manifest=None if last is None or last.kind == "completed" else last.manifest,
        previous=head.digest if head else None,
        time=time,
        number=last.number if last else 0,
        trigger="",
    )


def checkpoint(head: Head, *, attempt: str, manifest: ManifestName, time: str, trigger: str) -> CommitRecord:
    """The record that makes a checkpoint exist."""
    number = head.record.number + 1
    return _next(head, "checkpoint", attempt=attempt, manifest=manifest, time=time, trigger=trigger, number=number)


def rollback(head: Head, *, attempt: str | None, manifest: ManifestName | None, time: str) -> CommitRecord:
    """The record that lets the lineage go on from an older manifest, or from nothing."""
    number = head.record.number
    return _next(head, "rollback", attempt=attempt, manifest=manifest, time=time, trigger="", number=number)


def completed(head: Head, *, time: str) -> CommitRecord:
    """The record that ends a run: the next grant starts fresh."""
    last = head.record
    return _next(head, "completed", attempt=None, manifest=last.manifest, time=time, trigger="", number=last.number)


def follows(record: CommitRecord, head: Head | None) -> str:
    """Why the record cannot come after the head, or an empty string."""
    last = head.record if head else None
    sequence, epoch, number = (last.sequence, last.epoch, last.number) if last else (0, 0, 0)
    expected_epoch = epoch + 1 if record.kind == "grant" else epoch
    expected_number = number + 1 if record.kind == "checkpoint" else number
    carried = None if last is None or last.kind == "completed" else last.manifest
    problems = {
        "its sequence does not follow": record.sequence != sequence + 1,
        "its link is not the digest of the record before": record.previous != (head.digest if head else None),
        "its epoch does not follow": record.epoch != expected_epoch or record.epoch < 1,
        "its number does not follow": record.number != expected_number,
        "it belongs to another agent": last is not None
        and (record.namespace, record.agent) != (last.namespace, last.agent),
        "a checkpoint needs a manifest and an attempt": record.kind == "checkpoint"
        and (record.manifest is None or record.attempt is None),
        "a grant carries the manifest before": record.kind == "grant" and record.manifest != carried,
        "a completion repeats the manifest before": record.kind == "completed"
        and record.manifest != (last and last.manifest),
    }
    return next((problem for problem, present in problems.items() if present), "")


def _next(
    head: Head,
    kind: Kind,
    *,
    attempt: str | None,
    manifest: ManifestName | None,
    time: str,
    trigger: str,
    number: int,
) -> CommitRecord:
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
        number=number,
        trigger=trigger,
    )


def _manifest_of(value: Any, where: str) -> ManifestName | None:
    if value is None:
        return None
    fields = Fields(value, where)
    manifest = ManifestName(fields.hexadecimal("name"), fields.integer("size", least=1, most=MAX_MANIFEST_BYTES))
    fields.end()
    return manifest
