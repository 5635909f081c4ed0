"""What an authority may do to a chain: grant, commit, complete, roll back, adopt. Operator and laptop share it.

It checks everything that a sidecar says against the store before it writes a record, and each operation may be asked
twice. Time is an argument. Who deserves a grant is decided elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from savepoint.errors import IntegrityError, ObjectMissing, Superseded
from savepoint.repository.format import commit
from savepoint.repository.format.canonical import Fields, decode_canonical, encode
from savepoint.repository.format.commit import Head, ManifestName
from savepoint.repository.format.manifest import MAX_MANIFEST_BYTES, Manifest, Pack, manifest_name, open_manifest
from savepoint.repository.history.chain import Chain
from savepoint.repository.repository import Repository, pack_key

PENDING_PREFIX = "pending/"
MAX_PENDING_BYTES = MAX_MANIFEST_BYTES + 16 * 1024

_PENDING_MAGIC = b"SVPNTPD1"
_ENDS_EPOCH = ("completed", "rollback")
"""After these only a grant follows: a pod that was rolled back may not put its own state over what was chosen."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a writer has put into the store and wants committed."""

    attempt: str
    name: str
    """Of the manifest object."""
    size: int
    packs: tuple[Pack, ...] = ()
    """The packs written for it."""
    uploaded_bytes: int = 0
    logical: int = 0
    stored: int = 0
    manifest_bytes: bytes = field(default=b"", repr=False)
    """The manifest object itself, for whoever has to put it; not needed to commit."""


@dataclass(frozen=True, slots=True)
class Pending:
    """What a sidecar left for an operator that it could not reach."""

    attempt: str
    epoch: int
    pod_uid: str
    trigger: str
    completed: bool
    manifest: bytes = field(repr=False)
    """The sealed manifest, or nothing when only a completion is told."""


def grant(chain: Chain, head: Head | None, pod_uid: str, node: str, time: str) -> Head:
    """The next epoch, for this pod. A pod that holds the newest epoch gets the same again, unless that has ended.

    Superseded if another writer was faster: read the head again and decide anew.
    """
    if head is not None and head.record.pod_uid == pod_uid and head.record.kind not in _ENDS_EPOCH:
        return head
    record = commit.grant(head, chain.namespace, chain.agent, pod_uid=pod_uid, node=node, time=time)
    return chain.append(record)


def commit_checkpoint(
    repository: Repository,
    chain: Chain,
    head: Head,
    offer: Offer,
    *,
    epoch: int,
    pod_uid: str,
    time: str,
    trigger: str,
    completed: bool = False,
    number: int | None = None,
    name: str | None = None,
) -> Head:
    """Make the offered checkpoint exist, and end the run when ``completed``; the newest record.

    The same attempt commits once, however often it is asked. Superseded if the epoch is not this pod's any more,
    IntegrityError if the manifest or a new pack is not what the offer says.
    """
    try:
        manifest = repository.read_manifest(offer.name, offer.size)
    except ObjectMissing:
        done = chain.find_attempt(offer.attempt, head)
        if done is None or completed:
            raise
        return done
    done = _committed(chain, head, offer.attempt, manifest)
    if done is not None:
        finished = head.record.kind == "completed" and head.record.epoch == done.record.epoch
        if not completed or finished:
            return head if finished and completed else done
        return complete(chain, head, epoch, pod_uid, time)
    _check_holder(head, epoch, pod_uid)
    _check_manifest(manifest, offer, epoch)
    _check_packs(repository, manifest, head)
    record = commit.checkpoint(
        head,
        attempt=offer.attempt,
        manifest=ManifestName(offer.name, offer.size),
        time=time,
        trigger=trigger,
        number=number,
        name=name,
    )
    try:
        head = chain.append(record)
    except Superseded:
        head = _own_record(chain, head, offer.attempt)
    return chain.append(commit.completed(head, time=time)) if completed else head


def complete(chain: Chain, head: Head, epoch: int, pod_uid: str, time: str) -> Head:
    """End the run: the next grant starts fresh. Superseded if the epoch is not this pod's any more."""
    _check_holder(head, epoch, pod_uid)
    return chain.append(commit.completed(head, time=time))


def rollback(chain: Chain, head: Head, manifest: ManifestName | None, time: str, attempt: str | None = None) -> Head:
    """Let the lineage go on from ``manifest``, or from nothing. An attempt rolls back once."""
    if attempt is not None:
        done = chain.find_attempt(attempt, head)
        if done is not None:
            return done
    return chain.append(commit.rollback(head, attempt=attempt, manifest=manifest, time=time))


def pending_bytes(pending: Pending) -> bytes:
    """The object that tells an operator later."""
    told = encode(
        {
            "attempt": pending.attempt,
            "epoch": pending.epoch,
            "podUID": pending.pod_uid,
            "trigger": pending.trigger,
            "completed": pending.completed,
        }
    )
    return _PENDING_MAGIC + len(told).to_bytes(4, "big") + told + pending.manifest


def pending_of(content: bytes, where: str) -> Pending:
    """What the object tells; IntegrityError naming ``where``."""
    length = int.from_bytes(content[8:12], "big")
    if not content.startswith(_PENDING_MAGIC) or len(content) < 12 + length:
        raise IntegrityError(f"{where} is no pending commit", where)
    fields = Fields(decode_canonical(content[12 : 12 + length], where), where)
    pending = Pending(
        attempt=fields.text("attempt"),
        epoch=fields.integer("epoch", least=1),
        pod_uid=fields.text("podUID"),
        trigger=fields.text("trigger"),
        completed=fields.boolean("completed"),
        manifest=content[12 + length :],
    )
    fields.end()
    return pending


def find_pending(repository: Repository, epoch: int) -> Sequence[str]:
    """Keys of pending commits under this epoch, by a listing: for an authority that lost the key it gave out."""
    return sorted(info.key for info in repository.store.list(f"{PENDING_PREFIX}{epoch}-"))


def adopt_pending(repository: Repository, chain: Chain, head: Head, pending_key: str, time: str) -> Head | None:
    """Commit what a sidecar left at this key, then remove it; None if there is nothing, or nothing that still counts.

    What was left under a superseded epoch is removed unread beyond its first fields.
    """
    try:
        content = repository.store.get(pending_key, max_bytes=MAX_PENDING_BYTES)
    except ObjectMissing:
        return None
    pending = pending_of(content, pending_key)
    adopted: Head | None = None
    if _still_counts(chain, head, pending):
        if pending.manifest:
            name = manifest_name(pending.manifest)
            open_manifest(pending.manifest, repository.key, repository.namespace, repository.agent, name)
            size = repository.put_manifest(pending.manifest)[1]
            adopted = commit_checkpoint(
                repository,
                chain,
                head,
                Offer(pending.attempt, name, size),
                epoch=pending.epoch,
                pod_uid=pending.pod_uid,
                time=time,
                trigger=pending.trigger,
                completed=pending.completed,
            )
        elif pending.completed:
            adopted = complete(chain, head, pending.epoch, pending.pod_uid, time)
    repository.store.delete(pending_key)
    return adopted


def _still_counts(chain: Chain, head: Head, pending: Pending) -> bool:
    if (head.record.epoch, head.record.pod_uid) != (pending.epoch, pending.pod_uid):
        return False
    return head.record.kind not in _ENDS_EPOCH or chain.find_attempt(pending.attempt, head) is not None


def _check_holder(head: Head, epoch: int, pod_uid: str) -> None:
    record = head.record
    who = f"{record.namespace}/{record.agent}"
    if (record.epoch, record.pod_uid) != (epoch, pod_uid):
        raise Superseded(f"epoch {epoch} of {who} is superseded: epoch {record.epoch} belongs to pod {record.pod_uid}")
    if record.kind in _ENDS_EPOCH:
        raise Superseded(f"epoch {epoch} of {who} has ended with a record of kind {record.kind}: nothing follows it")


def _committed(chain: Chain, head: Head, attempt: str, manifest: Manifest) -> Head | None:
    """The record of the attempt, looked for no further back than the manifest's parent and epoch allow."""
    floor = manifest.parent.sequence if manifest.parent else 0
    for each in chain.back(head, 64):
        if each.record.attempt == attempt and each.record.kind == "checkpoint":
            return each
        if each.record.epoch < manifest.epoch or each.record.sequence <= floor + 1:
            return None
        if each.record.kind == "grant" and each.record.epoch == manifest.epoch:
            return None
    return None


def _check_manifest(manifest: Manifest, offer: Offer, epoch: int) -> None:
    where = f"manifests/{offer.name}"
    if manifest.attempt != offer.attempt:
        raise IntegrityError(f"{where} was made for another attempt", where)
    if manifest.epoch != epoch:
        raise IntegrityError(f"{where} was made in epoch {manifest.epoch}, not {epoch}", where)


def _check_packs(repository: Repository, manifest: Manifest, head: Head) -> None:
    known: set[Pack] = set()
    parent = head.record.manifest
    if parent is not None:
        try:
            known = set(repository.read_manifest(parent.name, parent.size).packs)
        except (ObjectMissing, IntegrityError):
            known = set()  # the parent cannot vouch for anything: every pack is looked at
    for pack in manifest.packs:
        if pack in known:
            continue
        key = pack_key(pack.name)
        info = repository.store.head(key)
        if info is None or info.size != pack.size:
            found = "is not in the store" if info is None else f"has {info.size} bytes"
            raise IntegrityError(f"{key} {found}, the manifest says {pack.size} bytes", key)


def _own_record(chain: Chain, head: Head, attempt: str) -> Head:
    """Our record, if the sequence was lost to ourselves: the same attempt asked at the same time elsewhere."""
    newest = chain.head(head)
    found = chain.find_attempt(attempt, newest)
    if found is None:
        raise Superseded(f"another writer was faster than attempt {attempt} of {chain.namespace}/{chain.agent}")
    return found
