"""The operator's ports, scripted: a cluster, a store and a recorder that a test moves by hand.

No behaviour of Kubernetes or S3 is imitated beyond what the ports promise; the real doors have tests of their own.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from savepoint.contract.control_protocol import Offer, Outcome, PolicyTerms, Progress, RequestCheckpoint, Result, Wait
from savepoint.errors import StoreUnavailable, Unavailable
from savepoint.repository.format.commit import Head
from savepoint.repository.format.keys import MasterKey
from savepoint.storage import Buffer, ObjectInfo, ObjectStore
from savepoint_operator.model.ports import OpenStore
from savepoint_operator.model.views import (
    AgentRef,
    CheckpointName,
    Contents,
    Incarnation,
    NodeStanding,
    PodIdentity,
    PodStanding,
    Refusal,
    SessionView,
    Standing,
)


class Clock:
    """Monotonic seconds, and times of day, that pass only when told to."""

    def __init__(self) -> None:
        self._seconds = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self._seconds

    def now(self) -> datetime:
        return datetime(2026, 11, 24, tzinfo=UTC) + timedelta(seconds=self._seconds)

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._seconds + seconds, future))
        await future

    def advance(self, seconds: float) -> None:
        self._seconds += seconds
        due = [future for at, future in self._sleepers if at <= self._seconds]
        self._sleepers = [(at, future) for at, future in self._sleepers if at > self._seconds]
        for future in due:
            if not future.done():
                future.set_result(None)


class GatedStore:
    """A store around a store that can be made to wait, to fail, or to lose the answer of a write."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._open = threading.Event()
        self._open.set()
        self.broken = False
        self.lose_answer_of: str | None = None
        """A key prefix: the next write below it is done, and answered with a fault."""
        self.calls: list[tuple[str, str]] = []

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        self._pass("put", key)
        self._store.put_new(key, data)
        if self.lose_answer_of is not None and self.lose_answer_of in key:
            self.lose_answer_of = None
            raise StoreUnavailable(f"the answer to the write of {key} was lost")

    def get(self, key: str, *, max_bytes: int) -> bytes:
        self._pass("get", key)
        return self._store.get(key, max_bytes=max_bytes)

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        self._pass("get", key)
        self._store.get_into(key, offset, target)

    def head(self, key: str) -> ObjectInfo | None:
        self._pass("head", key)
        return self._store.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._pass("list", prefix)
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        self._pass("delete", key)
        self._store.delete(key)

    def _pass(self, what: str, key: str) -> None:
        self.calls.append((what, key))
        if not self._open.wait(30):
            raise StoreUnavailable("the test held the store for too long")
        if self.broken:
            raise StoreUnavailable("the store is broken")


class Signer:
    """URLs that show what was signed."""

    def presign_put(self, key: str, expires_seconds: int) -> str:
        return f"https://store.test/{key}?method=PUT&expires={expires_seconds}"

    def presign_get(self, key: str, expires_seconds: int) -> str:
        return f"https://store.test/{key}?method=GET&expires={expires_seconds}"


class Stores:
    """One store, named ``default``."""

    def __init__(self, objects: ObjectStore, master: MasterKey) -> None:
        self.store = OpenStore("default", objects, Signer(), master)
        self.error: Exception | None = None

    async def open(self, name: str) -> OpenStore:
        assert name == self.store.name
        if self.error is not None:
            raise self.error
        return self.store


class Reviewer:
    """Tokens are ``token-of-<uid>`` for the pods it knows."""

    def __init__(self) -> None:
        self.pods: dict[str, PodIdentity] = {}
        self.reviews = 0
        self.down = False

    async def review(self, token: str) -> PodIdentity | None:
        self.reviews += 1
        if self.down:
            raise Unavailable("no API server")
        return self.pods.get(token.removeprefix("token-of-"))


class Directory:
    """Pods, nodes and pins as the test sets them."""

    def __init__(self) -> None:
        self.incarnations: dict[str, Incarnation | Refusal] = {}
        self.standings: dict[str, Standing] = {}
        self.pins: dict[AgentRef, tuple[int, str]] = {}
        self.released_before: set[str] = set()
        """Uids of pods of which an earlier leader wrote down that they had released."""
        self.told_to_end: set[str] = set()

    async def incarnation(self, pod: PodIdentity) -> Incarnation | Refusal:
        return self.incarnations.get(pod.uid) or Refusal("NotAnAgent", "the pod has no label")

    async def standing(self, agent: AgentRef, pod_uid: str, node: str) -> Standing:
        return self.standings.get(pod_uid, Standing(PodStanding.RUNNING, NodeStanding.READY))

    async def released(self, agent: AgentRef, pod_uid: str) -> bool:
        return pod_uid in self.released_before

    async def going(self, pod: PodIdentity) -> bool:
        return pod.uid in self.told_to_end

    async def pinned(self, agent: AgentRef) -> tuple[int, str] | None:
        return self.pins.get(agent)


@dataclass
class Recorder:
    """Writes down what it is told, and pins heads in the directory as the product's recorder does."""

    directory: Directory
    told: list[tuple[str, Any]] = field(default_factory=list)
    names: dict[str, CheckpointName] = field(default_factory=dict)
    refuse_requests: Refusal | None = None
    before_naming: Callable[[], Any] | None = None
    _requests: int = 0

    def of(self, what: str) -> list[Any]:
        """Everything of one kind that was told."""
        return [value for name, value in self.told if name == what]

    async def waiting(self, who: Incarnation, wait: Wait) -> None:
        self.told.append(("waiting", wait))

    async def granted(self, who: Incarnation, head: Head, restores: str | None) -> None:
        self._pin(who.agent, head)
        self.told.append(("granted", (who.pod.uid, head.record.epoch, restores)))

    async def restored(self, who: Incarnation, outcome: Outcome) -> None:
        self.told.append(("restored", outcome))

    async def restore_progress(self, who: Incarnation, progress: Progress) -> None:
        self.told.append(("restore_progress", progress))

    async def connected(self, session: SessionView, who: Incarnation) -> None:
        self.told.append(("connected", session.pod.uid))

    async def disconnected(self, agent: AgentRef, pod: PodIdentity) -> None:
        self.told.append(("disconnected", pod.uid))

    async def requested(self, agent: AgentRef, request: RequestCheckpoint) -> str | Refusal:
        self.told.append(("requested", request))
        if self.refuse_requests is not None:
            return self.refuse_requests
        self._requests += 1
        return f"{self._requests:032x}"

    async def progressed(self, agent: AgentRef, progress: Progress) -> None:
        self.told.append(("progressed", progress))

    async def delayed(self, agent: AgentRef, attempt: str, why: str) -> None:
        self.told.append(("delayed", why))

    async def name_for(self, agent: AgentRef, offer: Offer, head: Head) -> CheckpointName:
        if self.before_naming is not None:
            await self.before_naming()
        number = head.record.number + 1
        return self.names.get(offer.attempt, CheckpointName(number, f"{agent.name}-{number}"))

    async def committed(
        self, agent: AgentRef, offer: Offer | None, head: Head, store: str, contents: Contents | None = None
    ) -> None:
        self._pin(agent, head)
        self.told.append(("committed", head))
        self.told.append(("told", offer or contents))

    async def failed(self, agent: AgentRef, result: Result) -> None:
        self.told.append(("failed", result))

    async def unchanged(self, agent: AgentRef, result: Result, head: Head | None) -> None:
        self.told.append(("unchanged", result))

    async def released(self, agent: AgentRef, pod: PodIdentity, completed: bool, message: str) -> None:
        self.told.append(("released", (pod.uid, completed)))

    def _pin(self, agent: AgentRef, head: Head) -> None:
        pin = self.directory.pins.get(agent)
        if pin is None or head.record.sequence > pin[0]:
            self.directory.pins[agent] = (head.record.sequence, head.digest)


def incarnation(agent: AgentRef, uid: str, node: str = "n1") -> Incarnation:
    """A pod of the agent, opted in under no policy."""
    pod = PodIdentity(agent.namespace, f"{agent.name}-{uid}", uid)
    return Incarnation(agent, pod, node, "ab" * 32, PolicyTerms(), None, "default")
