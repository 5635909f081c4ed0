"""What the control side tells, written down in memory and handed to the queue: implements ``Recorder``.

It answers at once and writes no object, but for the name of a checkpoint that is about to be committed: that name is
taken from the API server, where two cannot have it.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from savepoint.contract.control_protocol import Offer, Outcome, Progress, RequestCheckpoint, Result, Wait
from savepoint.errors import SavepointError, Unavailable
from savepoint.repository.format.commit import Head

from savepoint_operator.metrics import Metrics
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
from savepoint_operator.rules.status.conditions import parsed_time
from savepoint_operator.rules.status.texts import with_next_step

REQUESTS_KEPT: Final = 64
CUT_MOST: Final = timedelta(days=1)
"""No attempt lasts so long: a cut that is said to be older was not told by a right clock."""


class QueueingRecorder:
    """Everything runs on the operator's event loop."""

    def __init__(
        self,
        agent_records: AgentRecords,
        queue: KeyedQueue[Work],
        objects: CheckpointObjects,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._agent_records, self._queue, self._objects, self._metrics = agent_records, queue, objects, metrics
        self.now, self._monotonic, self._random_bytes = now, monotonic, random_bytes

    # -- starts ---------------------------------------------------------------------------------------------------

    async def waiting(self, who: Incarnation, wait: Wait) -> None:
        """See ``Recorder``."""
        note = self._restore(who)
        note.wait = wait
        self._look(who.agent)

    async def granted(self, who: Incarnation, head: Head, restores: str | None) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[who.agent]
        agent_record.learn(head)
        note = self._restore(who, head.record.epoch)
        if note.discarded_seconds is None and restores is not None and agent_record.who is not None:
            note.discarded_since, note.discarded_seconds = self._discarded(agent_record, who)
        agent_record.who, agent_record.released_pod = who, ""
        agent_record.completed = False
        note.epoch, note.head, note.restores, note.wait = head.record.epoch, head, restores, None
        self._look(who.agent)

    async def restore_progress(self, who: Incarnation, progress: Progress) -> None:
        """See ``Recorder``."""
        note = self._agent_records[who.agent].restores.get(who.pod.uid)
        if note is not None and note.outcome is None and note.progress != progress:
            note.progress = progress
            self._look(who.agent)

    async def restored(self, who: Incarnation, outcome: Outcome) -> None:
        """See ``Recorder``."""
        note = self._restore(who)
        if note.outcome == outcome:
            return
        note.outcome, note.ended = outcome, self.now()
        self._metrics.restored(outcome.outcome, outcome.milliseconds)
        self._look(who.agent)

    def _restore(self, who: Incarnation, epoch: int = 0) -> RestoreRecord:
        """The note of this pod's start: a new one when its earlier start has ended, or was under another epoch."""
        restores = self._agent_records[who.agent].restores
        note = restores.get(who.pod.uid)
        if note is None or (epoch and (note.outcome is not None or note.epoch not in (0, epoch))):
            note = restores[who.pod.uid] = RestoreRecord(who, self.now(), epoch=epoch)
        return note

    # -- sessions -------------------------------------------------------------------------------------------------

    async def connected(self, session: SessionView, who: Incarnation) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[who.agent]
        agent_record.who, agent_record.session, agent_record.connected_at, agent_record.disconnected_at = (
            who,
            session,
            self._monotonic(),
            None,
        )
        agent_record.released_pod = ""
        self._look(who.agent)

    async def disconnected(self, agent: AgentRef, pod: PodIdentity) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[agent]
        agent_record.session, agent_record.disconnected_at, agent_record.last_heard = (
            None,
            self._monotonic(),
            self.now(),
        )
        self._look(agent)

    async def released(self, agent: AgentRef, pod: PodIdentity, completed: bool, message: str) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[agent]
        agent_record.released_pod = pod.uid
        agent_record.completed = agent_record.completed or completed
        self._look(agent)

    # -- attempts -------------------------------------------------------------------------------------------------

    async def requested(self, agent: AgentRef, request: RequestCheckpoint) -> str | Refusal:
        """See ``Recorder``."""
        agent_record = self._agent_records[agent]
        known = agent_record.requests.get(request.request)
        if known is None:
            known = CheckpointRequest(self._random_bytes(16).hex(), request.trigger, request.reason)
            agent_record.requests[request.request] = known
            while len(agent_record.requests) > REQUESTS_KEPT:
                del agent_record.requests[next(iter(agent_record.requests))]
        return known.attempt

    async def progressed(self, agent: AgentRef, progress: Progress) -> None:
        """See ``Recorder``."""
        note = self.note(self._agent_records[agent], progress.attempt)
        if note.over:
            return
        note.progress, note.stage = progress, progress.stage or note.stage
        self._look(agent)

    async def delayed(self, agent: AgentRef, attempt: str, why: str) -> None:
        """See ``Recorder``."""
        note = self._agent_records[agent].attempts.get(attempt)
        if note is not None and not note.over:
            note.stage, note.delay = "Committing", why
            self._look(agent)

    async def name_for(self, agent: AgentRef, offer: Offer, head: Head) -> CheckpointName:
        """See ``Recorder``. Raises Unavailable."""
        agent_record = self._agent_records[agent]
        agent_record.learn(head)
        note = self.note(agent_record, offer.attempt, offer.trigger)
        note.offer, note.stage = offer, "Committing"
        try:
            item = await self._objects.ensure(agent_record, note, head.record.number)
        except SavepointError as error:  # an object that cannot be written is no reason to lose a checkpoint
            raise Unavailable(f"the API server gave no name: {error}") from error
        return CheckpointName(await self._objects.number(note, item, head.record.number), item.meta.name)

    async def committed(
        self, agent: AgentRef, offer: Offer | None, head: Head, store: str, contents: Contents | None = None
    ) -> None:
        """See ``Recorder``."""
        agent_record, record = self._agent_records[agent], head.record
        agent_record.learn(head)
        if record.kind == "completed":
            agent_record.completed = agent_record.head is head or agent_record.head == head
            self._look(agent)
            return
        if record.attempt is None or self._is_old(agent_record, head):
            return
        note = self.note(agent_record, record.attempt, record.trigger)
        first = not note.committed
        note.head, note.store, note.offer = head, store, offer or note.offer
        note.contents = contents or note.contents
        note.name, note.number = note.name or record.name or "", record.number
        note.result, note.ended = None, note.ended or self.now()
        note.parent = note.parent or self._objects.latest_name(agent_record)
        if agent_record.latest is None or record.sequence > agent_record.latest.record.sequence:
            agent_record.latest = head
            agent_record.failure, agent_record.failures_in_row = None, 0
            self._advance(agent_record, note, record.time)
            told = note.offer or note.contents
            if told is not None:
                agent_record.stored_bytes, agent_record.uncertain = told.stored_bytes, told.uncertain_operations
        if first:
            seconds = (self.now() - note.started).total_seconds() if offer is not None else None
            self._metrics.checkpoint("Ready", note.trigger, seconds)
            if offer is not None:
                self._metrics.moved(offer.uploaded_bytes, offer.logical_bytes)
                self._metrics.paused(offer.timing.pause_milliseconds)
        self._look(agent)

    async def failed(self, agent: AgentRef, result: Result) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[agent]
        note = self.note(agent_record, result.attempt)
        if note.over:
            return
        policy = agent_record.who.policy_name if agent_record.who else None
        message = with_next_step(result.reason, result.message, policy)
        note.result = Result(result.attempt, "Failed", result.reason or "Failed", message, result.pause_milliseconds)
        note.ended = self.now()
        agent_record.failure = LastFailure(note.result.reason, message, note.ended)
        agent_record.failures_in_row += 1
        self._metrics.checkpoint(note.result.reason, note.trigger)
        self._metrics.paused(result.pause_milliseconds)
        self._look(agent)

    async def unchanged(self, agent: AgentRef, result: Result, head: Head | None) -> None:
        """See ``Recorder``."""
        agent_record = self._agent_records[agent]
        if head is not None:
            agent_record.learn(head)
        note = self.note(agent_record, result.attempt)
        if note.over:
            return
        note.result, note.ended = result, self.now()
        agent_record.failure, agent_record.failures_in_row = None, 0
        agent_record.recovery_point = note.started
        self._metrics.checkpoint("Unchanged", note.trigger)
        self._metrics.paused(result.pause_milliseconds)
        self._look(agent)

    def note(self, agent_record: AgentRecord, attempt: str, trigger: str = "") -> AttemptRecord:
        """The note of an attempt, made when it is first heard of. Not of the port: reconcile notes what it orders."""
        note = agent_record.attempts.get(attempt)
        if note is None:
            known = self._objects.find(agent_record.agent, attempt)
            asked = next((each for each in agent_record.requests.values() if each.attempt == attempt), None)
            note = AttemptRecord(attempt, trigger or (known.trigger if known else ""), self.now(), self._monotonic())
            if asked is not None:
                note.trigger, note.why = asked.trigger, asked.why
            if known is not None:
                note.name, note.number = known.meta.name, known.number
            agent_record.attempts[attempt] = note
            agent_record.last_start = self._monotonic()
        if trigger and not note.trigger:
            note.trigger = trigger
        if not note.pod[0] and agent_record.who is not None:
            note.pod = (agent_record.who.pod.name, agent_record.who.pod.uid, agent_record.who.node)
        return note

    def _discarded(self, agent_record: AgentRecord, who: Incarnation) -> tuple[datetime | None, float | None]:
        """Nothing where the predecessor released its epoch, or where it is the same pod."""
        assert agent_record.who is not None
        if agent_record.who.pod.uid in (agent_record.released_pod, who.pod.uid):
            return None, 0.0
        if agent_record.recovery_point is None or agent_record.last_heard is None:
            return None, None
        return agent_record.recovery_point, max(
            (agent_record.last_heard - agent_record.recovery_point).total_seconds(), 0.0
        )

    def _advance(self, agent_record: AgentRecord, note: AttemptRecord, committed_at: str) -> None:
        """The recovery point is when the state was cut; where nobody says that, or a clock is wrong, the commit."""
        timing = note.offer.timing if note.offer else None
        commit = parsed_time(committed_at) or self.now()
        told = (timing.quiesced or timing.start) if timing else (note.contents.cut if note.contents else None)
        cut = parsed_time(told)
        agent_record.recovery_point = cut if cut is not None and commit - CUT_MOST < cut < commit else commit

    def _is_old(self, agent_record: AgentRecord, head: Head) -> bool:
        """A record that is reflected already: its object may have been deleted since, and does not come back."""
        attempt = head.record.attempt or ""
        if attempt in agent_record.attempts or self._objects.find(agent_record.agent, attempt) is not None:
            return False
        return head.record.sequence <= self._objects.latest_sequence(agent_record)

    def _look(self, agent: AgentRef) -> None:
        self._queue.add(AgentWork(agent))
