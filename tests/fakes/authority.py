"""An authority for tests: a real chain over a store in memory, and orders, outages and refusals on demand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from random import Random

from savepoint.contract.control_protocol import (
    Checkpoint,
    CheckpointRef,
    Offer,
    PolicyTerms,
    Progress,
    Refused,
    Released,
    RequestCheckpoint,
    Result,
    Stop,
    Welcome,
)
from savepoint.errors import SavepointError, Unavailable
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.restore_point import checkpoint_ref, restore_point
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.repository import Repository
from savepoint.storage import ObjectStore
from savepoint_sidecar.authority.authority import Blobs, Order

MASTER = MasterKey(bytes(range(32)))


class FakeAuthority:
    """Implements ``Authority`` and grants an epoch when it is created. Its lists hold what it received."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        agent: str = "coder",
        pod_uid: str = "pod-1",
        policy: PolicyTerms | None = None,
        seed: int = 1,
    ) -> None:
        self._random = Random(seed)
        self.store, self.pod_uid = store, pod_uid
        self.policy = policy or PolicyTerms()
        self.shared_roots: tuple[str, ...] = ()
        self.repository = Repository.open_or_create(
            store, "demo", agent, MASTER, now=_now(), random_bytes=self._random.randbytes
        )
        self.chain = Chain(self.repository.store, "demo", agent)
        self.head = lineage.grant(self.chain, self.chain.head(), pod_uid, "n1", time_text(_now()))
        self.queue: asyncio.Queue[Order | None] = asyncio.Queue()
        self.reachable = asyncio.Event()
        self.reachable.set()
        self.silence = 0.0
        self.pack_check_seconds = 0.0
        self.answers_requests = True
        self.refuse_requests: list[Refused] = []
        self.commit_error: SavepointError | None = None
        self.stopped_waiting = asyncio.Event()
        self.retries_quickly = False
        self.before_commit: Callable[[Offer], None] = lambda offer: None
        self.offers: list[Offer] = []
        self.results: list[Result] = []
        self.requests: list[RequestCheckpoint] = []
        self.releases: list[Released] = []
        self.pending: list[lineage.Pending] = []
        self.expected: tuple[str, ...] = ()
        self.events: list[str] = []

    # -- control by the test --------------------------------------------------------------------------------------

    def order(self, trigger: str = "Interval", seconds: int = 30, request: str = "") -> str:
        """Order a checkpoint and return the attempt's id."""
        attempt = self._random.randbytes(16).hex()
        self.queue.put_nowait(Checkpoint(attempt, trigger, seconds, request=request))
        return attempt

    def stop(self, reason: str = "Fenced") -> None:
        """Order the incarnation to stop."""
        self.queue.put_nowait(Stop(reason, "another pod holds a newer epoch"))

    async def await_attempts(self, count: int = 1) -> None:
        """Wait until this many attempts were committed, left as pending, or reported."""
        async with asyncio.timeout(20):
            while len(self.offers) + len(self.results) + len(self.pending) < count:
                await asyncio.sleep(0.005)

    def manifest(self) -> Manifest:
        """Return the manifest of the latest checkpoint."""
        name = self.head.record.manifest
        assert name is not None
        return self.repository.read_manifest(name.name, name.size)

    def reader(self) -> CheckpointReader:
        """Return a reader of the latest checkpoint. The caller closes it."""
        return CheckpointReader(self.repository.store, self.repository.key, self.manifest())

    def objects(self, prefix: str) -> list[str]:
        """Return the keys in the agent's repository."""
        return [info.key for info in self.repository.store.list(prefix)]

    # -- Authority -----------------------------------------------------------------------------------------------

    @property
    def blobs(self) -> Blobs:
        return self.repository.store

    @property
    def connected(self) -> bool:
        return self.reachable.is_set()

    @property
    def silent_seconds(self) -> float:
        return self.silence

    async def welcome(self) -> Welcome:
        self.head = self.chain.head(self.head) or self.head
        record = self.head.record
        return Welcome(
            agent=record.agent,
            namespace=record.namespace,
            epoch=record.epoch,
            run=record.run,
            key=self.repository.key.expose().hex(),
            config_hash="",
            policy=self.policy,
            parent=restore_point(self.chain, self.head),
            shared_roots=self.shared_roots,
        )

    async def orders(self) -> AsyncIterator[Order]:
        while (order := await self.queue.get()) is not None:
            yield order

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    async def prepare_reads(self, keys: tuple[str, ...]) -> None:
        self.expected = keys

    async def report_progress(self, progress: Progress) -> None:
        self.events.append(f"progress {progress.stage}")

    async def commit(self, offer: Offer) -> CheckpointRef:
        self.stopped_waiting.clear()
        while not self.reachable.is_set():
            if self.stopped_waiting.is_set():
                raise Unavailable("the wait was ended by stop_waiting")
            await asyncio.sleep(0.005)
        self.before_commit(offer)
        if self.commit_error is not None:
            raise self.commit_error
        holder = self.head.record
        self.head = self.chain.head(self.head) or self.head
        uploaded = lineage.UploadedCheckpoint(offer.attempt, offer.manifest.name, offer.manifest.size)
        self.head = lineage.commit_checkpoint(
            self.repository,
            self.chain,
            self.head,
            uploaded,
            epoch=holder.epoch,
            pod_uid=self.pod_uid,
            time=time_text(_now()),
            trigger=offer.trigger,
            completed=offer.completed,
        )
        self.offers.append(offer)
        committed = self.chain.find_attempt(offer.attempt, self.head)
        assert committed is not None
        return checkpoint_ref(committed)

    async def report_result(self, result: Result) -> None:
        self.results.append(result)

    async def request_checkpoint(self, request: RequestCheckpoint) -> None:
        await self.reachable.wait()
        self.requests.append(request)
        if self.refuse_requests:
            refused = self.refuse_requests.pop(0)
            self.queue.put_nowait(Refused(refused.reason, refused.message, request=request.request))
        elif self.answers_requests:
            self.order(request.trigger, request=request.request)

    async def leave_pending(self, attempt: str, trigger: str, completed: bool, manifest: bytes) -> None:
        if self.connected and self.commit_error is None:
            raise Unavailable("a checkpoint is only left as pending while the operator cannot be reached")
        self.pending.append(
            lineage.Pending(attempt, self.head.record.epoch, self.pod_uid, trigger, completed, manifest)
        )

    def stop_waiting(self) -> None:
        self.stopped_waiting.set()

    def retry_quickly(self) -> None:
        self.retries_quickly = True

    async def report_release(self, released: Released) -> None:
        await self.reachable.wait()
        self.releases.append(released)

    async def close(self) -> None:
        self.queue.put_nowait(None)


def _now() -> datetime:
    return datetime.now(UTC)
