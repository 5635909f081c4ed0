"""Reconciles rollbacks and resets that users request: final checkpoint first, then the record, then the eviction.

Each step can be continued after a restart: status shows how far it got, and the record is idempotent by the object's
own attempt id. A fault is shown in the condition and in an Event and is retried, for a limited time. The successor's
AgentRestore of mode Resume shows how the agent continued.
"""

import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from savepoint.contract.names import LABEL_AGENT
from savepoint.contract.vocabulary import Reason, RestoreMode, Trigger
from savepoint.errors import IntegrityError, ObjectMissing, Refused, SavepointError, Unavailable
from savepoint.repository.format.commit import ChainRecord

from savepoint_operator.cluster.errors import Blocked
from savepoint_operator.cluster.events import EventTarget
from savepoint_operator.cluster.kinds import PODS, RESTORES
from savepoint_operator.model.objects import CheckpointObject, ObjectKey, Pod, RestoreObject
from savepoint_operator.model.ports import Orders
from savepoint_operator.model.views import AgentRef
from savepoint_operator.reconcile.agent_record import AgentRecords
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.dependencies import StepDependencies
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.reconcile.work_items import AgentWork, Work
from savepoint_operator.reconcile.work_queue import KeyedQueue
from savepoint_operator.rules.status import rollback_status
from savepoint_operator.rules.status.conditions import Condition, stamp
from savepoint_operator.rules.status.texts import ago, duration_text
from savepoint_operator.rules.takeover import RECONNECT_SECONDS

log = logging.getLogger(__name__)

FINAL_CHECKPOINT_SECONDS: Final = 60
"""Time that the final checkpoint may take; after it the rollback proceeds without one."""
REQUEUE_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 5.0
EVICTION_RETRY_SECONDS: Final = 10.0


@dataclass
class _RollbackState:
    """This leader's memory of one object between two reconciles; a new leader starts without it."""

    uid: str
    checkpoint_ordered: bool = False
    """The final checkpoint was ordered."""
    failing_since: float | None = None
    """Monotonic seconds of the first failure since the last success."""
    not_before: float = 0.0
    """Monotonic seconds of the next try: the operator's own status write must not cause an earlier one."""


class Rollbacks:
    """Reconciles AgentRestores of modes Rollback and Reset."""

    def __init__(
        self,
        dependencies: StepDependencies,
        agent_records: AgentRecords,
        queue: KeyedQueue[Work],
        *,
        objects: CheckpointObjects,
        recorder: QueueingRecorder,
    ) -> None:
        self._cluster, self._cache, self._events = dependencies.cluster, dependencies.cache, dependencies.events
        self._status_writer, self._leader_since = dependencies.status_writer, dependencies.leader_since
        self._now, self._monotonic = dependencies.clocks.now, dependencies.clocks.monotonic
        self._agent_records, self._queue = agent_records, queue
        self._objects, self._recorder = objects, recorder
        self._states: dict[ObjectKey, _RollbackState] = {}

    async def reconcile(self, key: ObjectKey, orders: Orders) -> float | None:
        """Take the next step; return the seconds until the next reconcile."""
        item = self._cache.restores.get(key)
        if item is None or item.finished or item.meta.deleting or item.mode == RestoreMode.RESUME:
            self._states.pop(key, None)
            return None
        state = self._state_of(item)
        pause = state.not_before - self._monotonic()
        if pause > 0:
            return pause
        source = self._source(item)
        if isinstance(source, Condition):
            await self._end(item, source, self._agent_name(item))
            return None
        agent, checkpoint = source
        try:
            requeue_seconds = await self._proceed(item, agent, checkpoint, orders)
        except SavepointError as error:
            return await self._failed(self._cache.restores.get(key) or item, error)
        state.failing_since = None
        return requeue_seconds

    def _state_of(self, item: RestoreObject) -> _RollbackState:
        known = self._states.get(item.meta.key)
        if known is None or known.uid != item.meta.uid:
            known = self._states[item.meta.key] = _RollbackState(item.meta.uid)
        return known

    # -- steps ----------------------------------------------------------------------------------------------------

    def _source(self, item: RestoreObject) -> "tuple[AgentRef, CheckpointObject | None] | Condition":
        """Return the agent and the checkpoint (None: reset), or the condition that ends an impossible request."""
        namespace = item.meta.namespace
        if item.mode == RestoreMode.RESET:
            return AgentRef(namespace, item.agent_name), None
        found = self._cache.checkpoints.get(ObjectKey(namespace, item.checkpoint_name))
        if found is not None and found.ready and found.sequence:
            return found.agent, found
        problem = "is not Ready" if found is not None else f"does not exist in namespace {namespace}"
        text = f"AgentCheckpoint {item.checkpoint_name} {problem}. Choose one whose STATUS is Ready."
        reason = Reason.CHECKPOINT_NOT_READY if found is not None else Reason.CHECKPOINT_NOT_FOUND
        return Condition.of("Succeeded", False, reason, text)

    def _agent_name(self, item: RestoreObject) -> str:
        """Return the agent's name; empty if the named checkpoint does not exist."""
        found = self._cache.checkpoints.get(ObjectKey(item.meta.namespace, item.checkpoint_name))
        return found.agent.name if found is not None else item.agent_name

    async def _proceed(
        self, item: RestoreObject, agent: AgentRef, checkpoint: CheckpointObject | None, orders: Orders
    ) -> float | None:
        store = self._store(agent)
        if not store:
            text = f"Agent {agent.name} has never run in namespace {agent.namespace}. Check its name and namespace."
            await self._end(item, Condition.of("Succeeded", False, Reason.AGENT_NOT_FOUND, text))
            return None
        if not item.status.get("resolved") and item.epoch == 0:
            item = await self._start(item, agent)
            requeue_seconds = await self._final_checkpoint(item, agent, orders)
            if requeue_seconds is not None:
                return requeue_seconds
            discarded_until = self._agent_records[agent].recovery_point
            sequence = checkpoint.sequence if checkpoint else None
            head = await orders.rollback(agent, item.own_attempt, sequence, store)
            item = await self._write_recorded(item, agent, checkpoint, head, discarded_until)
        return await self._evict(item, agent, checkpoint)

    async def _start(self, item: RestoreObject, agent: AgentRef) -> RestoreObject:
        if item.status.get("startTime"):
            return item
        await self._label(item, agent.name)
        patch = {"agent": agent.name, "attempt": item.own_attempt, "startTime": stamp(self._now())}
        text = "Preparing a final checkpoint, so that this can be undone."
        return await self._write(item, patch, Condition.of("Succeeded", None, Reason.WAITING, text))

    async def _final_checkpoint(self, item: RestoreObject, agent: AgentRef, orders: Orders) -> float | None:
        """Take the final checkpoint once: its attempt id is derived from the object's. None: proceed."""
        agent_record = self._agent_records[agent]
        attempt_id = _final_attempt_id(item.own_attempt)
        session = orders.session(agent)
        attempt = agent_record.attempts.get(attempt_id)
        if attempt is not None:
            return None if attempt.finished else REQUEUE_SECONDS
        if self._objects.find(agent, attempt_id) is not None or session is None:
            return REQUEUE_SECONDS if session is None and self._may_still_connect(agent) else None
        started = item.status.get("startTime")
        if started and (self._now() - datetime.fromisoformat(started)).total_seconds() > FINAL_CHECKPOINT_SECONDS:
            return None
        if item.reason == Reason.CHECKPOINTING or self._state_of(item).checkpoint_ordered:
            return None  # it was ordered and left no trace: nothing had changed
        try:
            await orders.checkpoint(agent, attempt_id, Trigger.ROLLBACK, FINAL_CHECKPOINT_SECONDS)
        except (Refused, Unavailable):
            return REQUEUE_SECONDS
        self._state_of(item).checkpoint_ordered = True
        attempt = self._recorder.attempt_record(agent_record, attempt_id, Trigger.ROLLBACK)
        attempt.trigger_reason = f"before AgentRestore {item.meta.name}"
        text = "Taking a final checkpoint, so that this can be undone."
        await self._write(item, {}, Condition.of("Succeeded", None, Reason.CHECKPOINTING, text))
        return REQUEUE_SECONDS

    def _may_still_connect(self, agent: AgentRef) -> bool:
        """Return whether the agent's sidecar may still be reconnecting to this leader, which has only just begun."""
        just_begun = self._monotonic() - self._leader_since < RECONNECT_SECONDS
        return just_begun and any(pod.live and pod.phase == "Running" for pod in self._cache.pods.of(agent))

    async def _write_recorded(
        self,
        item: RestoreObject,
        agent: AgentRef,
        checkpoint: CheckpointObject | None,
        head: ChainRecord,
        discarded_until: datetime | None,
    ) -> RestoreObject:
        """Write that the record exists, and what work is discarded by it."""
        agent_record = self._agent_records[agent]
        agent_record.advance_head(head)
        since = rollback_status.completion_time(checkpoint)
        discarded = ""
        if discarded_until and since:
            discarded = duration_text(max((discarded_until - since).total_seconds() * 1000, 0))
        patch: dict[str, Any] = {
            "epoch": head.record.epoch,
            "resolved": rollback_status.resolved(checkpoint) or {"sequence": head.record.sequence},
            "summary": {"discarded": discarded},
        }
        if since is not None:
            patch["discarded"] = {"since": stamp(since)}
        done = f"Rolled back to {checkpoint.meta.name}" if checkpoint else f"Reset agent {agent.name}"
        pods = ", ".join(f"pod {pod.meta.name}" for pod in self._superseded(item, agent))
        text = f"{done}; evicting {pods}." if pods else f"{done}; no pod has to be evicted."
        item = await self._write(item, patch, Condition.of("Succeeded", None, Reason.EVICTING, text))
        agent_record.recovery_point = since or self._now()
        self._queue.add(AgentWork(agent))
        return item

    def _superseded(self, item: RestoreObject, agent: AgentRef) -> list[Pod]:
        """Return the pods that ran before the rollback; a newer pod is its successor and has a newer epoch."""
        started = item.status.get("startTime")
        begun = datetime.fromisoformat(started) if started else item.meta.created
        return [pod for pod in self._cache.pods.of(agent) if pod.live and pod.meta.created <= begun]

    async def _evict(self, item: RestoreObject, agent: AgentRef, checkpoint: CheckpointObject | None) -> float | None:
        for pod in self._superseded(item, agent):
            try:
                await self._cluster.evict(pod.meta.namespace, pod.meta.name, pod.meta.uid)
            except Blocked as error:
                condition = rollback_status.eviction_blocked(pod.meta.name, error)
                return await self._wait(item, condition, EVICTION_RETRY_SECONDS)
            action, then = "reset", "starts fresh"
            if checkpoint is not None:
                action, then = f"rolled back to {checkpoint.meta.name}", "restores it"
            text = f"Agent {agent.name} was {action} by AgentRestore {item.meta.name}, so this pod was evicted."
            text = f"{text} The next pod {then}."
            await self._events.normal(EventTarget.of(PODS, pod.meta), Reason.ROLLED_BACK, text)
        if checkpoint is not None:
            time = rollback_status.completion_time(checkpoint)
            age = f", taken {ago(time, self._now())}" if time else ""
            text = f"Agent {agent.name} is rolled back to {checkpoint.meta.name}{age}. Its next pod restores it."
        else:
            text = f"Agent {agent.name} is reset. Its next pod starts fresh."
        await self._end(item, Condition.of("Succeeded", True, Reason.SUCCEEDED, text))
        return None

    # -- faults ---------------------------------------------------------------------------------------------------

    async def _failed(self, item: RestoreObject, error: SavepointError) -> float | None:
        """Report the fault and retry; end the rollback if it is impossible or has failed for too long."""
        now, state = self._monotonic(), self._state_of(item)
        state.failing_since = now if state.failing_since is None else state.failing_since
        if isinstance(error, ObjectMissing | IntegrityError):
            await self._end(item, rollback_status.failed(error))
        elif now - state.failing_since < rollback_status.GIVE_UP_SECONDS:
            return await self._wait(item, rollback_status.retrying(error), RETRY_SECONDS)
        else:
            await self._end(item, rollback_status.given_up(error, committed=item.epoch > 0))
        return None

    async def _wait(self, item: RestoreObject, condition: Condition, seconds: float) -> float:
        """Write the condition, and an Event if its reason is new; return the seconds until the next try."""
        self._state_of(item).not_before = self._monotonic() + seconds
        await self._write(item, {}, condition)
        if item.reason != condition.reason:
            log.warning(
                "AgentRestore %s: waiting: %s: %s; retrying in %.0f s",
                item.meta.key,
                condition.reason,
                condition.message,
                seconds,
            )
            await self._events.warning(EventTarget.of(RESTORES, item.meta), condition.reason, condition.message)
        return seconds

    # -- writing --------------------------------------------------------------------------------------------------

    async def _end(self, item: RestoreObject, condition: Condition, agent: str = "") -> None:
        target = EventTarget.of(RESTORES, item.meta)
        if condition.status == "False":
            await self._events.warning(target, condition.reason, condition.message)
        else:
            await self._events.normal(target, condition.reason, condition.message)
        now = self._now()
        took = duration_text((now - item.meta.created).total_seconds() * 1000)
        summary = {**(item.status.get("summary") or {}), "took": took}
        patch: dict[str, Any] = {"completionTime": stamp(now), "summary": summary}
        if agent:
            await self._label(item, agent)
            patch["agent"] = agent
        item = await self._write(item, patch, condition)
        if item.agent_name:  # one more has finished, so an older one may expire
            self._queue.add(AgentWork(AgentRef(item.meta.namespace, item.agent_name)))

    async def _label(self, item: RestoreObject, agent: str) -> None:
        await self._status_writer.write_metadata(RESTORES, item, labels={LABEL_AGENT: agent})

    async def _write(self, item: RestoreObject, patch: dict[str, Any], condition: Condition) -> RestoreObject:
        status = {**patch, "reason": condition.reason}
        return await self._status_writer.write(RESTORES, item, status, condition) or item

    def _store(self, agent: AgentRef) -> str:
        agent_record = self._agent_records[agent]
        if agent_record.incarnation is not None:
            return agent_record.incarnation.store_name
        item = self._cache.agents.get(ObjectKey(*agent))
        return str((item.status.get("storeName") or "") if item is not None else "")


def _final_attempt_id(attempt_id: str) -> str:
    """Return the attempt id of the final checkpoint before this rollback: always the same one."""
    return hashlib.sha256(f"before:{attempt_id}".encode()).hexdigest()[:32]
