"""SIGTERM and Ctrl-C: flush at the next safe point, then end the process.

SIGTERM ends it with exit code 143, Ctrl-C (SIGINT) with KeyboardInterrupt. If the program has its own handler of
SIGTERM, that handler is called, and the program decides when to exit; a program's own handler of SIGINT is left alone.
The same signal a second time, or the end of the grace period, ends the process without a flush, so that a call that
never returns cannot block the exit. A forked child gets the handlers back that the program had before.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any, Final

from savepoint.sdk.background import BackgroundThread

EXIT_CODE: Final = 128 + int(signal.SIGTERM)
GRACE_SECONDS: Final = 25.0  # until the sidecar sends the real value; Kubernetes' default is 30
_MARGIN_SECONDS: Final = 5.0
_NOTICE: Final = b"savepoint: stopping at the next safe point; press Ctrl-C again to stop at once\n"


class Termination:
    """The handlers of SIGTERM and SIGINT of one session.

    ``on_signal`` gets the signal's number and makes the next safe point check the session's state; it is safe in a
    signal handler.
    """

    def __init__(
        self, on_signal: Callable[[int], None], background: BackgroundThread, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._on_signal = on_signal
        self._background = background
        self._grace_seconds = grace_seconds
        self._previous: dict[int, Any] = {}  # the handlers that ours replaced
        self._pid = os.getpid()
        self._active = False
        self._first = 0  # the signal that started the shutdown
        self._received: set[int] = set()
        self._exiting = False  # SystemExit or KeyboardInterrupt was raised in the main thread
        self._deadline = 0.0  # monotonic; 0: the sidecar has not sent the grace period

    def install(self) -> bool:
        """Install the handlers; returns whether that of SIGTERM is installed.

        It is not if this is not the main thread, or if SIGTERM is ignored or handled outside Python. That of SIGINT is
        installed only over Python's or asyncio's own, and not in an interactive interpreter or a notebook, where
        SIGINT interrupts a statement and not the process.
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        self._active = True
        if _ends_by_interrupt(signal.getsignal(signal.SIGINT)):
            self._replace(signal.SIGINT)
        previous = signal.getsignal(signal.SIGTERM)
        if previous is None or previous == signal.SIG_IGN:  # handled outside Python, or ignored on purpose
            return False
        self._replace(signal.SIGTERM)
        return True

    @property
    def owns_exit(self) -> bool:
        """True if this handler may end the process: the program has no handler of its own."""
        return signal.SIGTERM in self._previous and not callable(self._previous[signal.SIGTERM])

    def set_grace(self, grace_seconds: float) -> None:
        """Set the time until the pod is killed; the last part of it is left to the sidecar."""
        margin = min(max(_MARGIN_SECONDS, grace_seconds / 6), grace_seconds / 2)
        self._deadline = monotonic() + grace_seconds - margin
        if self._first:
            self._background.submit(self._interrupt_at_deadline)

    def uninstall(self) -> None:
        """Restore the previous handlers where ours are still installed."""
        if threading.current_thread() is threading.main_thread():
            self._restore()
        self._active = False

    def on_forked(self) -> None:
        """Restore the previous handlers in a forked child: it has no session, and signals must end it as usual."""
        self._restore()
        self._active = False

    def exit(self) -> None:
        """End the process: raise SystemExit here and, if this is another thread, in the main thread too.

        After Ctrl-C the main thread raises KeyboardInterrupt instead.
        """
        if threading.current_thread() is threading.main_thread():
            self._exiting = True
            if self._first == signal.SIGINT:
                raise KeyboardInterrupt
        elif not self._exiting:
            self._interrupt_main_thread()
        raise SystemExit(EXIT_CODE)

    def _replace(self, number: int) -> None:
        self._previous[number] = signal.getsignal(number)
        signal.signal(number, self._handle)

    def _restore(self) -> None:
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous[number]
        if not self._active or os.getpid() != self._pid:
            # Another thread, which cannot restore handlers, closed the session; or C code forked this process.
            signal.signal(number, previous)
            signal.raise_signal(number)
            return
        if number == signal.SIGTERM and callable(previous):
            self._on_signal(number)
            previous(number, frame)
            return
        if number in self._received:
            self._exiting = True
            if number == signal.SIGINT:
                previous(number, frame)
                return
            raise SystemExit(EXIT_CODE)
        self._received.add(number)
        self._first = self._first or number
        if number == signal.SIGINT and os.isatty(2):
            os.write(2, _NOTICE)  # neither print() nor logging is safe in a signal handler
        self._on_signal(number)
        self._background.submit(self._interrupt_at_deadline, self._grace_seconds if not self._deadline else 0.0)

    def _interrupt_at_deadline(self) -> None:
        left = self._deadline - monotonic()
        if self._deadline and left > 0:
            self._background.submit(self._interrupt_at_deadline, left)
        else:
            self._interrupt_main_thread()

    def _interrupt_main_thread(self) -> None:
        """End the main thread, even if a call blocks it, by sending it the signal a second time."""
        main, number = threading.main_thread().ident, self._first or int(signal.SIGTERM)
        if self._active and number in self._previous and not self._exiting and main is not None:
            self._received.add(number)
            signal.pthread_kill(main, number)


def _ends_by_interrupt(handler: Any) -> bool:
    """Return whether SIGINT ends the program: Python's or asyncio's own handler is installed, and no prompt waits."""
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return False
    method = getattr(handler, "func", None)  # asyncio, whose import takes long, installs a partial of a Runner's method
    return handler is signal.default_int_handler or getattr(method, "__module__", None) == "asyncio.runners"
