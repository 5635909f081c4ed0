"""Where threads meet: orders come in, safe points stop here, one thread flushes, and all go on.

It knows who is parked, who is inside ``critical()`` and which turns are open; what a flush contains and how it is sent
is the caller's. Its condition's lock is the agent's one lock.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import get_ident
from time import monotonic
from typing import Final, Protocol

from savepoint.contract.agent_protocol import Quiesce, Result, Stopping
from savepoint.errors import SavepointError
from savepoint.sdk.scope import Scope

_POLL_SECONDS: Final = 0.05  # how soon a thread's silent end is noticed
_REMEMBERED: Final = 8  # transactions that are over


class Iteration(Protocol):
    """An open turn of a loop: its scope, and the thread that runs it."""

    @property
    def turn(self) -> Scope | None: ...
    @property
    def thread(self) -> int: ...


@dataclass
class PendingOrder:
    """An order to flush, with the time after which it is void."""

    order: Quiesce | Stopping
    deadline: float  # monotonic
    flushing: bool = False

    @property
    def hold_seconds(self) -> float:
        """How long to wait for the sidecar's answer."""
        if isinstance(self.order, Quiesce):
            return self.order.hold_seconds
        return max(self.deadline - monotonic(), 0.0)


@dataclass
class Waiter:
    """A checkpoint that some thread asked for."""

    result: Result | None = None
    error: SavepointError | None = field(default=None)

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None


class Gate:
    """The meeting point of one agent's threads."""

    def __init__(self, turns: Callable[[], Iterable[Iteration]]) -> None:
        self.condition = threading.Condition(threading.RLock())
        self.attention = False  # the one thing a safe point looks at when nothing is to be done
        self.urgent = False  # something besides an order waits for a safe point
        self.pending: PendingOrder | None = None
        self._turns = turns
        self._parked: dict[int, Scope] = {}
        self._critical: dict[int, int] = {}
        self._over: list[str] = []  # transactions that were flushed, cancelled or missed
        self._waiters: dict[str, Waiter] = {}

    # -- orders, from the reader's thread --

    def order(self, order: Quiesce | Stopping) -> PendingOrder | None:
        """An order came in. None: it came twice, or is over already."""
        seconds = order.timeout_seconds if isinstance(order, Quiesce) else order.grace_seconds
        with self.condition:
            if order.transaction in self._over:
                return None
            if self.pending is not None and self.pending.order.transaction == order.transaction:
                return None
            self.pending = PendingOrder(order, monotonic() + seconds)
            self.attention = True
            self.condition.notify_all()
            return self.pending

    def drop(self, transaction: str | None = None) -> bool:
        """Do not flush for this transaction (None: whichever is pending) any more. Tells whether one was pending."""
        with self.condition:
            pending = self.pending
            if transaction is not None:
                self._remember(transaction)
            if pending is None or pending.flushing or transaction not in (None, pending.order.transaction):
                return False
            self._clear(pending)
            return True

    def settle(self, result: Result) -> None:
        """Wake who asked for this checkpoint."""
        with self.condition:
            waiter = self._waiters.get(result.request or "")
            if waiter is not None:
                waiter.result = result
            self.condition.notify_all()

    def fail_waiters(self, error: SavepointError) -> None:
        """Nobody will answer those who wait."""
        with self.condition:
            for waiter in self._waiters.values():
                waiter.error = waiter.error or error
            self.condition.notify_all()

    def expect(self, request: str) -> Waiter:
        """From here on a result for this request is kept."""
        with self.condition:
            waiter = self._waiters[request] = Waiter()
            return waiter

    def forget(self, request: str) -> None:
        """Nobody waits for it any more."""
        with self.condition:
            self._waiters.pop(request, None)

    def alarm(self) -> None:
        """Every safe point looks up from here on. Safe in a signal handler."""
        self.urgent = True
        self.attention = True

    def calm(self) -> None:
        """Undo ``alarm``."""
        with self.condition:
            self.urgent = False
            self.attention = self.pending is not None

    # -- safe points, from the agent's threads --

    def park(self, scope: Scope, flush: Callable[[PendingOrder], None]) -> PendingOrder | None:
        """Stop at a safe point while an order is pending. One of the parked threads calls ``flush``, with the lock
        released. Returns the order that was served, None if there was none or it was dropped."""
        me = get_ident()
        with self.condition:
            pending = self.pending
            if pending is None or self._critical.get(me):
                return None
            self._parked[me] = scope
            self.condition.notify_all()
            try:
                while self.pending is pending:
                    left = pending.deadline - monotonic()
                    if pending.flushing:
                        self.condition.wait()
                    elif left <= 0:
                        self._clear(pending)
                        return None
                    elif self._all_stand_still():
                        pending.flushing = True
                        break
                    else:
                        self.condition.wait(min(left, _POLL_SECONDS))
                else:
                    return pending if pending.flushing else None
            finally:
                if not pending.flushing:
                    self._parked.pop(me, None)
        try:
            flush(pending)
        finally:
            with self.condition:
                self._parked.clear()
                self._clear(pending)
        return pending

    def stand_still(self, scope: Scope, until: float) -> bool:
        """Wait until nothing else moves, without an order (for the end of a run). False: time was up."""
        me = get_ident()
        with self.condition:
            self._parked[me] = scope
            try:
                while not self._all_stand_still():
                    if monotonic() >= until:
                        return False
                    self.condition.wait(_POLL_SECONDS)
                return True
            finally:
                self._parked.pop(me, None)

    def enter_critical(self) -> None:
        """No flush from here on; one that runs is waited for."""
        me = get_ident()
        with self.condition:
            if not self._critical.get(me):
                while self.pending is not None and self.pending.flushing:
                    self.condition.wait()
            self._critical[me] = self._critical.get(me, 0) + 1

    def leave_critical(self) -> None:
        """Undo one ``enter_critical``."""
        me = get_ident()
        with self.condition:
            self._critical[me] -= 1
            if not self._critical[me]:
                del self._critical[me]
                self.condition.notify_all()

    def in_critical(self) -> bool:
        """Whether this thread is inside ``critical()``."""
        return bool(self._critical.get(get_ident()))

    def alone(self) -> bool:
        """Whether no other thread is parked and no other runs a turn: the cut is at one point of the program."""
        me = get_ident()
        with self.condition:
            return set(self._parked) <= {me} and all(
                turn.thread == me for turn in self._turns() if turn.turn is not None
            )

    def obstacles(self) -> list[int]:
        """Threads that keep a flush from happening."""
        with self.condition:
            return self._moving()

    # -- inside; the lock is held --

    def _all_stand_still(self) -> bool:
        return not self._moving()

    def _moving(self) -> list[int]:
        covered = {id(scope) for parked in self._parked.values() for scope in parked.lineage()}
        alive = {thread.ident for thread in threading.enumerate()}
        moving = [thread for thread in self._critical if thread in alive]
        for open_turn in self._turns():
            turn, thread = open_turn.turn, open_turn.thread
            if turn is not None and id(turn) not in covered and thread not in self._parked and thread in alive:
                moving.append(thread)
        return moving

    def _clear(self, pending: PendingOrder) -> None:
        self._remember(pending.order.transaction)
        if self.pending is pending:
            self.pending = None
            self.attention = self.urgent
        self.condition.notify_all()

    def _remember(self, transaction: str) -> None:
        if transaction not in self._over:
            self._over = [*self._over[-_REMEMBERED:], transaction]
