"""One attempt at a checkpoint while it runs: its bound, how it is ended early, how far it is.

Its threads ask ``check`` between files and chunks; whoever ends it calls ``interrupt``. It captures nothing itself.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from savepoint.contract.control_protocol import Progress, Timing
from savepoint.errors import DeadlineExceeded, SavepointError, StateUnstable

from savepoint_sidecar.agent_api.quiesce import Transaction

T = TypeVar("T")


@dataclass
class CaptureAttempt:
    """Mutable on purpose: what is known of one attempt from order to result."""

    id: str
    trigger: str
    ends_at: float
    """By ``monotonic``: when it must be over."""
    monotonic: Callable[[], float]
    request: str = ""
    completed: bool = False
    deferrable: bool = False
    """Nothing comes after it: when the authority cannot be reached, the finished manifest is left for later."""
    kept: bool = False
    """It has ended well: what it captured is committed, left for later, or was there before."""
    defer_after_seconds: float = 5.0
    stage: str = "Quiescing"
    transaction: Transaction | None = None
    start: str = ""
    quiesced: str | None = None
    resumed: str | None = None
    planned_bytes: int = 0
    done_bytes: int = 0
    stop_waiting: Callable[[], None] = lambda: None
    """Ends whatever it waits for of its authority."""
    _held_until: float | None = None
    _error: SavepointError | None = None
    _interrupted: threading.Event = field(default_factory=threading.Event)

    @property
    def sealed(self) -> bool:
        """What is captured is complete: the agent may go on, or go, and the attempt still counts."""
        return self.stage in ("Uploading", "Committing")

    @property
    def interrupted(self) -> bool:
        """Whether it was ended from outside."""
        return self._interrupted.is_set()

    @property
    def left_seconds(self) -> float:
        """Until its bound."""
        return self.ends_at - self.monotonic()

    @property
    def patience_seconds(self) -> float:
        """How long its commit may take."""
        left = max(0.0, self.left_seconds)
        return min(self.defer_after_seconds, left / 2) if self.deferrable else left

    @property
    def pause_milliseconds(self) -> int | None:
        """As the agent saw it."""
        return self.transaction.pause_milliseconds if self.transaction else None

    def interrupt(self, error: SavepointError) -> None:
        """End it from outside with this reason, also while it waits. On the event loop."""
        if self._error is None:
            self._error = error
        if self.transaction is not None:
            self.transaction.fail(error)
        self._interrupted.set()
        self.stop_waiting()

    def defer(self) -> None:
        """Nothing comes after it, as it turns out, and the authority is away. On the event loop."""
        self.deferrable = True
        if self.stage == "Committing":
            self.stop_waiting()

    def hold(self, seconds: float | None) -> None:
        """The agent waits for so long from now; None: it does not wait any more."""
        self._held_until = None if seconds is None else self.monotonic() + seconds

    def check(self) -> None:
        """Raise what ends the attempt, if anything does. From any thread."""
        if self._interrupted.is_set():
            assert self._error is not None
            raise self._error
        now = self.monotonic()
        if self._held_until is not None and now >= self._held_until:
            raise StateUnstable(
                "taking what changed lasted longer than the agent waits; it was resumed. "
                "Raise spec.quiesce.holdSeconds in the policy, or change less between safe points."
            )
        if now >= self.ends_at:
            raise DeadlineExceeded("the attempt did not end within its bound; the next one goes on from what is stored")

    def plan(self, size: int) -> None:
        """So many bytes more will be read."""
        self.planned_bytes += size

    def stored(self, done: int) -> None:
        """Told by the writer; from any thread."""
        self.done_bytes = done
        self.check()

    def progress(self) -> Progress:
        """How far it is, as a message."""
        total = max(self.planned_bytes, self.done_bytes)
        percent = 99 if self.stage == "Committing" else min(99, self.done_bytes * 100 // total) if total else 0
        return Progress(self.id, self.stage, percent, self.done_bytes, total)

    def timing(self) -> Timing:
        """When what happened."""
        return Timing(self.start, self.quiesced, self.resumed, self.pause_milliseconds)


async def in_thread(attempt: CaptureAttempt | None, function: Callable[[], T]) -> T:
    """Run blocking work in a thread. Being cancelled interrupts the attempt and still waits for the thread's end."""
    work = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if attempt is not None:
            attempt.interrupt(DeadlineExceeded("the attempt was ended from outside"))
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()
        raise
