"""What an engine of ours has left behind: two pictures of a machine, and the difference, in words.

What it is: comparison. What it is not: it looks at nothing and removes nothing (leftovers does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LINKS = ("br-", "veth", "docker")
"""How the names of an engine's network links begin."""
_CHAINS = ("DOCKER",)

Rules = Mapping[str, Sequence[str]]
"""The packet filter, by table, as `iptables -S` prints it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is now of what an engine makes."""

    processes: tuple[str, ...]
    cgroups: tuple[str, ...]
    mounts: tuple[str, ...]
    links: frozenset[str]
    rules: Rules
    ip_forward: str
    empty_modules: bool
    """Whether there is a /lib/modules with nothing in it."""


@dataclass(frozen=True, slots=True)
class Before:
    """What there was before an engine of ours started."""

    links: frozenset[str]
    rules: Rules
    ip_forward: str
    modules: bool
    """Whether there was a /lib/modules."""


@dataclass(frozen=True, slots=True)
class Filter:
    """An engine's part of one table."""

    rules: tuple[str, ...]
    chains: tuple[str, ...]
    policies: tuple[str, ...]
    """As they were, of chains whose policy is another now."""


def filter_of_ours(old: Sequence[str], now: Sequence[str]) -> Filter:
    """Rules and chains that were not there before and are an engine's; what others have added meanwhile stays."""
    added = [line for line in now if line not in old]
    chains = tuple(name for verb, name, *_ in map(str.split, added) if verb == "-N" and name.startswith(_CHAINS))
    rules = tuple(line for line in added if line.startswith("-A ") and _is_ours(line.split(), chains))
    present = {line.split()[1] for line in now if line.startswith("-P ")}
    policies = (line for line in old if line.startswith("-P ") and line.split()[1] in present)
    return Filter(rules, chains, tuple(line for line in policies if line not in now))


def _is_ours(words: Sequence[str], chains: Sequence[str]) -> bool:
    bridges = [word for word in words if word.startswith("br-")]
    jumps = [word for word in words[1:] if word in chains]
    masquerade = words[1] == "POSTROUTING" and "MASQUERADE" in words
    return bool(bridges or jumps or masquerade)


def links_of_ours(before: Before, now: frozenset[str]) -> list[str]:
    """Links that were not there before and are named as an engine names them."""
    return sorted(link for link in now - before.links if link.startswith(LINKS))


def left(before: Before | None, now: Machine) -> list[str]:
    """One line for each thing that is still there. Without a picture of before, of what bears our own names only."""
    lines = [f"process {each}" for each in now.processes]
    lines += [f"cgroup {each}" for each in now.cgroups]
    lines += [f"mount {each}" for each in now.mounts]
    if before is None:
        return lines
    lines += [f"link {each}" for each in links_of_ours(before, now.links)]
    for table, old in before.rules.items():
        ours = filter_of_ours(old, now.rules.get(table, ()))
        lines += [f"iptables chain {each} in table {table}" for each in ours.chains]
        lines += [f"iptables rule in table {table}: {each}" for each in ours.rules]
        lines += [f"iptables policy in table {table}: it was {each}" for each in ours.policies]
    if before.ip_forward == "0" and now.ip_forward != "0":
        lines.append(f"net.ipv4.ip_forward {now.ip_forward}: it was 0")
    if now.empty_modules and not before.modules:
        lines.append("directory /lib/modules, which is empty and was not there")
    return lines
