"""One agent's open repository and chain: blocking calls, meant to run in threads, one at a time.

It is the operator's only module that works on the repository format. It does not wait, remembers no decision, and knows
pods only by their UIDs.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from savepoint.contract.control_protocol import CheckpointRef, Offer
from savepoint.errors import IntegrityError, ObjectMissing, RollbackDetected, SavepointError, Superseded
from savepoint.repository.format import commit as records
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.commit import ChainRecord, ManifestName
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.object_keys import commit_key, manifest_key
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.collect import CollectReport, collect
from savepoint.repository.history.restore_point import restore_point
from savepoint.repository.repository import Repository

from savepoint_operator.lineage.contents import contents_of
from savepoint_operator.model.ports import OpenStore
from savepoint_operator.model.views import AgentRef, CheckpointName, Contents

ATTEMPT_DEPTH = 4
"""Records searched for a repeated offer: only the end of the run and a grant can follow its record."""
HOLDER_DEPTH = 32
"""Records searched for an earlier epoch of the requesting pod. Beyond them the pod safely waits like any other."""
MAX_PENDING = 8
"""Pending objects that one epoch may leave."""


@dataclass(frozen=True)
class PendingCommit:
    """The result of committing one pending object."""

    records: tuple[ChainRecord, ...] = ()
    """The records appended for it, oldest first."""
    dropped_attempt: str = ""
    """The attempt that is damaged and cannot be committed."""
    problem: str = ""


class OpenRepository:
    """The repository of one agent in one store. Call ``open`` before anything else."""

    def __init__(self, store: OpenStore, agent: AgentRef, random_bytes: Callable[[int], bytes]) -> None:
        self.store, self.agent, self._random_bytes = store, agent, random_bytes
        self._repository: Repository | None = None
        self._chain: Chain | None = None

    def open(self, now: datetime) -> None:
        """Open the repository; create it for a new agent."""
        namespace, name = self.agent
        self._repository = Repository.open_or_create(
            self.store.objects, namespace, name, self.store.master, now=now, random_bytes=self._random_bytes
        )
        self._chain = Chain(self._repository.store, namespace, name)

    @property
    def repository(self) -> Repository:
        """The open repository."""
        assert self._repository is not None, "opened before use"
        return self._repository

    @property
    def chain(self) -> Chain:
        """The agent's commit chain."""
        assert self._chain is not None, "opened before use"
        return self._chain

    @property
    def key(self) -> AgentKey:
        """The agent's cipher key."""
        return self.repository.key

    # -- reading --------------------------------------------------------------------------------------------------

    def head(self, known: ChainRecord | None, pin: tuple[int, str] | None) -> ChainRecord | None:
        """Return the newest record.

        Raises RollbackDetected if the chain lacks a record that was pinned or read before. Without a pin, a record read
        before does not count: the person who removed the pin accepts what the store holds.
        """
        start = known
        if pin is not None and (known is None or pin[0] > known.record.sequence):
            start = self.chain.find(pin[0])
            if start is None or start.digest != pin[1]:
                found = "is missing" if start is None else "differs"
                raise RollbackDetected(
                    f"record {pin[0]} of agent {self.agent}, pinned in its ProtectedAgent, {found}: the store was "
                    "restored or changed. Restore the bucket, or delete the ProtectedAgent to accept its content",
                    commit_key(pin[0]),
                )
        try:
            return self.chain.head(start)
        except RollbackDetected:
            if pin is not None or known is None:
                raise
            return self.chain.head(None)

    def find_attempt(self, attempt: str, head: ChainRecord | None) -> ChainRecord | None:
        """Return the record that committed this attempt, if it is among the newest ones."""
        return self.chain.find_attempt(attempt, head, ATTEMPT_DEPTH)

    def held_before(self, head: ChainRecord, pod_uid: str) -> bool:
        """Return whether the pod held an epoch before the newest one."""
        return any(
            each.record.pod_uid == pod_uid and each.record.epoch < head.record.epoch
            for each in self.chain.back(head, HOLDER_DEPTH)
        )

    def parent_and_pending_key(self, head: ChainRecord) -> tuple[CheckpointRef | None, str]:
        """Return the checkpoint that the head points to, and a free key for one that the pod cannot commit."""
        return restore_point(self.chain, head), self._free_pending_key(head)

    def contents(self, head: ChainRecord) -> Contents | None:
        """Return the contents of the record's checkpoint, if its manifest can be read."""
        return contents_of(self.repository, head)

    # -- writing --------------------------------------------------------------------------------------------------

    def grant(self, head: ChainRecord | None, pod_uid: str, node: str, now: datetime) -> ChainRecord:
        """Append the next epoch for this pod. Raises Superseded if another writer was faster."""
        namespace, name = self.agent
        record = records.grant(head, namespace, name, pod_uid=pod_uid, node=node, time=time_text(now))
        return self.chain.append(record)

    def commit(
        self, head: ChainRecord, offer: Offer, holder: tuple[int, str], name: CheckpointName, now: datetime
    ) -> ChainRecord:
        """Check the offered checkpoint and append its record."""
        return lineage.commit_checkpoint(
            self.repository,
            self.chain,
            head,
            lineage.UploadedCheckpoint(offer.attempt, offer.manifest.name, offer.manifest.size),
            epoch=holder[0],
            pod_uid=holder[1],
            time=time_text(now),
            trigger=offer.trigger,
            number=name.number,
            name=name.name,
        )

    def complete(self, head: ChainRecord, now: datetime) -> ChainRecord:
        """Append the record that ends the run."""
        record = head.record
        return lineage.complete(self.chain, head, record.epoch, record.pod_uid, time_text(now))

    def rollback(self, head: ChainRecord, attempt: str, to_sequence: int | None, now: datetime) -> ChainRecord:
        """Append a record that points back to an older checkpoint, whose manifest must exist, or to none (a reset)."""
        manifest: ManifestName | None = None
        if to_sequence is not None:
            manifest = self.chain.record(to_sequence).manifest
            if manifest is None or self.repository.store.head(manifest_key(manifest.name)) is None:
                raise ObjectMissing(
                    f"the checkpoint at sequence {to_sequence} of agent {self.agent} is no longer in the store; "
                    "choose another one"
                )
        return lineage.rollback(self.chain, head, manifest, time_text(now), attempt)

    def collect(self, head: ChainRecord, keep: frozenset[int], grace_seconds: float, now: datetime) -> CollectReport:
        """Delete objects that neither a kept record nor the head needs, and return the bytes freed."""
        return collect(self.repository, self.chain, head, keep=keep, grace_seconds=grace_seconds, now=now)

    # -- pending objects: checkpoints left while no operator was reachable ----------------------------------------

    def has_pending(self, head: ChainRecord) -> bool:
        """Return whether the holder of the newest epoch left a pending object, which is always its last checkpoint."""
        return self.repository.store.head(self._pending_key(head, 0)) is not None

    def commit_pending(self, head: ChainRecord, now: datetime) -> list[PendingCommit]:
        """Commit the pending objects of the newest epoch; a damaged one is left in place and reported."""
        commits: list[PendingCommit] = []
        for number in range(MAX_PENDING):
            key = self._pending_key(head, number)
            if self.repository.store.head(key) is None:
                break
            commit = self._commit_pending(head, key, now)
            commits.append(commit)
            head = max([head, *commit.records], key=lambda each: each.record.sequence)
        return commits

    def _commit_pending(self, head: ChainRecord, key: str, now: datetime) -> PendingCommit:
        try:
            committed = lineage.commit_pending(self.repository, self.chain, head, key, time_text(now))
        except IntegrityError as error:
            return PendingCommit(dropped_attempt=self._attempt_in(key), problem=str(error))
        except Superseded:
            if head.record.kind == "completed":  # it was left after the run had ended; no record may follow that
                return PendingCommit(
                    dropped_attempt=self._attempt_in(key), problem=f"the run of agent {self.agent} was completed"
                )
            raise
        if committed is None:
            return PendingCommit()
        newer = [
            each for each in self.chain.back(committed, MAX_PENDING) if each.record.sequence > head.record.sequence
        ]
        return PendingCommit(records=tuple(reversed(newer)) or (committed,))

    def _attempt_in(self, key: str) -> str:
        """Return the attempt of a pending object; empty if it cannot be read."""
        try:
            content = self.repository.store.get(key, max_bytes=lineage.MAX_PENDING_BYTES)
            return lineage.pending_of(content, key).attempt
        except SavepointError:
            return ""

    def _free_pending_key(self, head: ChainRecord) -> str:
        for number in range(MAX_PENDING):
            key = self._pending_key(head, number)
            if self.repository.store.head(key) is None:
                return key
        return self._pending_key(head, MAX_PENDING - 1)

    def _pending_key(self, head: ChainRecord, number: int) -> str:
        """Return a key that every leader can derive without a listing, and that needs the agent's key to derive."""
        derived_from = f"savepoint-pending-v1:{head.record.epoch}:{head.record.pod_uid}:{number}"
        suffix = hmac.new(self.key.expose(), derived_from.encode(), hashlib.sha256).hexdigest()[:32]
        return f"{lineage.PENDING_PREFIX}{head.record.epoch}-{suffix}"


def default_name(agent: AgentRef, head: ChainRecord) -> CheckpointName:
    """Return the next number and its name, for when the recorder cannot answer."""
    number = head.record.number + 1
    return CheckpointName(number, f"{agent.name}-{number}")
