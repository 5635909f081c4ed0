"""What an engine leaves outside its own directories, and the broom for it.

What it is: processes, cgroups, mounts, network links, packet filter rules and two settings, each recognised by our
own names or by comparison with a record made before the engine started. What it is not: an engine stopper; it works
just as well when the engine was killed with SIGKILL an hour ago.
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

from e2e.cluster import remains
from e2e.cluster.command import run
from e2e.cluster.paths import Paths
from e2e.cluster.process import ENGINE, KIND, alive, mentioning
from e2e.cluster.remains import Before, Machine

_CGROUPS = Path("/sys/fs/cgroup")
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_MODULES = Path("/lib/modules")
_TABLES = ("filter", "nat", "raw", "mangle")
_SETTLE_SECONDS = 10.0
"""So long the kernel may take to remove a dead network namespace's links."""


def remember(paths: Paths) -> None:
    """Record what `sweep` must put back. An older record wins: it is from before a previous engine."""
    if paths.before.exists():
        return
    record = {
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
        "ip_forward": _FORWARD.read_text().strip(),
        "links": sorted(_links()),
        "modules": _MODULES.exists(),
        "rules": {table: _rules(table) for table in _TABLES},
    }
    paths.before.write_text(json.dumps(record, indent=1))


def anything(paths: Paths, cgroup: str) -> bool:
    """Whether an engine of ours left something behind."""
    return bool(
        paths.before.exists()
        or _cgroup_rooms(cgroup)
        or mentioning(paths.run, ENGINE)
        or _mounts((paths.run, paths.engine_data))
    )


def sweep(paths: Paths, cgroup: str) -> list[str]:
    """Remove all of it; what could not be removed, in words. Raises ClusterError when a program is missing."""
    end_orphans(paths)
    _end(mentioning(paths.run, ENGINE))
    _empty_cgroups(cgroup)
    _end(mentioning(paths.run, ENGINE))
    for mount in _mounts((paths.run, paths.engine_data)):
        run(["umount", "--lazy", mount], check=False)
    record = _record(paths)
    before = None if record is None else _before(record)
    if before is not None:
        for link in remains.links_of_ours(before, _links()):
            run(["ip", "link", "delete", link], check=False)
        _put_rules_back(before)
        if before.ip_forward == "0":
            _FORWARD.write_text("0")
        if not before.modules:
            with suppress(OSError):
                _MODULES.rmdir()  # docker made it for kind's mount; only if it is still empty
    shutil.rmtree(paths.run, ignore_errors=True)
    for scratch in paths.cache.glob("savepoint-node-*"):  # of a build that was killed
        shutil.rmtree(scratch, ignore_errors=True)
    left = _settled(paths, cgroup, before)
    if left and record is not None:  # the next attempt must know, too, what was there before
        paths.run.mkdir(parents=True, exist_ok=True)
        paths.before.write_text(json.dumps(record, indent=1))
    return left


def _settled(paths: Paths, cgroup: str, before: Before | None) -> list[str]:
    """What is left when the kernel has had its time."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (left := remains.left(before, _machine(paths, cgroup))) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def _machine(paths: Paths, cgroup: str) -> Machine:
    """What there is now."""
    return Machine(
        processes=tuple(_words(pid) for pid in mentioning(paths.run, ENGINE | KIND)),
        cgroups=tuple(_members(room) for room in _cgroup_rooms(cgroup)),
        mounts=tuple(_mounts((paths.run, paths.engine_data))),
        links=_links(),
        rules={table: _rules(table) for table in _TABLES},
        ip_forward=_FORWARD.read_text().strip(),
        empty_modules=_MODULES.exists() and not any(_MODULES.iterdir()),
    )


def _words(pid: int) -> str:
    """A process by its id and the beginning of its command."""
    words = b""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(bytes(1), b" ")
    return f"{pid}: {words.decode(errors='replace')[:80]}"


def _members(room: Path) -> str:
    """A cgroup and the processes in and below it."""
    pids: list[str] = []
    for file in room.rglob("cgroup.procs"):
        with suppress(OSError):
            pids += file.read_text().split()
    return f"{room}, processes in it: {' '.join(pids) or 'none'}"


def end_orphans(paths: Paths) -> None:
    """End what a killed `up` has left running: a `kind create` that goes on by itself."""
    _end(mentioning(paths.run, KIND))


def _record(paths: Paths) -> dict[str, Any] | None:
    try:
        record = json.loads(paths.before.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _before(record: dict[str, Any]) -> Before:
    return Before(
        links=frozenset(record.get("links", ())),
        rules=record.get("rules", {}),
        ip_forward=str(record.get("ip_forward", "")),
        modules=bool(record.get("modules", True)),
    )


def _end(pids: Iterable[int]) -> None:
    doomed = list(pids)
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in doomed) and time.monotonic() < deadline:
        time.sleep(0.05)


def _cgroup_rooms(cgroup: str) -> list[Path]:
    rooms = [_CGROUPS / cgroup, *(room / cgroup for room in _CGROUPS.glob("*") if room.is_dir())]
    return [room for room in rooms if room.is_dir()]


def _empty_cgroups(cgroup: str) -> None:
    """Kill what runs in our cgroups and remove them, innermost first."""
    deadline = time.monotonic() + 20
    while rooms := _cgroup_rooms(cgroup):
        for room in rooms:
            for inner in [*sorted(room.rglob("*/"), key=lambda path: -len(path.parts)), room]:
                _thaw(inner)
                with suppress(OSError):
                    _end_now((inner / "cgroup.procs").read_text().split())
                with suppress(OSError):
                    inner.rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _thaw(room: Path) -> None:
    for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        if (room / name).exists():
            with suppress(OSError):
                (room / name).write_text(value)


def _end_now(pids: Iterable[str]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(pid), signal.SIGKILL)


def _mounts(below: tuple[Path, ...]) -> list[str]:
    """Mount points inside the directories, innermost first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if any(point == str(room) or point.startswith(f"{room}/") for room in below):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def _links() -> frozenset[str]:
    return frozenset(entry.name for entry in Path("/sys/class/net").iterdir())


def _rules(table: str) -> list[str]:
    if shutil.which("iptables") is None:
        return []
    return run(["iptables", "--wait", "-t", table, "-S"], check=False).stdout.splitlines()


def _put_rules_back(before: Before) -> None:
    """Delete an engine's rules and chains, and restore the policies."""
    if shutil.which("iptables") is None:
        return
    for table, old in before.rules.items():
        found = remains.filter_of_ours(old, _rules(table))
        for line in found.rules:
            run(["iptables", "--wait", "-t", table, "-D", *line.split()[1:]], check=False)
        for verb in ("-F", "-X"):
            for chain in found.chains:
                run(["iptables", "--wait", "-t", table, verb, chain], check=False)
        for line in found.policies:
            run(["iptables", "--wait", "-t", table, *line.split()], check=False)
