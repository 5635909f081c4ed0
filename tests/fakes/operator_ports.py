"""Fakes of the operator's ports: a cluster, a store and a recorder that a test scripts.

They imitate Kubernetes and S3 only as far as the ports promise; the real adapters have their own tests.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from savepoint.contract.control_protocol import Offer, Outcome, PolicyTerms, Progress, RequestCheckpoint, Result, Wait
from savepoint.errors import StoreUnavailable, Unavailable
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.format.keys import MasterKey
from savepoint.storage import Buffer, ObjectInfo, ObjectStore
from savepoint_operator.model.ports import OpenStore
from savepoint_operator.model.views import (
    AgentRef,
    CheckpointName,
    Contents,
    Incarnation,
    NodeState,
    PodIdentity,
    PodState,
    PredecessorState,
    Refusal,
    SessionView,
)


class ManualClock:
    """A monotonic and a wall clock that only ``advance`` moves."""

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
    """A wrapper of a store that can block, fail, or lose the answer to a write."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._open = threading.Event()
        self._open.set()
        self.broken = False
        self.lose_answer_of: str | None = None
        """A part of a key: the next write of such a key is performed but answered with a fault."""
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

    def _pass(self, operation: str, key: str) -> None:
        self.calls.append((operation, key))
        if not self._open.wait(30):
            raise StoreUnavailable("the test held the store for too long")
        if self.broken:
            raise StoreUnavailable("the store is broken")


class Signer:
    """Signs URLs that show what was signed."""

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
    """Accepts the tokens ``token-of-<uid>`` of registered pods."""

    def __init__(self) -> None:
        self.pods: dict[str, PodIdentity] = {}
        self.reviews = 0
        self.down = False

    async def review(self, token: str) -> PodIdentity | None:
        self.reviews += 1
        if self.down:
            raise Unavailable("no API server")
        return self.pods.get(token.removeprefix("token-of-"))


class ScriptedPodResolver:
    """Answers with the pods, nodes and pins that the test sets."""

    def __init__(self) -> None:
        self.incarnations: dict[str, Incarnation | Refusal] = {}
        self.predecessors: dict[str, PredecessorState] = {}
        self.pins: dict[AgentRef, tuple[int, str]] = {}
        self.released_before: set[str] = set()
        """UIDs of pods whose release an earlier leader recorded."""
        self.terminating_pods: set[str] = set()

    async def incarnation(self, pod: PodIdentity) -> Incarnation | Refusal:
        return self.incarnations.get(pod.uid) or Refusal("NotAnAgent", "the pod has no label")

    async def predecessor_state(self, agent: AgentRef, pod_uid: str, node: str) -> PredecessorState:
        return self.predecessors.get(pod_uid, PredecessorState(PodState.RUNNING, NodeState.READY))

    async def released(self, agent: AgentRef, pod_uid: str) -> bool:
        return pod_uid in self.released_before

    async def terminating(self, pod: PodIdentity) -> bool:
        return pod.uid in self.terminating_pods

    async def pinned(self, agent: AgentRef) -> tuple[int, str] | None:
        return self.pins.get(agent)


@dataclass
class Recorder:
    """Remembers its calls, and pins heads in the pod resolver as the real recorder does."""

    pod_resolver: ScriptedPodResolver
    calls: list[tuple[str, Any]] = field(default_factory=list)
    names: dict[str, CheckpointName] = field(default_factory=dict)
    refuse_requests: Refusal | None = None
    before_naming: Callable[[], Any] | None = None
    _requests: int = 0

    def calls_of(self, method: str) -> list[Any]:
        """Return the values of all calls of one method."""
        return [value for name, value in self.calls if name == method]

    async def waiting(self, incarnation: Incarnation, wait: Wait) -> None:
        self.calls.append(("waiting", wait))

    async def granted(self, incarnation: Incarnation, head: ChainRecord, restores: str | None) -> None:
        self._pin(incarnation.agent, head)
        self.calls.append(("granted", (incarnation.pod.uid, head.record.epoch, restores)))

    async def restore_ended(self, incarnation: Incarnation, outcome: Outcome) -> None:
        self.calls.append(("restore_ended", outcome))

    async def restore_progressed(self, incarnation: Incarnation, progress: Progress) -> None:
        self.calls.append(("restore_progressed", progress))

    async def connected(self, session: SessionView, incarnation: Incarnation) -> None:
        self.calls.append(("connected", session.pod.uid))

    async def disconnected(self, agent: AgentRef, pod: PodIdentity) -> None:
        self.calls.append(("disconnected", pod.uid))

    async def requested(self, agent: AgentRef, request: RequestCheckpoint) -> str | Refusal:
        self.calls.append(("requested", request))
        if self.refuse_requests is not None:
            return self.refuse_requests
        self._requests += 1
        return f"{self._requests:032x}"

    async def progressed(self, agent: AgentRef, progress: Progress) -> None:
        self.calls.append(("progressed", progress))

    async def delayed(self, agent: AgentRef, attempt: str, cause: str) -> None:
        self.calls.append(("delayed", cause))

    async def name_for(self, agent: AgentRef, offer: Offer, head: ChainRecord) -> CheckpointName:
        if self.before_naming is not None:
            await self.before_naming()
        number = head.record.number + 1
        return self.names.get(offer.attempt, CheckpointName(number, f"{agent.name}-{number}"))

    async def committed(
        self, agent: AgentRef, offer: Offer | None, head: ChainRecord, store: str, contents: Contents | None = None
    ) -> None:
        self._pin(agent, head)
        self.calls.append(("committed", head))
        self.calls.append(("described", offer or contents))

    async def failed(self, agent: AgentRef, result: Result) -> None:
        self.calls.append(("failed", result))

    async def unchanged(self, agent: AgentRef, result: Result, head: ChainRecord | None) -> None:
        self.calls.append(("unchanged", result))

    async def released(self, agent: AgentRef, pod: PodIdentity, completed: bool, message: str) -> None:
        self.calls.append(("released", (pod.uid, completed)))

    def _pin(self, agent: AgentRef, head: ChainRecord) -> None:
        pin = self.pod_resolver.pins.get(agent)
        if pin is None or head.record.sequence > pin[0]:
            self.pod_resolver.pins[agent] = (head.record.sequence, head.digest)


def incarnation(agent: AgentRef, uid: str, node: str = "n1") -> Incarnation:
    """Return a pod of the agent that opted in without a policy."""
    pod = PodIdentity(agent.namespace, f"{agent.name}-{uid}", uid)
    return Incarnation(agent, pod, node, "ab" * 32, PolicyTerms(), None, "default")
