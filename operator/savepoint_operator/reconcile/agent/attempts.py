"""The steps that order checkpoints: those that are requested, those that are scheduled, and the annotation on a pod."""

from typing import Final

from savepoint.contract.names import ANNOTATION_CHECKPOINT_NOW
from savepoint.contract.vocabulary import CheckpointPhase, Reason, Trigger
from savepoint.errors import Refused, Unavailable

from savepoint_operator.cluster.events import EventTarget
from savepoint_operator.cluster.kinds import AGENTS, CHECKPOINTS
from savepoint_operator.model.objects import CheckpointObject, Interval, ObjectKey, Pod, Policy
from savepoint_operator.model.ports import Orders
from savepoint_operator.reconcile.agent.attempt_status import ATTEMPT_SECONDS, AttemptStatus, keep_trigger
from savepoint_operator.reconcile.agent_record import AgentRecord, AttemptRecord
from savepoint_operator.reconcile.checkpoint_objects import ANNOTATION_ATTEMPT, CheckpointObjects
from savepoint_operator.reconcile.dependencies import StepDependencies
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.rules import schedule
from savepoint_operator.rules.status import checkpoint_status
from savepoint_operator.rules.status.conditions import parsed_time
from savepoint_operator.rules.status.texts import with_next_step

REQUEUE_SECONDS: Final = 2.0
SIDECAR_WAIT_SECONDS: Final = 60.0
"""Seconds that a request waits for the agent's sidecar to connect, and that an attempt of an earlier leader waits to be
reported again by its sidecar."""


class Attempts:
    """Steps of one agent's reconcile; each returns the seconds until it must run again, or None."""

    def __init__(
        self,
        dependencies: StepDependencies,
        objects: CheckpointObjects,
        recorder: QueueingRecorder,
        status: AttemptStatus,
        *,
        not_running_seconds: float = SIDECAR_WAIT_SECONDS,
    ) -> None:
        self._cache, self._events = dependencies.cache, dependencies.events
        self._status_writer, self._random_bytes = dependencies.status_writer, dependencies.random_bytes
        self._now, self._monotonic = dependencies.clocks.now, dependencies.clocks.monotonic
        self._leader_since, self._not_running_seconds = dependencies.leader_since, not_running_seconds
        self._objects, self._recorder, self._status = objects, recorder, status
        self._waiting_since: dict[str, float] = {}
        """Monotonic seconds since when a request waits for a sidecar or store, by the request's UID."""

    # -- requested checkpoints -------------------------------------------------------------------------------------

    async def order_requested(self, agent_record: AgentRecord, policy: Policy | None, orders: Orders) -> float | None:
        """Order the oldest request, one at a time; fail requests that have waited too long.

        While the chain has not been read, nothing is ordered: the requested checkpoint may already be committed.
        """
        delays: list[float] = []
        for item in self._objects.of(agent_record.agent):
            if item.meta.deleting or not checkpoint_status.in_progress(item.reason):
                continue
            attempt_ids = (item.attempt or item.own_attempt, item.meta.annotations.get(ANNOTATION_ATTEMPT, ""))
            if any(attempt_id in agent_record.attempts for attempt_id in attempt_ids):
                continue
            labelled = await self._objects.label(item)
            if labelled is None:
                continue
            if self._objects.created_by_user(labelled):
                delay = await self._order(agent_record, policy, orders, labelled)
            else:
                delay = await self._fail_lost(agent_record, orders, labelled)
            delays += [] if delay is None else [delay]
        return min(delays, default=None)

    async def _order(
        self, agent_record: AgentRecord, policy: Policy | None, orders: Orders, item: CheckpointObject
    ) -> float | None:
        if not agent_record.chain_read:
            return await self._wait_or_fail(agent_record, policy, item, store_unreadable=True)
        if orders.session(agent_record.agent) is None:
            return await self._wait_or_fail(agent_record, policy, item)
        try:
            attempt = await self._begin(agent_record, orders, item.own_attempt, Trigger.MANUAL)
        except Refused:
            return await self._pending(
                item, "Another checkpoint of this agent is in progress; this one starts after it has ended."
            )
        except Unavailable as error:
            return await self._pending(item, str(error))
        self._waiting_since.pop(item.meta.uid, None)
        attempt.name, attempt.number = item.meta.name, item.number
        attempt.requested_by = (item.status.get("trigger") or {}).get("requestedBy", "")
        if not attempt.finished and attempt.phase == Reason.PENDING:
            attempt.phase = CheckpointPhase.QUIESCING
            await self._status.write_progress(agent_record, attempt, item)
        return None

    async def _wait_or_fail(
        self,
        agent_record: AgentRecord,
        policy: Policy | None,
        item: CheckpointObject,
        *,
        store_unreadable: bool = False,
    ) -> float | None:
        """Count from when this leader first saw the request, so that sidecars have time to connect to a new leader."""
        waited = self._monotonic() - self._waiting_since.setdefault(item.meta.uid, self._monotonic())
        agent, limit = agent_record.agent, self._not_running_seconds
        if waited < limit:
            missing = f"the sidecar of agent {agent.name} to connect"
            if store_unreadable:
                missing = f"the store of agent {agent.name} to become readable"
            await self._pending(item, f"Waiting for {missing}.")
            return min(limit - waited + 0.1, REQUEUE_SECONDS * 5)
        del self._waiting_since[item.meta.uid]
        reason = Reason.STORE_UNAVAILABLE if store_unreadable else Reason.AGENT_NOT_RUNNING
        if store_unreadable:
            text = f"The store of agent {agent.name} could not be read for {limit:.0f} s."
        elif not [pod for pod in self._cache.pods.of(agent) if pod.live]:
            text = f"No pod of agent {agent.name} runs in namespace {agent.namespace}."
        else:
            text = f"The sidecar of agent {agent.name} has not been connected for {limit:.0f} s."
        message = with_next_step(reason, text, policy.meta.name if policy else None)
        patch, condition = checkpoint_status.failed(reason, message)
        await self._objects.write_status(item, {**_manual_start(item), **patch}, condition)
        target = EventTarget.of(CHECKPOINTS, item.meta)
        await self._events.warning(target, Reason.CHECKPOINT_FAILED, f"{reason}: {message}")
        return None

    async def _pending(self, item: CheckpointObject, message: str) -> float:
        patch, condition = checkpoint_status.running(Reason.PENDING, None, message)
        await self._objects.write_status(item, {**_manual_start(item), **patch}, condition)
        return REQUEUE_SECONDS

    async def _fail_lost(self, agent_record: AgentRecord, orders: Orders, item: CheckpointObject) -> float | None:
        """Fail an attempt of an earlier leader, unless its sidecar may still report it or the chain may hold it."""
        leading_seconds = self._monotonic() - self._leader_since
        session = orders.session(agent_record.agent)
        if (
            leading_seconds < SIDECAR_WAIT_SECONDS
            or not agent_record.chain_read
            or (session is not None and session.attempt == item.attempt)
        ):
            return SIDECAR_WAIT_SECONDS
        text = "The operator restarted during this attempt, and the sidecar no longer reports it."
        message = with_next_step(Reason.DEADLINE_EXCEEDED, text, None)
        await self._objects.write_status(item, *checkpoint_status.failed(Reason.DEADLINE_EXCEEDED, message))
        event = f"{Reason.DEADLINE_EXCEEDED}: {message}{self._status.last_good(agent_record)}"
        await self._events.warning(EventTarget.of(CHECKPOINTS, item.meta), Reason.CHECKPOINT_FAILED, event)
        return None

    # -- scheduled checkpoints -------------------------------------------------------------------------------------

    async def order_scheduled(self, agent_record: AgentRecord, policy: Policy | None, orders: Orders) -> float | None:
        """Order a checkpoint if the policy's interval is due."""
        interval = policy.interval if policy is not None else Interval()
        session = orders.session(agent_record.agent)
        if interval is None or (policy is not None and policy.suspend) or agent_record.completed:
            return None
        if session is None or agent_record.connected_at is None:
            return None
        if agent_record.last_attempt_at is None:
            agent_record.last_attempt_at = self._last_attempt_at(agent_record, interval)
        due = schedule.due_at(
            interval,
            agent_record.random_fraction,
            last_start=agent_record.last_attempt_at,
            connected_at=agent_record.connected_at,
            has_checkpoint=bool(self._objects.latest_name(agent_record)),
        )
        left = due - self._monotonic()
        if left > 0:
            return left
        if session.attempt is not None:
            return REQUEUE_SECONDS
        try:
            attempt = await self._begin(agent_record, orders, self._random_bytes(16).hex(), Trigger.INTERVAL)
        except (Refused, Unavailable):
            return REQUEUE_SECONDS
        if attempt.phase == Reason.PENDING:
            attempt.phase = CheckpointPhase.QUIESCING
        agent_record.random_fraction = self._random_bytes(1)[0] / 255
        return schedule.wait_seconds(interval, agent_record.random_fraction)

    async def _begin(self, agent_record: AgentRecord, orders: Orders, attempt_id: str, trigger: str) -> AttemptRecord:
        """Record the attempt, then order it: its outcome may be reported before the order returns.

        Raises Refused, Unavailable.
        """
        last_attempt_at = agent_record.last_attempt_at
        attempt = self._recorder.attempt_record(agent_record, attempt_id, trigger)
        try:
            await orders.checkpoint(agent_record.agent, attempt_id, trigger, ATTEMPT_SECONDS)
        except (Refused, Unavailable):
            agent_record.last_attempt_at = last_attempt_at
            agent_record.attempts.pop(attempt_id, None)
            raise
        return attempt

    def _last_attempt_at(self, agent_record: AgentRecord, interval: Interval) -> float | None:
        """Estimate from the recovery point when an earlier leader started its last attempt."""
        item = self._cache.agents.get(ObjectKey(*agent_record.agent))
        point = parsed_time(item.status.get("recoveryPointTime")) if item is not None else None
        elapsed = schedule.seconds_since(point, self._now(), interval.period_seconds * 2.0)
        return None if elapsed is None else self._monotonic() - elapsed

    # -- the checkpoint-now annotation -----------------------------------------------------------------------------

    async def follow_annotation(self, agent_record: AgentRecord, pod: Pod | None) -> None:
        """Create one request for each new value of the pod's annotation; remember the value on the ProtectedAgent."""
        value = pod.meta.annotations.get(ANNOTATION_CHECKPOINT_NOW, "") if pod is not None else ""
        item = self._cache.agents.get(ObjectKey(*agent_record.agent))
        if pod is None or not value or item is None:
            return
        if item.meta.annotations.get(ANNOTATION_CHECKPOINT_NOW) == value:
            return
        requests = [
            each for each in self._objects.of(agent_record.agent) if ANNOTATION_CHECKPOINT_NOW in each.meta.annotations
        ]
        if not requests or requests[-1].meta.annotations[ANNOTATION_CHECKPOINT_NOW] != value:
            await self._objects.request(agent_record, {ANNOTATION_CHECKPOINT_NOW: value}, f"pod/{pod.meta.name}")
        await self._status_writer.write_metadata(AGENTS, item, annotations={ANNOTATION_CHECKPOINT_NOW: value})


def _manual_start(item: CheckpointObject) -> checkpoint_status.Patch:
    """Return the first fields of a request that no pod has started yet."""
    start = checkpoint_status.started(item.own_attempt, item.trigger or Trigger.MANUAL, "", "", ("", "", ""))
    return keep_trigger(start, item)
