"""Running a program of this machine, with its last words in the error.

What it is: one function around subprocess. What it is not: a shell; arguments are lists.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TAIL_LINES = 15


class ClusterError(Exception):
    """The cluster cannot be made, changed or removed; the message says why and ends with the program's own words."""


def run(
    arguments: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
    check: bool = True,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """The finished program with its output. Raises ClusterError when check is set and its status is not 0."""
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
        raise ClusterError(f"{arguments[0]} is not on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{_words(arguments)}: no end after {timeout:.0f} s") from error
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-TAIL_LINES:])
        raise ClusterError(f"{_words(arguments)} exited {done.returncode}:\n{tail}")
    return done


def output(arguments: Sequence[str | Path], **options: object) -> str:
    """What the program printed, without the last newline."""
    return run(arguments, **options).stdout.strip()  # type: ignore[arg-type]  # the options of run, passed on


def pipe(source: Sequence[str | Path], sink: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """`source | sink`; what sink printed. Raises ClusterError when either fails."""
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
            f"{_words(source)} exited {first.returncode}, {_words(sink)} exited {done.returncode}:\n{tail}"
        )
    return done.stdout.strip()


def _words(arguments: Sequence[str | Path]) -> str:
    text = " ".join(str(part) for part in arguments)
    return text if len(text) <= 160 else f"{text[:157]}..."
