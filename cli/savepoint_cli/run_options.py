"""Options of ``savepoint run``, and what follows from them: the agent's name, state roots and exclude patterns."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from savepoint.contract.names import AGENT_NAME_MAX
from savepoint_sidecar.files.roots import Root

from savepoint_cli.key import key_path


@dataclass(frozen=True)
class RunOptions:
    """Options that the user gave."""

    store: Path
    agent: str
    command: tuple[str, ...]
    states: tuple[Path, ...] = ()
    exclude: tuple[str, ...] = ()
    interval_seconds: float = 30.0
    grace_seconds: float = 25.0


def agent_name(command: list[str]) -> str:
    """Return the default name of an agent: that of the script its command runs, otherwise of the program."""
    scripts = [Path(each).stem for each in command if each.endswith((".py", ".sh"))]
    return dns_label(scripts[0] if scripts else Path(command[0]).name)


def dns_label(text: str) -> str:
    """Return the text as a DNS label that is short enough for an agent's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:AGENT_NAME_MAX].strip("-") or "agent"


def state_roots(states: tuple[Path, ...]) -> tuple[Root, ...]:
    """Return the state folders as roots. Each is named after its last path element, with a number if that is taken."""
    roots: list[Root] = []
    for path in states:
        absolute = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as the user wrote them
        base = dns_label(absolute.name)
        taken = {root.name for root in roots}
        name = next(each for each in (base, *(f"{base}-{n}" for n in range(2, 1000))) if each not in taken)
        roots.append(Root(name, str(absolute), absolute.resolve(), persistent=True))
    return tuple(roots)


def own_file_patterns(options: RunOptions) -> tuple[str, ...]:
    """Return patterns that exclude the store and its key where they are inside a state folder."""
    own = (options.store.resolve(), key_path().parent.resolve())
    return tuple(
        f"{root.mount_path.rstrip('/')}/{glob.escape(str(path.relative_to(root.path)))}"
        for root in state_roots(options.states)
        for path in own
        if path.is_relative_to(root.path) and path != root.path
    )
