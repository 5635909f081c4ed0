"""From notes to objects and from requests to orders: the step of an agent's look that is about checkpoints.

It writes the status of every AgentCheckpoint; what it says is ``rules.checkpoint_status``.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from savepoint.contract.control_protocol import Result
from savepoint.contract.names import ANNOTATION_CHECKPOINT_NOW
from savepoint.errors import Refused, Unavailable

from savepoint_operator.cluster.events import Events, EventTarget
from savepoint_operator.cluster.kinds import AGENTS, CHECKPOINTS, PODS
from savepoint_operator.model.objects import CheckpointObject, Interval, ObjectKey, Pod, Policy
from savepoint_operator.model.ports import Orders
from savepoint_operator.reconcile.agent_record import AgentRecord, AttemptRecord
from savepoint_operator.reconcile.checkpoint_objects import ANNOTATION_ATTEMPT, CheckpointObjects
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.rules import schedule
from savepoint_operator.rules.status import checkpoint_status
from savepoint_operator.rules.status.conditions import Condition, parsed_time
from savepoint_operator.rules.status.texts import ago, with_next_step

ATTEMPT_SECONDS: Final = 1800
"""Deadline of an attempt; the registry calls it failed some seconds later."""
LOST_SECONDS: Final = 120.0
"""How long after its deadline a note without an end is given up."""
PROGRESS_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 2.0
OPEN_SECONDS: Final = 60.0
"""How long a request waits for a sidecar, and an attempt that an earlier leader began waits to be spoken of."""
VISIBLE: Final = frozenset({"Uploading", "Committing"})


class Attempts:
    """The steps of one agent; each says in how many seconds it wants to be called again, None: when something comes."""

    def __init__(
        self,
        cluster: ClusterClient,
        cache: ClusterCache,
        objects: CheckpointObjects,
        recorder: QueueingRecorder,
        events: Events,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        leader_since: Callable[[], float],
        not_running_seconds: float = OPEN_SECONDS,
    ) -> None:
        self._cluster, self._cache, self._objects, self._recorder = cluster, cache, objects, recorder
        self._events, self._now, self._monotonic, self._random_bytes = events, now, monotonic, random_bytes
        self._leader_since, self._not_running = leader_since, not_running_seconds
        self._seen: dict[str, float] = {}
        """Monotonic seconds at which a request that nobody can answer yet was first looked at, by its uid."""

    # -- what is under way, and how it ended -----------------------------------------------------------------------

    async def write_notes(self, agent_record: AgentRecord) -> float | None:
        """Bring the objects in line with what was told."""
        again: list[float] = []
        for note in list(agent_record.attempts.values()):
            overdue = self._monotonic() - note.started_at > ATTEMPT_SECONDS + LOST_SECONDS
            if not note.over and overdue:
                why = "The attempt has not ended within its bound, and its sidecar says nothing of it any more."
                await self._recorder.failed(agent_record.agent, Result(note.id, "Failed", "DeadlineExceeded", why))
            pause = await self._write_note(agent_record, note)
            again += [] if pause is None else [pause]
        return min(again, default=None)

    async def _write_note(self, agent_record: AgentRecord, note: AttemptRecord) -> float | None:
        item = self._objects.find(agent_record.agent, note.id)
        if item is None:
            if note.unchanged:
                del agent_record.attempts[note.id]
                return None
            if not note.over and note.stage not in VISIBLE:
                return None
            item = await self._objects.ensure(
                agent_record, note, agent_record.head.record.number if agent_record.head else 0
            )
        if not note.over:
            return await self._write_progress(agent_record, note, item)
        if note.unchanged and not self._objects.asked_by_user(item):
            await self._objects.delete(item)  # it was shown while it looked for what had changed
            del agent_record.attempts[note.id]
            return None
        told = (note.head, note.result)  # more may come while this is being written
        patch, condition = self._ending(agent_record, note, item)
        await self._objects.write(item, {**self._begun(agent_record, note, item), **patch}, condition)
        if note.result is not None and not note.unchanged:
            await self._say_failure(agent_record, note, item)
        if agent_record.attempts.get(note.id) is note and (note.head, note.result) == told:
            del agent_record.attempts[note.id]
        return None

    async def _write_progress(
        self, agent_record: AgentRecord, note: AttemptRecord, item: CheckpointObject
    ) -> float | None:
        now = self._monotonic()
        same_stage = item.reason == note.stage
        if same_stage and note.written_at is not None and now - note.written_at < PROGRESS_SECONDS:
            return PROGRESS_SECONDS - (now - note.written_at)
        delay = f"All of it is stored, but cannot be committed now; it is tried again: {note.delay}"
        patch, condition = checkpoint_status.running(note.stage, note.progress, delay if note.delay else "")
        await self._objects.write(item, {**self._begun(agent_record, note, item), **patch}, condition)
        note.written_at = now
        return None

    def _begun(self, agent_record: AgentRecord, note: AttemptRecord, item: CheckpointObject) -> checkpoint_status.Patch:
        pod = self._cache.pod_by_uid(agent_record.agent, note.pod[1])
        trigger, why = checkpoint_status.trigger_of(note.trigger, pod.disruption if pod is not None else "")
        begun = checkpoint_status.started(note.id, trigger, note.requested_by, note.why or why, note.pod)
        return _without_known(begun, item)

    def _ending(
        self, agent_record: AgentRecord, note: AttemptRecord, item: CheckpointObject
    ) -> tuple[checkpoint_status.Patch, Condition]:
        if note.head is not None:
            return checkpoint_status.committed(
                note.offer or note.contents, note.head, note.store, note.parent, self._now()
            )
        assert note.result is not None
        if note.unchanged:
            name = self._objects.latest_name(agent_record)
            latest = self._cache.checkpoints.get(ObjectKey(agent_record.agent.namespace, name))
            return checkpoint_status.unchanged(latest.status if latest else {}, name, note.result)
        return checkpoint_status.failed(note.result.reason, note.result.message)

    async def _say_failure(self, agent_record: AgentRecord, note: AttemptRecord, item: CheckpointObject) -> None:
        assert note.result is not None
        text = f"{note.result.reason}: {note.result.message}{self._last_good(agent_record)}"
        await self._events.warning(EventTarget.of(CHECKPOINTS, item.meta), "CheckpointFailed", text)
        if note.pod[0]:
            about = EventTarget(PODS, agent_record.agent.namespace, note.pod[0], note.pod[1])
            await self._events.warning(about, "CheckpointFailed", f"{item.meta.name}: {text}")

    def _last_good(self, agent_record: AgentRecord) -> str:
        good = self._objects.latest_name(agent_record)
        when = f" ({ago(agent_record.recovery_point, self._now())})" if agent_record.recovery_point else ""
        return f" Last good: {good}{when}." if good else " There is no checkpoint yet."

    # -- what is asked for ------------------------------------------------------------------------------------------

    async def order_requests(self, agent_record: AgentRecord, policy: Policy | None, orders: Orders) -> float | None:
        """One order at a time, the oldest request first; those that nobody can answer end within a bound.

        While the chain has not been read nothing is ordered: what is asked for may have been committed long ago.
        """
        again: list[float] = []
        for item in self._objects.of(agent_record.agent):
            if item.meta.deleting or not checkpoint_status.open_ended(item.reason):
                continue
            known = item.attempt or item.own_attempt
            if (
                known in agent_record.attempts
                or item.meta.annotations.get(ANNOTATION_ATTEMPT, "") in agent_record.attempts
            ):
                continue
            labelled = await self._objects.label(item)
            if self._objects.asked_by_user(labelled):
                pause = await self._order(agent_record, policy, orders, labelled)
            else:
                pause = await self._give_up(agent_record, orders, labelled)
            again += [] if pause is None else [pause]
        return min(again, default=None)

    async def _order(
        self, agent_record: AgentRecord, policy: Policy | None, orders: Orders, item: CheckpointObject
    ) -> float | None:
        session = orders.session(agent_record.agent)
        if not agent_record.chain_read:
            return await self._wait_or_end(agent_record, policy, item, store_silent=True)
        if session is None:
            return await self._wait_or_end(agent_record, policy, item)
        try:
            note = await self._begin(agent_record, orders, item.own_attempt, "Manual")
        except Refused:
            return await self._pending(item, "Another checkpoint of this agent is under way; this one comes after it.")
        except Unavailable as error:
            return await self._pending(item, str(error))
        self._seen.pop(item.meta.uid, None)
        note.name, note.number = item.meta.name, item.number
        note.requested_by = (item.status.get("trigger") or {}).get("requestedBy", "")
        if not note.over and note.stage == "Pending":
            note.stage = "Quiescing"
            await self._write_progress(agent_record, note, item)
        return None

    async def _wait_or_end(
        self, agent_record: AgentRecord, policy: Policy | None, item: CheckpointObject, *, store_silent: bool = False
    ) -> float | None:
        """Counted from when this leader saw the request: a new one gives sidecars time to connect."""
        waited = self._monotonic() - self._seen.setdefault(item.meta.uid, self._monotonic())
        if waited < self._not_running:
            missing = f"The sidecar of agent {agent_record.agent.name} is not connected"
            if store_silent:
                missing = f"The store of agent {agent_record.agent.name} cannot be read"
            await self._pending(item, f"{missing}; it is waited for.")
            return min(self._not_running - waited + 0.1, AGAIN_SECONDS * 5)
        del self._seen[item.meta.uid]
        reason = "StoreUnavailable" if store_silent else "AgentNotRunning"
        if store_silent:
            text = f"The store of agent {agent_record.agent.name} could not be read for {self._not_running:.0f} s."
        elif not [pod for pod in self._cache.pods.of(agent_record.agent) if pod.live]:
            text = f"No pod of agent {agent_record.agent.name} runs in namespace {agent_record.agent.namespace}."
        else:
            text = (
                f"The sidecar of agent {agent_record.agent.name} has not been connected for {self._not_running:.0f} s."
            )
        message = with_next_step(reason, text, policy.meta.name if policy else None)
        patch, condition = checkpoint_status.failed(reason, message)
        begun = checkpoint_status.started(item.own_attempt, item.trigger or "Manual", "", "", ("", "", ""))
        await self._objects.write(item, {**_without_known(begun, item), **patch}, condition)
        await self._events.warning(EventTarget.of(CHECKPOINTS, item.meta), "CheckpointFailed", f"{reason}: {message}")
        return None

    async def _pending(self, item: CheckpointObject, message: str) -> float:
        patch, condition = checkpoint_status.running("Pending", None, message)
        begun = checkpoint_status.started(item.own_attempt, item.trigger or "Manual", "", "", ("", "", ""))
        await self._objects.write(item, {**_without_known(begun, item), **patch}, condition)
        return AGAIN_SECONDS

    async def _give_up(self, agent_record: AgentRecord, orders: Orders, item: CheckpointObject) -> float | None:
        """An attempt of an earlier leader: its sidecar restates it, or the chain has it, or it has ended unheard."""
        since = self._monotonic() - self._leader_since()
        session = orders.session(agent_record.agent)
        if (
            since < OPEN_SECONDS
            or not agent_record.chain_read
            or (session is not None and session.attempt == item.attempt)
        ):
            return OPEN_SECONDS
        text = "The operator was restarted while this was under way, and the sidecar says nothing of it any more."
        message = with_next_step("DeadlineExceeded", text, None)
        await self._objects.write(item, *checkpoint_status.failed("DeadlineExceeded", message))
        about = EventTarget.of(CHECKPOINTS, item.meta)
        await self._events.warning(
            about, "CheckpointFailed", f"DeadlineExceeded: {message}{self._last_good(agent_record)}"
        )
        return None

    # -- what is due ------------------------------------------------------------------------------------------------

    async def take_due(self, agent_record: AgentRecord, policy: Policy | None, orders: Orders) -> float | None:
        """The checkpoint by time."""
        interval = policy.interval if policy is not None else Interval()
        session = orders.session(agent_record.agent)
        if interval is None or (policy is not None and policy.suspend) or agent_record.completed:
            return None
        if session is None or agent_record.connected_at is None:
            return None
        if agent_record.last_start is None:
            agent_record.last_start = self._last_start(agent_record, interval)
        due = schedule.due_at(
            interval,
            agent_record.random_part,
            last_start=agent_record.last_start,
            connected_at=agent_record.connected_at,
            has_checkpoint=bool(self._objects.latest_name(agent_record)),
        )
        left = due - self._monotonic()
        if left > 0:
            return left
        if session.attempt is not None:
            return AGAIN_SECONDS
        try:
            note = await self._begin(agent_record, orders, self._random_bytes(16).hex(), "Interval")
        except (Refused, Unavailable):
            return AGAIN_SECONDS
        if note.stage == "Pending":
            note.stage = "Quiescing"
        agent_record.random_part = self._random_bytes(1)[0] / 255
        return schedule.wait_seconds(interval, agent_record.random_part)

    async def _begin(self, agent_record: AgentRecord, orders: Orders, attempt: str, trigger: str) -> AttemptRecord:
        """Note the attempt, then order it: its end may be told before this returns. Raises Refused, Unavailable."""
        last_start = agent_record.last_start
        note = self._recorder.note(agent_record, attempt, trigger)
        try:
            await orders.checkpoint(agent_record.agent, attempt, trigger, ATTEMPT_SECONDS)
        except (Refused, Unavailable):
            agent_record.last_start = last_start
            agent_record.attempts.pop(attempt, None)
            raise
        return note

    def _last_start(self, agent_record: AgentRecord, interval: Interval) -> float | None:
        """Of an attempt under an earlier leader, as far as the recovery point tells it."""
        holder = self._cache.agents.get(ObjectKey(*agent_record.agent))
        point = parsed_time(holder.status.get("recoveryPointTime")) if holder is not None else None
        ago_seconds = schedule.seconds_since(point, self._now(), interval.period_seconds * 2.0)
        return None if ago_seconds is None else self._monotonic() - ago_seconds

    # -- what a pod's annotation asks for ---------------------------------------------------------------------------

    async def follow_annotation(self, agent_record: AgentRecord, pod: Pod | None) -> None:
        """Each new value of the annotation is one checkpoint; the last value is kept on the ProtectedAgent."""
        value = pod.meta.annotations.get(ANNOTATION_CHECKPOINT_NOW, "") if pod is not None else ""
        holder = self._cache.agents.get(ObjectKey(*agent_record.agent))
        if pod is None or not value or holder is None:
            return
        if holder.meta.annotations.get(ANNOTATION_CHECKPOINT_NOW) == value:
            return
        asked = [
            each for each in self._objects.of(agent_record.agent) if ANNOTATION_CHECKPOINT_NOW in each.meta.annotations
        ]
        if not asked or asked[-1].meta.annotations[ANNOTATION_CHECKPOINT_NOW] != value:
            await self._objects.request(agent_record, {ANNOTATION_CHECKPOINT_NOW: value}, f"pod/{pod.meta.name}")
        body = {"metadata": {"annotations": {ANNOTATION_CHECKPOINT_NOW: value}}}
        self._cache.agents.put(
            await self._cluster.patch(AGENTS, agent_record.agent.namespace, agent_record.agent.name, body)
        )


def _without_known(begun: checkpoint_status.Patch, item: CheckpointObject) -> checkpoint_status.Patch:
    """What was written at the beginning is not written over by what is known less well later."""
    trigger = item.status.get("trigger") or {}
    if trigger.get("type"):
        begun = {name: value for name, value in begun.items() if name != "trigger"}
    return begun
