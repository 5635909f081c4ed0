"""One incarnation of an agent, as its sidecar runs it: it serves the agent, follows the authority, and ends in order.

It connects the parts and implements none: ``orders`` handles the authority's orders, ``attempts`` takes checkpoints,
``recovery`` restores, ``shutdown`` ends. The agent's state is captured or restored under one lock.
"""

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Any, Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import Released, RequestCheckpoint, Welcome
from savepoint.contract.vocabulary import CheckpointOutcome, Reason, Trigger
from savepoint.errors import Refused, SavepointError, Unavailable

from savepoint_sidecar.agent_api.process_session import ProcessSession, ProcessSessions
from savepoint_sidecar.agent_api.socket_server import SocketServer
from savepoint_sidecar.authority.authority import Authority
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.checkpoint.checkpointer import Checkpointer, FinalState
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import without_shared
from savepoint_sidecar.lifecycle.attempts import AttemptRunner
from savepoint_sidecar.lifecycle.config import Clock, IncarnationConfig
from savepoint_sidecar.lifecycle.context import IncarnationContext, IncarnationState
from savepoint_sidecar.lifecycle.fence import Fence
from savepoint_sidecar.lifecycle.orders import OrderHandler
from savepoint_sidecar.lifecycle.recovery import Recovery, restored_message
from savepoint_sidecar.lifecycle.requests import CheckpointRequests
from savepoint_sidecar.lifecycle.shutdown import Shutdown
from savepoint_sidecar.lifecycle.state_lock import StateLock
from savepoint_sidecar.lifecycle.tasks import BackgroundTasks
from savepoint_sidecar.stage.components import prepare_stage

log = logging.getLogger(__name__)

RELEASE_SECONDS: Final = 0.8
"""Kubernetes gives a sidecar two seconds after the grace period; this part of them is for the release."""
FINISH_SECONDS: Final = 300.0
NOT_STORED: Final = "The agent's last state is not stored; its next pod restores the latest checkpoint."


class Incarnation:
    """The ``AgentHost`` of one incarnation. Started once and shut down once."""

    def __init__(
        self,
        authority: Authority,
        config: IncarnationConfig,
        clock: Clock,
        failpoints: Failpoints | None = None,
        *,
        can_start_next_run: bool = False,
    ) -> None:
        """``can_start_next_run``: the caller starts another incarnation once ``next_run_requested`` is set."""
        self._authority, self._config, self._clock = authority, config, clock
        self._failpoints = failpoints or Failpoints()
        self._can_start_next_run = can_start_next_run
        self.next_run_requested = asyncio.Event()
        """Set when an agent connects after the end of the run."""
        self._closed = asyncio.Event()
        self.sessions = ProcessSessions(clock.random_id)
        self.state_lock = StateLock(authority, clock.monotonic, config.grace_seconds)
        self._server = SocketServer(config.socket_path, self.sessions, self, config.reword)
        self._requests = CheckpointRequests(authority, clock.random_id)
        self._fence = Fence(authority, self.sessions)
        self._tasks = BackgroundTasks()
        self._state = IncarnationState()
        self._welcome: Welcome | None = None
        self._shutdown: Shutdown | None = None

    # -- life cycle ---------------------------------------------------------------------------------------------------

    async def start(self) -> Welcome:
        """Get the welcome, load the parent checkpoint, and serve the agent's socket.

        Raise what the authority or the store raises.
        """
        welcome = self._welcome = await self._authority.welcome()
        self._config = replace(self._config, roots=without_shared(self._config.roots, welcome.shared_roots))
        await asyncio.to_thread(prepare_stage, self._config.stage, welcome.run)
        self.capture = Capture(self._config.roots, welcome.policy.exclude, self._clock.time_ns)
        self.capture.apply(welcome.policy)
        await asyncio.to_thread(self.capture.probe_roots)
        self.checkpointer = Checkpointer(
            self._authority,
            welcome,
            self.capture,
            self._config.stage,
            now=self._clock.now,
            failpoints=self._failpoints,
            user=self._config.user,
        )
        self._recovery = Recovery(
            self._authority, welcome, self._config, self.capture, self.checkpointer, now=self._clock.now
        )
        await self._recovery.start()
        context = self._build_context(welcome)
        self._attempts = AttemptRunner(context, self.capture)
        self._shutdown = Shutdown(context, self._attempts.take)
        self._tasks.spawn(OrderHandler(context, self._attempts, self._fence, self._tasks).run())
        self._tasks.spawn(self._fence.watch())
        await self._server.start()
        return welcome

    def _build_context(self, welcome: Welcome) -> IncarnationContext:
        return IncarnationContext(
            self._authority,
            welcome,
            self._config,
            self._clock,
            self._state,
            self.state_lock,
            self.sessions,
            self._requests,
            self._recovery,
            self.checkpointer,
        )

    def heartbeat(self) -> tuple[bool, str]:
        """Return whether an SDK is connected, and the agent's position."""
        session = self.sessions.live
        return session is not None, (session.execution.detail or session.execution.step or "") if session else ""

    def attempts(self) -> tuple[tuple[str, str], ...]:
        """Return the attempt in flight with its phase, to be restated after a reconnect."""
        attempt = self.state_lock.attempt
        return ((attempt.id, attempt.phase),) if attempt is not None else ()

    def begin_shutdown(self) -> None:
        """Order the agent's last flush and start copying, because the pod is stopping. May be called twice."""
        if self._shutdown is not None and not self._state.completed and self._state.stopped is None:
            self._shutdown.begin()

    async def shut_down(self) -> bool:
        """Finish the final checkpoint after the agent has exited, report the release, and close.

        Return whether all of the agent's state is stored.
        """
        assert self._welcome is not None and self._shutdown is not None
        state = self._state
        if self.sessions.current is not None:
            self.sessions.current.end()  # a killed process's stream may end later than its death is reported
        stored = state.completed
        if not state.completed and state.stopped is None:
            stored = await self._shutdown.finish() or state.completed
        if not stored and self.state_lock.attempt is not None:
            self.state_lock.attempt.interrupt(Unavailable("the grace period ended before this checkpoint was complete"))
        if state.stopped is None:
            message = "" if stored else NOT_STORED
            with contextlib.suppress(TimeoutError, SavepointError):
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._authority.report_release(Released(self._welcome.epoch, state.completed, message))
        await self.close()
        return stored

    @property
    def roots_match_checkpoint(self) -> bool:
        """After the shutdown: True if the roots hold exactly the latest checkpoint.

        An agent that was killed may have changed files after that checkpoint was captured, even if it was committed
        later.
        """
        return self._state.completed or (self._shutdown is not None and self._shutdown.took_final_checkpoint)

    async def close(self) -> None:
        """Stop everything at once."""
        await self._server.close()
        if self._shutdown is not None:
            await self._shutdown.close()
        await self._authority.close()
        await self._tasks.cancel()
        self._closed.set()

    # -- AgentHost ----------------------------------------------------------------------------------------------------

    async def connect(self, session: ProcessSession) -> wire.Connected:
        """Return the values of the last checkpoint, after its files were restored where they may not stay."""
        if self._state.completed:
            await self._leave_to_next_run()
        assert self.checkpointer is not None
        self.checkpointer.agent_user.connected = session.uid
        if session.connect.reattach:
            await self._recovery.record_connect()
            return self._connected(session, None, ())
        async with self.state_lock.for_connect():
            await self._recovery.rebase()
            if await self._recovery.record_connect():
                assert self._welcome is not None
                restored_from = self._welcome.parent if self.sessions.connect_count == 1 else None
                await self._attempts.take_baseline(session)
                return self._connected(session, restored_message(restored_from, "Restored"), ())
            return self._connected(session, *await self._recovery.restore())

    async def _leave_to_next_run(self) -> None:
        """Leave an agent that connects after the end of its run to the next incarnation.

        Its container was restarted in the same pod. The connection ends without an answer when this incarnation
        closes, and the SDK dials again.
        """
        if self._can_start_next_run:
            self.next_run_requested.set()
            await self._closed.wait()
            raise asyncio.CancelledError
        raise Refused("The run is completed; the agent's next pod starts the next run.", Reason.COMPLETED)

    def request_checkpoint(self, session: ProcessSession, request: wire.CheckpointRequest) -> None:
        """Forward the agent's request to the authority, unless this incarnation was stopped."""
        stopped = self._state.stopped
        if stopped is not None:
            failed = CheckpointOutcome.FAILED
            session.send(wire.Result("", failed, request.request, reason=stopped.code, message=str(stopped)))
            return
        trigger = Trigger.SHUTDOWN if request.reason == Trigger.SHUTDOWN else Trigger.AGENT
        message = RequestCheckpoint(request.request, trigger, request.reason)
        self._tasks.spawn(self._requests.forward(session, message))

    async def finish(self, session: ProcessSession, flush: wire.Flush) -> str:
        """Take the final checkpoint of the run, complete the run, and return the checkpoint's name."""
        assert self._shutdown is not None
        async with self.state_lock.for_final_checkpoint("the agent has finished its run", lambda: True):
            attempt = await self._shutdown.final_attempt(Trigger.FINISH, FINISH_SECONDS)
            attempt.completed = True
            final = FinalState(flush=flush)
            final.ended.set()
            outcome = await self._attempts.take(attempt, session, final)
        self._state.completed = True
        log.info("run completed (final checkpoint: %s)", outcome)
        parent = self.checkpointer.parent
        return parent.ref.name if parent is not None and outcome == CheckpointOutcome.READY else ""

    def handle_disconnect(self, session: ProcessSession) -> None:
        """Log the end of the agent's process."""
        log.info("agent disconnected (pid=%d)", session.connect.pid)

    def status(self) -> dict[str, Any]:
        """Return the body of ``GET /v1/status``."""
        assert self._welcome is not None
        parent = self.checkpointer.parent
        return {
            "agent": self._welcome.agent,
            "epoch": self._welcome.epoch,
            "connected": self.sessions.live is not None,
            "authority": "connected" if self._authority.connected else "lost",
            "lastCheckpoint": parent.ref.name if parent else None,
            "lastCheckpointTime": parent.ref.time if parent else None,
        }

    def _connected(
        self, session: ProcessSession, restored: wire.Restored | None, components: tuple[wire.Component, ...]
    ) -> wire.Connected:
        assert self._welcome is not None
        welcome = self._welcome
        checkpoint = "none" if restored is None else restored.checkpoint
        pid = session.connect.pid
        log.info("agent connected (pid=%d, epoch=%d, checkpoint=%s)", pid, welcome.epoch, checkpoint)
        self._fence.announce(session)
        self._tasks.spawn(self._recovery.forget_restore(session))
        return wire.Connected(
            session.id,
            welcome.agent,
            welcome.namespace,
            welcome.epoch,
            welcome.run,
            restored,
            components,
            self._config.features,
        )
