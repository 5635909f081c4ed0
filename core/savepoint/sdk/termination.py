"""SIGTERM: flush at the next safe point, then end the process with exit code 143.

If the program has its own handler, that handler is called, and the program decides when to exit. A second SIGTERM, or
the end of the grace period, ends the process without a flush, so that a call that never returns cannot block the exit.
"""

import signal
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any, Final

from savepoint.sdk.background import BackgroundThread

EXIT_CODE: Final = 128 + int(signal.SIGTERM)
GRACE_SECONDS: Final = 25.0  # until the sidecar sends the real value; Kubernetes' default is 30
_MARGIN_SECONDS: Final = 5.0
_Handler = Callable[[int, FrameType | None], Any]


class Termination:
    """The SIGTERM handler of one session.

    ``on_signal`` makes the next safe point check the session's state; it is safe in a signal handler.
    """

    def __init__(
        self, on_signal: Callable[[], None], background: BackgroundThread, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._on_signal = on_signal
        self._background = background
        self._grace_seconds = grace_seconds
        self._previous: Any = None
        self._installed = False
        self._signalled = False
        self._exiting = False  # SystemExit was raised in the main thread
        self._deadline = 0.0  # monotonic; 0: the sidecar has not sent the grace period

    def install(self) -> bool:
        """Install the handler; returns whether it is installed.

        It is not if this is not the main thread, or if SIGTERM is ignored or handled outside Python.
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        previous = signal.getsignal(signal.SIGTERM)
        if previous is None or previous == signal.SIG_IGN:  # handled outside Python, or ignored on purpose
            return False
        self._previous = previous
        signal.signal(signal.SIGTERM, self._handle)
        self._installed = True
        return True

    @property
    def owns_exit(self) -> bool:
        """True if this handler may end the process: the program has no handler of its own."""
        return self._installed and not callable(self._previous)

    def set_grace(self, grace_seconds: float) -> None:
        """Set the time until the pod is killed; the last part of it is left to the sidecar."""
        margin = min(max(_MARGIN_SECONDS, grace_seconds / 6), grace_seconds / 2)
        self._deadline = monotonic() + grace_seconds - margin
        if self._signalled:
            self._background.submit(self._interrupt_at_deadline)

    def uninstall(self) -> None:
        """Restore the previous handler, if ours is still installed."""
        ours = self._installed and threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._previous)
        self._installed = False

    def exit(self) -> None:
        """End the process: raise SystemExit here and, if this is another thread, in the main thread too."""
        if threading.current_thread() is threading.main_thread():
            self._exiting = True
        elif not self._exiting:
            self._signalled = True
            self._interrupt_main_thread()
        raise SystemExit(EXIT_CODE)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._installed:  # the session was closed by another thread, which cannot restore the handler
            signal.signal(signal.SIGTERM, self._previous)
            signal.raise_signal(signal.SIGTERM)
            return
        if callable(self._previous):
            self._on_signal()
            self._previous(number, frame)
            return
        if self._signalled:
            self._exiting = True
            raise SystemExit(EXIT_CODE)
        self._signalled = True
        self._on_signal()
        self._background.submit(self._interrupt_at_deadline, self._grace_seconds if not self._deadline else 0.0)

    def _interrupt_at_deadline(self) -> None:
        left = self._deadline - monotonic()
        if self._deadline and left > 0:
            self._background.submit(self._interrupt_at_deadline, left)
        else:
            self._interrupt_main_thread()

    def _interrupt_main_thread(self) -> None:
        """Raise SystemExit in the main thread, even if a call blocks it, by sending it a second SIGTERM."""
        main = threading.main_thread().ident
        if self._installed and not self._exiting and main is not None:
            signal.pthread_kill(main, signal.SIGTERM)
