"""The lock that lets only one ``savepoint run`` use an agent of a store. Its file names the holder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from savepoint_cli.leftovers import describe_holder, own_identity

_ENDING_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.05
_COMMAND_MAX: Final = 200


class AlreadyRunning(Exception):
    """Another process holds the agent's lock; the text describes it."""


@contextmanager
def agent_lock(path: Path, command: tuple[str, ...], now: datetime) -> Iterator[int]:
    """Hold the agent's lock and yield its file descriptor.

    A child that keeps the descriptor open holds the lock too. A supervisor that was killed leaves it to the keeper,
    which ends the agent's processes meanwhile: that is waited for.

    Args:
        path: The lock file.
        command: The command, as the holder's description shows it.
        now: The time of the start.

    Raises:
        AlreadyRunning: Another process holds the lock.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+") as file:
        until = time.monotonic() + _ENDING_SECONDS
        while not _try_lock(handle):
            file.seek(0)
            description, running = describe_holder(file.read(4096))
            if running:
                raise AlreadyRunning(description)
            if time.monotonic() > until:
                raise AlreadyRunning(f"processes of an earlier run, {description}, have not ended")
            time.sleep(_POLL_SECONDS)
        text = " ".join(command)[:_COMMAND_MAX].replace("\n", " ")
        file.seek(0)
        file.truncate(0)
        file.write(f"pid {os.getpid()} since {now:%Y-%m-%d %H:%M:%S} UTC ({text})\n{own_identity()}\n")
        file.flush()
        yield handle


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
