"""Comparison of the machine's state before and after the suite's engine ran.

Compares values only; cleanup.py reads the state and removes what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LINK_PREFIXES = ("br-", "veth", "docker")
"""Prefixes of the names of an engine's network links."""
_CHAIN_PREFIXES = ("DOCKER",)

Rules = Mapping[str, Sequence[str]]
"""The packet filter, by table, as `iptables -S` prints it."""


@dataclass(frozen=True, slots=True)
class StateNow:
    """Current state of everything that an engine creates or changes."""

    processes: tuple[str, ...]
    cgroups: tuple[str, ...]
    mounts: tuple[str, ...]
    links: frozenset[str]
    rules: Rules
    ip_forward: str
    empty_modules: bool
    """True if /lib/modules exists and is empty."""


@dataclass(frozen=True, slots=True)
class StateBefore:
    """State before the suite's engine started."""

    links: frozenset[str]
    rules: Rules
    ip_forward: str
    modules: bool
    """True if /lib/modules existed."""


@dataclass(frozen=True, slots=True)
class EngineRules:
    """The part of one table that an engine added or changed."""

    rules: tuple[str, ...]
    chains: tuple[str, ...]
    policies: tuple[str, ...]
    """The original policies of the chains whose policy has changed."""


def engine_rules(before: Sequence[str], now: Sequence[str]) -> EngineRules:
    """Return the rules and chains that an engine added to a table; those that others have added are left out."""
    added = [line for line in now if line not in before]
    chains = tuple(
        name for verb, name, *_ in map(str.split, added) if verb == "-N" and name.startswith(_CHAIN_PREFIXES)
    )
    rules = tuple(line for line in added if line.startswith("-A ") and _is_engine_rule(line.split(), chains))
    present = {line.split()[1] for line in now if line.startswith("-P ")}
    policies = (line for line in before if line.startswith("-P ") and line.split()[1] in present)
    return EngineRules(rules, chains, tuple(line for line in policies if line not in now))


def _is_engine_rule(arguments: Sequence[str], chains: Sequence[str]) -> bool:
    bridges = [argument for argument in arguments if argument.startswith("br-")]
    jumps = [argument for argument in arguments[1:] if argument in chains]
    masquerade = arguments[1] == "POSTROUTING" and "MASQUERADE" in arguments
    return bool(bridges or jumps or masquerade)


def engine_links(before: StateBefore, now: frozenset[str]) -> list[str]:
    """Return the links that are new and have an engine's prefix."""
    return sorted(link for link in now - before.links if link.startswith(LINK_PREFIXES))


def remaining(before: StateBefore | None, now: StateNow) -> list[str]:
    """Describe everything that is left, one line each; without a recorded state only what has the suite's own names."""
    lines = [f"process {each}" for each in now.processes]
    lines += [f"cgroup {each}" for each in now.cgroups]
    lines += [f"mount {each}" for each in now.mounts]
    if before is None:
        return lines
    lines += [f"link {each}" for each in engine_links(before, now.links)]
    for table, old in before.rules.items():
        added = engine_rules(old, now.rules.get(table, ()))
        lines += [f"iptables chain {each} in table {table}" for each in added.chains]
        lines += [f"iptables rule in table {table}: {each}" for each in added.rules]
        lines += [f"iptables policy in table {table}: it was {each}" for each in added.policies]
    if before.ip_forward == "0" and now.ip_forward != "0":
        lines.append(f"net.ipv4.ip_forward {now.ip_forward}: it was 0")
    if now.empty_modules and not before.modules:
        lines.append("directory /lib/modules: it is empty and did not exist before")
    return lines
