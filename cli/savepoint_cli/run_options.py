"""Options of ``savepoint run``, and what follows from them: the agent's name, state roots and exclude patterns."""

import glob
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from savepoint.repository.history.retention import RetentionRules
from savepoint_sidecar.files.exclude import pattern_problem

from savepoint_cli.key import key_path
from savepoint_cli.state_folders import check_states, dns_label, state_roots


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
    default_name: bool = False
    """True if the agent's name follows from the command."""
    start_from: str = ""
    """Name of the older checkpoint to start from, if any."""
    moved_states: Mapping[str, Path] = field(default_factory=dict)
    """New folders of state folders, by the path that they have in the checkpoint."""
    dropped_states: tuple[str, ...] = ()
    """State folders of the checkpoint to leave out from now on."""
    restores_files: bool = False
    """True if the state folders go back to the latest checkpoint at each start, instead of staying as they are."""
    retention: RetentionRules = field(default_factory=RetentionRules)


def agent_name(command: list[str]) -> str:
    """Return the default name of an agent: that of the script its command runs, otherwise of the program."""
    scripts = [Path(each).stem for each in command if each.endswith((".py", ".sh"))]
    return dns_label(scripts[0] if scripts else Path(command[0]).name)


def exclude_problem(options: RunOptions) -> str:
    """Return which ``--exclude`` pattern is invalid, why, and the remedy; an empty text if all are valid."""
    mount_paths = [root.mount_path for root in state_roots(options.states)]
    problems = ((pattern, pattern_problem(pattern, mount_paths)) for pattern in options.exclude)
    return next((f"argument --exclude: {pattern!r} {problem}" for pattern, problem in problems if problem), "")


def own_file_patterns(options: RunOptions) -> tuple[str, ...]:
    """Return patterns that exclude the store and its key where they are inside a state folder."""
    own = _own_folders(options)
    return tuple(
        f"{root.mount_path.rstrip('/')}/{glob.escape(str(path.relative_to(root.path)))}"
        for root in state_roots(options.states)
        for path in own
        if path.is_relative_to(root.path) and path != root.path
    )


def check_options(options: RunOptions) -> None:
    """Raise StatePathInvalid if a state path cannot be used, before anything is created."""
    check_states(state_roots(options.states), _own_folders(options))


def _own_folders(options: RunOptions) -> tuple[Path, ...]:
    return options.store.resolve(), key_path().parent.resolve()
