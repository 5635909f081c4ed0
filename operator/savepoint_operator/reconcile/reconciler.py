"""The main loop: takes keys from the queue and reconciles them, lists every kind again now and then, updates metrics.

It is the only place in reconcile that catches faults: a key that failed is queued again with backoff.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from savepoint.contract.names import LABEL_AGENT
from savepoint.contract.vocabulary import RestoreMode
from savepoint.errors import SavepointError

from savepoint_operator.cluster.errors import NamespaceTerminating
from savepoint_operator.cluster.kinds import PODS, WATCHED, WORKLOADS, Kind
from savepoint_operator.model.objects import (
    AgentObject,
    CheckpointObject,
    Node,
    Pod,
    Policy,
    RestoreObject,
    Store,
    Workload,
)
from savepoint_operator.model.ports import Orders
from savepoint_operator.model.views import AgentRef
from savepoint_operator.reconcile.agent.agents import Agents
from savepoint_operator.reconcile.agent_record import AgentRecords
from savepoint_operator.reconcile.dependencies import StepDependencies
from savepoint_operator.reconcile.policies import Policies
from savepoint_operator.reconcile.rollbacks import Rollbacks
from savepoint_operator.reconcile.stores import StoreRegistry
from savepoint_operator.reconcile.work_items import (
    AgentWork,
    PodWork,
    PolicyWork,
    RollbackWork,
    StoreWork,
    Work,
    WorkloadWork,
)
from savepoint_operator.reconcile.work_queue import KeyedQueue
from savepoint_operator.rules.completion import ends_run
from savepoint_operator.rules.identity import agent_of
from savepoint_operator.rules.status.conditions import parsed_time

log = logging.getLogger(__name__)

WORKERS: Final = 8
LIST_SECONDS: Final = 300.0
WATCH_LAG_SECONDS: Final = 10.0
"""Time that a watch may lag behind a listing before a change counts as missed."""
METRICS_SECONDS: Final = 15.0
SELECTORS: Final = {kind.kind: LABEL_AGENT for kind in (PODS, *WORKLOADS)}
"""The label selector of kinds that are not Savepoint's."""


@dataclass(frozen=True)
class Reconcilers:
    """The parts that reconcile each kind of key."""

    stores: StoreRegistry
    agents: Agents
    rollbacks: Rollbacks
    policies: Policies


class Reconciler:
    """Runs on the operator's event loop."""

    def __init__(
        self,
        dependencies: StepDependencies,
        agent_records: AgentRecords,
        queue: KeyedQueue[Work],
        reconcilers: Reconcilers,
    ) -> None:
        self._cluster, self._cache, self._metrics = dependencies.cluster, dependencies.cache, dependencies.metrics
        self._now = dependencies.clocks.now
        self._agent_records, self._queue = agent_records, queue
        self._stores, self._agents = reconcilers.stores, reconcilers.agents
        self._rollbacks, self._policies = reconcilers.rollbacks, reconcilers.policies
        self._restart_watches: Callable[[], Awaitable[None]] = _no_watches

    # -- observed objects -----------------------------------------------------------------------------------------

    def observe(self, kind: Kind, deleted: bool, raw: dict[str, Any]) -> None:
        """Update the cache from a watch and queue what the change affects."""
        cache = self._cache.of_kind(kind)
        if deleted:
            before, after = cache.remove(raw), None
        else:
            before, after = cache.put(raw)
        if before is after or (isinstance(before, Node) and isinstance(after, Node) and before.lost == after.lost):
            return
        for item in (before, after):
            if item is not None:
                self._enqueue_for(item, deleted=after is None)

    async def list_all(self, watch_lag_seconds: float = 0.0) -> int:
        """Replace the cache by a listing of every kind and queue everything. Raises Unavailable, Denied.

        Returns the number of changes that the watches did not report within ``watch_lag_seconds`` of the listing.
        """
        listed = {kind: await self._cluster.list(kind, selector=SELECTORS.get(kind.kind, "")) for kind in WATCHED}
        await asyncio.sleep(watch_lag_seconds)
        missed = 0
        for kind, raws in listed.items():
            cache = self._cache.of_kind(kind)
            missed += sum(cache.is_behind(raw) for raw in raws)
            lost = cache.replace([{"kind": kind.kind, **raw} for raw in raws])
            for item in lost:
                self._enqueue_for(item, deleted=True)
            for item in cache:
                self._enqueue_for(item, deleted=False)
        return missed

    async def reconcile_stores(self, seconds: float) -> None:
        """Reconcile all stores concurrently, for at most ``seconds``: only a reconciled store can serve pods.

        Stores that fail or take longer are left to the queue.
        """
        tasks = [asyncio.create_task(self._reconcile_store(store.meta.name)) for store in self._cache.stores]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=seconds)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _enqueue_for(self, item: object, *, deleted: bool) -> None:  # noqa: PLR0912 - one branch per kind
        add = self._queue.add
        match item:
            case Store():
                add(StoreWork(item.meta.name))
                for policy in self._cache.policies:
                    if policy.store_name in (None, item.meta.name):
                        add(PolicyWork(policy.meta.key))
            case Policy():
                for policy in self._cache.policies:
                    if policy.meta.namespace == item.meta.namespace:
                        add(PolicyWork(policy.meta.key))
            case Pod():
                agent = agent_of(item)
                if isinstance(agent, AgentRef):
                    if ends_run(item):
                        self._agent_records[agent].ended_pods.add(item.meta.uid)
                    add(AgentWork(agent))
                add(PodWork(item.meta.key))
                for policy in self._cache.policies:
                    if policy.meta.namespace == item.meta.namespace and policy.selector.selects(item.meta.labels):
                        add(PolicyWork(policy.meta.key), 2.0)
            case Node():
                for pod in self._cache.pods:
                    agent = agent_of(pod)
                    if pod.node == item.meta.name and isinstance(agent, AgentRef):
                        add(AgentWork(agent))
            case Workload():
                add(WorkloadWork(item.kind, item.meta.key))
            case AgentObject():
                if deleted:
                    self._forget_pin(item.agent)
                add(AgentWork(item.agent))
            case CheckpointObject():
                add(AgentWork(item.agent))
            case RestoreObject() if item.mode == RestoreMode.RESUME:
                if item.agent_name:
                    add(AgentWork(AgentRef(item.meta.namespace, item.agent_name)))
            case RestoreObject():
                add(RollbackWork(item.meta.key))

    def _forget_pin(self, agent: AgentRef) -> None:
        """Forget the newest record: deleting the ProtectedAgent is how a user accepts whatever the store holds."""
        agent_record = self._agent_records.get(agent)
        if agent_record is not None:
            agent_record.head, agent_record.latest, agent_record.recovery_point = None, None, None

    # -- the loop -------------------------------------------------------------------------------------------------

    async def run(self, orders: Orders, restart_watches: Callable[[], Awaitable[None]]) -> None:
        """Run until cancelled. ``restart_watches`` is called when watches have missed changes."""
        self._restart_watches = restart_watches
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work(orders))
            group.create_task(self._every(LIST_SECONDS, self._list_again))
            group.create_task(self._every(METRICS_SECONDS, self._update_metrics))

    async def _work(self, orders: Orders) -> None:
        while True:
            await self.work_one(orders)

    async def work_one(self, orders: Orders) -> None:
        """Wait for a key that is due, and reconcile it."""
        key = await self._queue.take()
        try:
            requeue_seconds = await self._reconcile(key, orders)
        except NamespaceTerminating as error:
            pause = self._queue.failed(key)
            level = logging.INFO if self._queue.failures(key) == 1 else logging.DEBUG
            log.log(level, "%s: its namespace is being deleted, nothing can be created in it: %s", key, error)
        except SavepointError as error:
            pause = self._queue.failed(key)
            self._metrics.fault(error.reason)
            log.warning("%s: reconcile failed: %s: %s; retrying in %.1f s", key, error.reason, error, pause)
        except Exception as error:
            pause = self._queue.failed(key)
            self._metrics.fault(type(error).__name__)
            log.exception("%s: reconcile failed: internal error; retrying in %.1f s", key, pause)
        else:
            self._queue.done(key, requeue_seconds=requeue_seconds)

    async def _reconcile(self, key: Work, orders: Orders) -> float | None:
        match key:
            case AgentWork(agent):
                return await self._agents.reconcile(agent, orders)
            case StoreWork(name):
                return await self._reconcile_store(name)
            case PolicyWork(name):
                await self._policies.reconcile_policy(name)
            case PodWork(name):
                await self._policies.reconcile_pod(name)
            case WorkloadWork(kind, name):
                await self._policies.reconcile_workload(kind, name)
            case RollbackWork(name):
                return await self._rollbacks.reconcile(name, orders)
        return None

    async def _reconcile_store(self, name: str) -> float:
        was_ready = self._stores.ready(name)
        requeue_seconds = await self._stores.reconcile(name)
        ready = self._stores.ready(name)
        self._metrics.store(name, ready)
        if ready and not was_ready:
            for agent in self._cache.all_agents():
                self._queue.add(AgentWork(agent))
        return requeue_seconds

    async def _list_again(self) -> None:
        try:
            missed = await self.list_all(WATCH_LAG_SECONDS)
        except SavepointError as error:
            log.warning("cannot list all objects: %s; listing again in %.0f s", error, LIST_SECONDS)
            return
        if missed:
            log.error("watches missed %d changes; restarting them", missed)
            self._metrics.missed(missed)
            await self._restart_watches()
        for agent_record in self._agent_records.all():
            if agent_record.session is None:  # without a session, new records are only visible in the chain
                agent_record.chain_read = False

    async def _update_metrics(self) -> None:
        now = self._now()
        ages = []
        for item in self._cache.agents:
            point = parsed_time(item.status.get("recoveryPointTime"))
            if point is not None:
                ages.append((item.meta.namespace, item.meta.name, max((now - point).total_seconds(), 0.0)))
        self._metrics.set_gauges(ages, [item.reason for item in self._cache.agents], len(self._queue))

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await work()


async def _no_watches() -> None:
    return
