"""Keeps all processes of an agent together: a small process between the supervisor and the agent's command.

It starts the command in a process group of its own, adopts the command's orphans (PR_SET_CHILD_SUBREAPER), and ends
whatever is left when the supervisor says so, or as soon as the supervisor has ended, by any signal. If this process is
killed, the kernel kills the command, and the supervisor adopts and ends the rest. It imports nothing but the standard
library and ``process_table``. Its arguments are ``EVENTS ORDERS FOREGROUND COMMAND...``: two file descriptors, 1 if the
command gets the terminal, and the command. An event, to the supervisor, is a line of JSON; an order is a line of words.
"""

import ctypes
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Any, Final

from savepoint_cli import process_table
from savepoint_cli.process_table import Ending

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
EXIT_NOT_FOUND: Final = 127
EXIT_NOT_EXECUTABLE: Final = 126
_IGNORED: Final = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE,
)  # fmt: skip


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Keeper:
    """The loop of this process."""

    def __init__(self, events: int, orders: int, agent: int, wakeups: int) -> None:
        self._events, self._orders, self._agent, self._wakeups = events, orders, agent, wakeups
        self._exited = False
        self._ending: Ending | None = None
        self._reported = False
        self._buffer = b""

    def run(self) -> None:
        """Serve the supervisor until the command has ended and no process is left."""
        while True:
            timeout = self._ending.pause(time.monotonic()) if self._ending is not None else None
            sources = [each for each in (self._orders, self._wakeups) if each >= 0]
            ready, _, _ = select.select(sources, [], [], timeout)
            if self._wakeups in ready:
                os.read(self._wakeups, 4096)
            if self._orders in ready:
                self._receive(os.read(self._orders, 4096))
            self._reap()
            if self._ending is not None and self._end():
                return

    def _receive(self, data: bytes) -> None:
        if not data:  # the supervisor has ended
            self._orders = -1
            self._start_ending(0.0, 0.0)
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            match line.split():
                case [b"signal", number] if not self._exited:
                    self._signal(int(number))
                case [b"continue"]:
                    with suppress(OSError):
                        os.killpg(self._agent, signal.SIGCONT)
                case [b"end", seconds]:
                    self._start_ending(float(seconds), Ending.SETTLE_SECONDS if self._exited else 0.0)

    def _signal(self, number: int) -> None:
        """Send a signal to the command; SIGINT goes to its process group, as from a terminal: a shell waits for it."""
        with suppress(OSError):  # the command runs as another user
            if number == signal.SIGINT:
                os.killpg(self._agent, number)
            else:
                os.kill(self._agent, number)

    def _start_ending(self, seconds: float, settle_seconds: float) -> None:
        now = time.monotonic()
        if self._ending is None or now + seconds < self._ending.kill_at:
            self._ending = Ending(lambda: process_table.descendants([os.getpid()]), now, seconds, settle_seconds)

    def _end(self) -> bool:
        """Return whether all processes have ended, or some cannot be ended."""
        assert self._ending is not None
        stuck = self._ending.step(time.monotonic())
        if self._exited and self._ending.asked and not self._reported:
            self._reported = True
            self._report("left", processes=[str(each) for each in self._ending.asked])
        if stuck is None:
            return False
        self._reap()
        self._report("ended", stuck=[str(each) for each in stuck])
        return True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid != self._agent:
                continue
            if os.WIFSTOPPED(status):
                self._report("stopped", signal=os.WSTOPSIG(status))
            else:
                self._exited = True
                self._report("exited", status=os.waitstatus_to_exitcode(status))

    def _report(self, event: str, **fields: Any) -> None:
        with suppress(OSError):  # the supervisor has ended
            os.write(self._events, json.dumps({"event": event, **fields}).encode() + b"\n")


def main() -> None:
    """Start the command and keep its processes until the last one has ended."""
    events, orders, foreground = (int(each) for each in sys.argv[1:4])
    command = sys.argv[4:]
    for each in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers. What the supervisor passed stays here
        if int(each) > 2:
            with suppress(OSError):
                os.set_inheritable(int(each), False)
    hangup = signal.getsignal(signal.SIGHUP)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    adopt_orphans()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    keeper = os.getpid()
    agent = os.fork()
    if agent == 0:
        _become(command, keeper, foreground == 1, hangup)
    with suppress(OSError):  # the child does the same: the first one wins
        os.setpgid(agent, agent)
    process = process_table.find(agent)
    line = {"event": "started", "pid": agent, "start": process.start if process is not None else 0}
    os.write(events, json.dumps(line).encode() + b"\n")
    Keeper(events, orders, agent, reader).run()


def _become(command: list[str], keeper: int, foreground: bool, hangup: Any) -> None:
    """Replace this process by the command, in the terminal's foreground if the supervisor was there."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(EXIT_NOT_FOUND)  # the keeper died before prctl took effect
    os.setpgid(0, 0)
    if foreground:
        with suppress(OSError):  # the terminal was closed
            os.tcsetpgrp(0, os.getpgrp())
    signal.set_wakeup_fd(-1)
    for number in (*_IGNORED, signal.SIGCHLD, signal.SIGXFSZ):  # the interpreter ignores the last one
        signal.signal(number, signal.SIG_DFL)
    if hangup == signal.SIG_IGN:  # under nohup
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the user's own command
    except FileNotFoundError:
        sys.stderr.write(f"error: command not found: {command[0]}\n")
        sys.stderr.flush()
        os._exit(EXIT_NOT_FOUND)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: cannot run {command[0]}: {getattr(error, 'strerror', None) or error}\n")
        sys.stderr.flush()
        os._exit(EXIT_NOT_EXECUTABLE)
