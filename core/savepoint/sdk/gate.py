"""Coordination of an agent's threads: an order arrives, they park at safe points, one of them flushes, all continue.

The gate knows which threads are parked, which are inside ``critical()`` and which iterations are open; the caller
decides what a flush contains and how it is sent. The lock of its condition is the agent's only lock.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import get_ident
from time import monotonic
from typing import Final, Protocol

from savepoint.contract.agent_protocol import Quiesce, Result, Stopping
from savepoint.errors import SavepointError
from savepoint.sdk.scope import Scope

_POLL_SECONDS: Final = 0.05  # how soon a thread that ended without notice is detected
_FINISHED_KEPT: Final = 8  # transactions remembered as finished


class RunningLoop(Protocol):
    """A loop that runs: the scope of its open iteration, if any, and the thread that runs it."""

    @property
    def iteration(self) -> Scope | None: ...
    @property
    def thread(self) -> int: ...


@dataclass
class PendingOrder:
    """An order to flush, and the time after which it is dropped."""

    order: Quiesce | Stopping
    deadline: float  # monotonic
    flushing: bool = False

    @property
    def hold_seconds(self) -> float:
        """Seconds to wait for the sidecar's answer."""
        if isinstance(self.order, Quiesce):
            return self.order.hold_seconds
        return max(self.deadline - monotonic(), 0.0)


@dataclass
class Waiter:
    """A thread that waits for the result of the checkpoint it requested."""

    result: Result | None = None
    error: SavepointError | None = None

    @property
    def done(self) -> bool:
        """True once there is a result or an error."""
        return self.result is not None or self.error is not None


class Gate:
    """Parks the threads of one agent at safe points, so that one of them can flush."""

    def __init__(self, loops: Callable[[], Iterable[RunningLoop]]) -> None:
        self.condition = threading.Condition(threading.RLock())
        self.attention = False  # the only flag that a safe point reads when there is nothing to do
        self.attention_requested = False  # something other than an order needs the next safe point
        self.pending: PendingOrder | None = None
        self._loops = loops
        self._parked: dict[int, Scope] = {}
        self._critical: dict[int, int] = {}  # thread -> nesting depth
        self._finished: list[str] = []  # transactions that were flushed, cancelled or missed
        self._waiters: dict[str, Waiter] = {}

    # -- orders, from the reader's thread --

    def accept(self, order: Quiesce | Stopping) -> PendingOrder | None:
        """Make an order the pending one. Returns None if it is a repeat or its transaction is finished."""
        seconds = order.timeout_seconds if isinstance(order, Quiesce) else order.grace_seconds
        with self.condition:
            if order.transaction in self._finished:
                return None
            if self.pending is not None and self.pending.order.transaction == order.transaction:
                return None
            self.pending = PendingOrder(order, monotonic() + seconds)
            self.attention = True
            self.condition.notify_all()
            return self.pending

    def drop(self, transaction: str | None = None) -> bool:
        """Drop the pending order of this transaction (None: of any) unless it is being flushed.

        Returns whether an order was dropped. A named transaction is remembered as finished in any case.
        """
        with self.condition:
            pending = self.pending
            if transaction is not None:
                self._mark_finished(transaction)
            if pending is None or pending.flushing or transaction not in (None, pending.order.transaction):
                return False
            self._clear(pending)
            return True

    def deliver(self, result: Result) -> None:
        """Give a result to the thread that requested the checkpoint, if there is one."""
        with self.condition:
            waiter = self._waiters.get(result.request or "")
            if waiter is not None:
                waiter.result = result
            self.condition.notify_all()

    def fail_waiters(self, error: SavepointError) -> None:
        """Wake every waiting thread with an error, because no result will arrive."""
        with self.condition:
            for waiter in self._waiters.values():
                waiter.error = waiter.error or error
            self.condition.notify_all()

    def add_waiter(self, request: str) -> Waiter:
        """Return a waiter that receives the result of this request."""
        with self.condition:
            waiter = self._waiters[request] = Waiter()
            return waiter

    def remove_waiter(self, request: str) -> None:
        """Stop waiting for the result of this request."""
        with self.condition:
            self._waiters.pop(request, None)

    def request_attention(self) -> None:
        """Make every safe point check the session's state from now on. Safe in a signal handler."""
        self.attention_requested = True
        self.attention = True

    def withdraw_attention(self) -> None:
        """Undo ``request_attention``."""
        with self.condition:
            self.attention_requested = False
            self.attention = self.pending is not None

    # -- safe points, from the agent's threads --

    def park(self, scope: Scope, flush: Callable[[PendingOrder], None]) -> PendingOrder | None:
        """Stop at a safe point while an order is pending.

        One of the parked threads calls ``flush``, with the lock released. Returns the order that was served; None if
        there was none or it was dropped.
        """
        thread = get_ident()
        with self.condition:
            pending = self.pending
            if pending is None or self._critical.get(thread):
                return None
            self._parked[thread] = scope
            self.condition.notify_all()
            try:
                while self.pending is pending:
                    left = pending.deadline - monotonic()
                    if pending.flushing:
                        self.condition.wait()
                    elif left <= 0:
                        self._clear(pending)
                        return None
                    elif self._all_parked():
                        pending.flushing = True
                        break
                    else:
                        self.condition.wait(min(left, _POLL_SECONDS))
                else:
                    return pending if pending.flushing else None
            finally:
                if not pending.flushing:
                    self._parked.pop(thread, None)
        try:
            flush(pending)
        finally:
            with self.condition:
                self._parked.clear()
                self._clear(pending)
        return pending

    def wait_until_all_parked(self, scope: Scope, until: float) -> bool:
        """Wait, without an order, until no other thread is in an iteration or a critical block. False: timed out."""
        thread = get_ident()
        with self.condition:
            self._parked[thread] = scope
            try:
                while not self._all_parked():
                    if monotonic() >= until:
                        return False
                    self.condition.wait(_POLL_SECONDS)
                return True
            finally:
                self._parked.pop(thread, None)

    def enter_critical(self) -> None:
        """Prevent flushes from now on, after waiting for one that is running."""
        thread = get_ident()
        with self.condition:
            if not self._critical.get(thread):
                while self.pending is not None and self.pending.flushing:
                    self.condition.wait()
            self._critical[thread] = self._critical.get(thread, 0) + 1

    def leave_critical(self) -> None:
        """Undo one ``enter_critical``."""
        thread = get_ident()
        with self.condition:
            self._critical[thread] -= 1
            if not self._critical[thread]:
                del self._critical[thread]
                self.condition.notify_all()

    def in_critical(self) -> bool:
        """Return whether this thread is inside ``critical()``."""
        return bool(self._critical.get(get_ident()))

    def is_only_thread(self) -> bool:
        """Return whether no other thread is parked or runs an iteration.

        Only then is the checkpoint taken at a single point of the program.
        """
        thread = get_ident()
        with self.condition:
            return set(self._parked) <= {thread} and all(
                loop.thread == thread for loop in self._loops() if loop.iteration is not None
            )

    def unparked_threads(self) -> list[int]:
        """Return the threads that a flush has to wait for."""
        with self.condition:
            return self._unparked_threads()

    # -- internals; the lock is held --

    def _all_parked(self) -> bool:
        return not self._unparked_threads()

    def _unparked_threads(self) -> list[int]:
        covered = {id(scope) for parked in self._parked.values() for scope in parked.self_and_ancestors()}
        alive = {thread.ident for thread in threading.enumerate()}
        unparked = [thread for thread in self._critical if thread in alive]
        for loop in self._loops():
            iteration, thread = loop.iteration, loop.thread
            if (
                iteration is not None
                and id(iteration) not in covered
                and thread not in self._parked
                and thread in alive
            ):
                unparked.append(thread)
        return unparked

    def _clear(self, pending: PendingOrder) -> None:
        self._mark_finished(pending.order.transaction)
        if self.pending is pending:
            self.pending = None
            self.attention = self.attention_requested
        self.condition.notify_all()

    def _mark_finished(self, transaction: str) -> None:
        if transaction not in self._finished:
            self._finished = [*self._finished[-_FINISHED_KEPT:], transaction]
