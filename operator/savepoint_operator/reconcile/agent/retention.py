"""Deleting checkpoints that the policy no longer keeps, and collecting what nothing needs in the store."""

import logging
from collections.abc import Callable
from typing import Final

from savepoint.errors import Refused, SavepointError

from savepoint_operator.cluster import parse
from savepoint_operator.cluster.kinds import CHECKPOINTS
from savepoint_operator.metrics import Metrics
from savepoint_operator.model.objects import Policy
from savepoint_operator.model.ports import Orders
from savepoint_operator.reconcile.agent_record import AgentRecord
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.rules.retention import expired, kept_sequences
from savepoint_operator.rules.status.checkpoint_status import open_ended

log = logging.getLogger(__name__)

DEFAULT_KEEP: Final = 12
COLLECT_SECONDS: Final = 6 * 3600.0
RETRY_SECONDS: Final = 300.0


class Retention:
    """The step of an agent's look that is about what goes."""

    def __init__(
        self,
        cluster: ClusterClient,
        objects: CheckpointObjects,
        metrics: Metrics,
        *,
        collected: Callable[[str], None],
        monotonic: Callable[[], float],
    ) -> None:
        """``collected`` is told the name of a store from which something was removed."""
        self._collected = collected
        self._cluster, self._objects, self._metrics, self._monotonic = cluster, objects, metrics, monotonic

    async def expire(self, agent_record: AgentRecord, policy: Policy | None) -> None:
        """Delete the objects beyond the policy's number."""
        every = self._objects.of(agent_record.agent)
        failed = frozenset(
            each.meta.name for each in every if not each.ready and not open_ended(each.reason) and not each.sequence
        )
        keep = policy.keep_last if policy is not None else DEFAULT_KEEP
        for item in expired(every, keep, self._objects.latest_name(agent_record), failed):
            log.info("agent %s: checkpoint %s is beyond the last %d", agent_record.agent, item.meta.name, keep)
            await self._objects.delete(item)

    async def collect(self, agent_record: AgentRecord, store_name: str, orders: Orders) -> float | None:
        """Every few hours; what is kept comes from a fresh listing, never from memory."""
        if not store_name or not agent_record.chain_read:
            return None
        now = self._monotonic()
        if agent_record.collected_at is None:
            agent_record.collected_at = (
                now - COLLECT_SECONDS * agent_record.random_part
            )  # spread over the first hours of a leader
        left = agent_record.collected_at + COLLECT_SECONDS - now
        if left > 0:
            return left
        if agent_record.restores:
            return RETRY_SECONDS
        raws = await self._cluster.list(CHECKPOINTS, agent_record.agent.namespace)
        items = [each for each in map(parse.checkpoint_of, raws) if each.agent == agent_record.agent]
        try:
            freed = await orders.collect(agent_record.agent, store_name, kept_sequences(items))
        except Refused:
            return RETRY_SECONDS
        except SavepointError as error:
            log.warning("agent %s: nothing is collected: %s", agent_record.agent, error)
            return RETRY_SECONDS
        agent_record.collected_at = now
        self._metrics.collected(freed)
        if freed:
            self._collected(store_name)
        return COLLECT_SECONDS
