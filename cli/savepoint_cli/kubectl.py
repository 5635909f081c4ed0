"""``kubectl savepoint``: create checkpoints and restores, wait for them, and opt workloads in.

It talks to the cluster through the user's own ``kubectl``, with the same context, credentials and plugins, and needs
no client library. Everything it does can also be done with YAML.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

from savepoint.contract.names import AGENT_NAME_MAX, ANNOTATION_STATE, GROUP, LABEL_AGENT
from savepoint.contract.vocabulary import CheckpointPhase, Reason, RestoreMode
from savepoint.errors import Refused, SavepointError

from savepoint_cli import kubectl_adapter
from savepoint_cli.kubectl_adapter import EXIT_FAILED, Kubectl, Waiter
from savepoint_cli.yaml_output import yaml_text

EXIT_INTERRUPTED: Final = 130
CHECKPOINTS: Final = f"agentcheckpoints.{GROUP}"
RESTORES: Final = f"agentrestores.{GROUP}"
AGENTS: Final = f"protectedagents.{GROUP}"
CHECKPOINT_IN_PROGRESS: Final = frozenset({"", Reason.PENDING, *CheckpointPhase})
RESTORE_IN_PROGRESS: Final = frozenset({""})  # otherwise its condition is Unknown until it ends
_OBJECT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_AGENT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_ODD_PATH: Final = re.compile(r"[:,\x00-\x1f\x7f]|//|^/$|/\.{1,2}(/|$)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and run the command.

    Args:
        arguments: The arguments without the program's name; None for those of this process.

    Returns:
        The exit status: 0, 1 for a failure, 3 if ``--wait`` timed out, 130 if interrupted.

    Raises:
        SystemExit: With status 2, if the arguments are invalid.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.handler(options, Kubectl(kubectl_adapter.run_kubectl, options.namespace), Waiter())
        return status
    except SavepointError as error:
        message = str(error)
        print(message if message.lower().startswith("error") else f"error: {message}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def checkpoint(options: argparse.Namespace, kubectl: Kubectl, waiter: Waiter) -> int:
    """Create an AgentCheckpoint, print its name, and wait for it if asked.

    Args:
        options: ``agent``, ``wait`` and ``timeout`` in seconds.
        kubectl: Creates and reads the object.
        waiter: Waits for it.

    Returns:
        The exit status; see ``Waiter.until_ended``.

    Raises:
        Unavailable: kubectl failed.
    """
    name = kubectl.create("AgentCheckpoint", f"{options.agent}-", {"agent": options.agent})
    print(f"agentcheckpoint/{name}")
    if not options.wait:
        return 0
    return waiter.until_ended(
        kubectl, CHECKPOINTS, name, condition="Ready", in_progress=CHECKPOINT_IN_PROGRESS, seconds=options.timeout
    )


def rollback(options: argparse.Namespace, kubectl: Kubectl, waiter: Waiter) -> int:
    """Create an AgentRestore that returns an agent to a checkpoint, print its name, and wait for it if asked.

    Args:
        options: ``checkpoint``, ``wait`` and ``timeout`` in seconds.
        kubectl: Reads the checkpoint, and creates and reads the restore.
        waiter: Waits for it.

    Returns:
        The exit status; see ``Waiter.until_ended``.

    Raises:
        Unavailable: kubectl failed.
    """
    agent = str(kubectl.get(CHECKPOINTS, options.checkpoint)["spec"]["agent"])
    spec = {"mode": RestoreMode.ROLLBACK, "source": {"checkpointName": options.checkpoint}}
    return _restore(options, kubectl, waiter, agent, spec)


def reset(options: argparse.Namespace, kubectl: Kubectl, waiter: Waiter) -> int:
    """Create an AgentRestore that starts an agent over, print its name, and wait for it if asked.

    Args:
        options: ``agent``, ``wait`` and ``timeout`` in seconds.
        kubectl: Creates and reads the restore.
        waiter: Waits for it.

    Returns:
        The exit status; see ``Waiter.until_ended``.

    Raises:
        Unavailable: kubectl failed.
    """
    spec = {"mode": RestoreMode.RESET, "source": {"agent": options.agent}}
    return _restore(options, kubectl, waiter, options.agent, spec)


def get(options: argparse.Namespace, kubectl: Kubectl, _: Waiter) -> int:
    """Print all agents, or one agent with its checkpoints and restores.

    Args:
        options: ``agent``, None for all; ``output``, yaml for one List of the objects, None for tables.
        kubectl: Reads the objects or prints the tables.

    Returns:
        The exit status, 0.

    Raises:
        Unavailable: kubectl failed, or PyYAML is missing.
    """
    queries: list[tuple[str, ...]] = [("get", AGENTS)]
    if options.agent is not None:
        selector = ("--selector", f"{LABEL_AGENT}={options.agent}")
        queries = [("get", AGENTS, options.agent), ("get", CHECKPOINTS, *selector), ("get", RESTORES, *selector)]
    if options.output == "yaml":
        found = [json.loads(kubectl.text(*query, "--output=json")) for query in queries]
        items = [item for each in found for item in (each["items"] if each["kind"].endswith("List") else [each])]
        print(yaml_text({"apiVersion": "v1", "kind": "List", "items": items}), end="")
        return 0
    print("\n".join(kubectl.text(*query) for query in queries), end="")
    return 0


def protect(options: argparse.Namespace, kubectl: Kubectl, _: Waiter) -> int:
    """Opt a workload in: label its pod template, annotate the state paths, and set Recreate for a Deployment.

    Args:
        options: ``workload`` as KIND/NAME, ``agent``, ``state`` and ``dry_run``, which prints the patch as YAML.
        kubectl: Patches the workload.

    Returns:
        The exit status, 0.

    Raises:
        Unavailable: kubectl failed, or PyYAML is missing.
        Refused: The workload's name cannot be the agent's, and no other is given.
    """
    kind, _, name = options.workload.partition("/")
    if not options.agent and not (_AGENT_NAME.fullmatch(name) and len(name) <= AGENT_NAME_MAX):
        raise Refused(
            f"{name!r} cannot be the name of an agent, which is a DNS label of at most {AGENT_NAME_MAX} characters: "
            "choose one with --agent",
            Reason.AGENT_NAME_INVALID,
        )
    template: dict[str, Any] = {"metadata": {"labels": {LABEL_AGENT: options.agent or name}}}
    if options.state:
        template["metadata"]["annotations"] = {ANNOTATION_STATE: ",".join(options.state)}
    spec: dict[str, Any] = {"template": template}
    if kind in ("deployment", "deployments", "deploy", "deployment.apps", "deployments.apps"):
        spec["strategy"] = {"type": "Recreate", "rollingUpdate": None}
    if options.dry_run:
        namespace = f" --namespace={kubectl.namespace}" if kubectl.namespace else ""
        print(f"# kubectl patch {options.workload}{namespace} --type=strategic --patch-file=FILE, where FILE contains:")
        print(yaml_text({"spec": spec}), end="")
        return 0
    patch = json.dumps({"spec": spec})
    print(kubectl.text("patch", options.workload, "--type=strategic", "--patch", patch), end="")
    return 0


def _restore(options: argparse.Namespace, kubectl: Kubectl, waiter: Waiter, agent: str, spec: dict[str, Any]) -> int:
    name = kubectl.create("AgentRestore", f"{agent}-", spec)
    print(f"agentrestore/{name}")
    if not options.wait:
        return 0
    return waiter.until_ended(
        kubectl, RESTORES, name, condition="Succeeded", in_progress=RESTORE_IN_PROGRESS, seconds=options.timeout
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kubectl savepoint", description="Checkpoints of AI agents in a cluster.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-n", "--namespace", help="namespace (default: that of the context)")
    waits = argparse.ArgumentParser(add_help=False)
    waits.add_argument("--wait", action="store_true", help="wait for the result; the exit status reports it")
    waits.add_argument(
        "--timeout", type=_seconds, default=600.0, metavar="SECONDS", help="how long --wait waits (default: 600)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    each = _add_command(commands, "checkpoint", "take a checkpoint of an agent now", common, waits)
    each.add_argument("agent", type=_name, metavar="AGENT", help="name of the agent")
    each.set_defaults(handler=checkpoint)
    each = _add_command(commands, "rollback", "return an agent to a checkpoint", common, waits)
    each.add_argument("checkpoint", type=_name, metavar="CHECKPOINT", help="name of the AgentCheckpoint")
    each.set_defaults(handler=rollback)
    each = _add_command(commands, "reset", "start an agent over from nothing", common, waits)
    each.add_argument("agent", type=_name, metavar="AGENT", help="name of the agent")
    each.set_defaults(handler=reset)
    each = _add_command(commands, "get", "list the agents, or one agent with its checkpoints and restores", common)
    each.add_argument("agent", nargs="?", type=_name, metavar="AGENT", help="name of the agent (default: all agents)")
    each.add_argument("-o", "--output", choices=["yaml"], help="print the objects as one List instead of tables")
    each.set_defaults(handler=get)
    each = _add_command(commands, "protect", "opt a workload in to checkpoints", common)
    each.add_argument("workload", type=_workload, metavar="KIND/NAME", help="for example deployment/coder")
    each.add_argument(
        "--agent", type=_agent_name, metavar="NAME", help="name of the agent (default: that of the workload)"
    )
    each.add_argument(
        "--state",
        action="append",
        default=[],
        type=_absolute_path,
        metavar="PATH",
        help="path that is state but not on a volume; may be repeated",
    )
    each.add_argument(
        "--dry-run", action="store_true", help="print the patch as YAML, and the kubectl command that applies it"
    )
    each.set_defaults(handler=protect)
    return parser


def _add_command(commands: Any, name: str, purpose: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add a command. Its own help starts with its purpose as a sentence."""
    added: argparse.ArgumentParser = commands.add_parser(
        name, parents=parents, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}."
    )
    return added


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _workload(text: str) -> str:
    kind, _, name = text.partition("/")
    if not kind or not name or "/" in name:
        raise argparse.ArgumentTypeError("must be KIND/NAME, for example deployment/coder")
    if not _OBJECT_NAME.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{name!r} is not the name of an object: lower-case letters, digits, '-', '.'")
    return text


def _agent_name(text: str) -> str:
    if not _AGENT_NAME.fullmatch(text) or len(text) > AGENT_NAME_MAX:
        raise argparse.ArgumentTypeError(
            f"must not be empty, and must be a DNS label of at most {AGENT_NAME_MAX} lower-case letters, digits and '-'"
        )
    return text


def _absolute_path(text: str) -> str:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError("must be an absolute path, for example /workspace")
    if _ODD_PATH.search(text):
        raise argparse.ArgumentTypeError(
            "must not be '/', and must not contain ':', ',', control characters, or empty, '.' or '..' elements"
        )
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds, 0 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
