"""Starting, awaiting and stopping one server process on loopback: what all real servers of the tests share.

It is not a supervisor: a server that dies during a test stays dead, and the test that needs it fails with the end of
its log.
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
    """A server did not become ready; the message ends with its log."""


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
        """Return the end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Send SIGTERM, and SIGKILL if the process has not ended after this many seconds."""
        self.popen.terminate()
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL, as abrupt as a power failure."""
        self.popen.kill()
        self.popen.wait()


@contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    folder: Path,
    ready: Callable[[], bool],
    *,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 60.0,
) -> Iterator[Process]:
    """Yield the process once ready() is true, and stop it at the end. Its log: folder/NAME.log. Raises ServerError."""
    log = folder / f"{name}.log"
    inherited = {variable: os.environ[variable] for variable in ("PATH", "LANG", "TZ") if variable in os.environ}
    with log.open("ab") as output:
        popen = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            # Nothing else of the caller's environment may configure a server: no proxy, no region, no credentials.
            env={**inherited, "HOME": str(folder), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    process = Process(name, popen, log)
    try:
        _wait_until_ready(process, ready, timeout_seconds)
        yield process
    finally:
        process.stop()


def _wait_until_ready(process: Process, ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if not process.alive:
            raise ServerError(f"{process.name} exited with {process.popen.returncode}:\n{process.tail()}")
        if time.monotonic() > deadline:
            raise ServerError(f"{process.name} is not ready after {seconds:.0f} s:\n{process.tail()}")
        time.sleep(POLL_SECONDS)


def responds(url: str, ca: Path | None = None, status: int = 200) -> Callable[[], bool]:
    """Return a check that a GET of the URL returns this status. ``ca``: the authority to trust if it is https."""

    def check() -> bool:
        with urllib3.PoolManager(ca_certs=str(ca) if ca else None, retries=False, timeout=2.0) as pool:
            try:
                return pool.request("GET", url).status == status
            except (HTTPError, OSError):
                return False

    return check


def free_ports(count: int) -> list[int]:
    """Return different loopback ports on which no process listens now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextmanager
def server_folder(folder: Path | None, name: str) -> Iterator[Path]:
    """Yield a folder for data and logs: the caller's, or a temporary one that is removed unless the block fails."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    temporary = Path(tempfile.mkdtemp(prefix=f"savepoint-{name}-"))
    try:
        yield temporary
    except BaseException as error:
        error.add_note(f"the logs of {name} are kept in {temporary}")
        raise
    shutil.rmtree(temporary)
