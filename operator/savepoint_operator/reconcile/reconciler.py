"""The loop: keys from the queue to looks, a few at a time; listings that mend what watches missed; the numbers.

It is the only place of reconcile that catches faults: a look that failed comes again, later each time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

from savepoint.contract.names import LABEL_AGENT
from savepoint.errors import SavepointError

from savepoint_operator.cluster.errors import Terminating
from savepoint_operator.cluster.kinds import PODS, WATCHED, WORKLOADS, Kind
from savepoint_operator.metrics import Metrics
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
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
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
BEHIND_SECONDS: Final = 10.0
NUMBERS_SECONDS: Final = 15.0
SELECTORS: Final = {kind.kind: LABEL_AGENT for kind in (PODS, *WORKLOADS)}
"""Which of the foreign kinds' objects are of interest."""


class Reconciler:
    """Everything runs on the operator's event loop."""

    def __init__(
        self,
        cluster: ClusterClient,
        cache: ClusterCache,
        agent_records: AgentRecords,
        queue: KeyedQueue[Work],
        metrics: Metrics,
        *,
        stores: StoreRegistry,
        agents: Agents,
        rollbacks: Rollbacks,
        surroundings: Policies,
        now: Callable[[], datetime],
    ) -> None:
        self._cluster, self._cache, self._agent_records, self._queue, self._metrics = (
            cluster,
            cache,
            agent_records,
            queue,
            metrics,
        )
        self._stores, self._agents, self._rollbacks, self._surroundings = stores, agents, rollbacks, surroundings
        self._now = now
        self._rewatch: Callable[[], Awaitable[None]] = _nothing

    # -- what comes in --------------------------------------------------------------------------------------------

    def observe(self, kind: Kind, deleted: bool, raw: dict[str, Any]) -> None:
        """One object was seen, or seen to be gone."""
        shelf = self._cache.shelf(kind)
        if deleted:
            before, now = shelf.remove(raw), None
        else:
            before, now = shelf.put(raw)
        if before is now or (isinstance(before, Node) and isinstance(now, Node) and before.lost == now.lost):
            return
        for item in (before, now):
            if item is not None:
                self._add_for(item, gone=now is None)

    async def list_all(self, behind_seconds: float = 0.0) -> int:
        """Replace what is known by what there is, and look at everything. Raises Unavailable, Denied.

        Watches are given ``behind_seconds`` to tell by themselves what the listings say; how much they did not tell.
        """
        listed = {kind: await self._cluster.list(kind, selector=SELECTORS.get(kind.kind, "")) for kind in WATCHED}
        await asyncio.sleep(behind_seconds)
        missed = 0
        for kind, raws in listed.items():
            shelf = self._cache.shelf(kind)
            missed += sum(shelf.lacks(raw) for raw in raws)
            lost = shelf.replace([{"kind": kind.kind, **raw} for raw in raws])
            for item in lost:
                self._add_for(item, gone=True)
            for item in shelf:
                self._add_for(item, gone=False)
        return missed

    async def look_at_stores(self, seconds: float) -> None:
        """Each store once, all together, for at most so long: pods can be served only by stores that were looked at.

        What failed, or takes longer, comes from the queue.
        """
        looks = [asyncio.create_task(self._look_at_store(store.meta.name)) for store in self._cache.stores]
        try:
            if looks:
                await asyncio.wait(looks, timeout=seconds)
        finally:
            for each in looks:
                each.cancel()
            await asyncio.gather(*looks, return_exceptions=True)

    def _add_for(self, item: object, *, gone: bool) -> None:  # noqa: PLR0912 - one branch per kind
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
                if gone:
                    self._forget(item.agent)
                add(AgentWork(item.agent))
            case CheckpointObject():
                add(AgentWork(item.agent))
            case RestoreObject() if item.mode == "Resume":
                if item.agent_name:
                    add(AgentWork(AgentRef(item.meta.namespace, item.agent_name)))
            case RestoreObject():
                add(RollbackWork(item.meta.key))

    def _forget(self, agent: AgentRef) -> None:
        """Whoever deletes a ProtectedAgent accepts what the store holds: what memory pins goes with it."""
        agent_record = self._agent_records.get(agent)
        if agent_record is not None:
            agent_record.head, agent_record.latest, agent_record.recovery_point = None, None, None

    # -- what goes on ---------------------------------------------------------------------------------------------

    async def run(self, orders: Orders, rewatch: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. ``rewatch`` begins the watches anew."""
        self._rewatch = rewatch
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work(orders))
            group.create_task(self._every(LIST_SECONDS, self._list_again))
            group.create_task(self._every(NUMBERS_SECONDS, self._count))

    async def _work(self, orders: Orders) -> None:
        while True:
            await self.work_one(orders)

    async def work_one(self, orders: Orders) -> None:
        """Wait for a key that is due, and look at it."""
        key = await self._queue.take()
        try:
            again = await self._look(key, orders)
        except Terminating as error:
            pause = self._queue.failed(key)
            level = logging.INFO if self._queue.failures(key) == 1 else logging.DEBUG
            log.log(level, "%s: its namespace is being deleted, nothing is made in it any more: %s", key, error)
        except SavepointError as error:
            pause = self._queue.failed(key)
            self._metrics.fault(error.reason)
            log.warning("%s: %s: %s; again in %.1f s", key, error.reason, error, pause)
        except Exception as error:
            pause = self._queue.failed(key)
            self._metrics.fault(type(error).__name__)
            log.exception("%s: a fault of the operator's own; again in %.1f s", key, pause)
        else:
            self._queue.done(key, again_seconds=again)

    async def _look(self, key: Work, orders: Orders) -> float | None:
        match key:
            case AgentWork(agent):
                return await self._agents.reconcile(agent, orders)
            case StoreWork(name):
                return await self._look_at_store(name)
            case PolicyWork(name):
                await self._surroundings.policy(name)
            case PodWork(name):
                await self._surroundings.pod(name)
            case WorkloadWork(kind, name):
                await self._surroundings.workload(kind, name)
            case RollbackWork(name):
                return await self._rollbacks.reconcile(name, orders)
        return None

    async def _look_at_store(self, name: str) -> float:
        was = self._stores.ready(name)
        again = await self._stores.reconcile(name)
        ready = self._stores.ready(name)
        self._metrics.store(name, ready)
        if ready and not was:
            for agent in self._cache.every_agent():
                self._queue.add(AgentWork(agent))
        return again

    async def _list_again(self) -> None:
        try:
            missed = await self.list_all(BEHIND_SECONDS)
        except SavepointError as error:
            log.warning("the listing failed: %s", error)
            return
        if missed:
            log.error("watches have missed %d changes: they are begun anew", missed)
            self._metrics.missed(missed)
            await self._rewatch()
        for agent_record in self._agent_records.all():
            agent_record.chain_read = (
                agent_record.chain_read and agent_record.session is not None
            )  # without a session only the chain tells

    async def _count(self) -> None:
        now = self._now()
        ages = []
        for item in self._cache.agents:
            point = parsed_time(item.status.get("recoveryPointTime"))
            if point is not None:
                ages.append((item.meta.namespace, item.meta.name, max((now - point).total_seconds(), 0.0)))
        self._metrics.standing(ages, [item.reason for item in self._cache.agents], len(self._queue))

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await work()


async def _nothing() -> None:
    return
