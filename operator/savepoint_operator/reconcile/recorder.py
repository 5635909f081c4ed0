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
    AgentKey,
    CheckpointName,
    Contents,
    Incarnation,
    PodIdentity,
    Refusal,
    SessionView,
)
from savepoint_operator.reconcile.agent_record import AttemptNote, Failure, Line, Lines, Request, RestoreNote
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
        lines: Lines,
        queue: KeyedQueue[Work],
        objects: CheckpointObjects,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._lines, self._queue, self._objects, self._metrics = lines, queue, objects, metrics
        self.now, self._monotonic, self._random_bytes = now, monotonic, random_bytes

    # -- starts ---------------------------------------------------------------------------------------------------

    async def waiting(self, who: Incarnation, wait: Wait) -> None:
        """See ``Recorder``."""
        note = self._restore(who)
        note.wait = wait
        self._look(who.agent)

    async def granted(self, who: Incarnation, head: Head, restores: str | None) -> None:
        """See ``Recorder``."""
        line = self._lines[who.agent]
        line.learn(head)
        note = self._restore(who, head.record.epoch)
        if note.discarded_seconds is None and restores is not None and line.who is not None:
            note.discarded_since, note.discarded_seconds = self._discarded(line, who)
        line.who, line.released_pod = who, ""
        line.completed = False
        note.epoch, note.head, note.restores, note.wait = head.record.epoch, head, restores, None
        self._look(who.agent)

    async def restore_progress(self, who: Incarnation, progress: Progress) -> None:
        """See ``Recorder``."""
        note = self._lines[who.agent].restores.get(who.pod.uid)
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

    def _restore(self, who: Incarnation, epoch: int = 0) -> RestoreNote:
        """The note of this pod's start: a new one when its earlier start has ended, or was under another epoch."""
        restores = self._lines[who.agent].restores
        note = restores.get(who.pod.uid)
        if note is None or (epoch and (note.outcome is not None or note.epoch not in (0, epoch))):
            note = restores[who.pod.uid] = RestoreNote(who, self.now(), epoch=epoch)
        return note

    # -- sessions -------------------------------------------------------------------------------------------------

    async def connected(self, session: SessionView, who: Incarnation) -> None:
        """See ``Recorder``."""
        line = self._lines[who.agent]
        line.who, line.session, line.connected_at, line.disconnected_at = who, session, self._monotonic(), None
        line.released_pod = ""
        self._look(who.agent)

    async def disconnected(self, agent: AgentKey, pod: PodIdentity) -> None:
        """See ``Recorder``."""
        line = self._lines[agent]
        line.session, line.disconnected_at, line.last_heard = None, self._monotonic(), self.now()
        self._look(agent)

    async def released(self, agent: AgentKey, pod: PodIdentity, completed: bool, message: str) -> None:
        """See ``Recorder``."""
        line = self._lines[agent]
        line.released_pod = pod.uid
        line.completed = line.completed or completed
        self._look(agent)

    # -- attempts -------------------------------------------------------------------------------------------------

    async def requested(self, agent: AgentKey, request: RequestCheckpoint) -> str | Refusal:
        """See ``Recorder``."""
        line = self._lines[agent]
        known = line.requests.get(request.request)
        if known is None:
            known = Request(self._random_bytes(16).hex(), request.trigger, request.reason)
            line.requests[request.request] = known
            while len(line.requests) > REQUESTS_KEPT:
                del line.requests[next(iter(line.requests))]
        return known.attempt

    async def progressed(self, agent: AgentKey, progress: Progress) -> None:
        """See ``Recorder``."""
        note = self.note(self._lines[agent], progress.attempt)
        if note.over:
            return
        note.progress, note.stage = progress, progress.stage or note.stage
        self._look(agent)

    async def delayed(self, agent: AgentKey, attempt: str, why: str) -> None:
        """See ``Recorder``."""
        note = self._lines[agent].attempts.get(attempt)
        if note is not None and not note.over:
            note.stage, note.delay = "Committing", why
            self._look(agent)

    async def name_for(self, agent: AgentKey, offer: Offer, head: Head) -> CheckpointName:
        """See ``Recorder``. Raises Unavailable."""
        line = self._lines[agent]
        line.learn(head)
        note = self.note(line, offer.attempt, offer.trigger)
        note.offer, note.stage = offer, "Committing"
        try:
            item = await self._objects.ensure(line, note, head.record.number)
        except SavepointError as error:  # an object that cannot be written is no reason to lose a checkpoint
            raise Unavailable(f"the API server gave no name: {error}") from error
        return CheckpointName(await self._objects.number(note, item, head.record.number), item.meta.name)

    async def committed(
        self, agent: AgentKey, offer: Offer | None, head: Head, store: str, contents: Contents | None = None
    ) -> None:
        """See ``Recorder``."""
        line, record = self._lines[agent], head.record
        line.learn(head)
        if record.kind == "completed":
            line.completed = line.head is head or line.head == head
            self._look(agent)
            return
        if record.attempt is None or self._is_old(line, head):
            return
        note = self.note(line, record.attempt, record.trigger)
        first = not note.committed
        note.head, note.store, note.offer = head, store, offer or note.offer
        note.contents = contents or note.contents
        note.name, note.number = note.name or record.name or "", record.number
        note.result, note.ended = None, note.ended or self.now()
        note.parent = note.parent or self._objects.latest_name(line)
        if line.latest is None or record.sequence > line.latest.record.sequence:
            line.latest = head
            line.failure, line.failures_in_row = None, 0
            self._advance(line, note, record.time)
            told = note.offer or note.contents
            if told is not None:
                line.stored_bytes, line.uncertain = told.stored_bytes, told.uncertain_operations
        if first:
            seconds = (self.now() - note.started).total_seconds() if offer is not None else None
            self._metrics.checkpoint("Ready", note.trigger, seconds)
            if offer is not None:
                self._metrics.moved(offer.uploaded_bytes, offer.logical_bytes)
                self._metrics.paused(offer.timing.pause_milliseconds)
        self._look(agent)

    async def failed(self, agent: AgentKey, result: Result) -> None:
        """See ``Recorder``."""
        line = self._lines[agent]
        note = self.note(line, result.attempt)
        if note.over:
            return
        policy = line.who.policy_name if line.who else None
        message = with_next_step(result.reason, result.message, policy)
        note.result = Result(result.attempt, "Failed", result.reason or "Failed", message, result.pause_milliseconds)
        note.ended = self.now()
        line.failure = Failure(note.result.reason, message, note.ended)
        line.failures_in_row += 1
        self._metrics.checkpoint(note.result.reason, note.trigger)
        self._metrics.paused(result.pause_milliseconds)
        self._look(agent)

    async def unchanged(self, agent: AgentKey, result: Result, head: Head | None) -> None:
        """See ``Recorder``."""
        line = self._lines[agent]
        if head is not None:
            line.learn(head)
        note = self.note(line, result.attempt)
        if note.over:
            return
        note.result, note.ended = result, self.now()
        line.failure, line.failures_in_row = None, 0
        line.recovery_point = note.started
        self._metrics.checkpoint("Unchanged", note.trigger)
        self._metrics.paused(result.pause_milliseconds)
        self._look(agent)

    def note(self, line: Line, attempt: str, trigger: str = "") -> AttemptNote:
        """The note of an attempt, made when it is first heard of. Not of the port: reconcile notes what it orders."""
        note = line.attempts.get(attempt)
        if note is None:
            known = self._objects.find(line.agent, attempt)
            asked = next((each for each in line.requests.values() if each.attempt == attempt), None)
            note = AttemptNote(attempt, trigger or (known.trigger if known else ""), self.now(), self._monotonic())
            if asked is not None:
                note.trigger, note.why = asked.trigger, asked.why
            if known is not None:
                note.name, note.number = known.meta.name, known.number
            line.attempts[attempt] = note
            line.last_start = self._monotonic()
        if trigger and not note.trigger:
            note.trigger = trigger
        if not note.pod[0] and line.who is not None:
            note.pod = (line.who.pod.name, line.who.pod.uid, line.who.node)
        return note

    def _discarded(self, line: Line, who: Incarnation) -> tuple[datetime | None, float | None]:
        """Nothing where the predecessor released its epoch, or where it is the same pod."""
        assert line.who is not None
        if line.who.pod.uid in (line.released_pod, who.pod.uid):
            return None, 0.0
        if line.recovery_point is None or line.last_heard is None:
            return None, None
        return line.recovery_point, max((line.last_heard - line.recovery_point).total_seconds(), 0.0)

    def _advance(self, line: Line, note: AttemptNote, committed_at: str) -> None:
        """The recovery point is when the state was cut; where nobody says that, or a clock is wrong, the commit."""
        timing = note.offer.timing if note.offer else None
        commit = parsed_time(committed_at) or self.now()
        told = (timing.quiesced or timing.start) if timing else (note.contents.cut if note.contents else None)
        cut = parsed_time(told)
        line.recovery_point = cut if cut is not None and commit - CUT_MOST < cut < commit else commit

    def _is_old(self, line: Line, head: Head) -> bool:
        """A record that is reflected already: its object may have been deleted since, and does not come back."""
        attempt = head.record.attempt or ""
        if attempt in line.attempts or self._objects.find(line.agent, attempt) is not None:
            return False
        return head.record.sequence <= self._objects.latest_sequence(line)

    def _look(self, agent: AgentKey) -> None:
        self._queue.add(AgentWork(agent))
