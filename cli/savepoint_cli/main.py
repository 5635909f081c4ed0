"""``savepoint``: run an agent under protection on this machine, and look at what its store holds."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from savepoint.errors import SavepointError

from savepoint_cli.place import add_arguments, place_of

EXIT_USAGE = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; the exit status. A SavepointError becomes one line on standard error."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.handler(options)
        return status
    except SavepointError as error:
        print(f"savepoint: {error.reason}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="savepoint", description="Durable recovery points for AI agents.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run an agent; kill it, run it again, and it goes on",
        usage="savepoint run --store DIR [--agent NAME] [--state PATH]... [--interval SECONDS] -- COMMAND...",
    )
    run.add_argument("--store", required=True, type=Path, metavar="DIR", help="folder that keeps the checkpoints")
    run.add_argument("--agent", metavar="NAME", help="the agent's name (default: the script's)")
    run.add_argument("--state", action="append", default=[], type=Path, metavar="PATH", help="folder that is state too")
    run.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="what of it is left out")
    run.add_argument("--interval", type=_seconds, default=30.0, metavar="SECONDS", help="between checkpoints (30)")
    run.add_argument("--grace", type=_seconds, default=25.0, metavar="SECONDS", help="for the last checkpoint (25)")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...")
    run.set_defaults(handler=_run)
    log = commands.add_parser("log", help="an agent's line of life")
    add_arguments(log)
    log.set_defaults(handler=_log)
    verify = commands.add_parser("verify", help="read every checkpoint of a store and say what is damaged")
    add_arguments(verify)
    verify.add_argument("--all", action="store_true", help="every checkpoint, not only the newest of each agent")
    verify.set_defaults(handler=_verify)
    return parser


def _run(options: argparse.Namespace) -> int:
    from savepoint_cli import run  # noqa: PLC0415 - `savepoint log` needs no server

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        print("savepoint: no command: savepoint run --store DIR -- python agent.py", file=sys.stderr)
        return EXIT_USAGE
    return run.run(
        run.RunOptions(
            store=options.store,
            agent=options.agent or run.agent_name(command),
            states=tuple(options.state),
            exclude=tuple(options.exclude),
            interval_seconds=options.interval,
            grace_seconds=options.grace,
            command=tuple(command),
        )
    )


def _log(options: argparse.Namespace) -> int:
    from savepoint_cli import log  # noqa: PLC0415 - as above

    return log.print_log(place_of(options))


def _verify(options: argparse.Namespace) -> int:
    from savepoint_cli import verify  # noqa: PLC0415 - as above

    return verify.verify_store(place_of(options), every=options.all)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 86_400 * 30:
        raise argparse.ArgumentTypeError("a number of seconds above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
