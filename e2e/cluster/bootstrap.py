"""Installation of the Debian packages that the local cluster needs.

``ensure`` compares package names with dpkg's records and installs those that are missing. It does not configure
packages, start services or remove anything, and it supports no other distribution: there it reports which packages are
required and fails. Standard library only, because it runs before the virtual environment is complete.
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
    """The packages cannot be installed; the message gives the cause and the manual remedy."""


def missing(packages: Sequence[str]) -> list[str]:
    """Return the names in packages that are not installed, in the order given."""
    if not packages:
        return []
    if shutil.which("dpkg-query") is None:
        raise BootstrapError(f"dpkg not found: install the equivalents of these Debian packages: {' '.join(packages)}")
    answer = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${binary:Package} ${db:Status-Status}\n", *packages],
        capture_output=True,
        text=True,
        check=False,  # it exits with 1 if one of the names is unknown, and still lists the others
    )
    rows = (line.split() for line in answer.stdout.splitlines())
    # dpkg lists a library with its architecture: libc6:amd64.
    installed = {row[0].partition(":")[0] for row in rows if len(row) == 2 and row[1] == "installed"}
    return [name for name in dict.fromkeys(packages) if name not in installed]


def ensure(packages: Sequence[str]) -> None:
    """Install the missing ones among packages, after printing their names. Raises BootstrapError."""
    if not missing(packages):
        return
    with _exclusive():
        wanted = missing(packages)  # another process may have installed them in the meantime
        if wanted:
            _install(wanted)


def _install(wanted: Sequence[str]) -> None:
    by_hand = f"apt-get install --no-install-recommends {' '.join(wanted)}"
    if shutil.which("apt-get") is None:
        raise BootstrapError(f"apt-get not found: install the equivalents of these Debian packages: {' '.join(wanted)}")
    if os.geteuid() != 0:
        raise BootstrapError(f"installing packages requires root: run this once as root: {by_hand}")
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
        _apt("update")  # the lists may name versions that the archive has replaced since they were fetched
        _apt(*install)
    absent = missing(wanted)
    if absent:
        raise BootstrapError(f"apt-get reported success, but these packages are not installed: {' '.join(absent)}")
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
        raise BootstrapError(f"apt-get {' '.join(arguments)} exited with {done.returncode}:\n{tail}")


def _lists_are_fresh() -> bool:
    newest = max((entry.stat().st_mtime for entry in LISTS.glob("*_Packages*")), default=0.0)
    # apt gives the lists the archive's modification time; the directory's time shows when they were fetched.
    fetched = LISTS.stat().st_mtime if newest else 0.0
    return time.time() - max(newest, fetched) < LISTS_FRESH_SECONDS


@contextmanager
def _exclusive() -> Iterator[None]:
    # apt waits for dpkg's lock but not for that of `apt-get update`, so this project's processes queue here.
    with (Path(tempfile.gettempdir()) / "savepoint-apt.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
