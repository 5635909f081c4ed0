"""The processes of this machine as /proc shows them: identities, ancestors, descendants. Standard library only."""

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_PARENT, _START = 1, 19  # fields of /proc/PID/stat after the command's name
_NAME_MAX: Final = 60


class Process(NamedTuple):
    """A process. Its start time, in clock ticks since the boot, tells it from a later one with the same number."""

    pid: int
    start: int
    parent: int

    def __str__(self) -> str:
        return f"{self.pid} ({command_of(self.pid) or 'unknown'})"


def find(pid: int) -> Process | None:
    """Return the process with this number; None if there is none, or only what is left of one that has ended."""
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in (b"Z", b"X") else Process(pid, int(fields[_START]), int(fields[_PARENT]))


def processes() -> dict[int, Process]:
    """Return all running processes by their numbers."""
    found = (find(int(name)) for name in os.listdir(_PROC) if name.isdigit())  # noqa: PTH208 - names are enough
    return {each.pid: each for each in found if each is not None}


def is_running(pid: int, start: int) -> bool:
    """Return whether this process, and not a later one with its number, is running."""
    process = find(pid)
    return process is not None and process.start == start


def descendants(pids: Iterable[int]) -> list[Process]:
    """Return the children of these processes, their children, and so on."""
    children: dict[int, list[Process]] = {}
    for each in processes().values():
        children.setdefault(each.parent, []).append(each)
    found: dict[int, Process] = {}
    waiting = list(pids)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child.pid not in found:
                found[child.pid] = child
                waiting.append(child.pid)
    return list(found.values())


def ancestors(pid: int) -> set[int]:
    """Return the numbers of this process, its parent, and so on."""
    found: set[int] = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        process = find(pid)
        pid = process.parent if process is not None else 0
    return found


def send(process: Process, number: int) -> None:
    """Send a signal to this process, and never to a later one with its number. Ignore that it must not be signalled."""
    with suppress(OSError):
        handle = os.pidfd_open(process.pid)
        try:
            if is_running(process.pid, process.start):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def command_of(pid: int) -> str:
    """Return the start of a process's command line; empty if it cannot be read."""
    with suppress(OSError):
        words = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
        return "".join(each if each.isprintable() else "?" for each in " ".join(words)[:_NAME_MAX])
    return ""


def environment_contains(pid: int, entry: bytes) -> bool:
    """Return whether a process was started with this ``NAME=value``; False if its environment cannot be read."""
    with suppress(OSError):
        return entry in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    return False


class Ending:
    """Ends processes: waits a moment, sends SIGTERM, then SIGKILL, until none is left. Call ``step`` repeatedly."""

    SETTLE_SECONDS: Final = 0.25
    """Helpers often end by themselves as soon as their parent has ended."""
    STUCK_SECONDS: Final = 5.0
    """A process that SIGKILL does not end by then belongs to another user, or waits for a device."""
    STEP_SECONDS: Final = 0.03
    WAIT_SECONDS: Final = 0.2
    """Time between two looks at all processes while those that were sent SIGTERM end."""

    def __init__(
        self, find_processes: Callable[[], list[Process]], now: float, seconds: float, settle_seconds: float
    ) -> None:
        """``find_processes`` returns those that still run; ``seconds`` lie between SIGTERM and SIGKILL."""
        self._find = find_processes
        self._term_at = now + settle_seconds
        self.kill_at = self._term_at + seconds
        self._asked: set[Process] = set()

    def step(self, now: float) -> list[Process] | None:
        """Signal those that are due. Return None to be called again, or the processes that could not be ended."""
        left = self._find()
        if not left or now > self.kill_at + self.STUCK_SECONDS:
            return left
        for each in left if now >= self._term_at else ():
            if now >= self.kill_at:
                send(each, signal.SIGKILL)
            elif each not in self._asked:
                self._asked.add(each)
                send(each, signal.SIGTERM)
                send(each, signal.SIGCONT)  # a stopped process gets SIGTERM only once it continues
        return None

    def pause(self, now: float) -> float:
        """Return the seconds until the next step."""
        waiting = self._term_at + self.WAIT_SECONDS < now < self.kill_at
        return min(self.WAIT_SECONDS, self.kill_at - now) if waiting else self.STEP_SECONDS

    @property
    def asked(self) -> set[Process]:
        """The processes that were sent SIGTERM."""
        return self._asked
