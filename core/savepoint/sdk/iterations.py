"""The session's side of a loop: the record of its iterations, and the safe points between them.

The iterator itself is in loop.py.
"""

from typing import Any

from savepoint.sdk.agent_session import AgentSession
from savepoint.sdk.loop import Loop
from savepoint.sdk.replay_point import ReplayPoint


class LoopIterations:
    """The LoopHost of one session."""

    def __init__(self, session: AgentSession) -> None:
        self._session = session

    def loop_opened(self, loop: Loop[Any]) -> None:
        """Note that the loop runs; an older iterator over it, left by an exception, is superseded."""
        session = self._session
        with session.lock:
            session.raise_if_ended()
            for other in list(session.activity.loops.values()):
                if other.record is loop.record:
                    other.supersede()
                    self.loop_closed(other)
            if loop.record.finished:
                loop.scope.ordinals.take(f"loop {loop.name}")
            else:
                session.activity.loops[id(loop)] = loop
                session.state.reach_point(_boundary(loop))

    def loop_closed(self, loop: Loop[Any]) -> None:
        """Note that the loop does not run any more. Takes no lock: the garbage collector may call it at any point."""
        self._session.activity.loops.pop(id(loop), None)

    def iteration_started(self, loop: Loop[Any]) -> None:
        """Note that an iteration begins."""
        with self._session.lock:
            self._session.state.iteration_started()

    def iteration_finished(self, loop: Loop[Any], key: str) -> None:
        """Record that an iteration is finished; what was recorded below it is dropped."""
        with self._session.lock:
            self._session.state.ledger.collapse(loop.scope.finish_iteration(loop.label, key))
            self._session.state.note_progress()

    def loop_finished(self, loop: Loop[Any]) -> None:
        """Record that the loop is finished, as one mark in place of its keys."""
        with self._session.lock:
            self._session.state.ledger.collapse(loop.scope.finish_loop(loop.name, loop.label))

    def iteration_boundary(self, loop: Loop[Any]) -> None:
        """Pass the safe point between two iterations."""
        if self._session.gate.attention:
            self._session.safe_point(_boundary(loop))


def _boundary(loop: Loop[Any]) -> ReplayPoint:
    return ReplayPoint(loop.scope.path, loop.label)
