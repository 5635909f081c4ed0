"""What a loop asks of its session: the record of its turns, and the safe point between them.

The iterator itself is loop.py's.
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
        """The loop runs; an older iterator over the same loop, left by an exception, is taken over."""
        session = self._session
        with session.lock:
            session.check()
            for other in list(session.activity.loops.values()):
                if other.record is loop.record:
                    other.take_over()
                    self.loop_left(other)
            if loop.record.finished:
                loop.scope.used.take(f"loop {loop.name}")
            else:
                session.activity.loops[id(loop)] = loop
                session.state.reached(_between_turns(loop))

    def loop_left(self, loop: Loop[Any]) -> None:
        """Nothing runs in it any more. Takes no lock: a garbage collection may call it anywhere."""
        self._session.activity.loops.pop(id(loop), None)

    def turn_entered(self, loop: Loop[Any]) -> None:
        """A turn begins."""
        with self._session.lock:
            self._session.state.turn_entered()

    def turn_finished(self, loop: Loop[Any], key: str) -> None:
        """The key's turn is done; what was recorded below it is dropped."""
        with self._session.lock:
            self._session.state.ledger.collapse(loop.scope.finish_turn(loop.label, key))
            self._session.state.moved_on()

    def loop_finished(self, loop: Loop[Any]) -> None:
        """No key is left; the loop collapses to one mark."""
        with self._session.lock:
            self._session.state.ledger.collapse(loop.scope.finish_loop(loop.name, loop.label))

    def turn_point(self, loop: Loop[Any]) -> None:
        """The safe point between two turns."""
        if self._session.gate.attention:
            self._session.point(_between_turns(loop))


def _between_turns(loop: Loop[Any]) -> ReplayPoint:
    return ReplayPoint(loop.scope.path, loop.label)
