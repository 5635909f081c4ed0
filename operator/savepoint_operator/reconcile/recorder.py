"""Keeps what the control side reports in memory and queues the agent: implements ``Recorder``.

It returns at once and writes no object, with one exception: the name of a checkpoint that is about to be committed is
reserved by creating its AgentCheckpoint, since the API server gives a name only once.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from savepoint.contract.control_protocol import Offer, Outcome, Progress, RequestCheckpoint, Result, Wait
from savepoint.contract.vocabulary import CheckpointOutcome, CheckpointPhase
from savepoint.errors import SavepointError, Unavailable
from savepoint.repository.format.commit import ChainRecord

from savepoint_operator.metrics import Metrics
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.model.views import (
    AgentRef,
    CheckpointName,
    Contents,
    Incarnation,
    PodIdentity,
    Refusal,
    SessionView,
)
from savepoint_operator.reconcile.agent_record import (
    AgentRecord,
    AgentRecords,
    AttemptRecord,
    CheckpointRequest,
    LastFailure,
    RestoreRecord,
)
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.work_items import AgentWork, Work
from savepoint_operator.reconcile.work_queue import KeyedQueue
from savepoint_operator.rules.admission.run_as import ROOT, UID_MAX
from savepoint_operator.rules.status.conditions import parsed_time
from savepoint_operator.rules.status.texts import with_next_step

REQUESTS_KEPT: Final = 64
MAX_CAPTURE_AGE: Final = timedelta(days=1)
"""No attempt lasts this long: an older capture time comes from a wrong clock."""


class QueueingRecorder:
    """Runs on the operator's event loop."""

    def __init__(
        self,
        agent_records: AgentRecords,
        queue: KeyedQueue[Work],
        objects: CheckpointObjects,
        metrics: Metrics,
        *,
        clocks: Clocks,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._agent_records, self._queue, self._objects, self._metrics = agent_records, queue, objects, metrics
        self.now, self._monotonic, self._random_bytes = clocks.now, clocks.monotonic, random_bytes

    # -- starts ---------------------------------------------------------------------------------------------------

    async def waiting(self, incarnation: Incarnation, wait: Wait) -> None:
        """See ``Recorder``."""
        restore = self._restore_record(incarnation)
        restore.wait = wait
        self._enqueue(incarnation.agent)

    async def granted(self, incarnation: Incarnation, head: ChainRecord, restores: str | None) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[incarnation.agent]
        agent_record.advance_head(head)
        restore = self._restore_record(incarnation, head.record.epoch)
        if restore.discarded_seconds is None and restores is not None and agent_record.incarnation is not None:
            restore.discarded_since, restore.discarded_seconds = _discarded(agent_record, incarnation)
        agent_record.incarnation, agent_record.released_pod = incarnation, ""
        agent_record.completed = False
        restore.epoch, restore.head, restore.checkpoint_name, restore.wait = head.record.epoch, head, restores, None
        self._enqueue(incarnation.agent)

    async def restore_progressed(self, incarnation: Incarnation, progress: Progress) -> None:
        """See ``Recorder``."""
        restore = self._agent_records[incarnation.agent].restores.get(incarnation.pod.uid)
        if restore is not None and restore.outcome is None and restore.progress != progress:
            restore.progress = progress
            self._enqueue(incarnation.agent)

    async def restore_ended(self, incarnation: Incarnation, outcome: Outcome) -> None:
        """See ``Recorder``."""
        restore = self._restore_record(incarnation)
        if restore.outcome == outcome:
            return
        restore.outcome, restore.ended = outcome, self.now()
        self._metrics.restore_ended(outcome.outcome, outcome.milliseconds)
        self._enqueue(incarnation.agent)

    def _restore_record(self, incarnation: Incarnation, epoch: int = 0) -> RestoreRecord:
        """Return the record of the pod's start; a new one if its earlier start has ended or had another epoch."""
        restores, uid = self._agent_records[incarnation.agent].restores, incarnation.pod.uid
        restore = restores.get(uid)
        if restore is None or (epoch and (restore.outcome is not None or restore.epoch not in (0, epoch))):
            restore = restores[uid] = RestoreRecord(incarnation, self.now(), epoch=epoch)
        return restore

    # -- sessions -------------------------------------------------------------------------------------------------

    async def connected(self, session: SessionView, incarnation: Incarnation) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[incarnation.agent]
        agent_record.incarnation, agent_record.session = incarnation, session
        agent_record.connected_at, agent_record.disconnected_at = self._monotonic(), None
        agent_record.released_pod = ""
        self._enqueue(incarnation.agent)

    async def disconnected(self, agent: AgentRef, pod: PodIdentity) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[agent]
        agent_record.session = None
        agent_record.disconnected_at, agent_record.disconnected = self._monotonic(), self.now()
        self._enqueue(agent)

    async def released(self, agent: AgentRef, pod: PodIdentity, completed: bool, message: str) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[agent]
        agent_record.released_pod = pod.uid
        agent_record.completed = agent_record.completed or completed
        self._enqueue(agent)

    # -- attempts -------------------------------------------------------------------------------------------------

    async def requested(self, agent: AgentRef, request: RequestCheckpoint) -> str | Refusal:
        """See ``Recorder``."""
        requests = self._agent_records[agent].requests
        known = requests.get(request.request)
        if known is None:
            known = CheckpointRequest(self._random_bytes(16).hex(), request.trigger, request.reason)
            requests[request.request] = known
            while len(requests) > REQUESTS_KEPT:
                del requests[next(iter(requests))]
        return known.attempt

    async def progressed(self, agent: AgentRef, progress: Progress) -> None:
        """See ``Recorder``."""
        attempt = self.attempt_record(self._agent_records[agent], progress.attempt)
        if attempt.finished:
            return
        attempt.progress, attempt.phase = progress, progress.stage or attempt.phase
        self._enqueue(agent)

    async def delayed(self, agent: AgentRef, attempt: str, cause: str) -> None:
        """See ``Recorder``."""
        record = self._agent_records[agent].attempts.get(attempt)
        if record is not None and not record.finished:
            record.phase, record.delay_cause = CheckpointPhase.COMMITTING, cause
            self._enqueue(agent)

    async def name_for(self, agent: AgentRef, offer: Offer, head: ChainRecord) -> CheckpointName:
        """See ``Recorder``. Raises Unavailable."""
        agent_record = self._agent_records[agent]
        agent_record.advance_head(head)
        attempt = self.attempt_record(agent_record, offer.attempt, offer.trigger)
        attempt.offer, attempt.phase = offer, CheckpointPhase.COMMITTING
        try:
            item = await self._objects.ensure(agent_record, attempt, head.record.number)
        except SavepointError as error:  # any fault is transient here: it must not cost the checkpoint
            raise Unavailable(f"cannot create the AgentCheckpoint: {error}") from error
        number = await self._objects.assign_number(attempt, item, head.record.number)
        return CheckpointName(number, item.meta.name)

    async def committed(
        self, agent: AgentRef, offer: Offer | None, head: ChainRecord, store: str, contents: Contents | None = None
    ) -> None:
        """See ``Recorder``."""
        agent_record, record = self._agent_records[agent], head.record
        agent_record.advance_head(head)
        if record.kind == "completed":
            agent_record.completed = agent_record.head is head or agent_record.head == head
            self._enqueue(agent)
            return
        if record.attempt is None or self._is_old(agent_record, head):
            return
        attempt = self.attempt_record(agent_record, record.attempt, record.trigger)
        first = not attempt.committed
        attempt.commit_record, attempt.store, attempt.offer = head, store, offer or attempt.offer
        attempt.contents = contents or attempt.contents
        _note_uid(agent_record, offer.agent_uid if offer is not None else None)
        attempt.name, attempt.number = attempt.name or record.name or "", record.number
        attempt.result, attempt.ended = None, attempt.ended or self.now()
        attempt.parent = attempt.parent or self._objects.latest_name(agent_record)
        if agent_record.latest is None or record.sequence > agent_record.latest.record.sequence:
            self._advance_latest(agent_record, attempt, head)
        if first:
            self._count_commit(attempt, offer)
        self._enqueue(agent)

    async def failed(self, agent: AgentRef, result: Result) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[agent]
        attempt = self.attempt_record(agent_record, result.attempt)
        if attempt.finished:
            return
        policy = agent_record.incarnation.policy_name if agent_record.incarnation else None
        reason = result.reason or CheckpointOutcome.FAILED
        message = with_next_step(result.reason, result.message, policy)
        attempt.result = Result(result.attempt, CheckpointOutcome.FAILED, reason, message, result.pause_milliseconds)
        attempt.ended = self.now()
        agent_record.failure = LastFailure(reason, message, attempt.ended)
        _note_uid(agent_record, result.agent_uid)
        self._metrics.checkpoint(reason, attempt.trigger)
        self._metrics.paused(result.pause_milliseconds)
        self._enqueue(agent)

    async def unchanged(self, agent: AgentRef, result: Result, head: ChainRecord | None) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[agent]
        if head is not None:
            agent_record.advance_head(head)
        attempt = self.attempt_record(agent_record, result.attempt)
        if attempt.finished:
            return
        attempt.result, attempt.ended = result, self.now()
        agent_record.failure = None
        agent_record.recovery_point = attempt.started
        self._metrics.checkpoint(CheckpointOutcome.UNCHANGED, attempt.trigger)
        self._metrics.paused(result.pause_milliseconds)
        self._enqueue(agent)

    def attempt_record(self, agent_record: AgentRecord, attempt_id: str, trigger: str = "") -> AttemptRecord:
        """Return the record of an attempt, created when the attempt is first mentioned.

        Not part of ``Recorder``: reconcile records the attempts that it orders.
        """
        attempt = agent_record.attempts.get(attempt_id)
        if attempt is None:
            item = self._objects.find(agent_record.agent, attempt_id)
            request = next((each for each in agent_record.requests.values() if each.attempt == attempt_id), None)
            trigger_known = trigger or (item.trigger if item else "")
            attempt = AttemptRecord(attempt_id, trigger_known, self.now(), self._monotonic())
            if request is not None:
                attempt.trigger, attempt.trigger_reason = request.trigger, request.trigger_reason
            if item is not None:
                attempt.name, attempt.number = item.meta.name, item.number
            agent_record.attempts[attempt_id] = attempt
            agent_record.last_attempt_at = self._monotonic()
        if trigger and not attempt.trigger:
            attempt.trigger = trigger
        if not attempt.pod[0] and agent_record.incarnation is not None:
            pod = agent_record.incarnation.pod
            attempt.pod = (pod.name, pod.uid, agent_record.incarnation.node)
        return attempt

    # -- internals ------------------------------------------------------------------------------------------------

    def _advance_latest(self, agent_record: AgentRecord, attempt: AttemptRecord, head: ChainRecord) -> None:
        """Make the committed checkpoint the agent's latest one."""
        agent_record.latest, agent_record.failure = head, None
        agent_record.recovery_point = self._captured(attempt, head.record.time)
        contents = attempt.offer or attempt.contents
        if contents is not None:
            agent_record.stored_bytes = contents.stored_bytes
            agent_record.uncertain_operations = contents.uncertain_operations

    def _captured(self, attempt: AttemptRecord, committed: str) -> datetime:
        """Return when the state was captured; the commit's time if that is unknown or comes from a wrong clock."""
        commit_time = parsed_time(committed) or self.now()
        if attempt.offer is not None:
            timing = attempt.offer.timing
            captured = parsed_time(timing.quiesced or timing.start)
        else:
            captured = parsed_time(attempt.contents.taken_at) if attempt.contents is not None else None
        plausible = captured is not None and commit_time - MAX_CAPTURE_AGE < captured < commit_time
        return captured if captured is not None and plausible else commit_time

    def _count_commit(self, attempt: AttemptRecord, offer: Offer | None) -> None:
        seconds = (self.now() - attempt.started).total_seconds() if offer is not None else None
        self._metrics.checkpoint(CheckpointOutcome.READY, attempt.trigger, seconds)
        if offer is not None:
            self._metrics.committed_bytes(offer.uploaded_bytes, offer.logical_bytes)
            self._metrics.paused(offer.timing.pause_milliseconds)

    def _is_old(self, agent_record: AgentRecord, head: ChainRecord) -> bool:
        """Return whether the record had its object before: if that was deleted since, it is not created again."""
        attempt_id = head.record.attempt or ""
        if attempt_id in agent_record.attempts or self._objects.find(agent_record.agent, attempt_id) is not None:
            return False
        return head.record.sequence <= self._objects.latest_sequence(agent_record)

    def _enqueue(self, agent: AgentRef) -> None:
        self._queue.add(AgentWork(agent))


def _note_uid(agent_record: AgentRecord, uid: int | None) -> None:
    """Remember the agent's uid that a pod reports, unless it cannot be one."""
    if uid is not None and ROOT <= uid <= UID_MAX:
        agent_record.agent_uid = uid


def _discarded(agent_record: AgentRecord, successor: Incarnation) -> tuple[datetime | None, float | None]:
    """Return since when, and for how many seconds, the predecessor's work is lost; None where that is unknown.

    Nothing is lost if the predecessor released its epoch or is the same pod.
    """
    assert agent_record.incarnation is not None
    if agent_record.incarnation.pod.uid in (agent_record.released_pod, successor.pod.uid):
        return None, 0.0
    since, until = agent_record.recovery_point, agent_record.disconnected
    if since is None or until is None:
        return None, None
    return since, max((until - since).total_seconds(), 0.0)
