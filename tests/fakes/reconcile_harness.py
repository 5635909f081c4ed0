"""The whole of reconcile over an API server in memory and a store in a folder; pods and time move as the test says.

What the control side would do is scripted: the chain is written by the same functions, the recorder is told the same.
"""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from savepoint.contract.control_protocol import ComponentSummary, ObjectName, Offer, Outcome, Result, Timing
from savepoint.contract.names import CONTAINER_SIDECAR, LABEL_AGENT
from savepoint.errors import Refused, Unavailable
from savepoint.repository.format import commit as records
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.commit import Head
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.manifest import ComponentRecord, Execution, Manifest, Pack, Sizes, component_digest
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.repository import Repository
from savepoint.storage.directory import DirectoryStore
from savepoint_operator.cluster.events import Events
from savepoint_operator.cluster.kinds import (
    AGENTS,
    CHECKPOINTS,
    NAMESPACES,
    NODES,
    PODS,
    RESTORES,
    SECRETS,
    STORES,
    WATCHED,
)
from savepoint_operator.lineage.open_repository import OpenRepository
from savepoint_operator.metrics import Metrics
from savepoint_operator.model.views import AgentRef, CheckpointName, Incarnation, PodIdentity, Refusal, SessionView
from savepoint_operator.reconcile.assembly import ReconcileParts, assemble
from savepoint_operator.reconcile.keyring import MASTER_KEY_FIELD, fields

from tests.fakes.cluster import FakeCluster

NAMESPACE = "demo"
CODER = AgentRef(NAMESPACE, "coder")
STORE = "default"


class Time:
    """Monotonic seconds and times of day, together; they pass only when told to."""

    def __init__(self) -> None:
        self.seconds = 10_000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 11, 24, tzinfo=UTC) + timedelta(seconds=self.seconds)


class ScriptedOrders:
    """Implements ``Orders`` over the real chain; what was ordered stays until the test answers it."""

    def __init__(self, bench: ReconcileHarness) -> None:
        self._bench = bench
        self.sessions: dict[AgentRef, SessionView] = {}
        self.ordered: list[tuple[AgentRef, str, str]] = []
        self.in_flight: dict[AgentRef, str] = {}
        self.collected: list[tuple[AgentRef, frozenset[int]]] = []
        self.rolled_back: list[tuple[AgentRef, int | None]] = []
        self.store_is_away = False

    def session(self, agent: AgentRef) -> SessionView | None:
        return self.sessions.get(agent)

    async def checkpoint(
        self, agent: AgentRef, attempt: str, trigger: str, deadline_seconds: int, after: str = "Resume"
    ) -> None:
        if agent not in self.sessions:
            raise Unavailable("no session")
        if self.in_flight.get(agent, attempt) != attempt:
            raise Refused("one at a time", "AttemptInFlight")
        self.in_flight[agent] = attempt
        self.ordered.append((agent, attempt, trigger))

    async def rollback(self, agent: AgentRef, attempt: str, to_sequence: int | None, store: str) -> Head:
        await self._bench.now_leading.stores.open(store)
        self.rolled_back.append((agent, to_sequence))
        chain, head = self._bench.chain(agent), self._bench.head(agent)
        assert head is not None
        manifest = None if to_sequence is None else chain.record(to_sequence).manifest
        return lineage.rollback(chain, head, manifest, time_text(self._bench.time.now()), attempt)

    async def end_run(self, agent: AgentRef, pod_uid: str, store: str) -> Head | None:
        head = self._bench.head(agent)
        if self.store_is_away or agent in self.sessions:
            raise Unavailable("not now")
        if head is None or head.record.pod_uid != pod_uid or head.record.kind in ("completed", "rollback"):
            return head
        time = time_text(self._bench.time.now())
        ended = lineage.complete(self._bench.chain(agent), head, head.record.epoch, pod_uid, time)
        await self._bench.now_leading.recorder.committed(agent, None, ended, store)
        return ended

    async def collect(self, agent: AgentRef, store: str, keep_sequences: frozenset[int]) -> int:
        self.collected.append((agent, keep_sequences))
        return 0

    async def head(self, agent: AgentRef, store: str) -> Head | None:
        parts = self._bench.now_leading
        opened = OpenRepository(await parts.stores.open(store), agent, self._bench.random.randbytes)
        opened.open(self._bench.time.now())
        return opened.head(None, await parts.directory.pinned(agent))


class ReconcileHarness:
    """``lead`` begins a new leader over the same cluster and store."""

    def __init__(self, room: Path) -> None:
        self.time = Time()
        self.cluster = FakeCluster(self.time.now)
        self.random = random.Random(7)
        self.objects = DirectoryStore(room, create=True)
        self.orders = ScriptedOrders(self)
        self.parts: ReconcileParts | None = None
        self.numbers = 0

    async def prepare(self) -> None:
        """A cluster with a store, and a leader that has looked at everything."""
        self.cluster.put(NAMESPACES, "kube-system", metadata={"uid": "the-cluster"})
        self.cluster.put(NAMESPACES, NAMESPACE)
        keys = {"accessKey": "YWNjZXNz", "secretKey": "c2VjcmV0"}
        self.cluster.put(SECRETS, "s3-keys", "savepoint-system", data=keys)
        s3 = {"endpoint": "https://s3.test", "bucket": "agents", "credentialsSecretName": "s3-keys"}
        self.cluster.put(STORES, STORE, spec={"s3": s3, "default": True})
        for name in ("n1", "n2"):
            self.node(name)
        await self.lead()

    async def lead(self, **more: Any) -> ReconcileParts:
        terms: dict[str, Any] = {"not_running_seconds": 60.0, "build_store": lambda _: self.objects, **more}
        self.parts = parts = assemble(
            self.cluster,
            Events(self.cluster, self.time.now, "operator-0"),
            Metrics(),
            owner="the-cluster",
            namespace="savepoint-system",
            master_key_secret="savepoint-master-key",
            now=self.time.now,
            monotonic=self.time.monotonic,
            random_bytes=self.random.randbytes,
            random_part=lambda: 0.5,
            **terms,
        )
        self.cluster.watcher = lambda kind, gone, raw: (
            parts.reconciler.observe(kind, gone, raw) if kind in WATCHED else None
        )
        self.orders = ScriptedOrders(self)
        await parts.reconciler.list_all()
        await self.settle()
        return parts

    @property
    def now_leading(self) -> ReconcileParts:
        assert self.parts is not None
        return self.parts

    # -- time -----------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Until nothing is due."""
        parts = self.now_leading
        for _ in range(1000):
            if not parts.queue.due:
                return
            await parts.reconciler.work_one(self.orders)
        raise AssertionError("it never comes to rest")

    async def pass_time(self, seconds: float, step: float = 1.0) -> None:
        """In steps, and what is due is done."""
        end = self.time.seconds + seconds
        while self.time.seconds < end:
            self.time.seconds = min(self.time.seconds + step, end)
            await self.settle()

    # -- the cluster ----------------------------------------------------------------------------------------------

    def node(self, name: str, *, ready: bool = True) -> None:
        conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
        self.cluster.put(NODES, name, status={"conditions": conditions})

    def pod(
        self,
        agent: str = "coder",
        *,
        injected: bool = True,
        phase: str = "Running",
        restart_policy: str = "Always",
        **metadata: Any,
    ) -> PodIdentity:
        """A pod on node n1."""
        self.numbers += 1
        name = f"{agent}-pod-{self.numbers}"
        metadata["labels"] = {LABEL_AGENT: agent, **metadata.get("labels", {})}
        spec: dict[str, Any] = {"nodeName": "n1", "containers": [{"name": "agent"}], "restartPolicy": restart_policy}
        if injected:
            spec["initContainers"] = [{"name": CONTAINER_SIDECAR}]
        raw = self.cluster.put(PODS, name, NAMESPACE, metadata=metadata, spec=spec, status={"phase": phase})
        return PodIdentity(NAMESPACE, name, raw["metadata"]["uid"])

    def ask(self, name: str = "asked-1", agent: str = "coder", **spec: Any) -> str:
        """A user's AgentCheckpoint; its attempt id."""
        raw = self.cluster.put(CHECKPOINTS, name, NAMESPACE, spec={"agent": agent, **spec})
        return str(raw["metadata"]["uid"].replace("-", ""))

    def checkpoint(self, name: str) -> dict[str, Any]:
        """status of an AgentCheckpoint."""
        status: dict[str, Any] = self.cluster.object(CHECKPOINTS, name, NAMESPACE).get("status", {})
        return status

    def checkpoints(self) -> dict[str, str]:
        """Name → reason."""
        return {
            raw["metadata"]["name"]: raw.get("status", {}).get("reason", "") for raw in self.cluster.every(CHECKPOINTS)
        }

    def agent(self, name: str = "coder") -> dict[str, Any]:
        """status of a ProtectedAgent."""
        status: dict[str, Any] = self.cluster.object(AGENTS, name, NAMESPACE).get("status", {})
        return status

    def restores(self) -> list[dict[str, Any]]:
        """Statuses of all AgentRestores, oldest first."""
        return [raw.get("status", {}) for raw in self.cluster.every(RESTORES)]

    # -- the chain ------------------------------------------------------------------------------------------------

    def master(self) -> MasterKey:
        return MasterKey(
            fields(self.cluster.object(SECRETS, "savepoint-master-key", "savepoint-system"))[MASTER_KEY_FIELD]
        )

    def repository(self, agent: AgentRef = CODER) -> Repository:
        return Repository.open_or_create(
            self.objects, *agent, self.master(), now=self.time.now(), random_bytes=self.random.randbytes
        )

    def chain(self, agent: AgentRef = CODER) -> Chain:
        return Chain(self.repository(agent).store, *agent)

    def head(self, agent: AgentRef = CODER) -> Head | None:
        return self.chain(agent).head(None)

    # -- what the control side does -------------------------------------------------------------------------------

    async def who(self, pod: PodIdentity) -> Incarnation:
        found = await self.now_leading.directory.incarnation(pod)
        assert not isinstance(found, Refusal), found
        return found

    async def start(self, pod: PodIdentity, outcome: str = "", **more: Any) -> Incarnation:
        """Granted, restored, connected."""
        who, recorder = await self.who(pod), self.now_leading.recorder
        head = self.chain(who.agent).append(
            records.grant(
                self.head(who.agent), *who.agent, pod_uid=pod.uid, node=who.node, time=time_text(self.time.now())
            )
        )
        restores = self._restores(who.agent, head)
        await recorder.granted(who, head, restores)
        await self.settle()
        told = outcome or ("Restored" if restores else "Fresh")
        await recorder.restored(who, Outcome(told, milliseconds=3100, **more))
        await self.connect(who)
        return who

    def _restores(self, agent: AgentRef, head: Head) -> str | None:
        target = head.record.manifest
        if target is None:
            return None
        made = (each for each in self.chain(agent).back(head, 100) if each.record.kind == "checkpoint")
        return next(each.record.name for each in made if each.record.manifest == target)

    async def connect(self, who: Incarnation) -> None:
        head = self.head(who.agent)
        epoch = head.record.epoch if head else 0
        view = SessionView(who.agent, who.pod, who.node, epoch, self.time.now(), True, "", "0.1.0", None)
        self.orders.sessions[who.agent] = view
        await self.now_leading.recorder.connected(view, who)
        await self.settle()

    async def disconnect(self, who: Incarnation, *, released: bool = False, completed: bool = False) -> None:
        recorder = self.now_leading.recorder
        if released:
            await recorder.released(who.agent, who.pod, completed, "")
        self.orders.sessions.pop(who.agent, None)
        await recorder.disconnected(who.agent, who.pod)
        await self.settle()

    def offer(self, who: Incarnation, attempt: str, trigger: str) -> Offer:
        """Something stored, as a sidecar does."""
        repository, head = self.repository(who.agent), self.head(who.agent)
        assert head is not None
        content = b"SVPNTPK1" + self.random.randbytes(100)
        pack = Pack(f"{head.record.epoch}-{hashlib.sha256(content).hexdigest()[:32]}", len(content))
        repository.store.put_new(f"packs/{pack.name}", content)
        manifest = Manifest(
            namespace=who.agent.namespace,
            agent=who.agent.name,
            attempt=attempt,
            epoch=head.record.epoch,
            created=time_text(self.time.now()),
            consistency="Application",
            components=(ComponentRecord("workspace", "Files", "tree", component_digest(()), 410 << 20, ()),),
            packs=(pack,),
            size=Sizes(410 << 20, 200 << 20, 3 << 20),
            parent=None,
            execution=Execution("docs 42 of 90"),
        )
        name, size = repository.write_manifest(manifest, self.random.randbytes)
        return Offer(
            attempt=attempt,
            manifest=ObjectName(name, size),
            packs=(ObjectName(pack.name, pack.size),),
            trigger=trigger,
            consistency="Application",
            logical_bytes=410 << 20,
            stored_bytes=200 << 20,
            uploaded_bytes=3 << 20,
            timing=Timing(time_text(self.time.now()), pause_milliseconds=38),
            components=(ComponentSummary("workspace", "Files", component_digest(()), 410 << 20),),
            step="docs 42 of 90",
        )

    async def commit(self, who: Incarnation, *, tell: bool = True, attempt: str = "", trigger: str = "") -> Head:
        """The sidecar offers what it was last ordered, and it is committed. tell=False: the operator dies first."""
        if not attempt:
            _, attempt, trigger = next(each for each in reversed(self.orders.ordered) if each[0] == who.agent)
        offer, head = self.offer(who, attempt, trigger), self.head(who.agent)
        assert head is not None
        name: CheckpointName = await self.now_leading.recorder.name_for(who.agent, offer, head)
        new = lineage.commit_checkpoint(
            self.repository(who.agent),
            self.chain(who.agent),
            head,
            lineage.Offer(offer.attempt, offer.manifest.name, offer.manifest.size),
            epoch=head.record.epoch,
            pod_uid=who.pod.uid,
            time=time_text(self.time.now()),
            trigger=trigger,
            number=name.number,
            name=name.name,
        )
        self.orders.in_flight.pop(who.agent, None)
        if tell:
            await self.now_leading.recorder.committed(who.agent, offer, new, STORE)
            await self.settle()
        return new

    async def end(self, who: Incarnation, outcome: str, reason: str = "", message: str = "") -> None:
        """The sidecar ends what it was last ordered without an offer."""
        attempt = self.orders.in_flight.pop(who.agent)
        result = Result(attempt, outcome, reason, message, 12)
        recorder = self.now_leading.recorder
        if outcome == "Unchanged":
            await recorder.unchanged(who.agent, result, self.head(who.agent))
        else:
            await recorder.failed(who.agent, result)
        await self.settle()
