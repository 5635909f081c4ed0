"""Running programs on this machine, with the end of their output in the error.

A thin layer over subprocess; arguments are lists, never shell text.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TAIL_LINES = 15


class ClusterError(Exception):
    """The cluster cannot be created, changed or removed; the message gives the cause and the end of the output."""


def run(
    arguments: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
    check: bool = True,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program and return it with its output. Raises ClusterError if check is set and its status is not 0."""
    try:
        done = subprocess.run(
            [str(part) for part in arguments],
            env=dict(env) if env is not None else None,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            cwd=cwd,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{arguments[0]} not found on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{_shortened(arguments)} did not finish within {timeout:.0f} s") from error
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-TAIL_LINES:])
        raise ClusterError(f"{_shortened(arguments)} exited with {done.returncode}:\n{tail}")
    return done


def output(arguments: Sequence[str | Path], **options: object) -> str:
    """Run a program and return its standard output without surrounding whitespace."""
    return run(arguments, **options).stdout.strip()  # type: ignore[arg-type]  # the options of run, passed on


def pipe(source: Sequence[str | Path], sink: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """Run `source | sink` and return the output of sink. Raises ClusterError if either fails."""
    environment = dict(env) if env is not None else None
    with subprocess.Popen([str(part) for part in source], stdout=subprocess.PIPE, env=environment) as first:
        done = subprocess.run(
            [str(part) for part in sink],
            stdin=first.stdout,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        if first.stdout is not None:
            first.stdout.close()
    if first.returncode != 0 or done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-TAIL_LINES:])
        raise ClusterError(
            f"{_shortened(source)} exited with {first.returncode}, "
            f"{_shortened(sink)} exited with {done.returncode}:\n{tail}"
        )
    return done.stdout.strip()


def _shortened(arguments: Sequence[str | Path]) -> str:
    text = " ".join(str(part) for part in arguments)
    return text if len(text) <= 160 else f"{text[:157]}..."
