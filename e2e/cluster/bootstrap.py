"""Debian packages that the local cluster needs, installed by name.

What it is: one function that compares a list of names with dpkg's records and installs what is absent.
What it is not: a configuration of the packages. It starts no service, removes nothing and knows no other distribution:
elsewhere it says which packages are wanted and stops. Standard library only: it runs before the venv is complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LISTS = Path("/var/lib/apt/lists")
LISTS_FRESH_SECONDS = 24 * 3600
LOCK_WAIT_SECONDS = 600
TAIL_LINES = 15


class BootstrapError(Exception):
    """The packages cannot be installed here; the message says why and what to do by hand."""


def missing(packages: Sequence[str]) -> list[str]:
    """The names among packages that are not installed, in the order given."""
    if not packages:
        return []
    if shutil.which("dpkg-query") is None:
        raise BootstrapError(f"this machine has no dpkg: install by hand what Debian calls {' '.join(packages)}")
    answer = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${binary:Package} ${db:Status-Status}\n", *packages],
        capture_output=True,
        text=True,
        check=False,  # it exits 1 when one of the names is unknown, and still lists the others
    )
    rows = (line.split() for line in answer.stdout.splitlines())
    # A library is listed with its architecture: libc6:amd64.
    installed = {row[0].partition(":")[0] for row in rows if len(row) == 2 and row[1] == "installed"}
    return [name for name in dict.fromkeys(packages) if name not in installed]


def ensure(packages: Sequence[str]) -> None:
    """Install those of packages that are missing; say first which. Raises BootstrapError."""
    if not missing(packages):
        return
    with _one_at_a_time():
        wanted = missing(packages)  # another process may have installed them while we waited
        if wanted:
            _install(wanted)


def _install(wanted: Sequence[str]) -> None:
    by_hand = f"apt-get install --no-install-recommends {' '.join(wanted)}"
    if shutil.which("apt-get") is None:
        raise BootstrapError(f"this machine has no apt-get: install by hand what Debian calls {' '.join(wanted)}")
    if os.geteuid() != 0:
        raise BootstrapError(f"installing packages needs root. Run this once as root: {by_hand}")
    print(f"installing Debian packages: {' '.join(wanted)}", file=sys.stderr, flush=True)
    started = time.monotonic()
    updated = not _lists_are_fresh()
    if updated:
        _apt("update")
    install = ("install", "--yes", "--no-install-recommends", *wanted)
    try:
        _apt(*install)
    except BootstrapError:
        if updated:
            raise
        _apt("update")  # lists of this morning may name versions that the archive has replaced since
        _apt(*install)
    absent = missing(wanted)
    if absent:
        raise BootstrapError(f"apt-get reported success but these are not installed: {' '.join(absent)}")
    print(f"installed in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _apt(*arguments: str) -> None:
    done = subprocess.run(
        ["apt-get", "--quiet", "-o", f"DPkg::Lock::Timeout={LOCK_WAIT_SECONDS}", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-TAIL_LINES:])
        raise BootstrapError(f"apt-get {' '.join(arguments)} exited {done.returncode}:\n{tail}")


def _lists_are_fresh() -> bool:
    newest = max((entry.stat().st_mtime for entry in LISTS.glob("*_Packages*")), default=0.0)
    # apt keeps the archive's own date on the lists; the folder's date says when they were fetched.
    fetched = LISTS.stat().st_mtime if newest else 0.0
    return time.time() - max(newest, fetched) < LISTS_FRESH_SECONDS


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    # apt waits for dpkg's lock but not for that of `apt-get update`, so we queue before either.
    with (Path(tempfile.gettempdir()) / "savepoint-apt.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
