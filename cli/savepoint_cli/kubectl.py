"""``kubectl savepoint``: create checkpoints and restores, wait for them, and opt workloads in.

It talks to the cluster through the user's own ``kubectl``, with the same context, credentials and plugins, and needs
no client library. Everything it does can also be done with YAML.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from savepoint.contract.names import ANNOTATION_STATE, API_VERSION, GROUP, LABEL_AGENT
from savepoint.contract.vocabulary import Phase, Reason, RestoreMode
from savepoint.errors import SavepointError, Unavailable

EXIT_FAILED: Final = 1
EXIT_TIMEOUT: Final = 3
EXIT_INTERRUPTED: Final = 130
POLL_SECONDS: Final = 0.5
CHECKPOINTS: Final = f"agentcheckpoints.{GROUP}"
RESTORES: Final = f"agentrestores.{GROUP}"
AGENTS: Final = f"protectedagents.{GROUP}"
CHECKPOINT_IN_PROGRESS: Final = frozenset({"", Reason.PENDING, *Phase})
RESTORE_IN_PROGRESS: Final = frozenset({""})  # otherwise its condition is Unknown until it ends

Run = Callable[[Sequence[str], str], str]


@dataclass(frozen=True)
class Kubectl:
    """Adapter to kubectl. ``run`` starts it with arguments and standard input, and returns its output."""

    run: Run
    namespace: str | None = None

    def text(self, *arguments: str, stdin: str = "") -> str:
        """Run one command and return its output. Unavailable with kubectl's own message if it fails."""
        scope = ["--namespace", self.namespace] if self.namespace else []
        return self.run([*arguments, *scope], stdin)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return one object."""
        found: dict[str, Any] = json.loads(self.text("get", kind, name, "--output=json"))
        return found

    def create(self, kind: str, generate_name: str, spec: dict[str, Any]) -> str:
        """Create a Savepoint object and return its generated name."""
        metadata = {"generateName": generate_name}
        body = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
        made = json.loads(self.text("create", "--filename=-", "--output=json", stdin=json.dumps(body)))
        return str(made["metadata"]["name"])


@dataclass(frozen=True)
class Waiter:
    """Waits for an object, and prints its progress."""

    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    show: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def until_ended(
        self, kubectl: Kubectl, kind: str, name: str, *, condition: str, in_progress: frozenset[str], seconds: float
    ) -> int:
        """Wait until a checkpoint or restore has ended, and print one line for each new phase.

        Args:
            kubectl: Reads the object.
            kind: The object's resource name.
            name: The object's name.
            condition: The condition that is True after success.
            in_progress: Reasons with which the condition is False although the object has not ended.
            seconds: How long to wait.

        Returns:
            The exit status: 0 for success, 1 for a failure, 3 if it has not ended in time.

        Raises:
            Unavailable: kubectl failed.
        """
        ends_at, shown = self.clock() + seconds, ""
        while True:
            status = kubectl.get(kind, name).get("status", {})
            found: dict[str, Any] = next(
                (each for each in status.get("conditions", []) if each["type"] == condition), {}
            )
            reason = found.get("reason") or status.get("reason", "")
            line = " ".join(part for part in (name, reason, status.get("summary", {}).get("progress", "")) if part)
            if found.get("status") == "True":
                self.show(line)
                return 0
            if reason not in in_progress and found.get("status") != "Unknown":
                self.show(f"error: {line}: {found.get('message', 'failed')}")
                return EXIT_FAILED
            if reason and line != shown:
                self.show(line)
                shown = line
            if self.clock() >= ends_at:
                last = found.get("message") or reason or "no status yet"
                self.show(f"error: timed out after {seconds:g} s waiting for {name}: {last}")
                return EXIT_TIMEOUT
            self.sleep(POLL_SECONDS)


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
        status: int = options.handler(options, Kubectl(_run, options.namespace), Waiter())
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
        options: ``agent``; None for all.
        kubectl: Prints the tables.

    Returns:
        The exit status, 0.

    Raises:
        Unavailable: kubectl failed.
    """
    if options.agent is None:
        print(kubectl.text("get", AGENTS), end="")
        return 0
    print(kubectl.text("get", AGENTS, options.agent))
    print(kubectl.text("get", CHECKPOINTS, "--selector", f"{LABEL_AGENT}={options.agent}"))
    print(kubectl.text("get", RESTORES, "--selector", f"{LABEL_AGENT}={options.agent}"), end="")
    return 0


def protect(options: argparse.Namespace, kubectl: Kubectl, _: Waiter) -> int:
    """Opt a workload in: label its pod template, annotate the state paths, and set Recreate for a Deployment.

    Args:
        options: ``workload`` as KIND/NAME, ``agent``, ``state`` and ``dry_run``.
        kubectl: Patches the workload.

    Returns:
        The exit status, 0.

    Raises:
        Unavailable: kubectl failed.
    """
    kind, _, name = options.workload.partition("/")
    template: dict[str, Any] = {"metadata": {"labels": {LABEL_AGENT: options.agent or name}}}
    if options.state:
        template["metadata"]["annotations"] = {ANNOTATION_STATE: ",".join(options.state)}
    spec: dict[str, Any] = {"template": template}
    if kind in ("deployment", "deployments", "deploy", "deployment.apps", "deployments.apps"):
        spec["strategy"] = {"type": "Recreate", "rollingUpdate": None}
    patch = json.dumps({"spec": spec})
    if options.dry_run:
        print(f"kubectl patch {options.workload} --type=strategic --patch '{patch}'")
        return 0
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
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="how long --wait waits (default: 600)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    each = commands.add_parser("checkpoint", parents=[common, waits], help="take a checkpoint of an agent now")
    each.add_argument("agent", help="name of the agent")
    each.set_defaults(handler=checkpoint)
    each = commands.add_parser("rollback", parents=[common, waits], help="return an agent to a checkpoint")
    each.add_argument("checkpoint", help="name of the AgentCheckpoint")
    each.set_defaults(handler=rollback)
    each = commands.add_parser("reset", parents=[common, waits], help="start an agent over, without a checkpoint")
    each.add_argument("agent", help="name of the agent")
    each.set_defaults(handler=reset)
    each = commands.add_parser(
        "get", parents=[common], help="list the agents, or one agent with its checkpoints and restores"
    )
    each.add_argument("agent", nargs="?", help="name of the agent (default: all agents)")
    each.set_defaults(handler=get)
    each = commands.add_parser("protect", parents=[common], help="opt a workload in to checkpoints")
    each.add_argument("workload", help="deployment/NAME or statefulset/NAME")
    each.add_argument("--agent", help="name of the agent (default: that of the workload)")
    each.add_argument(
        "--state", action="append", default=[], metavar="PATH", help="path that is state but not on a volume"
    )
    each.add_argument("--dry-run", action="store_true", help="print the kubectl command instead of running it")
    each.set_defaults(handler=protect)
    return parser


def _run(arguments: Sequence[str], stdin: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the user's own kubectl, no shell
            ["kubectl", *arguments],  # noqa: S607 - found in PATH, as the user's shell finds it
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise Unavailable("kubectl not found in PATH; install it or add its folder to PATH") from error
    if done.returncode != 0:
        raise Unavailable(done.stderr.strip() or f"kubectl {arguments[0]} failed with exit status {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
