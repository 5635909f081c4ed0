"""The authority without a cluster: a directory store, its chain, and a timer. For one supervisor on one machine.

It grants epochs and commits by the same functions as the operator; that only one supervisor works for an agent is the
caller's lock. Blocking store calls run in threads.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime

from savepoint.contract.control_protocol import (
    Checkpoint,
    CheckpointRef,
    ObjectName,
    Offer,
    PolicyTerms,
    Progress,
    Released,
    RequestCheckpoint,
    Result,
    Welcome,
)
from savepoint.errors import SavepointError, Unavailable
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.commit import Head
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.manifest import Pack
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.collect import collect
from savepoint.repository.repository import Repository, open_store
from savepoint.storage import ObjectStore

from savepoint_sidecar.authority.authority import Blobs, Order

log = logging.getLogger(__name__)

NAMESPACE = "local"
OWNER = "local"
KEEP = 12
COLLECT_EVERY = 20
ATTEMPT_SECONDS = 600
FIRST_SECONDS = 2.0
"""The first checkpoint of a run does not wait for a whole interval."""


@dataclass(frozen=True)
class LocalConfig:
    """What a user of ``savepoint run`` decides."""

    interval_seconds: float = 30.0
    policy: PolicyTerms = field(default_factory=PolicyTerms)
    config_hash: str = ""


class LocalAuthority:
    """Opened for one run of one agent; the epoch is granted by ``open``."""

    def __init__(
        self,
        repository: Repository,
        chain: Chain,
        head: Head,
        terms: LocalConfig,
        *,
        now: Callable[[], datetime],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._repository, self._chain, self._head, self._terms = repository, chain, head, terms
        self._now, self._random_bytes = now, random_bytes
        self._orders: asyncio.Queue[Order | None] = asyncio.Queue()
        self._timer: asyncio.Task[None] | None = None
        self._in_flight: dict[str, float] = {}
        """Attempts that were ordered and have not ended: when, by the loop's clock."""
        self._commits = 0
        self._closed = False

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        agent: str,
        master: MasterKey,
        terms: LocalConfig,
        *,
        incarnation: str,
        node: str,
        now: Callable[[], datetime],
        random_bytes: Callable[[int], bytes],
    ) -> "LocalAuthority":
        """Claim or check the store, and grant this run the agent's next epoch. Blocking."""
        open_store(store, OWNER, master)
        repository = Repository.open_or_create(store, NAMESPACE, agent, master, now=now(), random_bytes=random_bytes)
        chain = Chain(repository.store, NAMESPACE, agent)
        head = lineage.grant(chain, chain.head(), incarnation, node, time_text(now()))
        authority = cls(repository, chain, head, terms, now=now, random_bytes=random_bytes)
        authority._collect()
        return authority

    @property
    def blobs(self) -> Blobs:
        """The agent's part of the store."""
        return self._repository.store

    @property
    def connected(self) -> bool:
        """Always: it is this process."""
        return True

    @property
    def silent_seconds(self) -> float:
        """Nothing can cut a process off from itself."""
        return 0.0

    async def welcome(self) -> Welcome:
        """Who the run is, and what it goes on from."""
        record = self._head.record
        parent = await asyncio.to_thread(parent_of, self._chain, self._head)
        if self._timer is None:
            self._timer = asyncio.ensure_future(self._tick())
        return Welcome(
            agent=record.agent,
            namespace=record.namespace,
            epoch=record.epoch,
            run=record.run,
            key=self._repository.key.expose().hex(),
            config_hash=self._terms.config_hash,
            policy=self._terms.policy,
            parent=parent,
        )

    async def orders(self) -> AsyncIterator[Order]:
        """A checkpoint each interval, and whenever one is asked for."""
        while (order := await self._orders.get()) is not None:
            yield order

    def random_bytes(self, count: int) -> bytes:
        """Random bytes."""
        return self._random_bytes(count)

    async def prepare_reads(self, keys: tuple[str, ...]) -> None:
        """Everything is at hand."""

    async def progress(self, progress: Progress) -> None:
        """Nobody watches."""

    async def commit(self, offer: Offer) -> CheckpointRef:
        """Append the record."""
        made = await asyncio.to_thread(self._commit, offer)
        self._in_flight.pop(offer.attempt, None)
        return made

    async def result(self, result: Result) -> None:
        """The attempt has ended: the next may come."""
        self._in_flight.pop(result.attempt, None)

    async def request_checkpoint(self, request: RequestCheckpoint) -> None:
        """Order it at once."""
        if self._closed:
            raise Unavailable("the supervisor is ending")
        self._order(request.trigger, request.request)

    async def leave_pending(self, attempt: str, trigger: str, completed: bool, manifest: bytes) -> None:
        """Never needed: the store is here, or nothing is."""
        raise Unavailable("the store's directory cannot be written")

    def stop_waiting(self) -> None:
        """Nobody waits: the store is here."""

    def hurry(self) -> None:
        """Nothing is tried again."""

    async def released(self, released: Released) -> None:
        """End the run if it is completed; the epoch ends with the process."""
        if released.completed:
            await asyncio.to_thread(self._complete)

    async def close(self) -> None:
        """Stop the timer, and remove what is no longer needed."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._orders.put_nowait(None)

    async def _tick(self) -> None:
        pause = min(FIRST_SECONDS, self._terms.interval_seconds)
        while True:
            await asyncio.sleep(pause)
            pause = self._terms.interval_seconds
            since = asyncio.get_running_loop().time() - ATTEMPT_SECONDS
            if all(at < since for at in self._in_flight.values()):  # else they would pile up before one that waits
                self._order("Interval", "")

    def _order(self, trigger: str, request: str) -> None:
        attempt = self._random_bytes(16).hex()
        self._in_flight[attempt] = asyncio.get_running_loop().time()
        self._orders.put_nowait(Checkpoint(attempt, trigger, ATTEMPT_SECONDS, request=request))

    def _commit(self, offer: Offer) -> CheckpointRef:
        told = lineage.Offer(
            offer.attempt,
            offer.manifest.name,
            offer.manifest.size,
            tuple(Pack(pack.name, pack.size) for pack in offer.packs),
            offer.uploaded_bytes,
            offer.logical_bytes,
            offer.stored_bytes,
        )
        holder = self._head.record
        self._head = self._chain.head(self._head) or self._head  # an answer that was lost may have been a commit
        self._head = lineage.commit_checkpoint(
            self._repository,
            self._chain,
            self._head,
            told,
            epoch=holder.epoch,
            pod_uid=holder.pod_uid,
            time=time_text(self._now()),
            trigger=offer.trigger,
            completed=offer.completed,
        )
        made = self._chain.find_attempt(offer.attempt, self._head)
        assert made is not None
        self._commits += 1
        if self._commits % COLLECT_EVERY == 0:
            self._collect()
        return reference(made)

    def _complete(self) -> None:
        record = self._head.record
        self._head = lineage.complete(self._chain, self._head, record.epoch, record.pod_uid, time_text(self._now()))

    def _collect(self) -> None:
        """Keep the newest checkpoints. No attempt is in flight: this is called between them, by their only writer."""
        keep: set[int] = set()
        for each in self._chain.back(self._head, 10 * KEEP):
            if each.record.kind == "checkpoint":
                keep.add(each.record.sequence)
            if len(keep) >= KEEP:
                break
        try:
            collect(self._repository, self._chain, self._head, keep=keep, grace_seconds=0, now=self._now())
        except SavepointError as error:
            log.warning("old checkpoints could not be removed: %s", error)


def parent_of(chain: Chain, head: Head) -> CheckpointRef | None:
    """The checkpoint that the lineage stands at, under the sequence of the record by which it came to it."""
    target = head.record.manifest
    if target is None:
        return None
    origin: int | None = None
    for each in chain.back(head, head.record.sequence):
        if origin is None and each.record.kind in ("checkpoint", "rollback"):
            origin = each.record.sequence
        if each.record.kind == "checkpoint" and each.record.manifest == target:
            made = reference(each)
            return CheckpointRef(made.name, made.number, origin or made.sequence, made.time, made.manifest)
    return None


def reference(head: Head) -> CheckpointRef:
    """What a checkpoint record made, as a message names it."""
    record = head.record
    assert record.manifest is not None and record.name is not None
    manifest = ObjectName(record.manifest.name, record.manifest.size)
    return CheckpointRef(record.name, record.number, record.sequence, record.time, manifest)
