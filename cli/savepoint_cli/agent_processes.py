"""The agent's processes, as the supervisor sees them: the keeper that starts them, its events, and its orders."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import savepoint_cli
from savepoint_cli import process_table, terminal
from savepoint_cli.keeper import adopt_orphans
from savepoint_cli.process_table import Ending

_START: Final = "import sys; sys.path.append(sys.argv.pop(1)); from savepoint_cli import keeper; keeper.main()"
_KILLED: Final = 128 + int(signal.SIGKILL)
LEFT_SECONDS: Final = 3.0
"""Time between SIGTERM and SIGKILL for processes that the agent's command leaves running."""


class AgentProcesses:
    """Runs the agent's command under a keeper. Create it in the main thread of a running event loop."""

    def __init__(
        self,
        command: tuple[str, ...],
        environment: dict[str, str],
        report: Callable[[str], None],
        on_start: Callable[[process_table.Process, process_table.Process], None],
        keep_open: tuple[int, ...] = (),
    ) -> None:
        """Start the command.

        Args:
            command: The command and its arguments.
            environment: Its environment.
            report: Receives messages for the user.
            on_start: Receives the keeper and the command's process.
            keep_open: File descriptors that stay open until all of the agent's processes have ended.
        """
        self._report, self._on_start = report, on_start
        self._loop = asyncio.get_running_loop()
        self.exit_status: asyncio.Future[int] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._agent: int | None = None
        self._buffer = b""
        self._reported_end = False
        adopt_orphans()
        self._events, events = os.pipe()
        orders, self._orders = os.pipe()
        folder = str(Path(savepoint_cli.__file__).parent.parent)
        self._foreground = terminal.is_foreground()
        foreground = "1" if self._foreground else "0"
        self._keeper = subprocess.Popen(  # noqa: S603 - the user's own command
            [sys.executable, "-I", "-S", "-c", _START, folder, str(events), str(orders), foreground, *command],
            env=environment,
            process_group=0,
            pass_fds=(events, orders, *keep_open),
        )
        os.close(events)
        os.close(orders)
        self._loop.add_reader(self._events, self._read)
        self._loop.add_signal_handler(signal.SIGCONT, self._continue)

    def send(self, number: int) -> None:
        """Send a signal to the command's own process."""
        self._order(f"signal {number}")

    def kill(self) -> None:
        """Kill all of the agent's processes."""
        self._order("end 0")

    async def end(self, seconds: float) -> None:
        """End the processes that are left after the command's end, with SIGTERM and, after ``seconds``, SIGKILL."""
        self._order(f"end {seconds:.3f}")
        await asyncio.shield(self._ended)

    def wait_without_loop(self) -> int:
        """Wait for the command's end and end what it left, with the event loop stopped. Returns its exit status."""
        while not self._ended.done() and self._read():
            if self.exit_status.done():
                self._order(f"end {LEFT_SECONDS}")
        return self.exit_status.result() if self.exit_status.done() else _KILLED

    def _order(self, line: str) -> None:
        with suppress(OSError):  # the keeper has ended
            os.write(self._orders, f"{line}\n".encode())

    def _read(self) -> bool:
        """Handle what the keeper reports. Returns False once it has ended."""
        data = os.read(self._events, 65536)
        if not data:
            self._on_keeper_end()
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._handle(json.loads(line))
        return True

    def _handle(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "started", "pid": int(pid), "start": int(start)}:
                self._agent = pid
                keeper = process_table.find(self._keeper.pid)
                if keeper is not None:
                    self._on_start(keeper, process_table.Process(pid, start, keeper.pid))
            case {"event": "stopped", "signal": int(number)}:
                self._on_stop(number)
            case {"event": "exited", "status": int(status)}:
                self._set_status(status if status >= 0 else 128 - status)
            case {"event": "left", "processes": list(left)}:
                self._report(f"the command has ended; ending what it left running: {', '.join(left)}")
            case {"event": "ended", "stuck": list(stuck)}:
                self._reported_end = True
                if stuck:
                    self._report(
                        f"cannot end these processes of the agent: {', '.join(stuck)}; they may still change its "
                        "files: end them before the next start"
                    )

    def _set_status(self, status: int) -> None:
        holder = terminal.foreground_group()
        if holder == self._agent or (self._foreground and process_table.find(holder) is None):
            terminal.give_to(os.getpgrp())  # never from a shell: this may be a job in its background
        if not self.exit_status.done():
            self.exit_status.set_result(status)

    def _on_stop(self, number: int) -> None:
        """Stop with the agent, so that the shell continues, and continue it when the shell continues this process."""
        held = self._agent is not None and terminal.foreground_group() == self._agent
        if not terminal.is_attached() or not (held or number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)):
            return
        if held:
            terminal.give_to(os.getpgrp())
        stopped = terminal.stop_own_group()
        if stopped or held:
            self._continue()
        else:
            self._report("the agent waits for the terminal, which belongs to another job")

    def _continue(self) -> None:
        if self._agent is not None and not self.exit_status.done():
            if terminal.is_foreground():
                terminal.give_to(self._agent)
            self._order("continue")

    def _on_keeper_end(self) -> None:
        self._loop.remove_reader(self._events)
        self._keeper.wait()
        if not self._reported_end:
            self._end_adopted()
        self._set_status(_KILLED)
        if not self._ended.done():
            self._ended.set_result(None)

    def _end_adopted(self) -> None:
        """End what a killed keeper leaves: the kernel has killed the command, and this process has adopted the rest."""
        if not self.exit_status.done():
            self._report("the process that keeps the agent was killed; the agent was killed with it")
        ending = Ending(lambda: process_table.descendants([os.getpid()]), time.monotonic(), 0.0, 0.0)
        while ending.step(time.monotonic()) is None:
            time.sleep(Ending.STEP_SECONDS)
            _reap()
        _reap()


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] > 0:
            pass
