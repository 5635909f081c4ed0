"""Processes of an earlier run that are still running, because the supervisor and the keeper were killed together.

They are found by the record that the earlier run made, by its stage in their environment, and by descent from those.
A process that replaced its environment and does not descend from another one that was found, is not found.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from savepoint.contract.names import ENV_STAGE

from savepoint_cli.process_table import (
    Ending,
    Process,
    ancestors,
    descendants,
    environment_contains,
    is_running,
    processes,
)

TERM_SECONDS: Final = 3.0
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


def record(path: Path, keeper: Process, agent: Process) -> None:
    """Write the keeper and the agent's process down for the next run."""
    content = {"boot": _boot(), "processes": [[each.pid, each.start] for each in (keeper, agent)]}
    path.write_text(json.dumps(content))


def find_leftovers(path: Path, stage: Path) -> list[Process]:
    """Return the running processes of earlier runs with this stage. The caller holds the agent's lock."""
    everything = processes()
    entry = os.fsencode(f"{ENV_STAGE}={stage}")
    own = ancestors(os.getpid())
    recorded = _recorded(path)
    found = {
        each.pid: each
        for each in everything.values()
        if (each.pid, each.start) in recorded or environment_contains(each.pid, entry)
    }
    found |= {each.pid: each for each in descendants([pid for pid in found if pid not in own])}
    return [each for pid, each in found.items() if pid not in own]


def end_leftovers(find: Callable[[], list[Process]], report: Callable[[str], None]) -> list[Process]:
    """End what ``find`` returns. Return the processes that could not be ended."""
    left = find()
    if not left:
        return []
    report(f"ending processes that an earlier run left: {', '.join(map(str, left))}")
    ending = Ending(find, time.monotonic(), TERM_SECONDS, 0.0)
    while (stuck := ending.step(time.monotonic())) is None:
        time.sleep(Ending.STEP_SECONDS)
    return stuck


def describe_holder(text: str) -> tuple[str, bool]:
    """Return the holder of the agent's lock as its lock file describes it, and whether it is still running."""
    description, _, identity = text.strip().partition("\n")
    try:
        boot, pid, start = identity.split()
        return description, boot == _boot() and is_running(int(pid), int(start))
    except ValueError:
        return description or "another process", True


def own_identity() -> str:
    """Return what ``describe_holder`` recognizes this process by."""
    own = processes()[os.getpid()]
    return f"{_boot()} {own.pid} {own.start}"


def _recorded(path: Path) -> set[tuple[int, int]]:
    try:
        content = json.loads(path.read_text())
        return {(int(pid), int(start)) for pid, start in content["processes"]} if content["boot"] == _boot() else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return "unknown"
