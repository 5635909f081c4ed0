"""`make demo`: the main job on a real cluster on this machine. Ends with a table of checks; exit status 1 if one fails.

Scenario 1 needs no cluster and runs while the cluster is being built. The demo prints what kubectl shows; the checks
are computed from what the fake services recorded.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from e2e.checks import checks
from e2e.checks.report import Observations, cluster_checks, laptop_checks
from e2e.cluster.paths import default_paths
from e2e.cluster.up import plan
from e2e.harness import installation as setup
from e2e.harness.installation import SERVICES, SYSTEM, Installation, Settings
from e2e.harness.kube import Kubectl, kubeconfig_from_environment
from e2e.harness.laptop import laptop
from e2e.scenarios.main_job import (
    corrupt_and_repair,
    deploy_agents,
    drain_every_node,
    kill_in_place,
    kill_operator_during_checkpoint,
)

STARTED = time.monotonic()


def say(text: str = "") -> None:
    """Print a line with the time since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}" if text else "", flush=True)


def heading(title: str) -> None:
    """Print a heading."""
    print(f"\n━━ {title} " + "━" * max(0, 90 - len(title)), flush=True)


def show(kubectl: Kubectl, *arguments: str) -> None:
    """Print a kubectl command, run it and print its output."""
    namespace = f" -n {kubectl.namespace}" if kubectl.namespace else ""
    print(f"  $ kubectl{namespace} {' '.join(arguments)}")
    for line in kubectl(*arguments).rstrip().splitlines():
        print(f"  {line}")
    sys.stdout.flush()


class Background:
    """A long command in the background; its output goes to a file and is printed by ``wait``."""

    def __init__(self, command: list[str]) -> None:
        self._log = Path(tempfile.mkstemp(prefix="savepoint-cluster-", suffix=".log")[1])
        self._handle = self._log.open("w")
        self._process = subprocess.Popen(command, stdout=self._handle, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Print new lines of output until the command ends. Raises SystemExit if it failed."""
        printed = 0
        while True:
            ended = self._process.poll() is not None
            lines = self._log.read_text().splitlines()
            for line in lines[printed:]:
                print(f"  cluster │ {line}", flush=True)
            printed = len(lines)
            if ended:
                break
            time.sleep(0.5)
        self._handle.close()
        if self._process.returncode:
            raise SystemExit(f"make cluster failed; its output is in {self._log}")
        self._log.unlink()


def laptop_scenario() -> list[checks.Check]:
    """Run the scenario on a laptop: kill -9 of the agent, then of the supervisor."""
    with laptop() as machine:
        say("savepoint run --store ./state -- python agent.py")
        process = machine.start()
        machine.wait_turns(12)
        say(f"the agent is at turn {machine.services.turn('researcher')}; kill -9 the agent")
        machine.kill(machine.agent_pid(process.pid), process)
        say("savepoint run … again")
        process = machine.start()
        machine.wait_turns(8)
        say(f"it continued and is at turn {machine.services.turn('researcher')}; kill -9 the supervisor")
        machine.kill(process.pid, process)
        say("savepoint run … again")
        process = machine.start()
        machine.wait_turns(8)
        machine.stop(process)
        print("  $ savepoint log ./state")
        for line in machine.log().rstrip().splitlines()[-12:]:
            print(f"  {line}")
        return laptop_checks(machine)


def cluster_scenarios(installation: Installation) -> list[checks.Check]:
    """Run every scenario on the cluster; return the checks."""
    agents = installation.agents
    heading("Two identical researchers, one protected, one not; a coder without the SDK")
    deploy_agents(installation)
    show(agents, "get", "protectedagents")
    say("waiting for scheduled checkpoints, then requesting one")
    installation.wait_checkpoint("researcher", 0)
    installation.wait_checkpoint("coder", 0)
    installation.checkpoint_now("researcher")
    show(agents, "get", "agentcheckpoints")

    heading("The researcher's process is killed in place with kill -9")
    kill = kill_in_place(installation)
    show(agents, "get", "pods")

    heading("Both nodes are drained, one after the other")
    moves = drain_every_node(installation, say)
    show(agents, "get", "pods", "-o", "wide")
    show(agents, "get", "agentrestores")

    heading("The operator is killed during a checkpoint")
    operator_kill = kill_operator_during_checkpoint(installation, say)
    show(installation.kubectl.within(SYSTEM), "get", "pods")
    show(agents, "get", "protectedagents")

    heading("One stored object is corrupted: the restore must refuse it and name it")
    corruption = corrupt_and_repair(installation, say)
    show(agents, "get", "agentrestores")
    return cluster_checks(installation, Observations(kill, moves, operator_kill, corruption))


def announce(external: bool) -> None:
    """Print what will be installed and changed."""
    heading("What this installs and changes")
    lines = ["KUBECONFIG is set: that cluster is used and none is created"] if external else plan(default_paths())
    lines += [
        "the project's images are built from its Dockerfiles, with wheels from PyPI, and loaded into the nodes",
        f"the namespaces {SERVICES}, {SYSTEM} and {Settings().namespace} are created; Helm installs Savepoint",
    ]
    for line in lines:
        print(f"  {line}", flush=True)


def main() -> int:
    """Run everything; return 0 if every check holds."""
    external = "KUBECONFIG" in os.environ
    print(__doc__ or "")
    announce(external)
    command = [sys.executable, "-m", "e2e.cluster", "up"]
    creation = None if external else Background(command)

    heading("Scenario 1, without a cluster: an agent on a laptop is killed with kill -9 and continues")
    found = laptop_scenario()

    heading("The cluster: one control plane, two workers (the first time this takes long)")
    if creation:
        creation.wait()
    _timed("building the images", lambda: subprocess.run([sys.executable, "-m", "e2e.cluster", "images"], check=True))
    _timed("loading the images", lambda: subprocess.run([sys.executable, "-m", "e2e.cluster", "load"], check=True))
    kubeconfig = kubeconfig_from_environment()
    heading("helm install savepoint")
    print("\n".join(f"  {line}" for line in setup.install(Kubectl(kubeconfig)).splitlines()))
    settings = Settings()
    setup.agents_namespace(Kubectl(kubeconfig), settings)
    with setup.opened(kubeconfig, settings) as installation:
        found += cluster_scenarios(installation)

    heading("Checks")
    print(checks.table(found))
    print("  `make demo-down` removes the cluster.")
    say(checks.summary(found))
    return 1 if any(entry.failed for entry in found) else 0


def _timed(what: str, run: Callable[[], object]) -> None:
    started = time.monotonic()
    run()
    say(f"{what}: done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
