"""The step that writes what was reported of checkpoint attempts to their AgentCheckpoints, and reports failures.

What the status says is decided in ``rules.status.checkpoint_status``.
"""

from typing import Final

from savepoint.contract.control_protocol import Result
from savepoint.contract.vocabulary import CheckpointOutcome, CheckpointPhase, Reason

from savepoint_operator.cluster.events import EventTarget
from savepoint_operator.cluster.kinds import CHECKPOINTS, PODS
from savepoint_operator.model.objects import CheckpointObject, ObjectKey
from savepoint_operator.reconcile.agent_record import AgentRecord, AttemptRecord
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.dependencies import StepDependencies
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.rules.status import capture_status, checkpoint_status
from savepoint_operator.rules.status.conditions import Condition
from savepoint_operator.rules.status.texts import ago

ATTEMPT_SECONDS: Final = 1800
"""The deadline of an attempt; the registry fails it some seconds later."""
LOST_SECONDS: Final = 120.0
"""Time after its deadline at which an attempt without an outcome is failed here."""
PROGRESS_SECONDS: Final = 5.0
VISIBLE: Final = frozenset({CheckpointPhase.UPLOADING, CheckpointPhase.COMMITTING})
"""Phases in which a scheduled attempt gets its AgentCheckpoint: earlier it may still turn out to be unchanged."""


class AttemptStatus:
    """A step of one agent's reconcile."""

    def __init__(self, dependencies: StepDependencies, objects: CheckpointObjects, recorder: QueueingRecorder) -> None:
        self._cache, self._events = dependencies.cache, dependencies.events
        self._now, self._monotonic = dependencies.clocks.now, dependencies.clocks.monotonic
        self._objects, self._recorder = objects, recorder

    async def write(self, agent_record: AgentRecord) -> float | None:
        """Write every attempt's progress or outcome to its AgentCheckpoint.

        Return the seconds until the next write, or None.
        """
        delays: list[float] = []
        for attempt in list(agent_record.attempts.values()):
            overdue = self._monotonic() - attempt.started_at > ATTEMPT_SECONDS + LOST_SECONDS
            if not attempt.finished and overdue:
                message = "The attempt did not end before its deadline, and its sidecar no longer reports it."
                result = Result(attempt.id, CheckpointOutcome.FAILED, Reason.DEADLINE_EXCEEDED, message)
                await self._recorder.failed(agent_record.agent, result)
            delay = await self._write_attempt(agent_record, attempt)
            delays += [] if delay is None else [delay]
        return min(delays, default=None)

    async def _write_attempt(self, agent_record: AgentRecord, attempt: AttemptRecord) -> float | None:
        item = self._objects.find(agent_record.agent, attempt.id)
        if item is None:
            if attempt.unchanged:
                del agent_record.attempts[attempt.id]
                return None
            if not attempt.finished and attempt.phase not in VISIBLE:
                return None
            head_number = agent_record.head.record.number if agent_record.head else 0
            item = await self._objects.ensure(agent_record, attempt, head_number)
        if not attempt.finished:
            return await self.write_progress(agent_record, attempt, item)
        if attempt.unchanged and not self._objects.created_by_user(item):
            await self._objects.delete(item)  # it became visible before the attempt turned out to be unchanged
            del agent_record.attempts[attempt.id]
            return None
        written = (attempt.commit_record, attempt.result)  # the outcome may change while the API server answers
        patch, condition = self._outcome(agent_record, attempt)
        await self._objects.write_status(item, {**self._start(agent_record, attempt, item), **patch}, condition)
        if attempt.result is not None and not attempt.unchanged:
            await self._report_failure(agent_record, attempt, item)
        if attempt.commit_record is not None:
            await self._report_inexact(agent_record, attempt, item, patch)
        if agent_record.attempts.get(attempt.id) is attempt and (attempt.commit_record, attempt.result) == written:
            del agent_record.attempts[attempt.id]
        return None

    async def write_progress(
        self, agent_record: AgentRecord, attempt: AttemptRecord, item: CheckpointObject
    ) -> float | None:
        """Write the phase and progress of an attempt that has not ended, at most every PROGRESS_SECONDS per phase."""
        now = self._monotonic()
        if item.reason == attempt.phase and attempt.progress_written_at is not None:
            elapsed = now - attempt.progress_written_at
            if elapsed < PROGRESS_SECONDS:
                return PROGRESS_SECONDS - elapsed
        delay = ""
        if attempt.delay_cause:
            delay = f"Everything is stored, but the commit is delayed and will be retried: {attempt.delay_cause}"
        patch, condition = checkpoint_status.running(attempt.phase, attempt.progress, delay)
        await self._objects.write_status(item, {**self._start(agent_record, attempt, item), **patch}, condition)
        attempt.progress_written_at = now
        return None

    def _start(
        self, agent_record: AgentRecord, attempt: AttemptRecord, item: CheckpointObject
    ) -> checkpoint_status.Patch:
        pod = self._cache.pod_by_uid(agent_record.agent, attempt.pod[1])
        disruption = pod.disruption if pod is not None else ""
        trigger, trigger_reason = checkpoint_status.shown_trigger(attempt.trigger, disruption)
        start = checkpoint_status.started(
            attempt.id, trigger, attempt.requested_by, attempt.trigger_reason or trigger_reason, attempt.pod
        )
        return keep_trigger(start, item)

    def _outcome(self, agent_record: AgentRecord, attempt: AttemptRecord) -> tuple[checkpoint_status.Patch, Condition]:
        if attempt.commit_record is not None:
            contents = attempt.offer or attempt.contents
            return checkpoint_status.committed(
                contents, attempt.commit_record, attempt.store, attempt.parent, self._now()
            )
        assert attempt.result is not None
        if attempt.unchanged:
            name = self._objects.latest_name(agent_record)
            latest = self._cache.checkpoints.get(ObjectKey(agent_record.agent.namespace, name))
            return checkpoint_status.unchanged(latest.status if latest else {}, name, attempt.result)
        return checkpoint_status.failed(attempt.result.reason, attempt.result.message)

    async def _report_failure(self, agent_record: AgentRecord, attempt: AttemptRecord, item: CheckpointObject) -> None:
        assert attempt.result is not None
        text = f"{attempt.result.reason}: {attempt.result.message}{self.last_good(agent_record)}"
        await self._events.warning(EventTarget.of(CHECKPOINTS, item.meta), Reason.CHECKPOINT_FAILED, text)
        name, uid, _ = attempt.pod
        if name:
            pod = EventTarget(PODS, agent_record.agent.namespace, name, uid)
            await self._events.warning(pod, Reason.CHECKPOINT_FAILED, f"{item.meta.name}: {text}")

    async def _report_inexact(
        self, agent_record: AgentRecord, attempt: AttemptRecord, item: CheckpointObject, patch: checkpoint_status.Patch
    ) -> None:
        """Write Events about files that are left out or unstable, unless the checkpoint before had them too."""
        parent = self._cache.checkpoints.get(ObjectKey(agent_record.agent.namespace, attempt.parent))
        text = capture_status.news(patch, parent.status if parent is not None else {})
        if not text:
            return
        await self._events.warning(EventTarget.of(CHECKPOINTS, item.meta), Reason.STATE_INEXACT, text)
        name, uid, _ = attempt.pod
        if name:
            pod = EventTarget(PODS, agent_record.agent.namespace, name, uid)
            await self._events.warning(pod, Reason.STATE_INEXACT, f"{item.meta.name}: {text}")

    def last_good(self, agent_record: AgentRecord) -> str:
        """Return the sentence, with a leading space, that names the checkpoint to fall back to."""
        name = self._objects.latest_name(agent_record)
        age = f" ({ago(agent_record.recovery_point, self._now())})" if agent_record.recovery_point else ""
        return f" Last good: {name}{age}." if name else " There is no checkpoint yet."


def keep_trigger(start: checkpoint_status.Patch, item: CheckpointObject) -> checkpoint_status.Patch:
    """Leave out the trigger if one is written already: the first one written is the most precise."""
    trigger = item.status.get("trigger") or {}
    return {name: value for name, value in start.items() if name != "trigger"} if trigger.get("type") else start
