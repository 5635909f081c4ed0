"""Removal of what an engine leaves on the machine outside its own directories.

That is processes, cgroups, mounts, network links, packet filter rules and two settings. Each is recognised by the
suite's own names, or by comparison with the state recorded before the engine started. It does not need a running
engine: it works equally well if the engine was killed with SIGKILL an hour ago.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from e2e.cluster import machine_state
from e2e.cluster.command import run
from e2e.cluster.machine_state import StateBefore, StateNow
from e2e.cluster.paths import Paths
from e2e.cluster.process import ENGINE_PROGRAMS, KIND_PROGRAMS, alive, find_processes

_CGROUPS = Path("/sys/fs/cgroup")
_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_MODULES = Path("/lib/modules")
_TABLES = ("filter", "nat", "raw", "mangle")
_SETTLE_SECONDS = 10.0
"""The longest time the kernel may take to remove the links of a deleted network namespace."""


def record_state(paths: Paths) -> None:
    """Record the state that `clean_up` must restore. An existing record is kept: it predates a previous engine."""
    if paths.state_before.exists():
        return
    record = {
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
        "ip_forward": _IP_FORWARD.read_text().strip(),
        "links": sorted(_links()),
        "modules": _MODULES.exists(),
        "rules": {table: _rules(table) for table in _TABLES},
    }
    paths.state_before.write_text(json.dumps(record, indent=1))


def leftovers_exist(paths: Paths, cgroup: str) -> bool:
    """Return whether an earlier engine of this suite left anything."""
    return bool(
        paths.state_before.exists()
        or _cgroup_directories(cgroup)
        or find_processes(ENGINE_PROGRAMS, paths.run)
        or _mounts((paths.run, paths.engine_data))
    )


def clean_up(paths: Paths, cgroup: str) -> list[str]:
    """Remove everything; return a description of what remains. Raises ClusterError if a program is missing."""
    kill_orphans(paths)
    _kill_and_wait(find_processes(ENGINE_PROGRAMS, paths.run))
    _remove_cgroups(cgroup)
    _kill_and_wait(find_processes(ENGINE_PROGRAMS, paths.run))
    for mount in _mounts((paths.run, paths.engine_data)):
        run(["umount", "--lazy", mount], check=False)
    record = _read_record(paths)
    before = None if record is None else _parse(record)
    if before is not None:
        for link in machine_state.engine_links(before, _links()):
            run(["ip", "link", "delete", link], check=False)
        _restore_rules(before)
        if before.ip_forward == "0":
            _IP_FORWARD.write_text("0")
        if not before.modules:
            with suppress(OSError):
                _MODULES.rmdir()  # docker created it for kind's mount; rmdir refuses a directory with content
    shutil.rmtree(paths.run, ignore_errors=True)
    for scratch in paths.cache.glob("savepoint-node-*"):  # left by a build that was killed
        shutil.rmtree(scratch, ignore_errors=True)
    remaining = _wait_until_clean(paths, cgroup, before)
    if remaining and record is not None:  # the next attempt needs the record, too
        paths.run.mkdir(parents=True, exist_ok=True)
        paths.state_before.write_text(json.dumps(record, indent=1))
    return remaining


def _wait_until_clean(paths: Paths, cgroup: str, before: StateBefore | None) -> list[str]:
    """Give the kernel time to finish; return what remains then."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (remaining := machine_state.remaining(before, _read_state(paths, cgroup))) and time.monotonic() < deadline:
        time.sleep(0.2)
    return remaining


def _read_state(paths: Paths, cgroup: str) -> StateNow:
    return StateNow(
        processes=tuple(_describe_process(pid) for pid in find_processes(ENGINE_PROGRAMS | KIND_PROGRAMS, paths.run)),
        cgroups=tuple(_describe_cgroup(directory) for directory in _cgroup_directories(cgroup)),
        mounts=tuple(_mounts((paths.run, paths.engine_data))),
        links=_links(),
        rules={table: _rules(table) for table in _TABLES},
        ip_forward=_IP_FORWARD.read_text().strip(),
        empty_modules=_MODULES.exists() and not any(_MODULES.iterdir()),
    )


def _describe_process(pid: int) -> str:
    """Return the process's id and the beginning of its command line."""
    command = b""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(bytes(1), b" ")
    return f"{pid}: {command.decode(errors='replace')[:80]}"


def _describe_cgroup(directory: Path) -> str:
    """Return the cgroup's path and the processes in and below it."""
    pids: list[str] = []
    for file in directory.rglob("cgroup.procs"):
        with suppress(OSError):
            pids += file.read_text().split()
    return f"{directory}, processes in it: {' '.join(pids) or 'none'}"


def kill_orphans(paths: Paths) -> None:
    """Kill a `kind create` that an interrupted `up` left running."""
    _kill_and_wait(find_processes(KIND_PROGRAMS, paths.run))


def _read_record(paths: Paths) -> dict[str, Any] | None:
    try:
        record = json.loads(paths.state_before.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _parse(record: dict[str, Any]) -> StateBefore:
    return StateBefore(
        links=frozenset(record.get("links", ())),
        rules=record.get("rules", {}),
        ip_forward=str(record.get("ip_forward", "")),
        modules=bool(record.get("modules", True)),
    )


def _kill_and_wait(pids: Iterable[int]) -> None:
    targets = list(pids)
    for pid in targets:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in targets) and time.monotonic() < deadline:
        time.sleep(0.05)


def _cgroup_directories(cgroup: str) -> list[Path]:
    """Return the cgroup's existing directories: one in cgroup v2, one per controller in v1."""
    candidates = [_CGROUPS / cgroup, *(parent / cgroup for parent in _CGROUPS.glob("*") if parent.is_dir())]
    return [directory for directory in candidates if directory.is_dir()]


def _remove_cgroups(cgroup: str) -> None:
    """Kill everything in the suite's cgroups and remove them, innermost first."""
    deadline = time.monotonic() + 20
    while directories := _cgroup_directories(cgroup):
        for directory in directories:
            for inner in [*sorted(directory.rglob("*/"), key=lambda path: -len(path.parts)), directory]:
                _thaw(inner)
                with suppress(OSError):
                    _kill((inner / "cgroup.procs").read_text().split())
                with suppress(OSError):
                    inner.rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _thaw(directory: Path) -> None:
    for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        if (directory / name).exists():
            with suppress(OSError):
                (directory / name).write_text(value)


def _kill(pids: Iterable[str]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(pid), signal.SIGKILL)


def _mounts(directories: tuple[Path, ...]) -> list[str]:
    """Return the mount points in the directories, innermost first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if any(point == str(directory) or point.startswith(f"{directory}/") for directory in directories):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def _links() -> frozenset[str]:
    return frozenset(entry.name for entry in Path("/sys/class/net").iterdir())


def _rules(table: str) -> list[str]:
    if shutil.which("iptables") is None:
        return []
    return run(["iptables", "--wait", "-t", table, "-S"], check=False).stdout.splitlines()


def _restore_rules(before: StateBefore) -> None:
    """Delete the engine's rules and chains, and restore the policies."""
    if shutil.which("iptables") is None:
        return
    for table, old in before.rules.items():
        added = machine_state.engine_rules(old, _rules(table))
        for line in added.rules:
            run(["iptables", "--wait", "-t", table, "-D", *line.split()[1:]], check=False)
        for verb in ("-F", "-X"):
            for chain in added.chains:
                run(["iptables", "--wait", "-t", table, verb, chain], check=False)
        for line in added.policies:
            run(["iptables", "--wait", "-t", table, *line.split()], check=False)
