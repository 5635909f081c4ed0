"""One server process on loopback: started, waited for, stopped.

What it is: what the real servers of the integration tests share. What it is not: a supervisor; a server that dies in a
test stays dead, and the test that meets it fails with the end of its log.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3
from urllib3.exceptions import HTTPError

HOST = "127.0.0.1"
POLL_SECONDS = 0.05
STOP_SECONDS = 10.0
TAIL_LINES = 25


class ServerError(Exception):
    """A server did not come up; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class Process:
    """A running server."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ask it to end, and kill it when it has not after that long."""
        self.popen.terminate()
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, as a power loss would."""
        self.popen.kill()
        self.popen.wait()


@contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    room: Path,
    ready: Callable[[], bool],
    *,
    environment: Mapping[str, str] | None = None,
    within_seconds: float = 60.0,
) -> Iterator[Process]:
    """The process, once ready() holds; it writes to room/NAME.log and is stopped at the end. Raises ServerError."""
    log = room / f"{name}.log"
    kept = {variable: os.environ[variable] for variable in ("PATH", "LANG", "TZ") if variable in os.environ}
    with log.open("ab") as output:
        popen = subprocess.Popen(
            [str(part) for part in command],
            cwd=room,
            # Nothing of the caller's environment may configure a server: no proxy, no region, no credentials.
            env={**kept, "HOME": str(room), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    process = Process(name, popen, log)
    try:
        _wait(process, ready, within_seconds)
        yield process
    finally:
        process.stop()


def _wait(process: Process, ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if not process.alive:
            raise ServerError(f"{process.name} exited with {process.popen.returncode}:\n{process.tail()}")
        if time.monotonic() > deadline:
            raise ServerError(f"{process.name} is not ready after {seconds:.0f} s:\n{process.tail()}")
        time.sleep(POLL_SECONDS)


def answers(url: str, ca: Path | None = None, status: int = 200) -> Callable[[], bool]:
    """A check that url answers with that status. ca: the authority to trust when it is https."""

    def check() -> bool:
        with urllib3.PoolManager(ca_certs=str(ca) if ca else None, retries=False, timeout=2.0) as pool:
            try:
                return pool.request("GET", url).status == status
            except (HTTPError, OSError):
                return False

    return check


def free_ports(count: int) -> list[int]:
    """Different ports of loopback that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextmanager
def server_room(room: Path | None, name: str) -> Iterator[Path]:
    """A folder for data and logs: the caller's, or a temporary one that goes unless the block fails."""
    if room is not None:
        room.mkdir(parents=True, exist_ok=True)
        yield room
        return
    own = Path(tempfile.mkdtemp(prefix=f"savepoint-{name}-"))
    try:
        yield own
    except BaseException as error:
        error.add_note(f"the logs of {name} are kept in {own}")
        raise
    shutil.rmtree(own)
