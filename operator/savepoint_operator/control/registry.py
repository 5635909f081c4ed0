"""The live sidecar sessions and the one attempt each agent has in flight; it is what reconcile gives its orders to.

It owns the end of every attempt: committed, refused, failed by the sidecar, or failed here when the sidecar stays
silent past the deadline. It neither reads sockets (``sidecar_session``) nor writes the chain (``lineage``).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from savepoint.contract.control_protocol import Checkpoint, Committed, Offer, Refused, Result
from savepoint.errors import Refused as RefusedError
from savepoint.errors import SavepointError, StoreUnavailable, Superseded, Unavailable
from savepoint.repository.format.commit import Head

from savepoint_operator.control.agent_channel import AgentChannel, SidecarConnection
from savepoint_operator.control.rate_limit import BEGUN_MOST, BEGUN_PER_SECOND, RateLimit
from savepoint_operator.lineage.epoch_lease import EpochLease
from savepoint_operator.lineage.service import LineageService
from savepoint_operator.model.ports import Recorder
from savepoint_operator.model.views import AgentRef, PodIdentity, SessionView
from savepoint_operator.rules.attempt import MAY_WAIT, URGENT, InFlight, Start, start

COMMIT_SECONDS = 30.0
"""How long a commit is tried at least while the store cannot be reached, even past the attempt's deadline."""
RETRY_SECONDS = 0.5
RETRY_MOST_SECONDS = 8.0
SUCCESSOR_SECONDS = 5.0
"""How long after a pod's release, and after a restore, the next word of the agent is waited for."""
JOINED_SECONDS = 2.0
"""How long a sidecar that has just joined may still ask for what its agent needs to start."""


class Registry:
    """Implements ``Orders``. All methods run on the event loop."""

    def __init__(
        self,
        lineage: LineageService,
        recorder: Recorder,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._lineage, self._recorder, self._monotonic, self._sleep = lineage, recorder, monotonic, sleep
        self._lines: dict[AgentRef, AgentChannel] = {}
        self._stops: set[asyncio.Task[None]] = set()
        self._stopping = False

    # -- Orders ---------------------------------------------------------------------------------------------------

    def session(self, agent: AgentRef) -> SessionView | None:
        """The live sidecar session of the agent."""
        line = self._lines.get(agent)
        if line is None or line.session is None:
            return None
        return line.session.view(line.attempt.id if line.attempt else None)

    async def checkpoint(
        self, agent: AgentRef, attempt: str, trigger: str, deadline_seconds: int, after: str = "Resume"
    ) -> None:
        """Order a checkpoint; see ``Orders``."""
        await self.order(agent, Checkpoint(attempt, trigger, deadline_seconds, after))

    async def rollback(self, agent: AgentRef, attempt: str, to_sequence: int | None, store: str) -> Head:
        """Append a rollback record and stop the session, which may commit nothing after it."""
        head = await self._lineage.rollback(agent, attempt, to_sequence, store)
        message = f"Agent {agent} was rolled back: its next pod restores what was chosen."
        line = self._line(agent)
        if line.attempt is not None and line.attempt.id not in line.commits:
            await self.fail(agent, Result(line.attempt.id, "Failed", "RolledBack", message))
        self._stop(line, "RolledBack", message)
        return head

    async def end_run(self, agent: AgentRef, pod_uid: str, store: str) -> Head | None:
        """End the run of a pod that has exited with 0; Unavailable while its last checkpoint may be on its way."""
        if self._line(agent).commits:
            raise Unavailable(f"a checkpoint of agent {agent} is being committed; its run is ended after that")
        return await self._lineage.end_run(agent, pod_uid, store)

    async def collect(self, agent: AgentRef, store: str, keep_sequences: frozenset[int]) -> int:
        """Collect; Refused with code AttemptInFlight while a checkpoint or a restore is under way."""
        line = self._line(agent)
        if line.attempt is not None or line.commits or line.restoring:
            raise RefusedError(
                f"a checkpoint or restore of agent {agent} is under way; collect later", "AttemptInFlight"
            )
        return await self._lineage.collect(agent, store, keep_sequences)

    async def head(self, agent: AgentRef, store: str) -> Head | None:
        """The newest record, read from the store."""
        return await self._lineage.head(agent, store)

    # -- sessions -------------------------------------------------------------------------------------------------

    def attach(self, agent: AgentRef, session: SidecarConnection) -> None:
        """The session is the agent's; an older one of the same pod has been closed by then."""
        line = self._line(agent)
        line.session = session
        if self._monotonic() < line.between_until:
            line.between_until = self._monotonic() + JOINED_SECONDS

    def detach(self, agent: AgentRef, session: SidecarConnection) -> bool:
        """The session has ended; whether it was the agent's. Its attempt waits for a reconnect until the deadline."""
        line = self._line(agent)
        if line.session is not session:
            return False
        line.session = None
        return True

    def restoring(self, agent: AgentRef, session: object) -> None:
        """The pod of this session was granted an epoch and restores now."""
        self._line(agent).restoring.add(session)

    def restored(self, agent: AgentRef, session: object) -> None:
        """The restore has ended, or its connection has: one pod may have two, of which the older is half open."""
        line = self._line(agent)
        if session in line.restoring:
            line.restoring.remove(session)
            self.awaited(agent)

    def awaited(self, agent: AgentRef) -> None:
        """The agent is between two pods from now on, or one step further: the next word of it may come soon."""
        self._line(agent).between_until = self._monotonic() + SUCCESSOR_SECONDS

    async def hold(self, tenure: EpochLease) -> None:
        """This pod holds the newest epoch: what an earlier holder had under way has ended, one way or the other."""
        agent, line = tenure.agent, self._line(tenure.agent)
        replaced = line.holder not in (None, (tenure.pod.uid, tenure.epoch))
        line.holder = (tenure.pod.uid, tenure.epoch)
        message = f"Pod {tenure.pod.name} holds epoch {tenure.epoch} of agent {agent} now: no other commits any more."
        if replaced:
            self._stop(line, Superseded.reason, message)
        attempt = line.attempt
        if attempt is None or attempt.id in line.commits:
            return
        try:
            committed = await self._lineage.has_committed(tenure, attempt.id)  # from what its pod had left behind
        except (StoreUnavailable, Unavailable):
            return  # its deadline ends it
        if committed:
            line.end(attempt.id, "")
        elif replaced:
            await self.fail(agent, Result(attempt.id, "Failed", "SourcePodReplaced", message))

    def _stop(self, line: AgentChannel, reason: str, message: str) -> None:
        session, line.session = line.session, None
        if session is not None:  # in the background: a peer that no longer reads must not hold up its successor
            task = asyncio.ensure_future(session.stop(reason, message))
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)

    # -- attempts -------------------------------------------------------------------------------------------------

    def attempt(self, agent: AgentRef) -> InFlight | None:
        """The attempt in flight."""
        return self._line(agent).attempt

    def has_ended(self, agent: AgentRef, attempt: str) -> bool:
        """Whether the attempt is known to have ended."""
        return attempt in self._line(agent).ended

    async def order(self, agent: AgentRef, message: Checkpoint) -> bool:
        """Begin an attempt and send its order; False, and nothing is sent, when it is known already."""
        line = self._line(agent)
        what = start(line.attempt, message.attempt in line.ended, message.attempt)
        if what is Start.KNOWN:
            return False
        if what is Start.BUSY and line.attempt is not None:
            raise RefusedError(
                f"a checkpoint of agent {agent} is under way ({line.attempt.trigger or 'restated'}, "
                f"{line.attempt.stage}); one at a time: ask again when it has ended",
                "AttemptInFlight",
            )
        if line.session is None or (self._stopping and message.trigger in MAY_WAIT):
            raise Unavailable(f"the sidecar of agent {agent} is not connected; the checkpoint can be taken once it is")
        deadline = self._monotonic() + message.deadline_seconds
        self.begin(agent, InFlight(message.attempt, message.trigger, deadline, message.after))
        try:
            await line.session.order(message)
        except Unavailable:
            line.clear(message.attempt)
            raise
        return True

    def begin(self, agent: AgentRef, attempt: InFlight) -> None:
        """Count the attempt as in flight, and watch its deadline."""
        line = self._line(agent)
        line.attempt = attempt
        if line.timer is not None:
            line.timer.cancel()
        line.timer = asyncio.ensure_future(self._expire(agent, attempt))

    def stage(self, agent: AgentRef, attempt: str, stage: str) -> bool:
        """How far the attempt is; False when it is not the one in flight."""
        line = self._line(agent)
        if line.attempt is None or line.attempt.id != attempt:
            return False
        line.attempt = line.attempt.at(stage)
        return True

    async def result(self, tenure: EpochLease, result: Result) -> None:
        """The sidecar ends its attempt. It may have offered it, and not have heard that it was committed."""
        agent, line = tenure.agent, self._line(tenure.agent)
        if result.attempt in line.ended or result.attempt in line.commits:
            return
        if not line.knows(result.attempt) and not self.may_begin(agent):
            return
        if result.outcome == "Unchanged":
            line.end(result.attempt, "Unchanged")
            await self._recorder.unchanged(agent, result, await self._lineage.head(agent, tenure.store.name))
        elif await self._was_committed(tenure, result.attempt):
            line.end(result.attempt, "")
        else:
            await self.fail(agent, result)

    async def fail(self, agent: AgentRef, result: Result) -> None:
        """The attempt has failed: say so, once."""
        line = self._line(agent)
        if result.attempt not in line.ended:
            line.end(result.attempt, result.reason or "Failed")
            await self._recorder.failed(agent, result)

    async def commit(self, tenure: EpochLease, offer: Offer) -> Committed | Refused:
        """Commit an offer and answer it. It goes on when the connection is lost; a repeated offer joins it."""
        line = self._line(tenure.agent)
        task = line.commits.get(offer.attempt)
        if not line.knows(offer.attempt) and not self.may_begin(tenure.agent):
            text = "This pod offers attempts of its own faster than one a second; offer it again later."
            return Refused("Refused", text, attempt=offer.attempt)
        if task is None:
            task = asyncio.ensure_future(self._commit(line, tenure, offer))
            line.commits[offer.attempt] = task
            task.add_done_callback(lambda _: line.commits.pop(offer.attempt, None))
        return await asyncio.shield(task)

    def may_begin(self, agent: AgentRef) -> bool:
        """Whether the agent's pod may begin one more attempt by itself: each may become an object of the cluster."""
        line = self._line(agent)
        if line.begun is None:
            line.begun = RateLimit(self._monotonic, BEGUN_MOST, BEGUN_PER_SECOND)
        return line.begun.take()

    # -- the end of leadership ------------------------------------------------------------------------------------

    def stop_ordering(self) -> None:
        """From now on nothing new is begun; what is under way goes on."""
        self._stopping = True

    @property
    def urgent(self) -> bool:
        """Whether a commit, or an attempt of a pod that is about to go, is under way."""
        return any(
            line.commits or (line.session is not None and line.attempt is not None and line.attempt.trigger in URGENT)
            for line in self._lines.values()
        )

    def between(self) -> set[AgentRef]:
        """The agents that are on their way from one pod to the next: until the new one's sidecar has what it needs."""
        now = self._monotonic()
        return {agent for agent, line in self._lines.items() if line.restoring or now < line.between_until}

    def pods(self) -> list[tuple[AgentRef, PodIdentity]]:
        """Of every live session."""
        sessions = [(agent, line.session) for agent, line in self._lines.items() if line.session is not None]
        return [(agent, session.view(None).pod) for agent, session in sessions]

    async def close(self) -> None:
        """Forget everything: the sidecars restate it to the next leader."""
        tasks: list[asyncio.Task[None] | asyncio.Task[Committed | Refused]] = [*self._stops]
        for line in self._lines.values():
            tasks += [*line.commits.values(), *([line.timer] if line.timer else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lines.clear()

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _was_committed(self, tenure: EpochLease, attempt: str) -> bool:
        """Where the store cannot say, it counts as not committed; the chain is compared again later."""
        try:
            return await self._lineage.has_committed(tenure, attempt)
        except SavepointError:
            return False

    def _line(self, agent: AgentRef) -> AgentChannel:
        return self._lines.setdefault(agent, AgentChannel())

    async def _commit(self, line: AgentChannel, tenure: EpochLease, offer: Offer) -> Committed | Refused:
        late = line.ended.get(offer.attempt)
        if late == "DeadlineExceeded":
            return Refused(
                late, "The attempt was given up at its deadline; nothing of it counts.", attempt=offer.attempt
            )
        until = self._monotonic() + COMMIT_SECONDS
        if line.attempt is not None and line.attempt.id == offer.attempt:
            until = max(until, line.attempt.deadline)
            line.attempt = replace(line.attempt, stage="Committing")
        try:
            committed = await self._persist(tenure, offer, until)
        except SavepointError as error:
            result = Result(offer.attempt, "Failed", error.reason, str(error))
            await self.fail(tenure.agent, result)
            return Refused(result.reason, result.message, attempt=offer.attempt)
        line.end(offer.attempt, "")
        return committed

    async def _persist(self, tenure: EpochLease, offer: Offer, until: float) -> Committed:
        pause = RETRY_SECONDS
        while True:
            try:
                return Committed(offer.attempt, await self._lineage.commit(tenure, offer))
            except (StoreUnavailable, Unavailable) as error:
                if self._monotonic() + pause > until:
                    raise
                await self._recorder.delayed(tenure.agent, offer.attempt, str(error))
            await self._sleep(pause)
            pause = min(pause * 2, RETRY_MOST_SECONDS)

    async def _expire(self, agent: AgentRef, attempt: InFlight) -> None:
        await self._sleep(attempt.expires_in(self._monotonic()))
        line = self._line(agent)
        line.timer = None
        if line.attempt is None or line.attempt.id != attempt.id or attempt.id in line.commits:
            return  # a commit under way ends the attempt itself, within its own bound
        connected = (
            "is connected but has not ended it" if line.session else "has not come back since it lost its connection"
        )
        stage = line.attempt.stage
        message = f"The sidecar of agent {agent} {connected} (last stage: {stage}); earlier checkpoints are kept."
        await self.fail(agent, Result(attempt.id, "Failed", "DeadlineExceeded", message))
