"""A rollback or reset that a user asked for: last checkpoint first, then the record, then the pod is evicted.

Each step is found again in status after a restart; the record itself is idempotent by the object's own attempt id.
What keeps one from going on stands in its condition and in an Event; it is tried again, within a bound. The successor's
AgentRestore (mode Resume) tells how it went on from there.
"""

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from savepoint.contract.names import LABEL_AGENT
from savepoint.errors import IntegrityError, ObjectMissing, Refused, SavepointError, Unavailable

from savepoint_operator.cluster.errors import Blocked, Missing
from savepoint_operator.cluster.events import Events, EventTarget
from savepoint_operator.cluster.kinds import PODS, RESTORES
from savepoint_operator.model.objects import CheckpointObject, ObjectKey, RestoreObject
from savepoint_operator.model.ports import Orders
from savepoint_operator.model.views import AgentRef
from savepoint_operator.reconcile.agent_record import AgentRecords
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.reconcile.work_items import AgentWork, Work
from savepoint_operator.reconcile.work_queue import KeyedQueue
from savepoint_operator.rules.status import rollback_status
from savepoint_operator.rules.status.conditions import Condition, changed, merged, stamp
from savepoint_operator.rules.status.texts import ago, duration_text
from savepoint_operator.rules.takeover import RECONNECT_SECONDS

log = logging.getLogger(__name__)

LAST_SECONDS: Final = 60
"""How long the checkpoint that comes first may take; the rollback goes on without it."""
AGAIN_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 5.0
EVICT_AGAIN_SECONDS: Final = 10.0


@dataclass
class _Trying:
    """What is remembered of one object between two looks; a new leader begins anew."""

    uid: str
    asked: bool = False
    """The checkpoint that comes first was ordered."""
    failing_since: float | None = None
    """Monotonic seconds of the first of the failures that nothing has interrupted."""
    not_before: float = 0.0
    """Monotonic seconds of the next try: the news of a status that was just written is no reason for one."""


class Rollbacks:
    """Looks at AgentRestores of modes Rollback and Reset."""

    def __init__(
        self,
        cluster: ClusterClient,
        cache: ClusterCache,
        agent_records: AgentRecords,
        queue: KeyedQueue[Work],
        *,
        objects: CheckpointObjects,
        recorder: QueueingRecorder,
        events: Events,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        leader_since: Callable[[], float],
    ) -> None:
        self._cluster, self._cache, self._agent_records, self._queue = cluster, cache, agent_records, queue
        self._objects, self._recorder, self._events, self._now = objects, recorder, events, now
        self._monotonic, self._leader_since = monotonic, leader_since
        self._tries: dict[ObjectKey, _Trying] = {}

    async def reconcile(self, key: ObjectKey, orders: Orders) -> float | None:
        """Seconds until the next look."""
        item = self._cache.restores.get(key)
        if item is None or item.finished or item.meta.deleting or item.mode == "Resume":
            self._tries.pop(key, None)
            return None
        trying = self._trying(item)
        pause = trying.not_before - self._monotonic()
        if pause > 0:
            return pause
        source = self._source(item)
        if isinstance(source, Condition):
            await self._end(item, source, self._agent_name(item))
            return None
        agent, checkpoint = source
        try:
            again = await self._go_on(item, agent, checkpoint, orders)
        except SavepointError as error:
            return await self._failed(self._cache.restores.get(key) or item, error)
        trying.failing_since = None
        return again

    def _trying(self, item: RestoreObject) -> _Trying:
        known = self._tries.get(item.meta.key)
        if known is None or known.uid != item.meta.uid:
            known = self._tries[item.meta.key] = _Trying(item.meta.uid)
        return known

    # -- steps ----------------------------------------------------------------------------------------------------

    def _source(self, item: RestoreObject) -> "tuple[AgentRef, CheckpointObject | None] | Condition":
        namespace = item.meta.namespace
        if item.mode == "Reset":
            return AgentRef(namespace, item.agent_name), None
        found = self._cache.checkpoints.get(ObjectKey(namespace, item.checkpoint_name))
        if found is not None and found.ready and found.sequence:
            return found.agent, found
        what = "is not Ready" if found is not None else f"does not exist in namespace {namespace}"
        text = f"AgentCheckpoint {item.checkpoint_name} {what}: choose one whose STATUS is Ready."
        return Condition.of("Succeeded", False, "CheckpointNotReady" if found else "CheckpointNotFound", text)

    def _agent_name(self, item: RestoreObject) -> str:
        """Whose it is; empty where its checkpoint does not exist."""
        found = self._cache.checkpoints.get(ObjectKey(item.meta.namespace, item.checkpoint_name))
        return found.agent.name if found is not None else item.agent_name

    async def _go_on(
        self, item: RestoreObject, agent: AgentRef, checkpoint: CheckpointObject | None, orders: Orders
    ) -> float | None:
        agent_record = self._agent_records[agent]
        store = self._store(agent)
        if not store:
            text = f"Agent {agent.name} has never run in namespace {agent.namespace}: there is nothing to go back from."
            await self._end(item, Condition.of("Succeeded", False, "AgentNotFound", text))
            return None
        if not item.status.get("resolved") and item.epoch == 0:
            item = await self._begin(item, agent)
            pause = await self._checkpoint_first(item, agent, orders)
            if pause is not None:
                return pause
            since = agent_record.recovery_point
            head = await orders.rollback(agent, item.own_attempt, checkpoint.sequence if checkpoint else None, store)
            agent_record.learn(head)
            point = rollback_status.time_of(checkpoint)
            lost = {"discarded": {"since": stamp(point)}} if point is not None else {}
            discarded = duration_text(max((since - point).total_seconds() * 1000, 0)) if since and point else ""
            patch: dict[str, Any] = {
                "epoch": head.record.epoch,
                "resolved": rollback_status.resolved(checkpoint) or {"sequence": head.record.sequence},
                "summary": {"discarded": discarded},
                **lost,
            }
            text = "The lineage goes on from there; the pod is being evicted."
            item = await self._write(item, patch, Condition.of("Succeeded", None, "Evicting", text))
            agent_record.recovery_point = point or self._now()
            self._queue.add(AgentWork(agent))
        return await self._evict(item, agent, checkpoint)

    async def _begin(self, item: RestoreObject, agent: AgentRef) -> RestoreObject:
        if item.status.get("startTime"):
            return item
        await self._label(item, agent.name)
        patch = {"agent": agent.name, "attempt": item.own_attempt, "startTime": stamp(self._now())}
        text = "A last checkpoint is taken first, so that this can be undone."
        return await self._write(item, patch, Condition.of("Succeeded", None, "Waiting", text))

    async def _checkpoint_first(self, item: RestoreObject, agent: AgentRef, orders: Orders) -> float | None:
        """None: go on. Its attempt id is derived from the object's, so it is taken once."""
        agent_record = self._agent_records[agent]
        attempt = _sibling(item.own_attempt)
        session = orders.session(agent)
        note = agent_record.attempts.get(attempt)
        if note is not None:
            return None if note.over else AGAIN_SECONDS
        if self._objects.find(agent, attempt) is not None or session is None:
            return AGAIN_SECONDS if session is None and self._may_dial_yet(agent) else None
        started = item.status.get("startTime")
        if started and (self._now() - datetime.fromisoformat(started)).total_seconds() > LAST_SECONDS:
            return None
        if item.reason == "Checkpointing" or self._trying(item).asked:
            return None  # it was asked for and has ended without a trace: nothing had changed
        try:
            await orders.checkpoint(agent, attempt, "Rollback", LAST_SECONDS)
        except (Refused, Unavailable):
            return AGAIN_SECONDS
        self._trying(item).asked = True
        note = self._recorder.note(agent_record, attempt, "Rollback")
        note.why = f"before AgentRestore {item.meta.name}"
        text = "A last checkpoint is under way, so that this can be undone."
        await self._write(item, {}, Condition.of("Succeeded", None, "Checkpointing", text))
        return AGAIN_SECONDS

    def _may_dial_yet(self, agent: AgentRef) -> bool:
        """Whether the agent's sidecar may still be on its way to this leader, which has only begun."""
        begun = self._monotonic() - self._leader_since() < RECONNECT_SECONDS
        return begun and any(pod.live and pod.phase == "Running" for pod in self._cache.pods.of(agent))

    async def _evict(self, item: RestoreObject, agent: AgentRef, checkpoint: CheckpointObject | None) -> float | None:
        """Evict what ran when the record was written; a successor runs under a newer epoch."""
        started = item.status.get("startTime")
        begun = datetime.fromisoformat(started) if started else item.meta.created
        old = [pod for pod in self._cache.pods.of(agent) if pod.live and pod.meta.created <= begun]
        for pod in old:
            try:
                await self._cluster.evict(pod.meta.namespace, pod.meta.name, pod.meta.uid)
            except Blocked as error:
                return await self._wait(item, rollback_status.blocked(pod.meta.name, error), EVICT_AGAIN_SECONDS)
            where = f"goes back to {checkpoint.meta.name}" if checkpoint else "starts over"
            text = f"Agent {agent.name} {where} (AgentRestore {item.meta.name}): the pod was evicted for it."
            await self._events.normal(EventTarget.of(PODS, pod.meta), "RolledBack", text)
        if checkpoint is not None:
            when = rollback_status.time_of(checkpoint)
            made = f", made {ago(when, self._now())}" if when else ""
            text = f"Agent {agent.name} goes on from {checkpoint.meta.name}{made}; its next pod restores it."
        else:
            text = f"Agent {agent.name} starts over; its next pod starts fresh."
        await self._end(item, Condition.of("Succeeded", True, "Succeeded", text))
        return None

    # -- what keeps it from going on ------------------------------------------------------------------------------

    async def _failed(self, item: RestoreObject, error: SavepointError) -> float | None:
        """Say so and try again; what can never be done, and what was tried for long, ends it."""
        now, trying = self._monotonic(), self._trying(item)
        trying.failing_since = now if trying.failing_since is None else trying.failing_since
        if isinstance(error, ObjectMissing | IntegrityError):
            await self._end(item, rollback_status.impossible(error))
        elif now - trying.failing_since < rollback_status.GIVE_UP_SECONDS:
            return await self._wait(item, rollback_status.tried_again(error), RETRY_SECONDS)
        else:
            await self._end(item, rollback_status.given_up(error, committed=item.epoch > 0))
        return None

    async def _wait(self, item: RestoreObject, condition: Condition, seconds: float) -> float:
        """Write the condition, and an Event when its reason is new; the seconds until the next try."""
        self._trying(item).not_before = self._monotonic() + seconds
        await self._write(item, {}, condition)
        if item.reason != condition.reason:
            log.warning("AgentRestore %s waits: %s: %s", item.meta.key, condition.reason, condition.message)
            await self._events.warning(EventTarget.of(RESTORES, item.meta), condition.reason, condition.message)
        return seconds

    # -- writing --------------------------------------------------------------------------------------------------

    async def _end(self, item: RestoreObject, condition: Condition, agent: str = "") -> None:
        about = EventTarget.of(RESTORES, item.meta)
        if condition.status == "False":
            await self._events.warning(about, condition.reason, condition.message)
        else:
            await self._events.normal(about, condition.reason, condition.message)
        now = self._now()
        took = duration_text((now - item.meta.created).total_seconds() * 1000)
        summary = {**(item.status.get("summary") or {}), "took": took}
        patch: dict[str, Any] = {"completionTime": stamp(now), "summary": summary}
        if agent:
            await self._label(item, agent)
        item = await self._write(item, {**patch, **({"agent": agent} if agent else {})}, condition)
        if item.agent_name:
            self._queue.add(AgentWork(AgentRef(item.meta.namespace, item.agent_name)))  # older ones go

    async def _label(self, item: RestoreObject, agent: str) -> None:
        if item.meta.labels.get(LABEL_AGENT) == agent:
            return
        body = {"metadata": {"labels": {LABEL_AGENT: agent}}}
        with suppress(Missing):
            self._take(await self._cluster.patch(RESTORES, item.meta.namespace, item.meta.name, body))

    async def _write(self, item: RestoreObject, patch: dict[str, Any], condition: Condition) -> RestoreObject:
        generation = item.meta.generation
        conditions = merged(item.status.get("conditions") or (), (condition,), generation, self._now())
        status = {**patch, "reason": condition.reason, "observedGeneration": generation, "conditions": conditions}
        difference = changed(item.status, status)
        if not difference:
            return item
        try:
            raw = await self._cluster.patch(
                RESTORES, item.meta.namespace, item.meta.name, {"status": difference}, subresource="status"
            )
        except Missing:
            return item
        return self._take(raw)

    def _take(self, raw: dict[str, Any]) -> RestoreObject:
        self._cache.restores.put(raw)
        found = self._cache.restores.get(ObjectKey(raw["metadata"]["namespace"], raw["metadata"]["name"]))
        assert found is not None
        return found

    def _store(self, agent: AgentRef) -> str:
        agent_record = self._agent_records[agent]
        if agent_record.who is not None:
            return agent_record.who.store_name
        item = self._cache.agents.get(ObjectKey(*agent))
        return str((item.status.get("storeName") or "") if item is not None else "")


def _sibling(attempt: str) -> str:
    """The id of the checkpoint that comes before this rollback, always the same."""
    return hashlib.sha256(f"before:{attempt}".encode()).hexdigest()[:32]
