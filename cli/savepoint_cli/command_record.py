"""The commands that continue an agent's run, so that a default name does not merge two programs into one history.

Only agents with values of the SDK are checked. Without them the state folders are the whole state, and they are
compared by themselves.
"""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from savepoint.contract import stage_layout
from savepoint.errors import AgentNameTaken
from savepoint_sidecar.stage.small_files import create_small_file, read_small_file

from savepoint_cli.run_options import RunOptions

COMMANDS_KEPT: Final = 20
RECORD_MAX_BYTES: Final = 1 << 20
COMMAND_MAX_CHARACTERS: Final = 4000
_SHOWN_CHARACTERS: Final = 200


@dataclass(frozen=True)
class CommandRecord:
    """The commands that continue one run of an agent."""

    run: int
    name: str
    """The name that a user gave with ``--agent``; empty if it was always the default."""
    commands: tuple[tuple[str, ...], ...]
    """The identities of the commands, newest first."""


def identity(command: Sequence[str]) -> tuple[str, ...]:
    """Return what makes a command the same program with the same arguments.

    That is its script or module by path and the arguments after it. The interpreter in front of a script does not
    count: another Python runs the same program.
    """
    for index, each in enumerate(command):
        if each == "-m" and index + 1 < len(command):
            return ("-m", _module(command[index + 1]), *command[index + 2 :])
        if each in ("-c", "-e"):
            break
        if each.endswith((".py", ".sh")):
            return (os.path.abspath(each), *command[index + 1 :])  # noqa: PTH100 - links stay as the user wrote them
    program = command[0]
    return (os.path.abspath(program) if "/" in program else program, *command[1:])  # noqa: PTH100 - as above


def check_command(stage: Path, run: int, options: RunOptions, *, has_values: bool) -> None:
    """Raise AgentNameTaken if this command would continue the run of another program by accident.

    A name that was given with ``--agent`` is an explicit word, unless another given name reads the same in the store.
    """
    record = read_record(stage)
    if record is None or record.run != run:
        return
    if not options.default_name:
        if record.name not in ("", options.agent):
            raise AgentNameTaken(
                f"the agent names {record.name!r} and {options.agent!r} are the same in the store, and {record.name!r} "
                "has an unfinished run: choose a name that differs in lower-case letters and digits"
            )
        return
    if has_values and identity(options.command) not in record.commands:
        other = shlex.join(record.commands[0])[:_SHOWN_CHARACTERS]
        raise AgentNameTaken(
            f"agent {options.agent} has an unfinished run of another command: {other}; to continue that run with this "
            f"command add --agent {options.agent}, to start a separate agent add --agent with another name"
        )


def record_command(stage: Path, run: int, options: RunOptions) -> None:
    """Remember that this command continues the run."""
    before = read_record(stage)
    if before is None or before.run != run:
        before = CommandRecord(run, "", ())
    name = before.name if options.default_name else options.agent
    this = identity(options.command)
    commands = (this, *(each for each in before.commands if each != this))[:COMMANDS_KEPT]
    kept = [each for each in commands if sum(map(len, each)) <= COMMAND_MAX_CHARACTERS or each == this]
    content = json.dumps({"run": run, "name": name, "commands": kept}).encode()
    with create_small_file(stage_layout.laptop_command(stage)) as file:
        file.write(content)


def read_record(stage: Path) -> CommandRecord | None:
    """Return the record; None if there is none, as in a stage of an earlier version."""
    try:
        raw: Any = json.loads(read_small_file(stage_layout.laptop_command(stage), RECORD_MAX_BYTES))
        commands = tuple(tuple(map(str, each)) for each in raw["commands"])
        return CommandRecord(int(raw["run"]), str(raw["name"]), commands) if commands else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _module(name: str) -> str:
    """Return the path of a module in the current folder, otherwise its name."""
    path = Path(*name.split("."))
    return os.path.abspath(path) if path.is_dir() or path.with_suffix(".py").is_file() else name  # noqa: PTH100 - as above
