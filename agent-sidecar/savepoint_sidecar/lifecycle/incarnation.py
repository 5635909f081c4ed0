"""One incarnation of an agent, as its sidecar lives it: it obeys the authority, serves the agent, and ends in order.

It joins the parts and owns no mechanism: checkpoints are ``checkpoint``'s, what comes back ``recovery``'s. One thing
happens to the state at a time: whoever takes or brings back a cut holds the lock.
"""

import asyncio
import contextlib
import ctypes
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import Checkpoint, Refused, Released, RequestCheckpoint, Result, Stop, Welcome
from savepoint.errors import Refused as RefusedError
from savepoint.errors import SavepointError, Unavailable

from savepoint_sidecar.agent_api.process_session import ProcessSession, ProcessSessions
from savepoint_sidecar.agent_api.socket_server import SocketServer
from savepoint_sidecar.authority.authority import Authority
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt
from savepoint_sidecar.checkpoint.checkpointer import Checkpointer, CheckpointOutcome, FinalState
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import without_shared, write_marker
from savepoint_sidecar.lifecycle.config import Clock, IncarnationConfig
from savepoint_sidecar.lifecycle.fence import Fence
from savepoint_sidecar.lifecycle.recovery import Recovery, restored
from savepoint_sidecar.lifecycle.requests import Requests
from savepoint_sidecar.lifecycle.shutdown import Shutdown
from savepoint_sidecar.lifecycle.state_lock import CONNECTED_ANEW, StateLock
from savepoint_sidecar.restore.file_restore import ready_marker
from savepoint_sidecar.stage.components import prepare_stage

log = logging.getLogger(__name__)

RELEASE_SECONDS: Final = 0.8
"""Of the two seconds that a sidecar has when the grace is spent: for the release."""
FINISH_SECONDS: Final = 300.0
BASELINE_SECONDS: Final = 60.0
BASELINE_BYTES: Final = 256 << 20
AGENT_SECONDS: Final = 5.0
START_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.05
STOPPING: Final = "The pod is stopping: its last checkpoint is taken instead of this one."
COMPLETED: Final = "The run is completed: its last checkpoint holds its end, and nothing changes any more."
REMEMBERED_ATTEMPTS: Final = 64


class Incarnation:
    """Started once, ended once."""

    def __init__(
        self,
        authority: Authority,
        terms: IncarnationConfig,
        edges: Clock,
        failpoints: Failpoints | None = None,
        *,
        renewable: bool = False,
    ) -> None:
        """``renewable``: whoever runs it begins another one when an agent connects after the end of the run."""
        self._authority, self._terms, self._edges = authority, terms, edges
        self._renewable = renewable
        self.succeeded, self._closed = asyncio.Event(), asyncio.Event()
        """An agent has connected that belongs to the next run."""
        self._failpoints = failpoints or Failpoints()
        self.sessions = ProcessSessions(edges.random_id)
        self._server = SocketServer(terms.socket_path, self.sessions, self)
        self._requests = Requests(authority, edges.random_id)
        self._fence = Fence(authority, self.sessions)
        self.turn = StateLock(authority, edges.monotonic, terms.grace_seconds)
        self._seen: dict[str, None] = {}
        """Attempts that were ordered: every order may come twice."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._welcome: Welcome | None = None
        self._stopped: RefusedError | None = None
        self._completed = False
        self._shutdown: Shutdown | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> Welcome:
        """Learn who we are, know the cut, and serve the agent's socket. Raises what the authority or the store says."""
        welcome = self._welcome = await self._authority.welcome()
        self._terms = replace(self._terms, roots=without_shared(self._terms.roots, welcome.shared_roots))
        await asyncio.to_thread(prepare_stage, self._terms.stage, welcome.run)
        self.capture = Capture(self._terms.roots, welcome.policy.exclude, self._edges.clock_ns)
        self.checkpointer = Checkpointer(
            self._authority,
            welcome,
            self.capture,
            self._terms.stage,
            now=self._edges.now,
            failpoints=self._failpoints,
        )
        self._recovery = Recovery(self._authority, welcome, self._terms, self.capture, self.checkpointer)
        await self._recovery.begin()
        self._shutdown = Shutdown(
            self._authority,
            self.sessions,
            self._requests,
            self._recovery,
            self.checkpointer,
            turn=self.turn,
            take=self._take,
            grace_seconds=self._terms.grace_seconds,
            edges=self._edges,
        )
        self._spawn(self._obey())
        self._spawn(self._fence.watch())
        await self._server.start()
        return welcome

    def heartbeat(self) -> tuple[bool, str]:
        """Whether an SDK is connected, and what it is at."""
        session = self.sessions.live
        return session is not None, (session.execution.detail or session.execution.step or "") if session else ""

    def attempts(self) -> tuple[tuple[str, str], ...]:
        """The attempt in flight and its stage, to be restated after a reconnect."""
        return ((self.turn.attempt.id, self.turn.attempt.stage),) if self.turn.attempt is not None else ()

    def begin_end(self) -> None:
        """The pod is stopping: ask the agent for its last flush and start copying. May be told twice."""
        if self._shutdown is not None and not self._completed and self._stopped is None:
            self._shutdown.begin()

    async def end(self) -> bool:
        """The agent has exited: finish the last checkpoint, release, let go. Whether the state is all stored."""
        assert self._welcome is not None and self._shutdown is not None
        if self.sessions.current is not None:
            self.sessions.current.end()  # the stream of a killed process may end later than the news of its death
        stored = self._completed
        if not self._completed and self._stopped is None:
            stored = await self._shutdown.ended() or self._completed
        if not stored and self.turn.attempt is not None:
            self.turn.attempt.interrupt(Unavailable("the grace period ended before this checkpoint did"))
        if self._stopped is None:
            message = "" if stored else "The end of this incarnation is in no checkpoint; the last one counts."
            with contextlib.suppress(TimeoutError, SavepointError):
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._authority.released(Released(self._welcome.epoch, self._completed, message))
        await self.close()
        return stored

    @property
    def stands_at_cut(self) -> bool:
        """After the end: whether the roots stand as the last cut has them. An agent that was killed may have gone on
        after it, though it was committed later."""
        return self._completed or (self._shutdown is not None and self._shutdown.took_last)

    async def close(self) -> None:
        """Stop everything at once."""
        await self._server.close()
        if self._shutdown is not None:
            await self._shutdown.close()
        await self._authority.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._closed.set()

    # -- what the agent asks (socket_server.Host) -------------------------------------------------------------------

    async def bring_back(self, session: ProcessSession) -> wire.Connected:
        """Let files and values stand at the last cut, and hand over the values."""
        if self._completed:
            await self._make_way()
        if session.hello.reattach:
            await self._recovery.is_first()
            return self._connected(session, None, ())
        async with self.turn.of_connect():
            await self._recovery.rebase()
            if await self._recovery.is_first():
                assert self._welcome is not None
                came_back = self._welcome.parent if self.sessions.connects == 1 else None
                await self._take_baseline(session)
                return self._connected(session, restored(came_back, "Restored"), ())
            return self._connected(session, *await self._recovery.bring_back())

    async def _make_way(self) -> None:
        """The container was started again in its pod. Its connection ends without an answer when this incarnation
        does, and its SDK dials the next one."""
        if self._renewable:
            self.succeeded.set()
            await self._closed.wait()
            raise asyncio.CancelledError
        raise RefusedError("The run is completed; the next pod of this agent starts the next one.", "Completed")

    def asked(self, session: ProcessSession, request: wire.CheckpointRequest) -> None:
        """The agent wants a checkpoint."""
        if self._stopped is not None:
            told = wire.Result("", "Failed", request.request, reason=self._stopped.code, message=str(self._stopped))
            session.send(told)
            return
        trigger = "Shutdown" if request.reason == "Shutdown" else "Agent"
        self._spawn(self._requests.forward(session, RequestCheckpoint(request.request, trigger, request.reason)))

    async def finish(self, session: ProcessSession, flush: wire.Flush) -> str:
        """The last checkpoint of the run, and its completion."""
        assert self._shutdown is not None
        async with self.turn.of_end("the agent has finished its run", lambda: True):
            attempt = await self._shutdown.order_or_own("Finish", FINISH_SECONDS)
            attempt.completed = True
            last = FinalState(flush=flush)
            last.ended.set()
            taken = await self._take(attempt, session, last)
        self._completed = True
        log.info("the run is completed (%s)", taken)
        current = self.checkpointer.cut
        return current.ref.name if current is not None and taken == "Ready" else ""

    def ended(self, session: ProcessSession) -> None:
        """The agent's process is gone."""
        log.info("agent disconnected (pid %d)", session.hello.pid)

    def status(self) -> dict[str, Any]:
        """Of this incarnation."""
        assert self._welcome is not None
        current = self.checkpointer.cut
        return {
            "agent": self._welcome.agent,
            "epoch": self._welcome.epoch,
            "connected": self.sessions.live is not None,
            "authority": "connected" if self._authority.connected else "lost",
            "lastCheckpoint": current.ref.name if current else None,
            "lastCheckpointTime": current.ref.time if current else None,
        }

    # -- what the authority says ----------------------------------------------------------------------------------

    async def _obey(self) -> None:
        async for order in self._authority.orders():
            match order:
                case Checkpoint():
                    self._ordered(order)
                case Refused():
                    again = self._requests.refused(order)
                    if again is not None:
                        self._spawn(self._requests.forward(*again, after=self.turn.lock))
                case Stop() if self._stopped is None:
                    log.error("this incarnation is stopped: %s: %s", order.reason, order.message)
                    self._stopped = RefusedError(order.message, order.reason)
                    self.turn.interrupt(order.message)
                    self._fence.stop(order.message)
                case Welcome():
                    self._recovery.heard(order)

    def _ordered(self, order: Checkpoint) -> None:
        known = order.attempt in self._seen
        self._seen[order.attempt] = None
        while len(self._seen) > REMEMBERED_ATTEMPTS:
            del self._seen[next(iter(self._seen))]
        if not self._requests.answered(order) and not known:
            self._spawn(self._obey_checkpoint(order))

    async def _obey_checkpoint(self, order: Checkpoint) -> None:
        """Every order ends in an offer or a result: nobody waits for its deadline."""
        ends_at = self._edges.monotonic() + order.deadline_seconds
        attempt = CaptureAttempt(order.attempt, order.trigger, ends_at, self._edges.monotonic, request=order.request)
        await self._await_agent()
        if self._hindrance is not None:  # told before its turn, which may come late
            await self._decline(attempt, self._hindrance)
            return
        async with self.turn.lock:
            try:
                await self._recovery.rebase()
            except SavepointError as error:
                await self._decline(attempt, error)
                return
            if self._hindrance is not None:
                await self._decline(attempt, self._hindrance)
                return
            if self.turn.agent_waits:
                attempt.interrupt(Unavailable(CONNECTED_ANEW))
            with contextlib.suppress(SavepointError):
                await self._take(attempt, self.sessions.live)

    @property
    def _hindrance(self) -> SavepointError | None:
        """Why no attempt may begin that is ordered now."""
        if self._stopped is not None:
            return self._stopped
        if self._completed:
            return RefusedError(COMPLETED, "Completed")
        return Unavailable(STOPPING) if self._is_ending else None

    async def _decline(self, attempt: CaptureAttempt, why: SavepointError) -> None:
        """It never began: tell the authority, and the agent if it has asked for it."""
        reason = why.code
        log.info("checkpoint attempt %s is declined: %s: %s", attempt.id, reason, why)
        session = self.sessions.live
        if session is not None and attempt.request:
            session.send(wire.Result("", "Failed", attempt.request, reason=reason, message=str(why)))
        await self._authority.result(Result(attempt.id, "Failed", reason, str(why)))

    async def _await_agent(self) -> None:
        """Give an agent with the SDK a moment to connect (again): a sidecar that was restarted is sooner here.

        An agent without files can be captured in no other way: it is given longer, for its first start.
        """
        ends_at = self._edges.monotonic() + (AGENT_SECONDS if self._terms.roots else START_SECONDS)
        expected = self.checkpointer.sdk or not self._terms.roots
        while expected and self.sessions.live is None and self._hindrance is None:
            if self._edges.monotonic() >= ends_at:
                return
            await asyncio.sleep(POLL_SECONDS)

    # -- parts ----------------------------------------------------------------------------------------------------

    async def _take(
        self, attempt: CaptureAttempt, session: ProcessSession | None, last: FinalState | None = None
    ) -> CheckpointOutcome:
        """Run one attempt; the lock is held. The authority and the agent are told how it ended."""
        if self._stopped is not None:
            await self._decline(attempt, self._stopped)
            raise self._stopped
        self.turn.attempt = attempt
        try:
            taken = await self.checkpointer.take(attempt, session, last)
            attempt.kept = True
        finally:
            self.turn.attempt = None
            await asyncio.to_thread(_trim)
        if taken == "Ready":
            await self._raise_markers()
            await self._recovery.expect_reads()
        return taken

    async def _raise_markers(self) -> None:
        current = self.checkpointer.cut
        assert current is not None and self._welcome is not None
        log.info("checkpoint %s is committed (sequence %d)", current.ref.name, current.ref.sequence)
        marker = ready_marker(self._welcome, self._terms.pod_uid, current.ref)
        for root in self._terms.roots:
            try:
                await asyncio.to_thread(write_marker, root, marker)
            except OSError as error:
                log.warning("the marker in %s could not be raised: %s", root.mount_path, error)

    async def _take_baseline(self, session: ProcessSession) -> None:
        """A checkpoint before an agent with the SDK touches its files: what a crash before its own first one goes back
        to. The agent waits in connect() meanwhile, so it is left out where the files are large."""
        if not self._terms.roots:
            return
        size = await asyncio.to_thread(self.capture.file_bytes)
        if size > BASELINE_BYTES:
            log.warning("no checkpoint is taken before the start: the files have %d bytes", size)
            return
        try:
            order = await self._requests.order("Agent", BASELINE_SECONDS)
            last = FinalState(flush=wire.Flush(session.id, "", ()))
            last.ended.set()
            await self._take(self._attempt_of(order.attempt, "Agent", BASELINE_SECONDS), session, last)
        except (SavepointError, TimeoutError) as error:
            log.warning("no checkpoint could be taken before the start (%s)", error or "no order came in time")

    def _attempt_of(self, identifier: str, trigger: str, seconds: float) -> CaptureAttempt:
        return CaptureAttempt(identifier, trigger, self._edges.monotonic() + seconds, self._edges.monotonic)

    @property
    def _is_ending(self) -> bool:
        return self._shutdown is not None and self._shutdown.begun

    def _connected(
        self, session: ProcessSession, what: wire.Restored | None, components: tuple[wire.Component, ...]
    ) -> wire.Connected:
        assert self._welcome is not None
        welcome = self._welcome
        at = "the start" if what is None else what.checkpoint
        log.info("agent connected (pid %d): epoch %d, at %s", session.hello.pid, welcome.epoch, at)
        self._fence.greet(session)
        return wire.Connected(
            session.id,
            welcome.agent,
            welcome.namespace,
            welcome.epoch,
            welcome.run,
            what,
            components,
            self._terms.features,
        )

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a part of the sidecar failed", exc_info=task.exception())


def _trim() -> None:
    """Give freed memory back: the buffers of an attempt are large and seldom needed."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
