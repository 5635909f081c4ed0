"""Ending processes by their id, and finding the ones that belong to a run directory.

What it is: signals and /proc. What it is not: it never matches a process by its bare name.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return fields.rpartition(")")[2].split()[0] not in ("Z", "X")


def terminate(pid: int, grace_seconds: float) -> None:
    """SIGTERM, then SIGKILL after the grace; returns when the process is gone."""
    for sign, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, sign)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # it may be our own child
            if not alive(pid):
                return
            time.sleep(0.05)


ENGINE = frozenset({b"dockerd", b"containerd", b"containerd-shim-runc-v2", b"docker-proxy"})
KIND = frozenset({b"kind"})


def mentioning(directory: Path, programs: frozenset[bytes]) -> list[int]:
    """Processes of these programs one of whose arguments lies in directory."""
    prefix = f"{directory}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[0].rpartition(b"/")[2] not in programs:
                continue  # an editor or a `tail` on our log is not ours to end
            if any(
                word.partition(b"=")[2].startswith((prefix, b"unix://" + prefix)) or word.startswith(prefix)
                for word in words
            ):
                found.append(int(entry.name))
    return found
