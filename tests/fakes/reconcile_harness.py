"""A harness for all of reconcile, over a fake API server and a store in a folder; the test moves pods and time.

The control side is scripted: it writes the chain with the same functions and makes the same calls to the recorder.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from savepoint.contract.control_protocol import ComponentSummary, ObjectName, Offer, Outcome, Result, Timing
from savepoint.contract.names import CONTAINER_SIDECAR, LABEL_AGENT
from savepoint.errors import Refused, Unavailable
from savepoint.repository.format import commit as records
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.manifest import ComponentRecord, Execution, Manifest, Pack, Sizes, component_digest
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.collect import CollectReport
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
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.model.views import AgentRef, CheckpointName, Incarnation, PodIdentity, Refusal, SessionView
from savepoint_operator.reconcile.assembly import ReconcileParts, assemble
from savepoint_operator.reconcile.dependencies import ReconcileDependencies
from savepoint_operator.reconcile.keyring import MASTER_KEY_FIELD, fields

from tests.fakes.cluster import FakeCluster

NAMESPACE = "demo"
CODER = AgentRef(NAMESPACE, "coder")
STORE = "default"


class ManualClock:
    """A monotonic clock and a wall clock that advance together, and only when the test says so."""

    def __init__(self) -> None:
        self.seconds = 10_000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 11, 24, tzinfo=UTC) + timedelta(seconds=self.seconds)


class ScriptedOrders:
    """Implements ``Orders`` over the real chain; an ordered checkpoint stays in flight until the test ends it."""

    def __init__(self, harness: ReconcileHarness) -> None:
        self._harness = harness
        self.sessions: dict[AgentRef, SessionView] = {}
        self.ordered: list[tuple[AgentRef, str, str]] = []
        self.in_flight: dict[AgentRef, str] = {}
        self.collected: list[tuple[AgentRef, frozenset[int]]] = []
        self.collect_report = CollectReport()
        self.rolled_back: list[tuple[AgentRef, int | None]] = []
        self.store_unavailable = False

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

    async def rollback(self, agent: AgentRef, attempt: str, to_sequence: int | None, store: str) -> ChainRecord:
        await self._harness.leader.stores.open(store)
        self.rolled_back.append((agent, to_sequence))
        chain, head = self._harness.chain(agent), self._harness.head(agent)
        assert head is not None
        manifest = None if to_sequence is None else chain.record(to_sequence).manifest
        return lineage.rollback(chain, head, manifest, time_text(self._harness.clock.now()), attempt)

    async def end_run(self, agent: AgentRef, pod_uid: str, store: str) -> ChainRecord | None:
        head = self._harness.head(agent)
        if self.store_unavailable or agent in self.sessions:
            raise Unavailable("not now")
        if head is None or head.record.pod_uid != pod_uid or head.record.kind in ("completed", "rollback"):
            return head
        time = time_text(self._harness.clock.now())
        ended = lineage.complete(self._harness.chain(agent), head, head.record.epoch, pod_uid, time)
        await self._harness.leader.recorder.committed(agent, None, ended, store)
        return ended

    async def collect(self, agent: AgentRef, store: str, keep_sequences: frozenset[int]) -> CollectReport:
        self.collected.append((agent, keep_sequences))
        return self.collect_report

    async def head(self, agent: AgentRef, store: str) -> ChainRecord | None:
        parts = self._harness.leader
        opened = OpenRepository(await parts.stores.open(store), agent, self._harness.random.randbytes)
        opened.open(self._harness.clock.now())
        return opened.head(None, await parts.pod_resolver.pinned(agent))


class ReconcileHarness:
    """``new_leader`` starts another leader over the same cluster and store."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.cluster = FakeCluster(self.clock.now)
        self.random = random.Random(7)
        self.objects = DirectoryStore(folder, create=True)
        self.orders = ScriptedOrders(self)
        self.parts: ReconcileParts | None = None
        self.pod_count = 0

    async def prepare(self) -> None:
        """Create a cluster with a store, and a leader that has reconciled everything."""
        self.cluster.put(NAMESPACES, "kube-system", metadata={"uid": "the-cluster"})
        self.cluster.put(NAMESPACES, NAMESPACE)
        keys = {"accessKey": "YWNjZXNz", "secretKey": "c2VjcmV0"}
        self.cluster.put(SECRETS, "s3-keys", "savepoint-system", data=keys)
        s3 = {"endpoint": "https://s3.test", "bucket": "agents", "credentialsSecretName": "s3-keys"}
        self.cluster.put(STORES, STORE, spec={"s3": s3, "default": True})
        for name in ("n1", "n2"):
            self.node(name)
        await self.new_leader()

    async def new_leader(self, **changes: Any) -> ReconcileParts:
        """Start a leader; ``changes`` replace its dependencies."""
        dependencies = ReconcileDependencies(
            cluster=self.cluster,
            events=Events(self.cluster, self.clock.now, "operator-0"),
            metrics=Metrics(),
            clocks=Clocks(self.clock.now, self.clock.monotonic),
            random_bytes=self.random.randbytes,
            random_fraction=lambda: 0.5,
            cluster_id="the-cluster",
            namespace="savepoint-system",
            master_key_secret="savepoint-master-key",
            not_running_seconds=60.0,
            build_store=lambda _: self.objects,
        )
        self.parts = parts = assemble(replace(dependencies, **changes))
        self.cluster.watcher = lambda kind, deleted, raw: (
            parts.reconciler.observe(kind, deleted, raw) if kind in WATCHED else None
        )
        self.orders = ScriptedOrders(self)
        await parts.reconciler.list_all()
        await self.settle()
        return parts

    @property
    def leader(self) -> ReconcileParts:
        """The parts of the present leader."""
        assert self.parts is not None
        return self.parts

    # -- time -----------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Reconcile until nothing is due."""
        parts = self.leader
        for _ in range(1000):
            if not parts.queue.due:
                return
            await parts.reconciler.work_one(self.orders)
        raise AssertionError("reconcile never settles: after 1000 keys more are due")

    async def advance(self, seconds: float, step: float = 1.0) -> None:
        """Advance the clocks in steps, and reconcile what is due after each step."""
        end = self.clock.seconds + seconds
        while self.clock.seconds < end:
            self.clock.seconds = min(self.clock.seconds + step, end)
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
        """Create a pod on node n1."""
        self.pod_count += 1
        name = f"{agent}-pod-{self.pod_count}"
        metadata["labels"] = {LABEL_AGENT: agent, **metadata.get("labels", {})}
        spec: dict[str, Any] = {"nodeName": "n1", "containers": [{"name": "agent"}], "restartPolicy": restart_policy}
        if injected:
            spec["initContainers"] = [{"name": CONTAINER_SIDECAR}]
        raw = self.cluster.put(PODS, name, NAMESPACE, metadata=metadata, spec=spec, status={"phase": phase})
        return PodIdentity(NAMESPACE, name, raw["metadata"]["uid"])

    def request(self, name: str = "manual-1", agent: str = "coder", **spec: Any) -> str:
        """Create an AgentCheckpoint as a user does; return its attempt id."""
        raw = self.cluster.put(CHECKPOINTS, name, NAMESPACE, spec={"agent": agent, **spec})
        return str(raw["metadata"]["uid"].replace("-", ""))

    def checkpoint(self, name: str) -> dict[str, Any]:
        """Return the status of an AgentCheckpoint."""
        status: dict[str, Any] = self.cluster.object(CHECKPOINTS, name, NAMESPACE).get("status", {})
        return status

    def checkpoints(self) -> dict[str, str]:
        """Return the reason of every AgentCheckpoint by name."""
        return {
            raw["metadata"]["name"]: raw.get("status", {}).get("reason", "") for raw in self.cluster.every(CHECKPOINTS)
        }

    def agent(self, name: str = "coder") -> dict[str, Any]:
        """Return the status of a ProtectedAgent."""
        status: dict[str, Any] = self.cluster.object(AGENTS, name, NAMESPACE).get("status", {})
        return status

    def restores(self) -> list[dict[str, Any]]:
        """Return the statuses of all AgentRestores, oldest first."""
        return [raw.get("status", {}) for raw in self.cluster.every(RESTORES)]

    # -- the chain ------------------------------------------------------------------------------------------------

    def master(self) -> MasterKey:
        return MasterKey(
            fields(self.cluster.object(SECRETS, "savepoint-master-key", "savepoint-system"))[MASTER_KEY_FIELD]
        )

    def repository(self, agent: AgentRef = CODER) -> Repository:
        return Repository.open_or_create(
            self.objects, *agent, self.master(), now=self.clock.now(), random_bytes=self.random.randbytes
        )

    def chain(self, agent: AgentRef = CODER) -> Chain:
        return Chain(self.repository(agent).store, *agent)

    def head(self, agent: AgentRef = CODER) -> ChainRecord | None:
        return self.chain(agent).head(None)

    # -- the control side -----------------------------------------------------------------------------------------

    async def resolve(self, pod: PodIdentity) -> Incarnation:
        """Return the agent's incarnation that the pod is."""
        found = await self.leader.pod_resolver.incarnation(pod)
        assert not isinstance(found, Refusal), found
        return found

    async def start(self, pod: PodIdentity, outcome: str = "", **more: Any) -> Incarnation:
        """Start the pod: it is granted its epoch, restores and connects."""
        incarnation, recorder = await self.resolve(pod), self.leader.recorder
        head = self.chain(incarnation.agent).append(
            records.grant(
                self.head(incarnation.agent),
                *incarnation.agent,
                pod_uid=pod.uid,
                node=incarnation.node,
                time=time_text(self.clock.now()),
            )
        )
        restores = self._restores(incarnation.agent, head)
        await recorder.granted(incarnation, head, restores)
        await self.settle()
        reported = outcome or ("Restored" if restores else "Fresh")
        await recorder.restore_ended(incarnation, Outcome(reported, milliseconds=3100, **more))
        await self.connect(incarnation)
        return incarnation

    def _restores(self, agent: AgentRef, head: ChainRecord) -> str | None:
        target = head.record.manifest
        if target is None:
            return None
        checkpoints = (each for each in self.chain(agent).back(head, 100) if each.record.kind == "checkpoint")
        return next(each.record.name for each in checkpoints if each.record.manifest == target)

    async def connect(self, incarnation: Incarnation) -> None:
        head = self.head(incarnation.agent)
        epoch = head.record.epoch if head else 0
        view = SessionView(
            incarnation.agent, incarnation.pod, incarnation.node, epoch, self.clock.now(), True, "", "0.1.0", None
        )
        self.orders.sessions[incarnation.agent] = view
        await self.leader.recorder.connected(view, incarnation)
        await self.settle()

    async def disconnect(self, incarnation: Incarnation, *, released: bool = False, completed: bool = False) -> None:
        recorder = self.leader.recorder
        if released:
            await recorder.released(incarnation.agent, incarnation.pod, completed, "")
        self.orders.sessions.pop(incarnation.agent, None)
        await recorder.disconnected(incarnation.agent, incarnation.pod)
        await self.settle()

    def offer(self, incarnation: Incarnation, attempt: str, trigger: str) -> Offer:
        """Store a checkpoint as a sidecar does, and return its offer."""
        repository, head = self.repository(incarnation.agent), self.head(incarnation.agent)
        assert head is not None
        content = b"SVPNTPK1" + self.random.randbytes(100)
        pack = Pack(f"{head.record.epoch}-{hashlib.sha256(content).hexdigest()[:32]}", len(content))
        repository.store.put_new(f"packs/{pack.name}", content)
        manifest = Manifest(
            namespace=incarnation.agent.namespace,
            agent=incarnation.agent.name,
            attempt=attempt,
            epoch=head.record.epoch,
            created=time_text(self.clock.now()),
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
            timing=Timing(time_text(self.clock.now()), pause_milliseconds=38),
            components=(ComponentSummary("workspace", "Files", component_digest(()), 410 << 20),),
            step="docs 42 of 90",
        )

    async def commit(
        self, incarnation: Incarnation, *, report: bool = True, attempt: str = "", trigger: str = ""
    ) -> ChainRecord:
        """Offer and commit the checkpoint that was ordered last. ``report=False``: the operator dies right after."""
        if not attempt:
            _, attempt, trigger = next(each for each in reversed(self.orders.ordered) if each[0] == incarnation.agent)
        offer, head = self.offer(incarnation, attempt, trigger), self.head(incarnation.agent)
        assert head is not None
        name: CheckpointName = await self.leader.recorder.name_for(incarnation.agent, offer, head)
        new = lineage.commit_checkpoint(
            self.repository(incarnation.agent),
            self.chain(incarnation.agent),
            head,
            lineage.UploadedCheckpoint(offer.attempt, offer.manifest.name, offer.manifest.size),
            epoch=head.record.epoch,
            pod_uid=incarnation.pod.uid,
            time=time_text(self.clock.now()),
            trigger=trigger,
            number=name.number,
            name=name.name,
        )
        self.orders.in_flight.pop(incarnation.agent, None)
        if report:
            await self.leader.recorder.committed(incarnation.agent, offer, new, STORE)
            await self.settle()
        return new

    async def end_attempt(self, incarnation: Incarnation, outcome: str, reason: str = "", message: str = "") -> None:
        """End the attempt that was ordered last without an offer."""
        attempt = self.orders.in_flight.pop(incarnation.agent)
        result = Result(attempt, outcome, reason, message, 12)
        recorder = self.leader.recorder
        if outcome == "Unchanged":
            await recorder.unchanged(incarnation.agent, result, self.head(incarnation.agent))
        else:
            await recorder.failed(incarnation.agent, result)
        await self.settle()
