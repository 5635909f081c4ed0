"""The authority of a single supervisor on one machine: a directory store, its chain, and a timer.

It grants epochs and commits by the same functions as the operator. The caller holds the lock that prevents a second
supervisor of the same agent. Blocking store calls run in threads.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from savepoint.contract.control_protocol import (
    Checkpoint,
    CheckpointRef,
    Offer,
    PolicyTerms,
    Progress,
    Released,
    RequestCheckpoint,
    Result,
    Welcome,
)
from savepoint.contract.vocabulary import Trigger
from savepoint.errors import SavepointError, Unavailable
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.manifest import Manifest, Pack
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.collect import collect
from savepoint.repository.history.restore_point import checkpoint_ref, restore_point
from savepoint.repository.history.retention import RetentionRules
from savepoint.repository.repository import Repository, open_store
from savepoint.storage import ObjectStore

from savepoint_sidecar.authority.authority import Blobs, Order
from savepoint_sidecar.authority.local_retention import LocalRetention
from savepoint_sidecar.authority.local_rollback import roll_back

log = logging.getLogger(__name__)

NAMESPACE: Final = "local"
OWNER: Final = "local"
COLLECT_EVERY_COMMITS: Final = 20
SHOWN_PACKS: Final = 3
ATTEMPT_SECONDS: Final = 600
FIRST_CHECKPOINT_SECONDS: Final = 2.0
"""The first checkpoint of a run does not wait for a whole interval."""


@dataclass(frozen=True)
class LocalConfig:
    """Settings that the user of ``savepoint run`` chooses."""

    interval_seconds: float = 30.0
    policy: PolicyTerms = field(default_factory=PolicyTerms)
    config_hash: str = ""
    retention: RetentionRules = field(default_factory=RetentionRules)


@dataclass(frozen=True)
class LocalClock:
    """The sources of time and randomness of a local authority."""

    now: Callable[[], datetime]
    random_bytes: Callable[[int], bytes]


@dataclass(frozen=True)
class StartFrom:
    """An older checkpoint from which a run is to start."""

    checkpoint: str
    """The checkpoint's name."""
    accept: Callable[[Manifest], object]
    """Raises a SavepointError if the run cannot start from this checkpoint."""


class LocalAuthority:
    """The ``Authority`` of one incarnation of one agent. ``open`` creates it and grants the epoch."""

    def __init__(
        self, repository: Repository, chain: Chain, head: ChainRecord, config: LocalConfig, clock: LocalClock
    ) -> None:
        self._repository, self._chain, self._head = repository, chain, head
        self._config, self._clock = config, clock
        self._orders: asyncio.Queue[Order | None] = asyncio.Queue()
        self._timer: asyncio.Task[None] | None = None
        self._in_flight: dict[str, float] = {}
        """Attempts that were ordered and have not ended, with the time of the order on the event loop's clock."""
        self._commits = 0
        self._retention = LocalRetention(repository, chain, config.retention)
        self._closed = False

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        agent: str,
        master: MasterKey,
        config: LocalConfig,
        clock: LocalClock,
        *,
        incarnation: str,
        node: str,
        start_from: StartFrom | None = None,
    ) -> "LocalAuthority":
        """Claim or check the store, and grant the agent's next epoch to this incarnation. Blocking.

        With ``start_from`` the agent is rolled back to that checkpoint first, once it is known to be whole.
        """
        open_store(store, OWNER, master)
        now = clock.now()
        repository = Repository.open_or_create(
            store, NAMESPACE, agent, master, now=now, random_bytes=clock.random_bytes
        )
        chain = Chain(repository.store, NAMESPACE, agent)
        head = chain.head()
        if start_from is not None:
            head = roll_back(
                repository, chain, head, start_from.checkpoint, accept=start_from.accept, time=time_text(clock.now())
            )
        head = lineage.grant(chain, head, incarnation, node, time_text(clock.now()))
        authority = cls(repository, chain, head, config, clock)
        authority._collect()
        return authority

    @property
    def blobs(self) -> Blobs:
        """The agent's part of the store."""
        return self._repository.store

    @property
    def connected(self) -> bool:
        """Always True: the authority is part of this process."""
        return True

    @property
    def silent_seconds(self) -> float:
        """Always 0: this process cannot be cut off from itself."""
        return 0.0

    @property
    def pack_check_seconds(self) -> float:
        """Always 0: looking at files in a directory costs next to nothing."""
        return 0.0

    def rolled_back_at(self) -> int | None:
        """Return the sequence of the rollback that chose the restore point; None if a checkpoint did. Blocking."""
        for each in self._chain.back(self._head, self._head.record.sequence):
            if each.record.kind in ("checkpoint", "rollback"):
                return each.record.sequence if each.record.kind == "rollback" else None
        return None

    async def welcome(self) -> Welcome:
        """Return the run's identity and the checkpoint that it starts from."""
        record = self._head.record
        parent = await asyncio.to_thread(restore_point, self._chain, self._head)
        if self._timer is None:
            self._timer = asyncio.ensure_future(self._order_by_interval())
        return Welcome(
            agent=record.agent,
            namespace=record.namespace,
            epoch=record.epoch,
            run=record.run,
            key=self._repository.key.expose().hex(),
            config_hash=self._config.config_hash,
            policy=self._config.policy,
            parent=parent,
        )

    async def orders(self) -> AsyncIterator[Order]:
        """Iterate over the orders: one checkpoint per interval, and one per request."""
        while (order := await self._orders.get()) is not None:
            yield order

    def random_bytes(self, count: int) -> bytes:
        """Return random bytes."""
        return self._clock.random_bytes(count)

    async def prepare_reads(self, keys: tuple[str, ...]) -> None:
        """Do nothing: every object can always be read."""

    async def report_progress(self, progress: Progress) -> None:
        """Drop the report: it has no reader."""

    async def commit(self, offer: Offer) -> CheckpointRef:
        """Append the commit record."""
        committed = await asyncio.to_thread(self._commit, offer)
        self._in_flight.pop(offer.attempt, None)
        return committed

    async def report_result(self, result: Result) -> None:
        """Record that the attempt has ended, so that the next one may be ordered."""
        self._in_flight.pop(result.attempt, None)

    async def request_checkpoint(self, request: RequestCheckpoint) -> None:
        """Order the requested checkpoint at once."""
        if self._closed:
            raise Unavailable("the supervisor is ending")
        self._order(request.trigger, request.request)

    async def leave_pending(self, attempt: str, trigger: str, completed: bool, manifest: bytes) -> None:
        """Raise Unavailable: a commit only fails here when the store cannot be written at all."""
        raise Unavailable("cannot write to the store's directory")

    def stop_waiting(self) -> None:
        """Do nothing: no call waits for another process."""

    def retry_quickly(self) -> None:
        """Do nothing: no call is retried."""

    async def report_release(self, released: Released) -> None:
        """Record the end of the run if it is completed. The epoch ends with the process."""
        if released.completed:
            await asyncio.to_thread(self._complete)

    async def close(self) -> None:
        """Stop the timer and end the iteration over orders."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._orders.put_nowait(None)

    async def _order_by_interval(self) -> None:
        pause = min(FIRST_CHECKPOINT_SECONDS, self._config.interval_seconds)
        while True:
            await asyncio.sleep(pause)
            pause = self._config.interval_seconds
            since = asyncio.get_running_loop().time() - ATTEMPT_SECONDS
            # While an attempt is in flight further orders would only wait behind it.
            if all(ordered_at < since for ordered_at in self._in_flight.values()):
                self._order(Trigger.INTERVAL, "")

    def _order(self, trigger: str, request: str) -> None:
        attempt = self._clock.random_bytes(16).hex()
        self._in_flight[attempt] = asyncio.get_running_loop().time()
        self._orders.put_nowait(Checkpoint(attempt, trigger, ATTEMPT_SECONDS, request=request))

    def _commit(self, offer: Offer) -> CheckpointRef:
        uploaded = lineage.UploadedCheckpoint(
            offer.attempt,
            offer.manifest.name,
            offer.manifest.size,
            tuple(Pack(pack.name, pack.size) for pack in offer.packs),
            offer.uploaded_bytes,
            offer.logical_bytes,
            offer.stored_bytes,
        )
        holder = self._head.record
        self._head = self._chain.head(self._head) or self._head  # an earlier commit may have succeeded unnoticed
        self._head = lineage.commit_checkpoint(
            self._repository,
            self._chain,
            self._head,
            uploaded,
            epoch=holder.epoch,
            pod_uid=holder.pod_uid,
            time=time_text(self._clock.now()),
            trigger=offer.trigger,
            completed=offer.completed,
        )
        committed = self._chain.find_attempt(offer.attempt, self._head)
        assert committed is not None
        self._commits += 1
        if self._commits % COLLECT_EVERY_COMMITS == 0:
            self._collect()
        return checkpoint_ref(committed)

    def _complete(self) -> None:
        record = self._head.record
        time = time_text(self._clock.now())
        self._head = lineage.complete(self._chain, self._head, record.epoch, record.pod_uid, time)

    def _collect(self) -> None:
        """Delete what retention does not keep. No attempt may be in flight; only this process writes attempts."""
        now = self._clock.now()
        try:
            keep = self._retention.kept_sequences(self._head, now)
            report = collect(self._repository, self._chain, self._head, keep=keep, grace_seconds=0, now=now)
        except SavepointError as error:
            log.warning("cannot delete old checkpoints: %s; retrying later", error)
            return
        if report.lost:
            log.warning(
                "the store lost data that %d checkpoints need, which cannot be restored whole: %s",
                len(report.affected), "; ".join(report.lost[:SHOWN_PACKS]),
            )  # fmt: skip
