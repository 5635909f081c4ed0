"""``kubectl savepoint``: what kubectl alone cannot do well. Ask for a checkpoint, go back to one, and wait for the end.

It speaks to the cluster through the user's own ``kubectl``: the same context, credentials and plugins, and no client
library. Everything it does could be written as YAML by hand.
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
from savepoint.errors import SavepointError, Unavailable

EXIT_FAILED: Final = 1
EXIT_TIMEOUT: Final = 3
POLL_SECONDS: Final = 0.5
CHECKPOINTS: Final = f"agentcheckpoints.{GROUP}"
RESTORES: Final = f"agentrestores.{GROUP}"
AGENTS: Final = f"protectedagents.{GROUP}"
CHECKPOINT_UNDER_WAY: Final = frozenset({"", "Pending", "Quiescing", "Capturing", "Uploading", "Committing"})
RESTORE_UNDER_WAY: Final = frozenset({""})  # else its condition is Unknown until it has ended

Run = Callable[[Sequence[str], str], str]


@dataclass(frozen=True)
class Kubectl:
    """The door to kubectl. ``run`` starts it with arguments and standard input, and gives its output."""

    run: Run
    namespace: str | None = None

    def text(self, *arguments: str, stdin: str = "") -> str:
        """Output of one command. Unavailable with kubectl's own words if it fails."""
        scope = ["--namespace", self.namespace] if self.namespace else []
        return self.run([*arguments, *scope], stdin)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object."""
        found: dict[str, Any] = json.loads(self.text("get", kind, name, "--output=json"))
        return found

    def create(self, kind: str, generate_name: str, spec: dict[str, Any]) -> str:
        """Create an object of ours; its name."""
        metadata = {"generateName": generate_name}
        body = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
        made = json.loads(self.text("create", "--filename=-", "--output=json", stdin=json.dumps(body)))
        return str(made["metadata"]["name"])


@dataclass(frozen=True)
class Waiter:
    """How to wait, and where to show it."""

    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    show: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def until_ended(
        self, kubectl: Kubectl, kind: str, name: str, *, condition: str, under_way: frozenset[str], seconds: float
    ) -> int:
        """Wait until the condition says how it ended; an exit status. Each new stage is one line."""
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
            if reason not in under_way and found.get("status") != "Unknown":
                self.show(f"{line}: {found.get('message', 'failed')}")
                return EXIT_FAILED
            if reason and line != shown:
                self.show(line)
                shown = line
            if self.clock() >= ends_at:
                self.show(f"{name} has not ended within {seconds:g} s: {found.get('message') or reason or 'no status'}")
                return EXIT_TIMEOUT
            self.sleep(POLL_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; the exit status: 0, 1 for a failure, 2 for usage, 3 when waiting took too long."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.handler(options, Kubectl(_run, options.namespace), Waiter())
        return status
    except SavepointError as error:
        print(f"kubectl savepoint: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130


def checkpoint(options: argparse.Namespace, kubectl: Kubectl, waiter: Waiter) -> int:
    """Ask for a checkpoint."""
    name = kubectl.create("AgentCheckpoint", f"{options.agent}-", {"agent": options.agent})
    print(f"agentcheckpoint/{name}")
    if not options.wait:
        return 0
    return waiter.until_ended(
        kubectl, CHECKPOINTS, name, condition="Ready", under_way=CHECKPOINT_UNDER_WAY, seconds=options.timeout
    )


def rollback(options: argparse.Namespace, kubectl: Kubectl, waiter: Waiter) -> int:
    """Go back to a checkpoint."""
    agent = str(kubectl.get(CHECKPOINTS, options.checkpoint)["spec"]["agent"])
    return _restore(
        options, kubectl, waiter, agent, {"mode": "Rollback", "source": {"checkpointName": options.checkpoint}}
    )


def reset(options: argparse.Namespace, kubectl: Kubectl, waiter: Waiter) -> int:
    """Start an agent over."""
    return _restore(options, kubectl, waiter, options.agent, {"mode": "Reset", "source": {"agent": options.agent}})


def get(options: argparse.Namespace, kubectl: Kubectl, _: Waiter) -> int:
    """Show agents, or one agent with its checkpoints and restores."""
    if options.agent is None:
        print(kubectl.text("get", AGENTS), end="")
        return 0
    print(kubectl.text("get", AGENTS, options.agent))
    print(kubectl.text("get", CHECKPOINTS, "--selector", f"{LABEL_AGENT}={options.agent}"))
    print(kubectl.text("get", RESTORES, "--selector", f"{LABEL_AGENT}={options.agent}"), end="")
    return 0


def protect(options: argparse.Namespace, kubectl: Kubectl, _: Waiter) -> int:
    """Opt a workload in: the label on its pod template, the state annotation, and Recreate for a Deployment."""
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
        kubectl, RESTORES, name, condition="Succeeded", under_way=RESTORE_UNDER_WAY, seconds=options.timeout
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kubectl savepoint", description="Checkpoints of AI agents in a cluster.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-n", "--namespace", help="namespace (default: the context's)")
    waits = argparse.ArgumentParser(add_help=False)
    waits.add_argument("--wait", action="store_true", help="wait for the end; the exit status tells how it ended")
    waits.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for --wait (600)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    each = commands.add_parser("checkpoint", parents=[common, waits], help="take a checkpoint of an agent now")
    each.add_argument("agent")
    each.set_defaults(handler=checkpoint)
    each = commands.add_parser("rollback", parents=[common, waits], help="let an agent go back to a checkpoint")
    each.add_argument("checkpoint")
    each.set_defaults(handler=rollback)
    each = commands.add_parser("reset", parents=[common, waits], help="let an agent start from nothing")
    each.add_argument("agent")
    each.set_defaults(handler=reset)
    each = commands.add_parser("get", parents=[common], help="agents, or one agent with its checkpoints and restores")
    each.add_argument("agent", nargs="?")
    each.set_defaults(handler=get)
    each = commands.add_parser("protect", parents=[common], help="opt a workload in")
    each.add_argument("workload", help="deployment/NAME, statefulset/NAME")
    each.add_argument("--agent", help="name of the agent (default: the workload's)")
    each.add_argument("--state", action="append", default=[], metavar="PATH", help="a path that is state, in no volume")
    each.add_argument("--dry-run", action="store_true", help="print the command instead")
    each.set_defaults(handler=protect)
    return parser


def _run(arguments: Sequence[str], stdin: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the user's own kubectl, no shell
            ["kubectl", *arguments],  # noqa: S607 - as the shell that started us found it
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise Unavailable("there is no kubectl in the PATH") from error
    if done.returncode != 0:
        raise Unavailable(done.stderr.strip() or f"kubectl {arguments[0]} failed with status {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
