"""One agent's repository and chain, opened: blocking calls, meant for threads, one after the other.

It is the only place of the operator that works on the format; it neither waits, nor remembers what it decided, nor
knows pods beyond their UIDs.
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
from savepoint.repository.format.commit import Head, ManifestName
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.object_keys import commit_key, manifest_key
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.collect import collect
from savepoint.repository.history.restore_point import restore_point
from savepoint.repository.repository import Repository

from savepoint_operator.lineage.contents import contents_of
from savepoint_operator.model.ports import OpenStore
from savepoint_operator.model.views import AgentRef, CheckpointName, Contents

ATTEMPT_DEPTH = 4
"""How far back a repeated offer is looked for: only an end of the run and a grant can come before its answer."""
HOLDER_DEPTH = 32
"""How far back an earlier epoch of the asking pod is looked for. Beyond it the pod waits like any other: safe too."""
PENDING_MOST = 8


@dataclass(frozen=True)
class Adoption:
    """What became of one pending object."""

    heads: tuple[Head, ...] = ()
    """The records it led to, oldest first."""
    dropped: str = ""
    """The attempt that was damaged and cannot be committed."""
    why: str = ""


class OpenRepository:
    """Use ``open`` before anything else."""

    def __init__(self, store: OpenStore, agent: AgentRef, random_bytes: Callable[[int], bytes]) -> None:
        self.store, self.agent, self._random_bytes = store, agent, random_bytes
        self._repository: Repository | None = None
        self._chain: Chain | None = None

    def open(self, now: datetime) -> None:
        """Open the repository, or make it for an agent that is new."""
        namespace, name = self.agent
        self._repository = Repository.open_or_create(
            self.store.objects, namespace, name, self.store.master, now=now, random_bytes=self._random_bytes
        )
        self._chain = Chain(self._repository.store, namespace, name)

    @property
    def repository(self) -> Repository:
        """The repository."""
        assert self._repository is not None, "opened before use"
        return self._repository

    @property
    def chain(self) -> Chain:
        """The chain."""
        assert self._chain is not None, "opened before use"
        return self._chain

    @property
    def key(self) -> AgentKey:
        """The agent's key."""
        return self.repository.key

    # -- reading --------------------------------------------------------------------------------------------------

    def head(self, known: Head | None, pin: tuple[int, str] | None) -> Head | None:
        """The newest record. RollbackDetected when what was pinned, or known before, is not in the chain.

        With no pin at all, what memory knows is no authority: whoever removed it accepts what the store holds.
        """
        start = known
        if pin is not None and (known is None or pin[0] > known.record.sequence):
            start = self.chain.find(pin[0])
            if start is None or start.digest != pin[1]:
                what = "is gone" if start is None else "is another one"
                raise RollbackDetected(
                    f"record {pin[0]} of agent {self.agent}, pinned in its ProtectedAgent, {what}: the store was put "
                    "back or changed. Restore the bucket, or delete the ProtectedAgent to accept what the store holds",
                    commit_key(pin[0]),
                )
        try:
            return self.chain.head(start)
        except RollbackDetected:
            if pin is not None or known is None:
                raise
            return self.chain.head(None)

    def find_attempt(self, attempt: str, head: Head | None) -> Head | None:
        """The record that committed this attempt, if it is among the newest ones."""
        return self.chain.find_attempt(attempt, head, ATTEMPT_DEPTH)

    def held_before(self, head: Head, pod_uid: str) -> bool:
        """Whether the pod held an epoch that is not the newest."""
        return any(
            each.record.pod_uid == pod_uid and each.record.epoch < head.record.epoch
            for each in self.chain.back(head, HOLDER_DEPTH)
        )

    def outlook(self, head: Head) -> tuple[CheckpointRef | None, str]:
        """What the chain points to, and a free key for what cannot be committed."""
        return restore_point(self.chain, head), self._free_pending(head)

    def contents(self, head: Head) -> Contents | None:
        """What the checkpoint of this record holds, where its manifest can be read."""
        return contents_of(self.repository, head)

    # -- writing --------------------------------------------------------------------------------------------------

    def grant(self, head: Head | None, pod_uid: str, node: str, now: datetime) -> Head:
        """Append the next epoch for this pod. Superseded when another writer was faster."""
        namespace, name = self.agent
        record = records.grant(head, namespace, name, pod_uid=pod_uid, node=node, time=time_text(now))
        return self.chain.append(record)

    def commit(self, head: Head, offer: Offer, holder: tuple[int, str], name: CheckpointName, now: datetime) -> Head:
        """Check what was offered and append its record."""
        return lineage.commit_checkpoint(
            self.repository,
            self.chain,
            head,
            lineage.Offer(offer.attempt, offer.manifest.name, offer.manifest.size),
            epoch=holder[0],
            pod_uid=holder[1],
            time=time_text(now),
            trigger=offer.trigger,
            number=name.number,
            name=name.name,
        )

    def complete(self, head: Head, now: datetime) -> Head:
        """End the run."""
        record = head.record
        return lineage.complete(self.chain, head, record.epoch, record.pod_uid, time_text(now))

    def rollback(self, head: Head, attempt: str, to_sequence: int | None, now: datetime) -> Head:
        """Point the lineage to an older checkpoint, whose manifest must still be there, or to nothing."""
        manifest: ManifestName | None = None
        if to_sequence is not None:
            manifest = self.chain.record(to_sequence).manifest
            if manifest is None or self.repository.store.head(manifest_key(manifest.name)) is None:
                raise ObjectMissing(
                    f"the checkpoint at sequence {to_sequence} of agent {self.agent} is no longer in the store; "
                    "choose another one"
                )
        return lineage.rollback(self.chain, head, manifest, time_text(now), attempt)

    def collect(self, head: Head, keep: frozenset[int], grace_seconds: float, now: datetime) -> int:
        """Remove what neither a kept record nor the head needs; bytes freed."""
        return collect(self.repository, self.chain, head, keep=keep, grace_seconds=grace_seconds, now=now).bytes

    # -- what was left while no operator could be reached ---------------------------------------------------------

    def has_pending(self, head: Head) -> bool:
        """Whether the holder of the newest epoch has left anything: nothing comes after what a sidecar leaves."""
        return self.repository.store.head(self._pending_key(head, 0)) is not None

    def adopt(self, head: Head, now: datetime) -> list[Adoption]:
        """Commit what the holder of the newest epoch has left; what is damaged is left alone and reported."""
        adoptions: list[Adoption] = []
        for number in range(PENDING_MOST):
            key = self._pending_key(head, number)
            if self.repository.store.head(key) is None:
                break
            adoption = self._adopt_one(head, key, now)
            adoptions.append(adoption)
            head = max([head, *adoption.heads], key=lambda each: each.record.sequence)
        return adoptions

    def _adopt_one(self, head: Head, key: str, now: datetime) -> Adoption:
        try:
            adopted = lineage.adopt_pending(self.repository, self.chain, head, key, time_text(now))
        except IntegrityError as error:
            return Adoption(dropped=self._attempt_in(key), why=str(error))
        except Superseded:
            if head.record.kind == "completed":  # it was left after the end of its run: nothing follows that
                return Adoption(dropped=self._attempt_in(key), why=f"the run of agent {self.agent} was completed")
            raise
        if adopted is None:
            return Adoption()
        newer = [each for each in self.chain.back(adopted, PENDING_MOST) if each.record.sequence > head.record.sequence]
        return Adoption(heads=tuple(reversed(newer)) or (adopted,))

    def _attempt_in(self, key: str) -> str:
        try:
            content = self.repository.store.get(key, max_bytes=lineage.MAX_PENDING_BYTES)
            return lineage.pending_of(content, key).attempt
        except SavepointError:
            return ""

    def _free_pending(self, head: Head) -> str:
        for number in range(PENDING_MOST):
            key = self._pending_key(head, number)
            if self.repository.store.head(key) is None:
                return key
        return self._pending_key(head, PENDING_MOST - 1)

    def _pending_key(self, head: Head, number: int) -> str:
        """Derived, not drawn: whoever leads next finds it without a listing, and nobody can without the agent's key."""
        what = f"savepoint-pending-v1:{head.record.epoch}:{head.record.pod_uid}:{number}"
        drawn = hmac.new(self.key.expose(), what.encode(), hashlib.sha256).hexdigest()[:32]
        return f"{lineage.PENDING_PREFIX}{head.record.epoch}-{drawn}"


def default_name(agent: AgentRef, head: Head) -> CheckpointName:
    """The next number in channel, for when the cluster cannot be asked for a name."""
    number = head.record.number + 1
    return CheckpointName(number, f"{agent.name}-{number}")
