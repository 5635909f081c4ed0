"""Ending processes by their id, and finding those that belong to a run directory.

Uses signals and /proc. It never selects a process by its name alone.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

ENGINE_PROGRAMS = frozenset({b"dockerd", b"containerd", b"containerd-shim-runc-v2", b"docker-proxy"})
KIND_PROGRAMS = frozenset({b"kind"})


def alive(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return fields.rpartition(")")[2].split()[0] not in ("Z", "X")


def terminate(pid: int, grace_seconds: float) -> None:
    """Send SIGTERM, then SIGKILL after the grace period; return when the process has ended."""
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # it may be a child of this process
            if not alive(pid):
                return
            time.sleep(0.05)


def find_processes(programs: frozenset[bytes], directory: Path) -> list[int]:
    """Return the ids of processes that run one of the programs with an argument that names a path in the directory."""
    prefix = f"{directory}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if command[0].rpartition(b"/")[2] not in programs:
                continue  # an editor or `tail` that has the log open is not part of the suite
            if any(
                argument.partition(b"=")[2].startswith((prefix, b"unix://" + prefix)) or argument.startswith(prefix)
                for argument in command
            ):
                found.append(int(entry.name))
    return found
