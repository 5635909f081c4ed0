"""The attempts of an incarnation: each is taken or declined, and a commit updates the restore markers.

The caller holds the state lock. ``checkpoint`` does the work of one attempt.
"""

import asyncio
import contextlib
import ctypes
import logging
from dataclasses import replace
from typing import Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import Checkpoint, Result
from savepoint.contract.vocabulary import CheckpointOutcome, Trigger
from savepoint.errors import SavepointError

from savepoint_sidecar.agent_api.process_session import ProcessSession
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt
from savepoint_sidecar.checkpoint.checkpointer import FinalState
from savepoint_sidecar.lifecycle.context import IncarnationContext
from savepoint_sidecar.restore.file_restore import ready_marker
from savepoint_sidecar.restore.markers import write_marker

log = logging.getLogger(__name__)

BASELINE_SECONDS: Final = 60.0
BASELINE_MAX_BYTES: Final = 256 << 20


class AttemptRunner:
    """The runner of one incarnation's attempts, one at a time."""

    def __init__(self, context: IncarnationContext, capture: Capture) -> None:
        self._context, self._capture = context, capture
        context.checkpointer.before_offer = self._mark_offered

    def attempt_for(self, order: Checkpoint) -> CaptureAttempt:
        """Return a new attempt for this order, whose deadline counts from now."""
        monotonic = self._context.clock.monotonic
        deadline = monotonic() + order.deadline_seconds
        return CaptureAttempt(order.attempt, order.trigger, deadline, monotonic, request=order.request)

    async def take(
        self, attempt: CaptureAttempt, session: ProcessSession | None, final: FinalState | None = None
    ) -> CheckpointOutcome:
        """Run one attempt; its outcome or failure is reported to the authority and the agent."""
        context = self._context
        if context.state.stopped is not None:
            await self.decline(attempt, context.state.stopped)
            raise context.state.stopped
        context.state_lock.attempt = attempt
        try:
            outcome = await context.checkpointer.take(attempt, session, final)
            attempt.succeeded = True
        finally:
            context.state_lock.attempt = None
            await asyncio.to_thread(_trim_heap)
        if outcome == CheckpointOutcome.READY:
            await self._update_markers()
            await context.recovery.prepare_reads()
        return outcome

    async def decline(self, attempt: CaptureAttempt, error: SavepointError) -> None:
        """Report that the attempt does not begin: to the authority, and to the agent if it made the request."""
        reason, failed = error.code, CheckpointOutcome.FAILED
        log.info("checkpoint attempt declined: %s: %s (attempt=%s)", reason, error, attempt.id)
        session = self._context.sessions.live
        if session is not None and attempt.request:
            session.send(wire.Result("", failed, attempt.request, reason=reason, message=str(error)))
        await self._context.authority.report_result(Result(attempt.id, failed, reason, str(error)))

    async def take_baseline(self, session: ProcessSession) -> None:
        """Take a checkpoint before an agent with the SDK touches its files, for a crash before its own first one.

        The agent waits in connect() until it is taken, so there is no baseline of large files.
        """
        if not self._context.config.roots:
            return
        try:
            size = await asyncio.to_thread(self._capture.file_bytes)
            if size > BASELINE_MAX_BYTES:
                log.warning("no checkpoint before the agent starts: its files are too large (bytes=%d)", size)
                return
            order = await self._context.requests.request_order(Trigger.AGENT, BASELINE_SECONDS)
            final = FinalState(flush=wire.Flush(session.id, "", ()))
            final.ended.set()
            monotonic = self._context.clock.monotonic
            attempt = CaptureAttempt(order.attempt, Trigger.AGENT, monotonic() + BASELINE_SECONDS, monotonic)
            await self.take(attempt, session, final)
        except (SavepointError, TimeoutError) as error:
            log.warning("no checkpoint before the agent starts: %s", str(error) or "no order arrived in time")
        except Exception:
            log.exception("no checkpoint before the agent starts: it failed unexpectedly; report this as a bug")

    async def _update_markers(self) -> None:
        parent = self._context.checkpointer.parent
        assert parent is not None
        log.info("checkpoint committed (checkpoint=%s, sequence=%d)", parent.ref.name, parent.ref.sequence)
        await asyncio.to_thread(self._write_markers, "")

    def _mark_offered(self, attempt: str) -> None:
        """Name the attempt in the markers: if it becomes a checkpoint unnoticed, the roots are as new as that."""
        self._write_markers(attempt)

    def _write_markers(self, attempt: str) -> None:
        context, parent = self._context, self._context.checkpointer.parent
        ref = parent.ref if parent is not None else None
        marker = replace(ready_marker(context.welcome, context.config.pod_uid, ref), attempt=attempt)
        for root in context.config.roots:
            try:
                write_marker(root, marker, context.config.stage)
            except OSError as error:
                log.warning("cannot update the restore marker in %s: %s", root.mount_path, error)


def _trim_heap() -> None:
    """Return freed memory to the system: an attempt's buffers are large, and attempts are rare."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
