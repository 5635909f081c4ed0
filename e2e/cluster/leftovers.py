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

from e2e.cluster.command import run
from e2e.cluster.paths import Paths
from e2e.cluster.process import ENGINE, KIND, alive, mentioning

_CGROUPS = Path("/sys/fs/cgroup")
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_MODULES = Path("/lib/modules")
_TABLES = ("filter", "nat", "raw", "mangle")
_DOCKER_CHAINS = ("DOCKER",)


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


def sweep(paths: Paths, cgroup: str) -> None:
    """Remove all of it. Raises ClusterError only when a program that must exist does not."""
    end_orphans(paths)
    _end(mentioning(paths.run, ENGINE))
    _empty_cgroups(cgroup)
    _end(mentioning(paths.run, ENGINE))
    for mount in _mounts((paths.run, paths.engine_data)):
        run(["umount", "--lazy", mount], check=False)
    record = _record(paths)
    if record is not None:
        _remove_links(set(record.get("links", [])))
        _put_rules_back(record.get("rules", {}))
        if record.get("ip_forward") == "0":
            _FORWARD.write_text("0")
        if not record.get("modules", True):
            with suppress(OSError):
                _MODULES.rmdir()  # docker made it for kind's mount; only if it is still empty
    shutil.rmtree(paths.run, ignore_errors=True)
    for scratch in paths.cache.glob("savepoint-node-*"):  # of a build that was killed
        shutil.rmtree(scratch, ignore_errors=True)


def end_orphans(paths: Paths) -> None:
    """End what a killed `up` has left running: a `kind create` that goes on by itself."""
    _end(mentioning(paths.run, KIND))


def _record(paths: Paths) -> dict[str, Any] | None:
    try:
        record = json.loads(paths.before.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


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


def _links() -> set[str]:
    return {entry.name for entry in Path("/sys/class/net").iterdir()}


def _remove_links(before: set[str]) -> None:
    for link in sorted(_links() - before):
        if link.startswith(("br-", "veth", "docker")):
            run(["ip", "link", "delete", link], check=False)


def _rules(table: str) -> list[str]:
    if shutil.which("iptables") is None:
        return []
    return run(["iptables", "--wait", "-t", table, "-S"], check=False).stdout.splitlines()


def _put_rules_back(before: object) -> None:
    """Delete the rules and chains that were not there before and speak of docker, and restore the policies.

    Rules that somebody else has added meanwhile stay.
    """
    if not isinstance(before, dict) or shutil.which("iptables") is None:
        return
    for table, old in before.items():
        now = [line for line in _rules(table) if line not in old]
        chains = [
            line.split()[1] for line in now if line.startswith("-N ") and line.split()[1].startswith(_DOCKER_CHAINS)
        ]
        for line in now:
            words = line.split()
            if words[0] == "-A" and (words[1] in chains or _is_ours(words, chains)):
                run(["iptables", "--wait", "-t", table, "-D", *words[1:]], check=False)
        for chain in chains:
            run(["iptables", "--wait", "-t", table, "-F", chain], check=False)
        for chain in chains:
            run(["iptables", "--wait", "-t", table, "-X", chain], check=False)
        for line in old:
            if line.startswith("-P "):
                run(["iptables", "--wait", "-t", table, *line.split()], check=False)


def _is_ours(words: list[str], chains: list[str]) -> bool:
    bridges = [word for word in words if word.startswith("br-")]
    jumps = [word for word in words if word in chains]
    masquerade = words[1] == "POSTROUTING" and "MASQUERADE" in words
    return bool(bridges or jumps or masquerade)
