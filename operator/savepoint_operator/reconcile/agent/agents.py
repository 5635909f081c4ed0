"""One look at one agent: an ordered list of steps, each of which looks at what *is*.

It is called for every reason alike: an object or pod that changed, something the control side told, or time.
"""

from savepoint_operator.model.objects import ObjectKey, Pod, Policy
from savepoint_operator.model.ports import Orders
from savepoint_operator.model.views import AgentRef
from savepoint_operator.reconcile.agent import run_end
from savepoint_operator.reconcile.agent.attempts import Attempts
from savepoint_operator.reconcile.agent.chain_repair import ChainRepair
from savepoint_operator.reconcile.agent.protected_agent import ProtectedAgents
from savepoint_operator.reconcile.agent.restores import Restores
from savepoint_operator.reconcile.agent.retention import Retention
from savepoint_operator.reconcile.agent_record import AgentRecord, AgentRecords
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.rules import identity

LOOK_SECONDS = 60.0
"""So often a live agent is looked at anyway: its recovery point grows old without any event."""


class Agents:
    """Holds nothing but its steps."""

    def __init__(
        self,
        cache: ClusterCache,
        agent_records: AgentRecords,
        *,
        chronicle: ChainRepair,
        attempts: Attempts,
        restores: Restores,
        retention: Retention,
        protected: ProtectedAgents,
    ) -> None:
        self._cache, self._agent_records = cache, agent_records
        self._chronicle, self._attempts, self._restores = chronicle, attempts, restores
        self._retention, self._protected = retention, protected

    async def reconcile(self, agent: AgentRef, orders: Orders) -> float | None:
        """Seconds until the next look, None when only an event can bring news."""
        if not self._spoken_of(agent):
            self._agent_records.drop(agent)
            return None
        agent_record = self._agent_records[agent]
        pod = self._newest(agent)
        policy = self._policy(pod)
        store = self._store(agent_record, policy)
        await self._protected.ensure(agent_record)
        again = [await self._chronicle.repair(agent_record, store, orders)]
        again.append(await run_end.end_run(agent_record, store, orders))
        await self._attempts.follow_annotation(agent_record, pod)
        again.append(await self._attempts.write_notes(agent_record))
        again.append(await self._attempts.order_requests(agent_record, policy, orders))
        if agent_record.chain_read:
            again.append(await self._attempts.take_due(agent_record, policy, orders))
        again.append(await self._restores.end_lost(agent_record))
        await self._restores.write_notes(agent_record)
        await self._restores.expire(agent_record)
        await self._retention.expire(agent_record, policy)
        await self._protected.write(agent_record, policy, store)
        again.append(await self._retention.collect(agent_record, store, orders))
        if pod is not None and pod.live:
            again.append(LOOK_SECONDS)
        return min((each for each in again if each is not None), default=None)

    async def tell(self, agent: AgentRef) -> None:
        """Only write what was told: nothing is ordered, expired or collected."""
        agent_record = self._agent_records[agent]
        policy = self._policy(self._newest(agent))
        await self._attempts.write_notes(agent_record)
        await self._restores.write_notes(agent_record)
        await self._protected.write(agent_record, policy, self._store(agent_record, policy))

    def _spoken_of(self, agent: AgentRef) -> bool:
        """Once its objects, its pods and its session are gone, as with a namespace, what was noted has no place."""
        agent_record, cache = self._agent_records.get(agent), self._cache
        return bool(
            (agent_record is not None and agent_record.session)
            or cache.agents.get(ObjectKey(*agent))
            or cache.pods.of(agent)
            or cache.checkpoints.of(agent)
            or cache.restores.of(agent)
        )

    def _newest(self, agent: AgentRef) -> Pod | None:
        pods = self._cache.pods.of(agent)
        return next((pod for pod in reversed(pods) if pod.live), pods[-1] if pods else None)

    def _policy(self, pod: Pod | None) -> Policy | None:
        return next(iter(self._cache.policies_for(pod)), None) if pod is not None else None

    def _store(self, agent_record: AgentRecord, policy: Policy | None) -> str:
        """Where the agent's chain is: as its pod was told, as was written, or as it would be told now."""
        if agent_record.who is not None:
            return agent_record.who.store_name
        item = self._cache.agents.get(ObjectKey(*agent_record.agent))
        if item is not None and item.status.get("storeName"):
            return str(item.status["storeName"])
        if policy is not None and policy.store_name:
            return policy.store_name
        default = identity.default_store(self._cache.stores)
        return default.meta.name if default is not None else ""
