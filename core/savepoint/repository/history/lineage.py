"""The operations of an authority on a chain: grant, commit, complete, roll back, commit a pending checkpoint.

The operator and ``savepoint run`` share them. Everything a sidecar claims is checked against the store before a record
is written, and every operation may be repeated. Time is an argument. Which pod deserves a grant is decided elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from savepoint.errors import IntegrityError, ObjectMissing, Superseded
from savepoint.repository.format import commit
from savepoint.repository.format.canonical import Fields, decode_canonical, encode
from savepoint.repository.format.commit import ChainRecord, ManifestName
from savepoint.repository.format.manifest import MAX_MANIFEST_BYTES, Manifest, Pack, manifest_name, open_manifest
from savepoint.repository.format.object_keys import manifest_key, pack_key
from savepoint.repository.history.chain import Chain
from savepoint.repository.repository import Repository

PENDING_PREFIX = "pending/"
MAX_PENDING_BYTES = MAX_MANIFEST_BYTES + 16 * 1024

_PENDING_MAGIC = b"SVPNTPD1"
_ENDS_EPOCH = ("completed", "rollback")
"""After these only a grant follows: a pod that was rolled back must not overwrite the chosen state with its own."""


@dataclass(frozen=True, slots=True)
class UploadedCheckpoint:
    """A checkpoint whose objects a writer has uploaded, and which is not committed yet."""

    attempt: str
    name: str
    """The manifest object's name."""
    size: int
    """The manifest object's size in bytes."""
    packs: tuple[Pack, ...] = ()
    """The packs uploaded for it."""
    uploaded_bytes: int = 0
    logical: int = 0
    stored: int = 0
    manifest_bytes: bytes = field(default=b"", repr=False)
    """The manifest object, for a process that still has to store it. Not needed to commit."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A commit that a sidecar left in the store because it could not reach the operator."""

    attempt: str
    epoch: int
    pod_uid: str
    trigger: str
    completed: bool
    manifest: bytes = field(repr=False)
    """The sealed manifest; empty if only a completion is reported."""


def grant(chain: Chain, head: ChainRecord | None, pod_uid: str, node: str, time: str) -> ChainRecord:
    """Grant the next epoch to a pod. A pod that holds the newest epoch keeps it, unless that epoch has ended.

    Raises:
        Superseded: Another writer appended first; read the head again and decide again.
    """
    if head is not None and head.record.pod_uid == pod_uid and head.record.kind not in _ENDS_EPOCH:
        return head
    record = commit.grant(head, chain.namespace, chain.agent, pod_uid=pod_uid, node=node, time=time)
    return chain.append(record)


def commit_checkpoint(
    repository: Repository,
    chain: Chain,
    head: ChainRecord,
    uploaded: UploadedCheckpoint,
    *,
    epoch: int,
    pod_uid: str,
    time: str,
    trigger: str,
    completed: bool = False,
    number: int | None = None,
    name: str | None = None,
) -> ChainRecord:
    """Commit the uploaded checkpoint, and end the run if ``completed``; return the newest record.

    An attempt is committed once, however often the call is repeated.

    Raises:
        Superseded: The pod no longer holds the epoch, or the epoch has ended.
        IntegrityError: The manifest or a new pack does not match the uploaded.
        ObjectMissing: The manifest is not in the store.
    """
    try:
        manifest = repository.read_manifest(uploaded.name, uploaded.size)
    except ObjectMissing:
        done = chain.find_attempt(uploaded.attempt, head)
        if done is None or completed:
            raise
        return done
    done = _find_committed(chain, head, uploaded.attempt, manifest)
    if done is not None:
        finished = head.record.kind == "completed" and head.record.epoch == done.record.epoch
        if not completed or finished:
            return head if finished and completed else done
        return complete(chain, head, epoch, pod_uid, time)
    _check_holder(head, epoch, pod_uid)
    _check_manifest(manifest, uploaded, epoch)
    _check_packs(repository, manifest, head)
    record = commit.checkpoint(
        head,
        attempt=uploaded.attempt,
        manifest=ManifestName(uploaded.name, uploaded.size),
        time=time,
        trigger=trigger,
        number=number,
        name=name,
    )
    try:
        head = chain.append(record)
    except Superseded:
        head = _own_record(chain, head, uploaded.attempt)
    return chain.append(commit.completed(head, time=time)) if completed else head


def complete(chain: Chain, head: ChainRecord, epoch: int, pod_uid: str, time: str) -> ChainRecord:
    """End the run: the next grant starts fresh. Superseded if the pod no longer holds the epoch."""
    _check_holder(head, epoch, pod_uid)
    return chain.append(commit.completed(head, time=time))


def rollback(
    chain: Chain, head: ChainRecord, manifest: ManifestName | None, time: str, attempt: str | None = None
) -> ChainRecord:
    """Move the agent to ``manifest``, or to nothing. An attempt rolls back once, however often it is repeated."""
    if attempt is not None:
        done = chain.find_attempt(attempt, head)
        if done is not None:
            return done
    return chain.append(commit.rollback(head, attempt=attempt, manifest=manifest, time=time))


def pending_bytes(pending: Pending) -> bytes:
    """Return the bytes of a pending commit's object."""
    header = encode(
        {
            "attempt": pending.attempt,
            "epoch": pending.epoch,
            "podUID": pending.pod_uid,
            "trigger": pending.trigger,
            "completed": pending.completed,
        }
    )
    return _PENDING_MAGIC + len(header).to_bytes(4, "big") + header + pending.manifest


def pending_of(content: bytes, where: str) -> Pending:
    """Parse and check a pending commit; raise IntegrityError naming ``where``."""
    length = int.from_bytes(content[8:12], "big")
    if not content.startswith(_PENDING_MAGIC) or len(content) < 12 + length:
        raise IntegrityError(f"{where} is not a pending commit", where)
    fields = Fields(decode_canonical(content[12 : 12 + length], where), where)
    pending = Pending(
        attempt=fields.text("attempt"),
        epoch=fields.integer("epoch", minimum=1),
        pod_uid=fields.text("podUID"),
        trigger=fields.text("trigger"),
        completed=fields.boolean("completed"),
        manifest=content[12 + length :],
    )
    fields.end()
    return pending


def find_pending(repository: Repository, epoch: int) -> Sequence[str]:
    """List the keys of pending commits of this epoch, for an authority that no longer has the key it gave out."""
    return sorted(info.key for info in repository.store.list(f"{PENDING_PREFIX}{epoch}-"))


def commit_pending(
    repository: Repository, chain: Chain, head: ChainRecord, pending_key: str, time: str
) -> ChainRecord | None:
    """Commit what a sidecar left under this key, then delete it; return the newest record it led to.

    Returns None if there is nothing, or nothing that is still valid. A pending commit of a superseded epoch is deleted
    without reading more than its header.
    """
    try:
        content = repository.store.get(pending_key, max_bytes=MAX_PENDING_BYTES)
    except ObjectMissing:
        return None
    pending = pending_of(content, pending_key)
    committed: ChainRecord | None = None
    if _is_still_valid(chain, head, pending):
        if pending.manifest:
            name = manifest_name(pending.manifest)
            open_manifest(pending.manifest, repository.key, repository.namespace, repository.agent, name)
            size = repository.put_manifest(pending.manifest)[1]
            committed = commit_checkpoint(
                repository,
                chain,
                head,
                UploadedCheckpoint(pending.attempt, name, size),
                epoch=pending.epoch,
                pod_uid=pending.pod_uid,
                time=time,
                trigger=pending.trigger,
                completed=pending.completed,
            )
        elif pending.completed:
            committed = complete(chain, head, pending.epoch, pending.pod_uid, time)
    repository.store.delete(pending_key)
    return committed


def _is_still_valid(chain: Chain, head: ChainRecord, pending: Pending) -> bool:
    if (head.record.epoch, head.record.pod_uid) != (pending.epoch, pending.pod_uid):
        return False
    return head.record.kind not in _ENDS_EPOCH or chain.find_attempt(pending.attempt, head) is not None


def _check_holder(head: ChainRecord, epoch: int, pod_uid: str) -> None:
    record = head.record
    agent = f"{record.namespace}/{record.agent}"
    if (record.epoch, record.pod_uid) != (epoch, pod_uid):
        raise Superseded(f"epoch {epoch} of {agent} is superseded: pod {record.pod_uid} holds epoch {record.epoch}")
    if record.kind in _ENDS_EPOCH:
        raise Superseded(
            f"epoch {epoch} of {agent} has ended with a record of kind {record.kind}: it can commit nothing more"
        )


def _find_committed(chain: Chain, head: ChainRecord, attempt: str, manifest: Manifest) -> ChainRecord | None:
    """Return the attempt's record, searching no further back than the manifest's parent and epoch allow."""
    floor = manifest.parent.sequence if manifest.parent else 0
    for each in chain.back(head, 64):
        if each.record.attempt == attempt and each.record.kind == "checkpoint":
            return each
        if each.record.epoch < manifest.epoch or each.record.sequence <= floor + 1:
            return None
        if each.record.kind == "grant" and each.record.epoch == manifest.epoch:
            return None
    return None


def _check_manifest(manifest: Manifest, uploaded: UploadedCheckpoint, epoch: int) -> None:
    where = manifest_key(uploaded.name)
    if manifest.attempt != uploaded.attempt:
        raise IntegrityError(f"{where} was made for another attempt", where)
    if manifest.epoch != epoch:
        raise IntegrityError(f"{where} was made in epoch {manifest.epoch}, not {epoch}", where)


def _check_packs(repository: Repository, manifest: Manifest, head: ChainRecord) -> None:
    """Check that every pack which the parent's manifest does not name is in the store with its size."""
    known: set[Pack] = set()
    parent = head.record.manifest
    if parent is not None:
        try:
            known = set(repository.read_manifest(parent.name, parent.size).packs)
        except (ObjectMissing, IntegrityError):
            known = set()  # an unreadable parent vouches for no pack, so every pack is checked
    for pack in manifest.packs:
        if pack in known:
            continue
        key = pack_key(pack.name)
        info = repository.store.head(key)
        if info is None or info.size != pack.size:
            found = "is not in the store" if info is None else f"has {info.size} bytes"
            raise IntegrityError(f"{key} {found}, the manifest says {pack.size} bytes", key)


def _own_record(chain: Chain, head: ChainRecord, attempt: str) -> ChainRecord:
    """Return this attempt's record, if the sequence was lost to a concurrent call for the same attempt."""
    newest = chain.head(head)
    found = chain.find_attempt(attempt, newest)
    if found is None:
        raise Superseded(f"another writer was faster than attempt {attempt} of {chain.namespace}/{chain.agent}")
    return found
