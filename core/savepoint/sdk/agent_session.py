"""One session of an agent with its sidecar: orders in, cuts out, and the rule that neither ever breaks the agent.

It joins the gate (threads), the state (what a cut holds) and the link (the sidecar). It has no public API: agent.py is
what a program sees. Without a link nothing is ever ordered, and everything else works the same.
"""

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final
from uuid import uuid4

from savepoint.contract import agent_protocol as wire
from savepoint.errors import DeadlineExceeded, SavepointError, Unavailable
from savepoint.sdk.activity import Activity
from savepoint.sdk.background import BackgroundThread
from savepoint.sdk.client import Link
from savepoint.sdk.errors import NotAtSafePoint, from_reason
from savepoint.sdk.gate import Gate, PendingOrder, Waiter
from savepoint.sdk.ledger import effect_id
from savepoint.sdk.loop import Position
from savepoint.sdk.replay_point import ReplayPoint
from savepoint.sdk.state import State

log: Final = logging.getLogger("savepoint")
_LATE: Final = 0.9  # of a quiesce's timeout: then we say what keeps us
_ORDER_SECONDS: Final = 1.0  # between SIGTERM and the sidecar's own order
_LATE_ORDER_SECONDS: Final = 15.0  # the same where the node is so busy that the pod's hook runs late
_LAST_ORDERS: Final = 4  # what was ordered before SIGTERM may be flushed for, or given up, before the last one comes
_SHUTDOWN_REASON: Final = "Shutdown"


class AgentSession:
    """The inside of an Agent."""

    def __init__(self, connected: wire.Connected, state: State, *, required: bool) -> None:
        self.connected = connected
        self.state = state
        self.link: Link | None = None
        self.keep_alive: object = None  # what serves the link lives as long as the session
        self.required = required
        self.position = Position(state.root)
        self.activity = Activity()
        self.gate = Gate(lambda: self.activity.loops.copy().values())
        self.clerk = BackgroundThread()
        self.fenced: str | None = None
        self.over: SavepointError | None = None  # why nothing works any more
        self.exit: Callable[[], None] | None = None  # ends the process after a stopping flush, where we may
        self.stopping = False  # SIGTERM came
        self.ending = False  # the last flush of this process is done
        self._asked_to_stop = False
        self._flushed_last = False  # after SIGTERM, for an order that came after it

    def attach(self, link: Link) -> None:
        """From here on there is a sidecar."""
        self.link = link
        self.clerk.start()

    @property
    def lock(self) -> threading.Condition:
        """The agent's one lock."""
        return self.gate.condition

    def effect_id(self, path: str, name: str, key: str) -> str:
        """Stable in every incarnation of this run."""
        who = (self.connected.namespace, self.connected.agent, self.connected.run)
        return effect_id(who, path, name, key)

    def check(self) -> None:
        """Raises what ended the session."""
        if self.over is not None:
            raise self.over

    # -- orders --

    def receive(self, order: wire.Order) -> None:
        """One order, from the reader's thread."""
        match order:
            case wire.Quiesce() | wire.Stopping():
                pending = self.gate.order(order)
                if pending is not None and isinstance(order, wire.Quiesce):
                    self.clerk.do(lambda: self._say_what_keeps_us(pending), order.timeout_seconds * _LATE)
            case wire.Cancelled():
                self.gate.drop(order.transaction)
                with self.lock:
                    self.state.release(order.transaction, committed=False)
            case wire.Result():
                self.gate.drop(order.transaction)
                with self.lock:
                    self.state.release(order.transaction, committed=order.outcome == "Ready")
                if order.outcome == "Failed" and order.request is None:
                    log.warning("checkpoint failed: %s: %s", order.reason, order.message)
                self.gate.settle(order)
            case wire.Fenced():
                log.warning("effects are refused: %s", order.message)
                self.fenced = order.message or "another incarnation of this agent may be running"
            case wire.Unfenced():
                self.fenced = None

    def lost(self, error: SavepointError) -> None:
        """The sidecar is gone: no order of it counts any more, and no result will come."""
        self.gate.drop()
        with self.lock:
            self.state.release_all()
        self.gate.fail_waiters(error)

    def broken(self, error: SavepointError) -> None:
        """The session will not come back; where the agent must be managed, the next safe point raises."""
        if self.required:
            self.over = error
            self.gate.alarm()

    def mended(self) -> None:
        """The sidecar is back."""
        if self.over is not None:
            self.over = None
            self.gate.calm()

    def forked(self, error: SavepointError) -> None:
        """In a forked child: nothing works any more, and nothing of the parent's is touched. Locks may be held by
        threads that do not exist here, so they are made anew."""
        self.over = error
        self.link = None
        self.gate = Gate(list)
        self.gate.alarm()
        self.state.journal.close()

    # -- safe points --

    def explicit_point(self) -> ReplayPoint | None:
        """The program calls for a safe point. None where none runs again: outside of turns."""
        scope = self.position.now()
        number, scope.points = scope.points, scope.points + 1
        return ReplayPoint(scope.path, number=number) if "[" in scope.path else None

    def point(self, at: ReplayPoint | None) -> SavepointError | None:
        """A safe point at which something is to be done. Returns why a flush failed, if one did here."""
        self.check()
        if self.state.catching_up is not None:
            with self.lock:
                self.state.reached(at)
        if self.gate.in_critical():
            return None
        failure: list[SavepointError] = []

        def flush(pending: PendingOrder) -> None:
            error = self._flush(pending, at)
            if error is not None:
                failure.append(error)
            elif isinstance(pending.order, wire.Stopping) or self._asked_to_stop:
                self._flushed_last = True

        if not self.stopping:
            self.gate.park(self.position.now(), flush)
        if self.stopping:
            self._flush_last(flush)
        if self._flushed_last or self.stopping or self.ending:
            self._stop()
        if failure and self.required and failure[0].reason in ("NotEncodable", "StageFull"):
            raise failure[0]
        return failure[0] if failure else None

    def checkpoint(self, reason: str, timeout: float) -> str:
        """Ask for a checkpoint, flush for it, wait for its result."""
        self.check()
        if self.link is None:
            return ""
        if self.gate.in_critical():
            raise NotAtSafePoint("checkpoint() inside critical(): ask for it before or after the block")
        at = self.explicit_point()
        if self.state.catching_up is not None:
            with self.lock:
                self.state.reached(at)
        request, until = uuid4().hex, monotonic() + timeout
        waiter = self.gate.expect(request)
        try:
            self.link.request(wire.CheckpointRequest("", request, reason))
            error = self._serve(waiter, at, until)
        finally:
            self.gate.forget(request)
        if waiter.error is not None:
            raise waiter.error
        if waiter.result is None:
            raise error or DeadlineExceeded(f"no result of the checkpoint within {timeout:g} s; the agent goes on")
        if waiter.result.outcome == "Failed":
            raise error or from_reason(waiter.result.reason, waiter.result.message)
        return waiter.result.checkpoint

    def finish(self, timeout: float) -> str:
        """The last cut and the end of the session."""
        self.check()
        if self.gate.in_critical():
            raise NotAtSafePoint("finish() inside critical(): call it after the block")
        if self.link is None:
            return ""
        until = monotonic() + timeout
        if not self.gate.stand_still(self.position.now(), until):
            raise DeadlineExceeded("finish(): other threads still run their turns; let them end first")
        transaction = f"finish-{uuid4().hex}"
        with self.lock:
            components = self.state.capture(transaction)
            execution = self.activity.execution(self.state.ledger)
        try:
            return self.link.finish(wire.Flush("", "", components, execution), max(until - monotonic(), 1.0))
        except SavepointError:
            with self.lock:
                self.state.release(transaction, committed=False)
            raise

    def close(self, error: SavepointError) -> None:
        """Let everything go; what is called later raises ``error``."""
        with self.lock:
            if self.over is not None and self.link is None:
                return
            self.over = error
            link, self.link = self.link, None
            self.gate.drop()
            self.gate.alarm()
            self.state.journal.close()
        self.gate.fail_waiters(error)
        if link is not None:
            link.close()
            self.clerk.stop()

    # -- inside --

    def _serve(self, waiter: Waiter, at: ReplayPoint | None, until: float) -> SavepointError | None:
        """Flush whatever is ordered until the waiter has its result. Returns why a flush failed here."""
        error = None
        while not waiter.done and monotonic() < until:
            if self.gate.pending is not None:
                error = self.point(at) or error
            with self.lock:
                if not waiter.done and self.gate.pending is None:
                    self.lock.wait(min(max(until - monotonic(), 0.0), 1.0))
            self.check()
        return error

    def _flush(self, pending: PendingOrder, at: ReplayPoint | None) -> SavepointError | None:
        """Capture, hand over, wait, go on. Whatever fails is said and logged, and the agent goes on."""
        transaction, link = pending.order.transaction, self.link
        if link is None:
            return None
        began = monotonic()
        try:
            with self.lock:
                components = self.state.capture(transaction, at if self.gate.alone() else None)
                execution = self.activity.execution(self.state.ledger)
        except SavepointError as error:
            log.warning("no checkpoint: %s; the agent goes on", error)
            failed = wire.Failed("", transaction, error.reason, str(error))
            self.clerk.do(lambda: link.failed(failed))
            return error
        except Exception as cause:  # the program's own save() or to_json()
            log.exception("no checkpoint: the program's own code failed while its state was read; the agent goes on")
            failed = wire.Failed("", transaction, "StateUnstable", f"save() or to_json() raised {cause!r}")
            self.clerk.do(lambda: link.failed(failed))
            return None
        try:
            link.flush(wire.Flush("", transaction, components, execution), pending.hold_seconds)
        except SavepointError as error:
            log.warning("the sidecar did not take the state: %s; the agent goes on", error)
            return error
        finally:
            pause = round((monotonic() - began) * 1000)
            self.clerk.do(lambda: link.resumed(wire.Resumed("", transaction, pause)))
        return None

    def _say_what_keeps_us(self, pending: PendingOrder) -> None:
        link, order = self.link, pending.order
        if link is None or not isinstance(order, wire.Quiesce) or self.gate.pending is not pending:
            return
        what = self.activity.obstacle(self.gate.obstacles())
        if self.gate.drop(order.transaction):  # it is over for us, too
            message = (
                f"agent did not reach a safe point within {order.timeout_seconds:g} s{what}; add agent.safe_point() "
                f"or raise the timeout"
            )
            link.failed(wire.Failed("", order.transaction, "QuiesceTimeout", message))

    def _flush_last(self, flush: Callable[[PendingOrder], None]) -> None:
        """SIGTERM came: flush until it was for the end. For what was ordered before it, nobody may wait any more."""
        for _ in range(_LAST_ORDERS):
            if not self._order_to_stop():
                return
            self.gate.park(self.position.now(), flush)

    def _order_to_stop(self) -> bool:
        """Whether there is an order to flush for: one comes by itself within a moment, else one thread asks for it."""
        link = self.link
        if link is None or self._order_within(_ORDER_SECONDS):
            return link is not None and self.gate.pending is not None
        with self.lock:
            first, self._asked_to_stop = not self._asked_to_stop, True
        request = uuid4().hex
        try:
            if first:
                link.request(wire.CheckpointRequest("", request, _SHUTDOWN_REASON))
            self._order_within(_LATE_ORDER_SECONDS)
        except SavepointError as error:
            log.warning("no checkpoint before the end: %s", error)
        return self.gate.pending is not None

    def _order_within(self, seconds: float) -> bool:
        """Whether, in time, there is an order, or none is needed any more. A refusal of what was asked for is no
        answer: the order to stop, which nobody refuses, may yet come."""
        with self.lock:
            return self.lock.wait_for(
                lambda: self.gate.pending is not None or self._flushed_last or self.ending or self.link is None, seconds
            )

    def _stop(self) -> None:
        """After the last flush: every thread that comes to a safe point ends, where ending is ours."""
        if self.exit is not None:
            self.ending = True
            self.gate.alarm()
            self.exit()
        self.stopping = self._asked_to_stop = self._flushed_last = False
        self.gate.calm()


def unmanaged() -> SavepointError:
    """Why an agent that must be managed does not start."""
    return Unavailable(
        "this process is not managed by Savepoint (SAVEPOINT_SOCKET is not set) and SAVEPOINT_REQUIRED=1: "
        "label the pod template with savepoint.dev/agent, or start it with `savepoint run`"
    )
