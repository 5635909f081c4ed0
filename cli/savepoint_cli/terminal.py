"""The terminal of ``savepoint run``: the agent owns it while it runs, as the job of a shell does."""

import os
import signal
import time
from contextlib import suppress
from typing import Final

_NOT_STOPPED_SECONDS: Final = 0.05


def foreground_group() -> int:
    """Return the foreground process group of the terminal at standard input; 0 if that is not this session's one."""
    with suppress(OSError):
        return os.tcgetpgrp(0) if os.isatty(0) else 0
    return 0


def is_foreground() -> bool:
    """Return whether this process group is in the foreground of the terminal at standard input."""
    return foreground_group() == os.getpgrp()


def is_attached() -> bool:
    """Return whether standard input is this session's terminal."""
    return foreground_group() > 0


def give_to(group: int) -> None:
    """Make a process group the foreground group of the terminal at standard input, if there is one."""
    if not is_attached():
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with suppress(OSError):  # the group has ended, or the terminal was closed
        os.tcsetpgrp(0, group)
    signal.signal(signal.SIGTTOU, before)


def stop_own_group() -> bool:
    """Stop this process group as Ctrl-Z does, and return once it continues. Returns False if it cannot be stopped.

    The kernel does not stop a group whose session has no shell that could continue it.
    """
    began = time.monotonic()
    with suppress(OSError):
        os.killpg(os.getpgrp(), signal.SIGTSTP)
    return time.monotonic() - began > _NOT_STOPPED_SECONDS
