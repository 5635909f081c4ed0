"""The reconcile of one agent: an ordered list of steps, each of which looks at the present state.

It runs for every cause alike: an object or pod changed, the control side reported something, or time has passed.
"""

from typing import Final

from savepoint_operator.model.objects import ObjectKey, Pod, Policy
from savepoint_operator.model.ports import Orders
from savepoint_operator.model.views import AgentRef
from savepoint_operator.reconcile.agent import run_end
from savepoint_operator.reconcile.agent.attempt_status import AttemptStatus
from savepoint_operator.reconcile.agent.attempts import Attempts
from savepoint_operator.reconcile.agent.chain_repair import ChainRepair
from savepoint_operator.reconcile.agent.protected_agent import ProtectedAgents
from savepoint_operator.reconcile.agent.restores import Restores
from savepoint_operator.reconcile.agent.retention import Retention
from savepoint_operator.reconcile.agent_record import AgentRecord, AgentRecords
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.rules import identity

RESYNC_SECONDS: Final = 60.0
"""Interval at which an agent with a live pod is reconciled without an event: its recovery point ages without one."""


class Agents:
    """Runs the steps; it holds no state of its own."""

    def __init__(
        self,
        cache: ClusterCache,
        agent_records: AgentRecords,
        *,
        chain_repair: ChainRepair,
        attempt_status: AttemptStatus,
        attempts: Attempts,
        restores: Restores,
        retention: Retention,
        protected: ProtectedAgents,
    ) -> None:
        self._cache, self._agent_records = cache, agent_records
        self._chain_repair, self._restores = chain_repair, restores
        self._attempt_status, self._attempts = attempt_status, attempts
        self._retention, self._protected = retention, protected

    async def reconcile(self, agent: AgentRef, orders: Orders) -> float | None:
        """Run every step. Return the seconds until the next reconcile, None if only an event can change anything."""
        if not self._exists(agent):
            self._agent_records.drop(agent)
            return None
        agent_record = self._agent_records[agent]
        pod = self._newest_pod(agent)
        policy = self._policy(pod)
        store = self._store(agent_record, policy)
        await self._protected.ensure(agent_record)
        delays = [await self._chain_repair.repair(agent_record, store, orders)]
        delays.append(await run_end.end_run(agent_record, store, orders))
        await self._attempts.follow_annotation(agent_record, pod)
        delays.append(await self._attempt_status.write(agent_record))
        delays.append(await self._attempts.order_requested(agent_record, policy, orders))
        if agent_record.chain_read:
            delays.append(await self._attempts.order_scheduled(agent_record, policy, orders))
        delays.append(await self._restores.end_lost(agent_record))
        await self._restores.write_status(agent_record)
        await self._restores.expire(agent_record)
        await self._retention.expire(agent_record, policy)
        await self._protected.write_status(agent_record, policy, store)
        delays.append(await self._retention.collect(agent_record, store, orders))
        if pod is not None and pod.live:
            delays.append(RESYNC_SECONDS)
        return min((delay for delay in delays if delay is not None), default=None)

    async def write_status(self, agent: AgentRef) -> None:
        """Write what was reported, and nothing else: no checkpoint is ordered, expired or collected."""
        agent_record = self._agent_records[agent]
        policy = self._policy(self._newest_pod(agent))
        await self._attempt_status.write(agent_record)
        await self._restores.write_status(agent_record)
        await self._protected.write_status(agent_record, policy, self._store(agent_record, policy))

    def _exists(self, agent: AgentRef) -> bool:
        """Return whether the agent has a session, an object or a pod; without any, as in a deleted namespace, what is
        remembered of it can be written nowhere."""
        agent_record, cache = self._agent_records.get(agent), self._cache
        return bool(
            (agent_record is not None and agent_record.session)
            or cache.agents.get(ObjectKey(*agent))
            or cache.pods.of(agent)
            or cache.checkpoints.of(agent)
            or cache.restores.of(agent)
        )

    def _newest_pod(self, agent: AgentRef) -> Pod | None:
        """Return the newest live pod; if none is live, the newest one."""
        pods = self._cache.pods.of(agent)
        return next((pod for pod in reversed(pods) if pod.live), pods[-1] if pods else None)

    def _policy(self, pod: Pod | None) -> Policy | None:
        return next(iter(self._cache.policies_for(pod)), None) if pod is not None else None

    def _store(self, agent_record: AgentRecord, policy: Policy | None) -> str:
        """Return the store of the agent's chain: the one its pod was given, else the one in its status, else the one
        that a new pod would be given."""
        if agent_record.incarnation is not None:
            return agent_record.incarnation.store_name
        item = self._cache.agents.get(ObjectKey(*agent_record.agent))
        if item is not None and item.status.get("storeName"):
            return str(item.status["storeName"])
        if policy is not None and policy.store_name:
            return policy.store_name
        default = identity.default_store(self._cache.stores)
        return default.meta.name if default is not None else ""
