"""`make demo`: the main job, shown for real, on this machine alone. Ends with a table of proofs; exit status 1 when
one fails.

Scene 1 needs no cluster and runs while the cluster is being built. It prints what kubectl shows; it computes, never
asserts by eye.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from e2e.checks import checks as proof
from e2e.checks.report import cluster_proofs, laptop_proofs
from e2e.cluster.paths import default_paths
from e2e.cluster.up import plan
from e2e.harness import installation as stage
from e2e.harness.installation import SYSTEM, WORLD, Installation, Settings
from e2e.harness.kube import Kubectl, kubeconfig_from_environment
from e2e.harness.laptop import laptop
from e2e.scenarios.main_job import (
    Observations,
    corrupt_and_mend,
    drain_every_node,
    kill_in_place,
    kill_operator_during_checkpoint,
    protect,
)

STARTED = time.monotonic()


def say(text: str = "") -> None:
    """A line with the time since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}" if text else "", flush=True)


def scene(title: str) -> None:
    """A heading."""
    print(f"\n━━ {title} " + "━" * max(0, 90 - len(title)), flush=True)


def shown(kubectl: Kubectl, *arguments: str) -> None:
    """What a user would type and see."""
    space = f" -n {kubectl.namespace}" if kubectl.namespace else ""
    print(f"  $ kubectl{space} {' '.join(arguments)}")
    for line in kubectl(*arguments).rstrip().splitlines():
        print(f"  {line}")
    sys.stdout.flush()


class Background:
    """A long command beside the scenes, its output in a file, shown in short while one waits for it."""

    def __init__(self, command: list[str]) -> None:
        self._log = Path(tempfile.mkstemp(prefix="savepoint-cluster-", suffix=".log")[1])
        self._handle = self._log.open("w")
        self._process = subprocess.Popen(command, stdout=self._handle, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Shows its new lines until it ends. Raises SystemExit when it failed."""
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


def laptop_scene() -> list[proof.Check]:
    """kill -9 on a laptop: the agent, then the supervisor."""
    with laptop() as here:
        say("savepoint run --store ./state -- python agent.py")
        process = here.start()
        here.wait_turns(12)
        say(f"the agent is at turn {here.world.turn('researcher')}; kill -9 the agent")
        here.kill(here.agent_pid(process.pid), process)
        say("savepoint run … again")
        process = here.start()
        here.wait_turns(8)
        say(f"it went on and is at turn {here.world.turn('researcher')}; kill -9 the supervisor")
        here.kill(process.pid, process)
        say("savepoint run … again")
        process = here.start()
        here.wait_turns(8)
        here.stop(process)
        print("  $ savepoint log ./state")
        for line in here.log().rstrip().splitlines()[-12:]:
            print(f"  {line}")
        return laptop_proofs(here)


def cluster_scenes(lab: Installation, facts: Observations) -> None:
    """Everything on the cluster."""
    scene("Two identical researchers, one protected, one not; a coder without SDK")
    protect(lab)
    shown(lab.agents, "get", "protectedagents")
    say("waiting for checkpoints on the interval, then one on demand")
    lab.wait_checkpoint("researcher", 0)
    lab.wait_checkpoint("coder", 0)
    facts.on_demand = lab.checkpoint_now("researcher")
    shown(lab.agents, "get", "agentcheckpoints")

    scene("The researcher's process is killed -9 in place")
    kill_in_place(lab, facts)
    shown(lab.agents, "get", "pods")

    scene("Both nodes are drained, one after the other")
    drain_every_node(lab, facts, say)
    shown(lab.agents, "get", "pods", "-o", "wide")
    shown(lab.agents, "get", "agentrestores")

    scene("The operator is killed during a checkpoint")
    kill_operator_during_checkpoint(lab, facts, say)
    shown(lab.kubectl.within(SYSTEM), "get", "pods")
    shown(lab.agents, "get", "protectedagents")

    scene("One stored object is corrupted: restore must refuse it and name it")
    corrupt_and_mend(lab, facts, say)
    shown(lab.agents, "get", "agentrestores")


def announce(external: bool) -> None:
    """What will be installed and changed, before anything is."""
    scene("What this installs and changes")
    lines = ["KUBECONFIG is set: no cluster is made here"] if external else plan(default_paths())
    lines += [
        "then the project's images are built from its Dockerfiles, with wheels from PyPI, and loaded into the nodes",
        f"into the cluster come: the namespaces {WORLD}, {SYSTEM} and {Settings().namespace}, and Savepoint by Helm",
    ]
    for line in lines:
        print(f"  {line}", flush=True)


def main() -> int:
    """Run it all; 0 when every proof holds."""
    external = "KUBECONFIG" in os.environ
    print(__doc__ or "")
    announce(external)
    command = [sys.executable, "-m", "e2e.cluster", "up"]
    building = None if external else Background(command)

    scene("Scene 1, without a cluster: an agent on a laptop is killed with -9 and goes on")
    found = laptop_scene()

    scene("The cluster: one control plane, two workers (this is the long wait the first time)")
    if building:
        building.wait()
    _timed("images", lambda: subprocess.run([sys.executable, "-m", "e2e.cluster", "images"], check=True))
    _timed("load", lambda: subprocess.run([sys.executable, "-m", "e2e.cluster", "load"], check=True))
    kubeconfig = kubeconfig_from_environment()
    scene("helm install savepoint")
    print("\n".join(f"  {line}" for line in stage.install(Kubectl(kubeconfig)).splitlines()))
    settings = Settings()
    stage.agents_namespace(Kubectl(kubeconfig), settings)
    facts = Observations()
    with stage.opened(kubeconfig, settings) as lab:
        cluster_scenes(lab, facts)
        found += cluster_proofs(lab, facts)

    scene("Proofs")
    print(proof.table(found))
    print("  `make demo-down` takes the cluster away.")
    say(proof.summary(found))
    return 1 if any(entry.failed for entry in found) else 0


def _timed(what: str, run: Callable[[], object]) -> None:
    started = time.monotonic()
    run()
    say(f"{what}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
