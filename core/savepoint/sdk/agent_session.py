"""One session of an agent with its sidecar: it receives orders, flushes state, and never breaks the agent.

It connects the gate (threads), the state (what a checkpoint holds) and the link (the sidecar). It has no public API;
programs use agent.py. Without a link no order ever arrives, and everything else works the same.
"""

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final
from uuid import uuid4

from savepoint.contract import agent_protocol as wire
from savepoint.contract.vocabulary import CheckpointOutcome, Reason, Trigger
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
_REPORT_AFTER: Final = 0.9  # share of a quiesce's timeout after which the agent reports what it is busy with
_ORDER_SECONDS: Final = 1.0  # between SIGTERM and the sidecar's own order
_LATE_ORDER_SECONDS: Final = 15.0  # the same on a busy node, where the pod's preStop hook runs late
_FINAL_ORDERS: Final = 4  # orders from before SIGTERM may be flushed or dropped before the final one arrives


class AgentSession:
    """The implementation of an Agent."""

    def __init__(self, connected: wire.Connected, state: State, *, required: bool) -> None:
        self.connected = connected
        self.state = state
        self.link: Link | None = None
        self.keep_alive: object = None  # the object behind the link, kept alive as long as the session
        self.required = required
        self.position = Position(state.root)
        self.activity = Activity()
        self.gate = Gate(lambda: self.activity.loops.copy().values())
        self.background = BackgroundThread()
        self.fenced: str | None = None  # why effects are refused
        self.end_error: SavepointError | None = None  # raised by every call once the session has ended
        self.exit: Callable[[], None] | None = None  # ends the process after its final flush, if the SDK may do so
        self.stopping = False  # SIGTERM or Ctrl-C was received
        self.order_seconds = _ORDER_SECONDS
        self.exiting = False  # the final flush of this process is done
        self._shutdown_requested = False
        self._final_flush_done = False  # a flush after SIGTERM, for an order that came after SIGTERM

    def attach(self, link: Link) -> None:
        """Use this link to the sidecar from now on."""
        self.link = link
        self.background.start()

    @property
    def lock(self) -> threading.Condition:
        """The agent's only lock."""
        return self.gate.condition

    def effect_id(self, path: str, name: str, key: str) -> str:
        """Return an effect's id, which is the same in every incarnation of this run."""
        identity = (self.connected.namespace, self.connected.agent, self.connected.run)
        return effect_id(identity, path, name, key)

    def raise_if_ended(self) -> None:
        """Raise the error that ended the session, if it has ended."""
        if self.end_error is not None:
            raise self.end_error

    # -- orders and the connection, from the reader's thread --

    def receive(self, order: wire.Order) -> None:
        """Handle one order."""
        match order:
            case wire.Quiesce() | wire.Stopping():
                pending = self.gate.accept(order)
                if pending is not None and isinstance(order, wire.Quiesce):
                    self.background.submit(lambda: self._report_timeout(pending), order.timeout_seconds * _REPORT_AFTER)
            case wire.Cancelled():
                self.gate.drop(order.transaction)
                with self.lock:
                    self.state.release(order.transaction, committed=False)
            case wire.Result():
                self.gate.drop(order.transaction)
                with self.lock:
                    self.state.release(order.transaction, committed=order.outcome == CheckpointOutcome.READY)
                if order.outcome == CheckpointOutcome.FAILED and order.request is None:
                    log.warning("checkpoint failed: %s: %s", order.reason, order.message)
                self.gate.deliver(order)
            case wire.Fenced():
                log.warning("effects are refused: %s", order.message)
                self.fenced = order.message or "another incarnation of this agent may be running"
            case wire.Unfenced():
                self.fenced = None

    def on_sidecar_lost(self, error: SavepointError) -> None:
        """Drop the sidecar's orders and fail those who wait for its results."""
        self.gate.drop()
        with self.lock:
            self.state.release_all()
        self.gate.fail_waiters(error)

    def on_reattach_failed(self, error: SavepointError) -> None:
        """Make the next safe point raise ``error`` if the agent must be managed; else continue without checkpoints."""
        if self.required:
            self.end_error = error
            self.gate.request_attention()

    def on_reattached(self) -> None:
        """Continue normally, because the sidecar is connected again."""
        if self.end_error is not None:
            self.end_error = None
            self.gate.withdraw_attention()

    def on_forked(self, error: SavepointError) -> None:
        """Disable the session in a forked child without touching anything of the parent's.

        Threads that do not exist in the child may hold the gate's lock, so the gate is replaced.
        """
        self.end_error = error
        self.link = None
        self.gate = Gate(list)
        self.gate.request_attention()
        self.state.journal.close()

    # -- safe points --

    def explicit_point(self) -> ReplayPoint | None:
        """Count an explicit safe point and return it; None outside of iterations, where nothing is repeated."""
        scope = self.position.current()
        number, scope.safe_points = scope.safe_points, scope.safe_points + 1
        return ReplayPoint(scope.path, number=number) if "[" in scope.path else None

    def safe_point(self, at: ReplayPoint | None) -> SavepointError | None:
        """Handle a safe point at which there is something to do. Returns the error of a flush that failed here."""
        self.raise_if_ended()
        if self.state.replay_point is not None:
            with self.lock:
                self.state.reach_point(at)
        if self.gate.in_critical():
            return None
        failure: list[SavepointError] = []

        def flush(pending: PendingOrder) -> None:
            error = self._flush(pending, at)
            if error is not None:
                failure.append(error)
            elif isinstance(pending.order, wire.Stopping) or self._shutdown_requested:
                self._final_flush_done = True

        if not self.stopping:
            self.gate.park(self.position.current(), flush)
        if self.stopping:
            self._flush_before_exit(flush)
        if self._final_flush_done or self.stopping or self.exiting:
            self._exit_or_resume()
        if failure and self.required and failure[0].reason in (Reason.NOT_ENCODABLE, Reason.STAGE_FULL):
            raise failure[0]
        return failure[0] if failure else None

    def checkpoint(self, reason: str, timeout: float) -> str:
        """Request a checkpoint, flush for it, and return its name once it is committed."""
        self.raise_if_ended()
        if self.link is None:
            return ""
        if self.gate.in_critical():
            raise NotAtSafePoint("checkpoint() was called inside critical(): call it before or after the block")
        at = self.explicit_point()
        if self.state.replay_point is not None:
            with self.lock:
                self.state.reach_point(at)
        request, until = uuid4().hex, monotonic() + timeout
        waiter = self.gate.add_waiter(request)
        try:
            self.link.request(wire.CheckpointRequest("", request, reason))
            error = self._flush_until_done(waiter, at, until)
        finally:
            self.gate.remove_waiter(request)
        if waiter.error is not None:
            raise waiter.error
        if waiter.result is None:
            raise error or DeadlineExceeded(f"no result of the checkpoint within {timeout:g} s; the agent continues")
        if waiter.result.outcome == CheckpointOutcome.FAILED:
            raise error or from_reason(waiter.result.reason, waiter.result.message)
        return waiter.result.checkpoint

    def finish(self, timeout: float) -> str:
        """Take the final checkpoint, complete the run and return the checkpoint's name."""
        self.raise_if_ended()
        if self.gate.in_critical():
            raise NotAtSafePoint("finish() was called inside critical(): call it after the block")
        if self.link is None:
            return ""
        until = monotonic() + timeout
        if not self.gate.wait_until_all_parked(self.position.current(), until):
            raise DeadlineExceeded("finish(): other threads still run loop iterations; let them end first")
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
        """End the session; later calls raise ``error``."""
        with self.lock:
            if self.end_error is not None and self.link is None:
                return
            self.end_error = error
            link, self.link = self.link, None
            self.gate.drop()
            self.gate.request_attention()
            self.state.journal.close()
        self.gate.fail_waiters(error)
        if link is not None:
            link.close()
            self.background.stop()

    # -- internals: flushes --

    def _flush_until_done(self, waiter: Waiter, at: ReplayPoint | None, until: float) -> SavepointError | None:
        """Serve orders until the waiter has its result. Returns the error of a flush that failed here, if any."""
        error = None
        while not waiter.done and monotonic() < until:
            if self.gate.pending is not None:
                error = self.safe_point(at) or error
            with self.lock:
                if not waiter.done and self.gate.pending is None:
                    self.lock.wait(min(max(until - monotonic(), 0.0), 1.0))
            self.raise_if_ended()
        return error

    def _flush(self, pending: PendingOrder, at: ReplayPoint | None) -> SavepointError | None:
        """Capture the state and send it. A failure is reported and logged, and the agent continues."""
        transaction, link = pending.order.transaction, self.link
        if link is None:
            return None
        began = monotonic()
        try:
            with self.lock:
                components = self.state.capture(transaction, at if self.gate.is_only_thread() else None)
                execution = self.activity.execution(self.state.ledger)
        except SavepointError as error:
            log.warning("no checkpoint: %s; the agent continues", error)
            failed = wire.Failed("", transaction, error.reason, str(error))
            self.background.submit(lambda: link.failed(failed))
            return error
        except Exception as cause:  # the program's own save() or to_json()
            log.exception("no checkpoint: the program's own code failed while its state was read; the agent continues")
            failed = wire.Failed("", transaction, Reason.STATE_UNSTABLE, f"save() or to_json() raised {cause!r}")
            self.background.submit(lambda: link.failed(failed))
            return None
        try:
            link.flush(wire.Flush("", transaction, components, execution), pending.hold_seconds)
        except SavepointError as error:
            log.warning("no checkpoint: sidecar did not accept the state: %s; the agent continues", error)
            return error
        finally:
            pause = round((monotonic() - began) * 1000)
            self.background.submit(lambda: link.resumed(wire.Resumed("", transaction, pause)))
        return None

    def _report_timeout(self, pending: PendingOrder) -> None:
        """Drop an order that will not be served in time, and report what the agent is busy with."""
        link, order = self.link, pending.order
        if link is None or not isinstance(order, wire.Quiesce) or self.gate.pending is not pending:
            return
        doing = self.activity.describe_threads(self.gate.unparked_threads())
        if self.gate.drop(order.transaction):
            message = (
                f"agent did not reach a safe point within {order.timeout_seconds:g} s{doing}; "
                f"add agent.safe_point(), or raise spec.quiesce.timeoutSeconds in the policy"
            )
            link.failed(wire.Failed("", order.transaction, Reason.QUIESCE_TIMEOUT, message))

    # -- internals: the end of the process --

    def _flush_before_exit(self, flush: Callable[[PendingOrder], None]) -> None:
        """Flush after SIGTERM until an order for the final checkpoint is served.

        The sidecar may have given up the orders that came before SIGTERM.
        """
        for _ in range(_FINAL_ORDERS):
            if not self._await_final_order():
                return
            self.gate.park(self.position.current(), flush)

    def _await_final_order(self) -> bool:
        """Return whether there is an order to flush for. If none arrives soon, one thread requests a checkpoint."""
        link = self.link
        if link is None or self._wait_for_order(self.order_seconds):
            return link is not None and self.gate.pending is not None
        with self.lock:
            first, self._shutdown_requested = not self._shutdown_requested, True
        request = uuid4().hex
        try:
            if first:
                link.request(wire.CheckpointRequest("", request, Trigger.SHUTDOWN))
            self._wait_for_order(_LATE_ORDER_SECONDS)
        except SavepointError as error:
            log.warning("no final checkpoint: %s", error)
        return self.gate.pending is not None

    def _wait_for_order(self, seconds: float) -> bool:
        """Wait for an order, or until none is needed any more; returns whether that happened in time.

        A refusal of the requested checkpoint does not end the wait: the order to stop, which is never refused, may
        still arrive.
        """
        with self.lock:
            return self.lock.wait_for(
                lambda: self.gate.pending is not None or self._final_flush_done or self.exiting or self.link is None,
                seconds,
            )

    def _exit_or_resume(self) -> None:
        """After the final flush, exit at this and every other thread's safe point, if the SDK may end the process."""
        if self.exit is not None:
            self.exiting = True
            self.gate.request_attention()
            self.exit()
        self.stopping = self._shutdown_requested = self._final_flush_done = False
        self.gate.withdraw_attention()


def not_managed_error() -> SavepointError:
    """Return the error for an agent that must be managed and is not."""
    return Unavailable(
        "this process is not managed by Savepoint (SAVEPOINT_SOCKET is not set) and SAVEPOINT_REQUIRED=1: "
        "label the pod template with savepoint.dev/agent, or start it with `savepoint run`"
    )
