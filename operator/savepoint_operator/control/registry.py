"""The live sidecar sessions and the one attempt that each agent has in flight; implements ``Orders`` for reconcile.

It owns the end of every attempt: committed, refused, failed by the sidecar, or failed here if the sidecar stays silent
past the deadline. It neither reads sockets (``sidecar_session``) nor writes the chain (``lineage``).
"""

import asyncio
from collections.abc import Awaitable, Callable

from savepoint.contract.control_protocol import Checkpoint, Committed, Offer, Refused, Result
from savepoint.contract.vocabulary import CheckpointOutcome, CheckpointPhase, Reason
from savepoint.errors import Refused as RefusedError
from savepoint.errors import SavepointError, StoreUnavailable, Superseded, Unavailable
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.history.collect import CollectReport

from savepoint_operator.control.agent_control_state import AgentControlState, SidecarConnection
from savepoint_operator.control.rate_limit import ATTEMPTS_PER_SECOND, BURST_ATTEMPTS, RateLimit
from savepoint_operator.lineage.held_epoch import HeldEpoch
from savepoint_operator.lineage.service import LineageService
from savepoint_operator.model.ports import Recorder
from savepoint_operator.model.views import AgentRef, PodIdentity, SessionView
from savepoint_operator.rules.attempt import DEFERRABLE, URGENT, InFlight, OrderAction, order_action

COMMIT_SECONDS = 30.0
"""Seconds for which a commit is retried while the store is unreachable, even past the attempt's deadline."""
RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 8.0
SUCCESSOR_SECONDS = 5.0
"""Seconds after a pod's release, or after a restore, in which the agent's next message is expected."""
JOINED_SECONDS = 2.0
"""Seconds in which a sidecar that has just connected may request what its agent needs to start."""


class SessionRegistry:
    """The sessions and attempts of all agents. All methods run on the event loop."""

    def __init__(
        self,
        lineage: LineageService,
        recorder: Recorder,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._lineage, self._recorder, self._monotonic, self._sleep = lineage, recorder, monotonic, sleep
        self._states: dict[AgentRef, AgentControlState] = {}
        self._stops: set[asyncio.Task[None]] = set()
        self._stopping = False

    # -- Orders ---------------------------------------------------------------------------------------------------

    def session(self, agent: AgentRef) -> SessionView | None:
        """Return the live sidecar session of the agent, if any."""
        state = self._states.get(agent)
        if state is None or state.sidecar is None:
            return None
        return state.sidecar.view(state.attempt.id if state.attempt else None)

    async def checkpoint(
        self, agent: AgentRef, attempt: str, trigger: str, deadline_seconds: int, after: str = "Resume"
    ) -> None:
        """Order a checkpoint; see ``Orders``."""
        await self.order(agent, Checkpoint(attempt, trigger, deadline_seconds, after))

    async def rollback(self, agent: AgentRef, attempt: str, to_sequence: int | None, store: str) -> ChainRecord:
        """Append a rollback record and stop the session, which may commit nothing after it."""
        head = await self._lineage.rollback(agent, attempt, to_sequence, store)
        message = f"Agent {agent} was rolled back or reset; its next pod starts from the chosen state."
        state = self._state(agent)
        if state.attempt is not None and state.attempt.id not in state.commits:
            await self.fail(agent, _failed(state.attempt.id, Reason.ROLLED_BACK, message))
        self._stop(state, Reason.ROLLED_BACK, message)
        return head

    async def end_run(self, agent: AgentRef, pod_uid: str, store: str) -> ChainRecord | None:
        """End the run of a pod that exited with 0. Raises Unavailable while a checkpoint of it is being committed."""
        if self._state(agent).commits:
            raise Unavailable(f"a checkpoint of agent {agent} is being committed; its run is ended afterwards")
        return await self._lineage.end_run(agent, pod_uid, store)

    async def collect(self, agent: AgentRef, store: str, keep_sequences: frozenset[int]) -> CollectReport:
        """Collect garbage. Raises Refused with code AttemptInFlight during a checkpoint or restore."""
        state = self._state(agent)
        if state.attempt is not None or state.commits or state.restoring:
            raise RefusedError(
                f"a checkpoint or restore of agent {agent} is in progress; collect later", Reason.ATTEMPT_IN_FLIGHT
            )
        return await self._lineage.collect(agent, store, keep_sequences)

    async def head(self, agent: AgentRef, store: str) -> ChainRecord | None:
        """Return the newest record, read from the store."""
        return await self._lineage.head(agent, store)

    # -- sessions -------------------------------------------------------------------------------------------------

    def attach(self, agent: AgentRef, session: SidecarConnection) -> None:
        """Make this the agent's session. An older one of the same pod has been closed by then."""
        state = self._state(agent)
        state.sidecar = session
        if self._monotonic() < state.handover_until:
            state.handover_until = self._monotonic() + JOINED_SECONDS

    def detach(self, agent: AgentRef, session: SidecarConnection) -> bool:
        """Remove an ended session; return whether it was the agent's. Its attempt continues until its deadline."""
        state = self._state(agent)
        if state.sidecar is not session:
            return False
        state.sidecar = None
        return True

    def restore_started(self, agent: AgentRef, session: object) -> None:
        """Note that the pod of this session was granted an epoch and restores now."""
        self._state(agent).restoring.add(session)

    def restore_ended(self, agent: AgentRef, session: object) -> None:
        """Note that the restore or its connection has ended. Of two sessions of one pod the older one is half-open."""
        state = self._state(agent)
        if session in state.restoring:
            state.restoring.remove(session)
            self.expect_successor(agent)

    def expect_successor(self, agent: AgentRef) -> None:
        """Note that the agent is moving from one pod to the next, so that its next message may come soon."""
        self._state(agent).handover_until = self._monotonic() + SUCCESSOR_SECONDS

    async def set_holder(self, held_epoch: HeldEpoch) -> None:
        """Note that this pod holds the newest epoch, and end the session and the attempt of an earlier holder."""
        agent, state = held_epoch.agent, self._state(held_epoch.agent)
        replaced = state.holder not in (None, (held_epoch.pod.uid, held_epoch.epoch))
        state.holder = (held_epoch.pod.uid, held_epoch.epoch)
        message = (
            f"Pod {held_epoch.pod.name} now holds epoch {held_epoch.epoch} of agent {agent}; only this pod may commit."
        )
        if replaced:
            self._stop(state, Superseded.reason, message)
        attempt = state.attempt
        if attempt is None or attempt.id in state.commits:
            return
        try:
            committed = await self._lineage.has_committed(held_epoch, attempt.id)  # from a pending object
        except (StoreUnavailable, Unavailable):
            return  # its deadline fails it
        if committed:
            state.end(attempt.id, "")
        elif replaced:
            await self.fail(agent, _failed(attempt.id, Reason.SOURCE_POD_REPLACED, message))

    def _stop(self, state: AgentControlState, reason: str, message: str) -> None:
        sidecar, state.sidecar = state.sidecar, None
        if sidecar is not None:  # in the background, since a peer that no longer reads must not delay its successor
            task = asyncio.ensure_future(sidecar.stop(reason, message))
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)

    # -- attempts -------------------------------------------------------------------------------------------------

    def attempt(self, agent: AgentRef) -> InFlight | None:
        """Return the attempt in flight, if any."""
        return self._state(agent).attempt

    def has_ended(self, agent: AgentRef, attempt: str) -> bool:
        """Return whether the attempt is known to have ended."""
        return attempt in self._state(agent).ended

    async def order(self, agent: AgentRef, message: Checkpoint) -> bool:
        """Begin an attempt and send its order; return False, without sending, if the attempt is known already."""
        state = self._state(agent)
        action = order_action(state.attempt, message.attempt in state.ended, message.attempt)
        if action is OrderAction.KNOWN:
            return False
        if action is OrderAction.BUSY and state.attempt is not None:
            raise RefusedError(
                f"a checkpoint of agent {agent} is in progress ({state.attempt.trigger or 'restated'}, "
                f"{state.attempt.phase}); only one runs at a time: request again when it has ended",
                Reason.ATTEMPT_IN_FLIGHT,
            )
        if state.sidecar is None or (self._stopping and message.trigger in DEFERRABLE):
            raise Unavailable(f"the sidecar of agent {agent} is not connected; the checkpoint can be taken once it is")
        deadline = self._monotonic() + message.deadline_seconds
        self.track(agent, InFlight(message.attempt, message.trigger, deadline, message.after))
        try:
            await state.sidecar.order(message)
        except Unavailable:
            state.clear(message.attempt)
            raise
        return True

    def track(self, agent: AgentRef, attempt: InFlight) -> None:
        """Track the attempt as in flight, and fail it at its deadline."""
        state = self._state(agent)
        state.attempt = attempt
        if state.deadline_task is not None:
            state.deadline_task.cancel()
        state.deadline_task = asyncio.ensure_future(self._expire(agent, attempt))

    def set_phase(self, agent: AgentRef, attempt: str, phase: str) -> bool:
        """Set the phase of the attempt; return False if it is not the one in flight."""
        state = self._state(agent)
        if state.attempt is None or state.attempt.id != attempt:
            return False
        state.attempt = state.attempt.in_phase(phase)
        return True

    async def result(self, held_epoch: HeldEpoch, result: Result) -> None:
        """End the attempt as the sidecar reports. It may have been committed without the sidecar learning of it."""
        agent, state = held_epoch.agent, self._state(held_epoch.agent)
        if result.attempt in state.ended or result.attempt in state.commits:
            return
        if not state.knows(result.attempt) and not self.may_begin_attempt(agent):
            return
        if result.outcome == CheckpointOutcome.UNCHANGED:
            state.end(result.attempt, CheckpointOutcome.UNCHANGED)
            await self._recorder.unchanged(agent, result, await self._lineage.head(agent, held_epoch.store.name))
        elif await self._was_committed(held_epoch, result.attempt):
            state.end(result.attempt, "")
        else:
            await self.fail(agent, result)

    async def fail(self, agent: AgentRef, result: Result) -> None:
        """Fail the attempt and record it, once."""
        state = self._state(agent)
        if result.attempt not in state.ended:
            state.end(result.attempt, result.reason or CheckpointOutcome.FAILED)
            await self._recorder.failed(agent, result)

    async def commit(self, held_epoch: HeldEpoch, offer: Offer) -> Committed | Refused:
        """Commit an offer and return the answer. The commit outlives the connection; a repeated offer joins it."""
        state = self._state(held_epoch.agent)
        task = state.commits.get(offer.attempt)
        if not state.knows(offer.attempt) and not self.may_begin_attempt(held_epoch.agent):
            text = "This pod offers more than one attempt of its own per second. Offer it again later."
            return Refused(Reason.REFUSED, text, attempt=offer.attempt)
        if task is None:
            task = asyncio.ensure_future(self._commit(state, held_epoch, offer))
            state.commits[offer.attempt] = task
            task.add_done_callback(lambda _: state.commits.pop(offer.attempt, None))
        return await asyncio.shield(task)

    def may_begin_attempt(self, agent: AgentRef) -> bool:
        """Return whether the agent's pod may begin one more attempt on its own; each may become an object."""
        state = self._state(agent)
        if state.attempt_limit is None:
            state.attempt_limit = RateLimit(self._monotonic, BURST_ATTEMPTS, ATTEMPTS_PER_SECOND)
        return state.attempt_limit.take()

    # -- the end of leadership ------------------------------------------------------------------------------------

    def stop_ordering(self) -> None:
        """Accept no deferrable orders from now on; what is in progress continues."""
        self._stopping = True

    @property
    def has_urgent_work(self) -> bool:
        """True while a commit, or an attempt of a pod that is about to end, is in progress."""
        return any(
            state.commits
            or (state.sidecar is not None and state.attempt is not None and state.attempt.trigger in URGENT)
            for state in self._states.values()
        )

    def in_handover(self) -> set[AgentRef]:
        """Return the agents that are moving from one pod to the next: until the new sidecar has what it needs."""
        now = self._monotonic()
        return {agent for agent, state in self._states.items() if state.restoring or now < state.handover_until}

    def connected_pods(self) -> list[tuple[AgentRef, PodIdentity]]:
        """Return the agent and pod of every live session."""
        sessions = [(agent, state.sidecar) for agent, state in self._states.items() if state.sidecar is not None]
        return [(agent, session.view(None).pod) for agent, session in sessions]

    async def close(self) -> None:
        """Cancel all tasks and forget all state; the sidecars restate it to the next leader."""
        tasks: list[asyncio.Task[None] | asyncio.Task[Committed | Refused]] = [*self._stops]
        for state in self._states.values():
            tasks += [*state.commits.values(), *([state.deadline_task] if state.deadline_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._states.clear()

    # -- internals ---------------------------------------------------------------------------------------------------

    async def _was_committed(self, held_epoch: HeldEpoch, attempt: str) -> bool:
        """Return whether the attempt was committed; False if the store fails: the chain is checked again later."""
        try:
            return await self._lineage.has_committed(held_epoch, attempt)
        except SavepointError:
            return False

    def _state(self, agent: AgentRef) -> AgentControlState:
        return self._states.setdefault(agent, AgentControlState())

    async def _commit(self, state: AgentControlState, held_epoch: HeldEpoch, offer: Offer) -> Committed | Refused:
        ended = state.ended.get(offer.attempt)
        if ended == Reason.DEADLINE_EXCEEDED:
            return Refused(
                ended, "The attempt was abandoned at its deadline; nothing of it was committed.", attempt=offer.attempt
            )
        deadline = self._monotonic() + COMMIT_SECONDS
        if state.attempt is not None and state.attempt.id == offer.attempt:
            deadline = max(deadline, state.attempt.deadline)
            state.attempt = state.attempt.in_phase(CheckpointPhase.COMMITTING)
        try:
            committed = await self._persist(held_epoch, offer, deadline)
        except SavepointError as error:
            result = _failed(offer.attempt, error.reason, str(error))
            await self.fail(held_epoch.agent, result)
            return Refused(result.reason, result.message, attempt=offer.attempt)
        state.end(offer.attempt, "")
        return committed

    async def _persist(self, held_epoch: HeldEpoch, offer: Offer, deadline: float) -> Committed:
        pause = RETRY_SECONDS
        while True:
            try:
                return Committed(offer.attempt, await self._lineage.commit(held_epoch, offer))
            except (StoreUnavailable, Unavailable) as error:
                if self._monotonic() + pause > deadline:
                    raise
                await self._recorder.delayed(held_epoch.agent, offer.attempt, str(error))
            await self._sleep(pause)
            pause = min(pause * 2, MAX_RETRY_SECONDS)

    async def _expire(self, agent: AgentRef, attempt: InFlight) -> None:
        await self._sleep(attempt.expires_in(self._monotonic()))
        state = self._state(agent)
        state.deadline_task = None
        if state.attempt is None or state.attempt.id != attempt.id or attempt.id in state.commits:
            return  # a commit in progress ends the attempt itself, within its own deadline
        connection = "is connected but has not ended it" if state.sidecar else "has not reconnected"
        phase = state.attempt.phase
        message = f"The sidecar of agent {agent} {connection} (last phase: {phase}); earlier checkpoints are kept."
        await self.fail(agent, _failed(attempt.id, Reason.DEADLINE_EXCEEDED, message))


def _failed(attempt: str, reason: str, message: str) -> Result:
    return Result(attempt, CheckpointOutcome.FAILED, reason, message)
