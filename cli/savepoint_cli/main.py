"""``savepoint``: run an agent with checkpoints on this machine, and inspect the checkpoints in a store."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from savepoint.errors import SavepointError

from savepoint_cli.retention_options import add_retention_arguments, retention_rules
from savepoint_cli.store_options import add_store_arguments, folder, store_options

EXIT_USAGE = 2
_DISTRIBUTION = "savepoint-agents"
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
_PACKAGES_OF_EXTRA = frozenset({"aiohttp", "zstandard", "cryptography"})
"""Packages of the extra `sidecar`, which the base installation does not have."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and run the command.

    Args:
        arguments: The arguments without the program's name; None for those of this process.

    Returns:
        The exit status. A SavepointError is printed as one line on standard error and becomes 1.

    Raises:
        SystemExit: With status 2, if the arguments are invalid.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.handler(options)
        return status
    except SavepointError as error:
        text = _shown_text(options, str(error))
        print(f"error: {error.code}: {text}", file=sys.stderr)
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _PACKAGES_OF_EXTRA:
            raise
        print(
            f"error: `savepoint {options.name}` needs the Python package {error.name}; install the extra `sidecar`: "
            "pip install 'savepoint-agents[sidecar]'",
            file=sys.stderr,
        )
        return EXIT_FAILED
    except BrokenPipeError:
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _shown_text(options: argparse.Namespace, text: str) -> str:
    if options.name != "run":
        return text
    from savepoint_cli.laptop_messages import laptop_text  # noqa: PLC0415 - only after an error

    return laptop_text(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="savepoint", description="Durable recovery points for AI agents.")
    parser.add_argument("--version", action="version", version=f"savepoint {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run_help = "run an agent; after a crash, run it again to resume from its last checkpoint"
    run = commands.add_parser(
        "run",
        help=run_help,
        description=_sentence(run_help),
        usage=(
            "savepoint run --store DIR [--agent NAME] [--state PATH]... [--exclude GLOB]...\n"
            "                     [--move-state OLD NEW]... [--drop-state PATH]... [--from CHECKPOINT]\n"
            "                     [--on-restart {keep,restore}]\n"
            "                     [--keep-last N] [--keep-hourly N] [--keep-daily N] [--keep-weekly N]\n"
            "                     [--keep-known-good N] [--max-age AGE] [--max-size SIZE]\n"
            "                     [--interval SECONDS] [--grace SECONDS] -- COMMAND..."
        ),
    )
    run.add_argument(
        "--store",
        required=True,
        type=folder,
        metavar="DIR",
        help="folder to keep the checkpoints in; created if missing",
    )
    run.add_argument(
        "--agent", type=_name, metavar="NAME", help="name of the agent, as a DNS label (default: that of the script)"
    )
    run.add_argument(
        "--state",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="folder to include in checkpoints; may be repeated",
    )
    run.add_argument(
        "--move-state",
        action="append",
        default=[],
        nargs=2,
        metavar=("OLD", "NEW"),
        help="state folder of the checkpoint that is at another path now; may be repeated",
    )
    run.add_argument(
        "--drop-state",
        action="append",
        default=[],
        metavar="PATH",
        help="state folder of the checkpoint to leave out from now on; may be repeated",
    )
    run.add_argument(
        "--from",
        dest="start_from",
        type=_name,
        metavar="CHECKPOINT",
        help="start from this older checkpoint; files in its way are moved aside (`savepoint log` lists the names)",
    )
    run.add_argument(
        "--on-restart",
        choices=("keep", "restore"),
        default="keep",
        help="the state folders at each start: they stay as they are (keep, the default), or go back "
        "to the latest checkpoint (restore), and what differs is moved aside",
    )
    run.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="files in these folders to leave out of checkpoints; may be repeated",
    )
    run.add_argument(
        "--interval", type=_seconds, default=30.0, metavar="SECONDS", help="time between checkpoints (default: 30)"
    )
    run.add_argument(
        "--grace", type=_seconds, default=25.0, metavar="SECONDS", help="time for the final checkpoint (default: 25)"
    )
    add_retention_arguments(run)
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...", help="command that starts the agent")
    run.set_defaults(handler=_run, name="run")
    log_help = "list the checkpoint history of the agents in a store"
    log = commands.add_parser("log", help=log_help, description=_sentence(log_help))
    add_store_arguments(log)
    log.set_defaults(handler=_log, name="log")
    verify_help = "read the checkpoints in a store and report damage"
    verify = commands.add_parser("verify", help=verify_help, description=_sentence(verify_help))
    add_store_arguments(verify)
    verify.add_argument("--all", action="store_true", help="verify every checkpoint, not only each agent's newest")
    verify.set_defaults(handler=_verify, name="verify")
    return parser


def _version() -> str:
    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:  # a source tree that is not installed
        return "of an unknown version"


def _run(options: argparse.Namespace) -> int:
    from savepoint_cli import run, run_options  # noqa: PLC0415 - `savepoint log` needs no server

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        print(
            "error: no command given; append it, for example: savepoint run --store DIR -- python agent.py",
            file=sys.stderr,
        )
        return EXIT_USAGE
    run_arguments = run_options.RunOptions(
        store=options.store,
        agent=options.agent or run_options.agent_name(command),
        states=tuple(options.state),
        exclude=tuple(options.exclude),
        interval_seconds=options.interval,
        grace_seconds=options.grace,
        command=tuple(command),
        moved_states={old: Path(new) for old, new in options.move_state},
        default_name=not options.agent,
        start_from=options.start_from or "",
        dropped_states=tuple(options.drop_state),
        restores_files=options.on_restart == "restore",
        retention=retention_rules(options),
    )
    problem = run_options.exclude_problem(run_arguments)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_USAGE
    return run.run(run_arguments)


def _log(options: argparse.Namespace) -> int:
    from savepoint_cli import log  # noqa: PLC0415 - as above

    return log.print_log(store_options(options))


def _verify(options: argparse.Namespace) -> int:
    from savepoint_cli import verify  # noqa: PLC0415 - as above

    return verify.verify_store(store_options(options), every=options.all)


def _sentence(help_text: str) -> str:
    """Return a command's help text as a sentence, for the start of its own help."""
    return f"{help_text[0].upper()}{help_text[1:]}."


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 86_400 * 30:
        raise argparse.ArgumentTypeError("must be a number of seconds above 0 and below 30 days")
    return value


if __name__ == "__main__":
    sys.exit(main())
