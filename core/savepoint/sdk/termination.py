"""The end that comes from outside: SIGTERM flushes at the next safe point and then ends the process with 143.

A handler of the program's own keeps its say: it is called, and the process ends when it wants. A second SIGTERM, or the
end of the grace, ends the process without a flush, so that a call that never returns cannot hold it.
"""

import signal
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any, Final

from savepoint.sdk.background import BackgroundThread

EXIT_CODE: Final = 128 + int(signal.SIGTERM)
GRACE_SECONDS: Final = 25.0  # until told otherwise: Kubernetes gives 30
_MARGIN_SECONDS: Final = 5.0
_Handler = Callable[[int, FrameType | None], Any]


class Termination:
    """The SIGTERM handler of one session. ``alarm`` makes the next safe point look up; safe in a signal handler."""

    def __init__(
        self, alarm: Callable[[], None], clerk: BackgroundThread, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._alarm = alarm
        self._clerk = clerk
        self._grace_seconds = grace_seconds
        self._previous: Any = None
        self._installed = False
        self._signalled = False
        self._left = False  # the main thread is on its way out
        self._ends_at = 0.0  # monotonic; 0: nobody has told

    def install(self) -> bool:
        """Take SIGTERM, if this is the main thread and Python holds the signal. Tells whether exit() may end it."""
        if threading.current_thread() is not threading.main_thread():
            return False
        previous = signal.getsignal(signal.SIGTERM)
        if previous is None or previous == signal.SIG_IGN:  # held by foreign code, or ignored on purpose
            return False
        self._previous = previous
        signal.signal(signal.SIGTERM, self._handle)
        self._installed = True
        return True

    @property
    def owns_exit(self) -> bool:
        """Whether the process is ours to end: the program has no handler of its own."""
        return self._installed and not callable(self._previous)

    def told(self, grace_seconds: float) -> None:
        """The pod ends after so many seconds: what is left of them belongs to the sidecar."""
        margin = min(max(_MARGIN_SECONDS, grace_seconds / 6), grace_seconds / 2)
        self._ends_at = monotonic() + grace_seconds - margin
        if self._signalled:
            self._clerk.do(self._kick_in_time)

    def uninstall(self) -> None:
        """Give SIGTERM back, if it is still ours."""
        ours = self._installed and threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._previous)
        self._installed = False

    def exit(self) -> None:
        """End the process: here, or in the main thread if that is another one."""
        if threading.current_thread() is threading.main_thread():
            self._left = True
        elif not self._left:
            self._signalled = True
            self._kick()
        raise SystemExit(EXIT_CODE)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._installed:  # the session was closed by another thread, which cannot set handlers
            signal.signal(signal.SIGTERM, self._previous)
            signal.raise_signal(signal.SIGTERM)
            return
        if callable(self._previous):
            self._alarm()
            self._previous(number, frame)
            return
        if self._signalled:
            self._left = True
            raise SystemExit(EXIT_CODE)
        self._signalled = True
        self._alarm()
        self._clerk.do(self._kick_in_time, self._grace_seconds if not self._ends_at else 0.0)

    def _kick_in_time(self) -> None:
        left = self._ends_at - monotonic()
        if self._ends_at and left > 0:
            self._clerk.do(self._kick_in_time, left)
        else:
            self._kick()

    def _kick(self) -> None:
        """Raise SystemExit in the main thread, out of whatever call it waits in."""
        main = threading.main_thread().ident
        if self._installed and not self._left and main is not None:
            signal.pthread_kill(main, signal.SIGTERM)
