"""The step that deletes checkpoints beyond the policy's retention and collects unneeded objects in the store."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from savepoint.contract.vocabulary import Reason
from savepoint.errors import Refused, SavepointError
from savepoint.repository.history.collect import CollectReport
from savepoint.repository.history.retention import RetentionRules

from savepoint_operator.cluster import parse
from savepoint_operator.cluster.events import EventTarget
from savepoint_operator.cluster.kinds import AGENTS, CHECKPOINTS
from savepoint_operator.model.objects import CheckpointObject, ObjectKey, Policy
from savepoint_operator.model.ports import Orders
from savepoint_operator.reconcile.agent_record import AgentRecord
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.dependencies import StepDependencies
from savepoint_operator.rules.retention import expired, kept_sequences
from savepoint_operator.rules.status.checkpoint_status import in_progress

log = logging.getLogger(__name__)

COLLECT_SECONDS: Final = 6 * 3600.0
RETRY_SECONDS: Final = 300.0
SHOWN: Final = 5


class Retention:
    """Applies retention to one agent at a time."""

    def __init__(
        self, dependencies: StepDependencies, objects: CheckpointObjects, record_collection: Callable[[str], None]
    ) -> None:
        """``record_collection`` is called with the name of a store from which objects were removed."""
        self._cluster, self._metrics = dependencies.cluster, dependencies.metrics
        self._cache, self._events = dependencies.cache, dependencies.events
        self._now, self._monotonic = dependencies.clocks.now, dependencies.clocks.monotonic
        self._objects, self._record_collection = objects, record_collection

    async def expire(self, agent_record: AgentRecord, policy: Policy | None) -> None:
        """Delete the AgentCheckpoints that the policy does not keep."""
        checkpoints = self._objects.of(agent_record.agent)
        failed = frozenset(
            each.meta.name
            for each in checkpoints
            if not each.ready and not in_progress(each.reason) and not each.sequence
        )
        rules = policy.retention if policy is not None else RetentionRules()
        protected = frozenset({self._objects.latest_name(agent_record), *self._restored(agent_record)})
        for item in expired(checkpoints, rules, self._now(), protected, failed):
            log.info(
                "agent %s: deleting checkpoint %s: the policy's retention does not keep it",
                agent_record.agent,
                item.meta.name,
            )
            await self._objects.delete(item)

    def _restored(self, agent_record: AgentRecord) -> list[str]:
        """Return the checkpoints that unfinished restores and rollbacks read."""
        restores = self._cache.restores.of(agent_record.agent)
        return [each.checkpoint_name for each in restores if not each.finished]

    async def collect(self, agent_record: AgentRecord, store_name: str, orders: Orders) -> float | None:
        """Collect every few hours; return the seconds until the next collection.

        What must be kept is taken from a fresh listing, never from the cache.
        """
        if not store_name or not agent_record.chain_read:
            return None
        now = self._monotonic()
        if agent_record.collected_at is None:  # spread the agents' first collections under a new leader
            agent_record.collected_at = now - COLLECT_SECONDS * agent_record.random_fraction
        left = agent_record.collected_at + COLLECT_SECONDS - now
        if left > 0:
            return left
        if agent_record.restores:
            return RETRY_SECONDS
        raws = await self._cluster.list(CHECKPOINTS, agent_record.agent.namespace)
        items = [each for each in map(parse.checkpoint_of, raws) if each.agent == agent_record.agent]
        try:
            report = await orders.collect(agent_record.agent, store_name, kept_sequences(items))
        except Refused:
            return RETRY_SECONDS
        except SavepointError as error:
            log.warning(
                "agent %s: cannot collect in store %s: %s; retrying in %.0f s",
                agent_record.agent,
                store_name,
                error,
                RETRY_SECONDS,
            )
            return RETRY_SECONDS
        agent_record.collected_at = now
        self._metrics.collected(report.bytes)
        if report.bytes:
            self._record_collection(store_name)
        if report.lost:
            await self._report_lost(agent_record, report, items)
        return COLLECT_SECONDS

    async def _report_lost(
        self, agent_record: AgentRecord, report: CollectReport, checkpoints: Sequence[CheckpointObject]
    ) -> None:
        """Write an Event on the agent and on each checkpoint that cannot be restored whole any more."""
        affected = [each for each in checkpoints if each.sequence in report.affected]
        names = ", ".join(each.meta.name for each in affected[:SHOWN]) or "the newest state"
        text = (
            f"{len(report.lost)} packs are lost: {report.lost[0]}. What needs them cannot be restored whole: {names}"
            f"{f' and {len(affected) - SHOWN} more' if len(affected) > SHOWN else ''}. A running agent stores the data "
            "again with its next checkpoint. Look for who deleted it: condition Retained of the store names lifecycle "
            "rules."
        )
        log.warning("agent %s: %s", agent_record.agent, text)
        agent = self._cache.agents.get(ObjectKey(*agent_record.agent))
        if agent is not None:
            await self._events.warning(EventTarget.of(AGENTS, agent.meta), Reason.PACK_LOST, text)
        for each in affected:
            await self._events.warning(EventTarget.of(CHECKPOINTS, each.meta), Reason.PACK_LOST, text)
