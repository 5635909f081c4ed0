"""One attempt at a checkpoint while it runs: its deadline, its interruption, its progress.

Worker threads call ``check`` between files and chunks; ``interrupt`` ends the attempt early. Nothing is captured here.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from savepoint.contract.control_protocol import Progress, Timing
from savepoint.contract.vocabulary import CheckpointPhase
from savepoint.errors import DeadlineExceeded, SavepointError, StateUnstable

from savepoint_sidecar.agent_api.quiesce import Transaction

T = TypeVar("T")


@dataclass
class CaptureAttempt:
    """The state of one attempt from its order to its result. Mutable on purpose."""

    id: str
    trigger: str
    deadline: float
    """Time of ``monotonic`` at which the attempt must have ended."""
    monotonic: Callable[[], float]
    request: str = ""
    completed: bool = False
    """The checkpoint is the last of its run."""
    deferrable: bool = False
    """No attempt follows: if the authority cannot be reached, the finished manifest is left for a later commit."""
    succeeded: bool = False
    """True once the captured state is committed, left for a later commit, or already stored."""
    defer_after_seconds: float = 5.0
    phase: CheckpointPhase = CheckpointPhase.QUIESCING
    transaction: Transaction | None = None
    start: str = ""
    quiesced: str | None = None
    resumed: str | None = None
    planned_bytes: int = 0
    done_bytes: int = 0
    stop_waiting: Callable[[], None] = lambda: None
    """Ends every wait for the authority."""
    _hold_deadline: float | None = None
    _error: SavepointError | None = None
    _interrupted: threading.Event = field(default_factory=threading.Event)

    @property
    def captured(self) -> bool:
        """True once the capture is complete: the agent may continue or exit, and the attempt stays valid."""
        return self.phase in (CheckpointPhase.UPLOADING, CheckpointPhase.COMMITTING)

    @property
    def interrupted(self) -> bool:
        """True once ``interrupt`` was called."""
        return self._interrupted.is_set()

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - self.monotonic()

    @property
    def commit_timeout_seconds(self) -> float:
        """Seconds that the commit may take before it is deferred or fails."""
        remaining = max(0.0, self.remaining_seconds)
        return min(self.defer_after_seconds, remaining / 2) if self.deferrable else remaining

    @property
    def pause_milliseconds(self) -> int | None:
        """The pause as measured by the agent."""
        return self.transaction.pause_milliseconds if self.transaction else None

    def interrupt(self, error: SavepointError) -> None:
        """End the attempt with this error, also while it waits. Call it on the event loop."""
        if self._error is None:
            self._error = error
        if self.transaction is not None:
            self.transaction.fail(error)
        self._interrupted.set()
        self.stop_waiting()

    def defer(self) -> None:
        """Make the attempt deferrable after it began, and stop waiting for its commit. Call it on the event loop."""
        self.deferrable = True
        if self.phase == CheckpointPhase.COMMITTING:
            self.stop_waiting()

    def hold(self, seconds: float | None) -> None:
        """Limit the capture to ``seconds`` from now, while the agent is paused. None removes the limit."""
        self._hold_deadline = None if seconds is None else self.monotonic() + seconds

    def check(self) -> None:
        """Raise the error that ends the attempt, if there is one. Safe to call from any thread."""
        if self._interrupted.is_set():
            assert self._error is not None
            raise self._error
        now = self.monotonic()
        if self._hold_deadline is not None and now >= self._hold_deadline:
            raise StateUnstable(
                "capturing the changes took longer than the agent may be paused; it was resumed. "
                "Raise spec.quiesce.holdSeconds in the policy, or change less between safe points."
            )
        if now >= self.deadline:
            raise DeadlineExceeded(
                "the attempt did not finish before its deadline; the next one reuses what is already stored"
            )

    def add_planned(self, size: int) -> None:
        """Add bytes that will be read to the expected total."""
        self.planned_bytes += size

    def report_stored(self, done: int) -> None:
        """Record how many bytes the writer has stored, and check the attempt. Safe to call from any thread."""
        self.done_bytes = done
        self.check()

    def progress(self) -> Progress:
        """Return the progress as a message."""
        total = max(self.planned_bytes, self.done_bytes)
        percent = (
            99 if self.phase == CheckpointPhase.COMMITTING else min(99, self.done_bytes * 100 // total) if total else 0
        )
        return Progress(self.id, self.phase, percent, self.done_bytes, total)

    def timing(self) -> Timing:
        """Return the times of the attempt as a message."""
        return Timing(self.start, self.quiesced, self.resumed, self.pause_milliseconds)


async def in_thread(attempt: CaptureAttempt | None, function: Callable[[], T]) -> T:
    """Run blocking work in a thread. A cancellation interrupts the attempt and still waits for the thread to end."""
    work = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if attempt is not None:
            attempt.interrupt(DeadlineExceeded("the attempt was cancelled"))
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()
        raise
