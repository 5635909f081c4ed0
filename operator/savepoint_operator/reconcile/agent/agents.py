"""One look at one agent: an ordered list of steps, each of which looks at what *is*.

It is called for every reason alike: an object or pod that changed, something the control side told, or time.
"""

from savepoint_operator.model.objects import ObjectKey, Pod, Policy
from savepoint_operator.model.ports import Orders
from savepoint_operator.model.views import AgentKey
from savepoint_operator.reconcile.agent import run_end
from savepoint_operator.reconcile.agent.attempts import Attempts
from savepoint_operator.reconcile.agent.chain_repair import Chronicle
from savepoint_operator.reconcile.agent.protected_agent import ProtectedAgents
from savepoint_operator.reconcile.agent.restores import Restores
from savepoint_operator.reconcile.agent.retention import Retention
from savepoint_operator.reconcile.agent_record import Line, Lines
from savepoint_operator.reconcile.cluster_cache import World
from savepoint_operator.rules import identity

LOOK_SECONDS = 60.0
"""So often a live agent is looked at anyway: its recovery point grows old without any event."""


class Agents:
    """Holds nothing but its steps."""

    def __init__(
        self,
        world: World,
        lines: Lines,
        *,
        chronicle: Chronicle,
        attempts: Attempts,
        restores: Restores,
        retention: Retention,
        protected: ProtectedAgents,
    ) -> None:
        self._world, self._lines = world, lines
        self._chronicle, self._attempts, self._restores = chronicle, attempts, restores
        self._retention, self._protected = retention, protected

    async def reconcile(self, agent: AgentKey, orders: Orders) -> float | None:
        """Seconds until the next look, None when only an event can bring news."""
        if not self._spoken_of(agent):
            self._lines.drop(agent)
            return None
        line = self._lines[agent]
        pod = self._newest(agent)
        policy = self._policy(pod)
        store = self._store(line, policy)
        await self._protected.ensure(line)
        again = [await self._chronicle.repair(line, store, orders)]
        again.append(await run_end.end_run(line, store, orders))
        await self._attempts.follow_annotation(line, pod)
        again.append(await self._attempts.write_notes(line))
        again.append(await self._attempts.order_requests(line, policy, orders))
        if line.chain_read:
            again.append(await self._attempts.take_due(line, policy, orders))
        again.append(await self._restores.end_lost(line))
        await self._restores.write_notes(line)
        await self._restores.expire(line)
        await self._retention.expire(line, policy)
        await self._protected.write(line, policy, store)
        again.append(await self._retention.collect(line, store, orders))
        if pod is not None and pod.live:
            again.append(LOOK_SECONDS)
        return min((each for each in again if each is not None), default=None)

    async def tell(self, agent: AgentKey) -> None:
        """Only write what was told: nothing is ordered, expired or collected."""
        line = self._lines[agent]
        policy = self._policy(self._newest(agent))
        await self._attempts.write_notes(line)
        await self._restores.write_notes(line)
        await self._protected.write(line, policy, self._store(line, policy))

    def _spoken_of(self, agent: AgentKey) -> bool:
        """Once its objects, its pods and its session are gone, as with a namespace, what was noted has no place."""
        line, world = self._lines.get(agent), self._world
        return bool(
            (line is not None and line.session)
            or world.agents.get(ObjectKey(*agent))
            or world.pods.of(agent)
            or world.checkpoints.of(agent)
            or world.restores.of(agent)
        )

    def _newest(self, agent: AgentKey) -> Pod | None:
        pods = self._world.pods.of(agent)
        return next((pod for pod in reversed(pods) if pod.live), pods[-1] if pods else None)

    def _policy(self, pod: Pod | None) -> Policy | None:
        return next(iter(self._world.policies_for(pod)), None) if pod is not None else None

    def _store(self, line: Line, policy: Policy | None) -> str:
        """Where the agent's chain is: as its pod was told, as was written, or as it would be told now."""
        if line.who is not None:
            return line.who.store_name
        item = self._world.agents.get(ObjectKey(*line.agent))
        if item is not None and item.status.get("storeName"):
            return str(item.status["storeName"])
        if policy is not None and policy.store_name:
            return policy.store_name
        default = identity.default_store(self._world.stores)
        return default.meta.name if default is not None else ""
