"""Set-up of the fault scenarios: namespaces, buckets, stores, and the agents that scenarios begin with."""

import contextlib
import json
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from e2e.harness import installation, namespace_teardown
from e2e.harness.kube import Kubectl, until
from e2e.scenarios.faulty_agents import (
    CODER,
    PYTHON,
    SLEEP,
    AgentPod,
    FaultyNamespace,
    Object,
    policy,
    store,
)

S3 = f"http://s3.{installation.SERVICES}.svc:7070"
CLOSED_PORT = f"http://s3.{installation.SERVICES}.svc:7071"

STUCK = """
import savepoint, time
agent = savepoint.connect()
def crawl():
    print("in the step", flush=True)
    time.sleep(30)
for turn in agent.loop("turns", range(1000)):
    agent.step("crawl", crawl)
    print("turn", turn, flush=True)
"""
STOPPED = """
import os, savepoint, signal, time
agent = savepoint.connect()
os.kill(os.getpid(), signal.SIGSTOP)
while True:
    agent.safe_point()
    time.sleep(0.1)
"""
LARGE = """
import savepoint, time
agent = savepoint.connect()
agent.document("notes", default={"text": ""})["text"] = "".join(str(number) for number in range(1 << 20))
while True:
    agent.safe_point()
    time.sleep(0.1)
"""
WAIT_FOR_GO = "while [ ! -e /tmp/go ]; do sleep 0.2; done; kill -CONT $pid; wait $pid"
IGNORE_TERM = "trap '' TERM; echo here >/data/file; sleep 1000"
SCENARIO_SECONDS = 900
"""No scenario takes this long, the wait for its turn included; each of its steps has a deadline of its own."""
STORE_FAULTS = {
    "unreachable": "StoreUnavailable",
    "denied": "StoreDenied",
    "nobucket": "StoreMisconfigured",
    "nosecret": "StoreMisconfigured",
    "unknown": "NoStore",
}
"""Agents whose store is faulty, and the reason that their restore reports."""
STORE_KINDS = (
    "healthy",
    "lost",
    "deleted",
    "unreached",
    "denied-later",
    "cut-off",
    *(agent for agent in STORE_FAULTS if agent != "unknown"),
)


@dataclass
class FaultScenarios:
    """Everything that was deployed, and the scenarios whose steps run in threads."""

    kubectl: Kubectl
    name: str
    """Name of this run: of its namespace and its bucket, and prefix of everything else."""
    restricted: FaultyNamespace
    baseline: FaultyNamespace
    running: dict[str, Future[Any]] = field(default_factory=dict)

    def observed(self, scenario: str) -> Any:
        """Wait for the scenario's steps and return what they observed; raise the error that ended them."""
        return self.running[scenario].result(timeout=SCENARIO_SECONDS)

    def store(self, kind: str, bucket: str = "", secret: str = "", endpoint: str = S3) -> Object:
        """Return the manifest of a store of this run; all but the healthy one have a prefix of their own."""
        prefix = "" if kind == "healthy" else kind
        return store(f"{self.name}-{kind}", bucket or self.name, secret or f"{self.name}-keys", endpoint, prefix)


def prepare(faults: FaultScenarios) -> None:
    """Create namespaces, buckets, Secrets and stores."""
    for place, level in ((faults.restricted, "restricted"), (faults.baseline, "baseline")):
        labels = {"pod-security.kubernetes.io/enforce": level}
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": place.kubectl.namespace, "labels": labels},
        }
        faults.kubectl.apply(json.dumps(body))
    for bucket in (faults.name, f"{faults.name}-2"):
        faults.restricted.bucket.make_bucket(bucket)
    system = faults.kubectl.within(installation.SYSTEM)
    for secret, key in ((f"{faults.name}-keys", installation.SECRET_KEY), (f"{faults.name}-wrong", "not-the-key")):
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}}
        system.apply(json.dumps({**body, "stringData": {"accessKey": installation.ACCESS_KEY, "secretKey": key}}))
    faults.restricted.create(
        faults.store("healthy"),
        faults.store("lost", f"{faults.name}-2"),
        faults.store("unreachable", endpoint=CLOSED_PORT),
        faults.store("denied", secret=f"{faults.name}-wrong"),
        faults.store("nobucket", bucket=f"{faults.name}-3"),
        faults.store("nosecret", secret=f"{faults.name}-none"),
    )
    for place in (faults.restricted, faults.baseline):
        until("service account", partial(place.kubectl.maybe, "serviceaccount", "default"), seconds=60)


def fill_volume(faults: FaultScenarios) -> None:
    """Create a persistent volume with foreign files; first of all, because the provisioner's pod gets only one try."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "filled"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "64Mi"}}},
    }
    command = ("sh", "-c", f"echo theirs >/data/theirs; {SLEEP}")
    faults.restricted.create(claim, AgentPod("filler", "", command=command, state="/data", claim="filled").pod())
    faults.restricted.wait_ready("filler", seconds=200)


def manifests(faults: FaultScenarios) -> dict[str, tuple[Object, Object]]:
    """Return the policy and the pod or Deployment that scenarios begin with; others deploy in their steps."""
    healthy = f"{faults.name}-healthy"
    quick = {"timeoutSeconds": 4}
    stopped = f"python -u -c '{STOPPED}' & pid=$!; {WAIT_FOR_GO}"
    foreign = f"for n in 1 2 3; do echo $n >/data/open$n; done; umask 077; echo secret >/data/closed; {SLEEP}"
    small_stage = {"sizeLimit": "1Mi", "medium": "Memory"}
    return {
        **{
            agent: (policy(agent, f"{faults.name}-{agent}"), AgentPod(agent, agent, state="/data").pod())
            for agent in STORE_FAULTS
        },
        "stuck": (
            policy("stuck", healthy, quiesce=quick),
            AgentPod("stuck", "stuck", PYTHON, ("python", "-u", "-c", STUCK)).pod(),
        ),
        "stopped": (
            policy("stopped", healthy, quiesce=quick),
            AgentPod("stopped", "stopped", PYTHON, ("sh", "-c", stopped)).pod(),
        ),
        "mute": (
            policy("mute", healthy),
            AgentPod("mute", "mute", command=("sh", "-c", IGNORE_TERM), state="/data").pod(),
        ),
        "many": (policy("many", healthy), AgentPod("many", "many").deployment(replicas=2)),
        "twins": (policy("twins", healthy), AgentPod("twins-1", "twins", state="/data").pod()),
        "nouid": (
            policy("nouid", healthy),
            AgentPod("nouid", "nouid", CODER, ("sleep", "1000"), uid=None).deployment(),
        ),
        "large": (
            policy("large", healthy, stage=small_stage),
            AgentPod("large", "large", PYTHON, ("python", "-u", "-c", LARGE)).pod(),
        ),
        "noimage": (policy("noimage", healthy), AgentPod("noimage", "noimage", "savepoint.local/no-such:dev").pod()),
        "nosidecar": (policy("nosidecar", healthy), AgentPod("nosidecar", "nosidecar", gated=True).pod()),
        "foreign": (
            policy("foreign", healthy),
            AgentPod(
                "foreign", "foreign", CODER, ("bash", "-c", foreign), uid=None, non_root=False, state="/data"
            ).pod(),
        ),
    }


def clean_up(faults: FaultScenarios) -> None:
    """Remove everything that this run created."""
    names = [str(place.kubectl.namespace) for place in (faults.restricted, faults.baseline)]
    faults.kubectl("delete", "namespace", *names, "--wait=false", "--ignore-not-found")
    stores = [f"{faults.name}-{kind}" for kind in STORE_KINDS]
    faults.kubectl("delete", "agentcheckpointstore", *stores, "--ignore-not-found")
    secrets = [f"{faults.name}-keys", f"{faults.name}-wrong"]
    faults.kubectl.within(installation.SYSTEM)("delete", "secret", *secrets, "--ignore-not-found")
    namespace_teardown.remove(faults.kubectl, *names)
    for bucket in (faults.name, f"{faults.name}-2"):
        with contextlib.suppress(Exception):  # a scenario removes one of them
            for each in faults.restricted.bucket.list_objects(bucket, recursive=True):
                faults.restricted.bucket.remove_object(bucket, str(each.object_name))
            faults.restricted.bucket.remove_bucket(bucket)
