"""`go build` of one program, with a sufficiently new toolchain and an environment that does not affect the result.

programs.py caches the binaries. Go's own build cache is used where the user has it, so packages that two programs share
are compiled once.
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
# These would change the result, or where `go` looks for itself. The user's proxy and checksum settings are kept.
DROPPED_VARIABLES = frozenset(
    {"GOOS", "GOARCH", "GOROOT", "GOEXPERIMENT", "GODEBUG", "CC", "CGO_CFLAGS", "CGO_CPPFLAGS", "CGO_LDFLAGS"}
)
# GOFLAGS repeats a flag that we pass anyway: if it were empty, the user's `go env -w GOFLAGS` would apply.
FIXED_VARIABLES = {"GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off", "GO111MODULE": "on"}
TAIL_LINES = 20

_VERSION = re.compile(r"\bgo ?(\d+)\.(\d+)(?:\.(\d+))?")

Version = tuple[int, int, int]


def compile_program(group: Group, name: str, target: Path, log: Path, progress: Progress, expected: str) -> None:
    """Build one program of the group and rename it to target when it is complete.

    Args:
        group: The group that the program belongs to.
        name: The program.
        target: Path of the binary.
        log: File for the compiler's output.
        progress: Where progress is shown.
        expected: Text for the progress line on how long the build may take.

    Raises:
        ProgramError, bootstrap.BootstrapError: With the cause.
    """
    bootstrap.ensure(group.debian)
    go = _toolchain(required_version(group), target.parents[2], progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{name}.half")  # only the holder of the lock writes it
    command = [go, "build", "-v", *group.flags, "-o", partial, group.packages[name]]
    with log.open("wb") as output:
        status = _watch(command, group, log, output.fileno(), f"{name}: building{expected}", progress)
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise ProgramError(f"building {name} failed with status {status}; the end of {log}:\n{tail}")
    partial.replace(target)


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
            progress.update(f"{text}… {time.monotonic() - started:.0f} s, {compiled} packages compiled")
            with suppress(subprocess.TimeoutExpired):
                return build.wait(timeout=1)
    finally:
        if build.poll() is None:  # interrupted: leave no compiler running
            build.kill()
            build.wait()


def build_environment(base: dict[str, str], *, cgo: bool) -> dict[str, str]:
    """Return the environment for `go`: the user's, without variables that would change the binary."""
    kept = {name: value for name, value in base.items() if name not in DROPPED_VARIABLES}
    return {**kept, **FIXED_VARIABLES, "CGO_ENABLED": "1" if cgo else "0"}


def parse_version(text: str) -> Version | None:
    """Return the first Go version in text such as `go version go1.26.8 linux/amd64` or `go 1.26.0`; None without one.

    A version without a patch (`go1.27rc1`) sorts before its first release.
    """
    found = _VERSION.search(text)
    if found is None:
        return None
    major, minor, patch = found.groups()
    return int(major), int(minor), int(patch) if patch is not None else -1


def required_version(group: Group) -> Version:
    """Return the Go version that the group's go.mod requires."""
    lines = (SOURCES / group.name / "go.mod").read_text().splitlines()
    needed = next((parse_version(line) for line in lines if line.startswith("go ")), None)
    if needed is None:
        raise ProgramError(f"go.mod of {group.name} has no `go` line")
    return needed


def _toolchain(needed: Version, programs: Path, progress: Progress) -> str | Path:
    """Return the machine's `go` if it is new enough, otherwise the one of the pinned wheel."""
    found = shutil.which("go")
    if found is not None:
        answer = subprocess.run(
            [found, "version"],
            cwd="/",  # outside every module, because a go.mod could select another toolchain
            env=build_environment(dict(os.environ), cgo=False),
            capture_output=True,
            text=True,
            check=False,
        )
        own = parse_version(answer.stdout)
        if answer.returncode == 0 and own is not None and own >= needed:
            return found
    return unpack(GO_WHEEL, programs, progress)
