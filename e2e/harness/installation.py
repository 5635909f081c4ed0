"""A cluster with the fake services, the chart and the sample agents, used by the demo and the suite.

Each function performs one action and returns when it has taken effect. Checks are in e2e.checks, and callers print.
"""

import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minio import Minio

from e2e.cluster.nodes import NodeController
from e2e.cluster.programs import program
from e2e.harness.kube import CommandFailed, FakeServices, Kubectl, forwarded, until

ROOT = Path(__file__).resolve().parents[2]
SYSTEM, SERVICES = "savepoint-system", "fake-services"
# Bucket and keys of the throw-away S3 server in the cluster.
BUCKET, ACCESS_KEY, SECRET_KEY = "agents", "local-access", "local-secret-key"


@dataclass(frozen=True)
class Settings:
    """Namespace, size and load of the sample agents."""

    namespace: str = "agents"
    state_mib: int = 256
    documents: int = 2000
    turn_seconds: float = 0.2
    row_stride: int = 25
    period_seconds: int = 10


@dataclass(frozen=True)
class Installation:
    """An installed Savepoint with the sample agents: access to everything a scenario touches."""

    kubectl: Kubectl
    nodes: NodeController
    services: FakeServices
    bucket: Minio
    settings: Settings

    @property
    def agents(self) -> Kubectl:
        """Kubectl in the agents' namespace."""
        return self.kubectl.within(self.settings.namespace)

    # -- queries -------------------------------------------------------------------------------------------------

    def pod(self, app: str) -> dict[str, Any] | None:
        """Return the newest pod of an app that is not being deleted."""
        found = [pod for pod in self.agents.items("pods", f"app={app}") if not pod["metadata"].get("deletionTimestamp")]
        return max(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    def running(self, app: str) -> dict[str, Any] | None:
        """Return the app's newest pod if its agent container is running."""
        pod = self.pod(app)
        return pod if pod and agent_state(pod).get("running") else None

    def checkpoints(self, agent: str, ready: bool = True) -> list[dict[str, Any]]:
        """Return the AgentCheckpoints of an agent, oldest first."""
        found = self.agents.items("agentcheckpoints", f"savepoint.dev/agent={agent}")
        found = [item for item in found if not ready or condition(item, "Ready").get("status") == "True"]
        return sorted(found, key=lambda item: int(item.get("status", {}).get("sequence", 0)))

    def restores(self, agent: str) -> list[dict[str, Any]]:
        """Return the AgentRestores of an agent, oldest first."""
        found = self.agents.items("agentrestores", f"savepoint.dev/agent={agent}")
        return sorted(found, key=lambda item: str(item["metadata"]["creationTimestamp"]))

    def newest_sequence(self, agent: str) -> int:
        """Return the sequence of the newest Ready checkpoint, 0 for none."""
        found = self.checkpoints(agent)
        return int(found[-1]["status"]["sequence"]) if found else 0

    # -- actions --------------------------------------------------------------------------------------------------

    def deploy_researcher(self, name: str, *, protected: bool) -> None:
        """Deploy the researcher under a name; the unprotected one is the twin."""
        settings = self.settings
        self.agents.manifest(
            "researcher.yaml",
            NAME=name,
            NAMESPACE=settings.namespace,
            LABEL=f"savepoint.dev/agent: {name}" if protected else "protected: 'no'",
            STATE_MIB=str(settings.state_mib),
            DOCUMENTS=str(settings.documents),
            TURN_SECONDS=str(settings.turn_seconds),
        )

    def wait_running(self, app: str, seconds: float = 180) -> dict[str, Any]:
        """Wait for the app's running pod and return it."""
        return until(f"{app} runs", lambda: self.running(app), seconds=seconds)

    def wait_turns(self, agent: str, more: int, seconds: float = 120) -> int:
        """Wait until the agent has reported ``more`` further turns; return its turn."""
        begin = self.services.turns(agent)
        until(f"{agent} completes {more} turns", lambda: self.services.turns(agent) >= begin + more, seconds=seconds)
        return self.services.turn(agent)

    def wait_checkpoint(self, agent: str, after: int, seconds: float = 120) -> dict[str, Any]:
        """Wait for a Ready checkpoint with a higher sequence than ``after`` and return it."""

        def newer() -> dict[str, Any] | None:
            found = [item for item in self.checkpoints(agent) if int(item["status"]["sequence"]) > after]
            return found[-1] if found else None

        return until(f"{agent}: a checkpoint after sequence {after}", newer, seconds=seconds)

    def request_checkpoint(self, agent: str) -> str:
        """Create an AgentCheckpoint as a user would; return its name for kubectl."""
        body = {
            "apiVersion": "savepoint.dev/v1alpha1",
            "kind": "AgentCheckpoint",
            "metadata": {"generateName": f"{agent}-"},
            "spec": {"agent": agent},
        }
        return self.agents("create", "-f", "-", "-o", "name", stdin=json.dumps(body)).strip()

    def checkpoint_now(self, agent: str) -> dict[str, Any]:
        """Request a checkpoint and return it once it is Ready."""
        name = self.request_checkpoint(agent)
        self.agents("wait", "--for=condition=Ready", name, "--timeout=120s", timeout=150)
        found: dict[str, Any] = self.agents.get(name)
        return found

    def drain(self, node: str) -> None:
        """Drain a node as a cluster administrator would."""
        self.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s", timeout=200)

    def uncordon(self, node: str) -> None:
        """Allow pods on the node again."""
        self.kubectl("uncordon", node)

    def wait_returned(self, app: str, old_uid: str, seconds: float = 180) -> dict[str, Any]:
        """Wait until a pod other than ``old_uid`` runs the app and has reported its start; return it."""

        def returned() -> dict[str, Any] | None:
            pod = self.running(app)
            if not pod or pod["metadata"]["uid"] == old_uid:
                return None
            names = {report["pod"] for report in self.services.reports(app)}
            return pod if pod["metadata"]["name"] in names else None

        return until(f"{app} runs again", returned, seconds=seconds)


def condition(item: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return one condition of an object, {} if it has none of that type."""
    found = item.get("status", {}).get("conditions", [])
    return next((entry for entry in found if entry["type"] == kind), {})


def agent_state(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the pod's agent container."""
    found = pod.get("status", {}).get("containerStatuses", [])
    return next((dict(entry.get("state", {})) for entry in found if entry["name"] == "agent"), {})


def helm(kubeconfig: Path, *arguments: str) -> str:
    """Run helm; return its output. Raises CommandFailed."""
    command = [str(program("helm")), "--kubeconfig", str(kubeconfig), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise CommandFailed(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def install(kubectl: Kubectl, **values: str) -> str:
    """Install the fake services, their bucket and Savepoint; return Helm's output. May run again.

    Args:
        values: Further chart values.
    """
    kubectl.manifest("services.yaml", S3_ACCESS_KEY=ACCESS_KEY, S3_SECRET_KEY=SECRET_KEY)
    for name in ("s3", "services"):
        kubectl.within(SERVICES)("rollout", "status", f"deployment/{name}", "--timeout=120s", timeout=130)
    with bucket_of(kubectl) as client:
        if not client.bucket_exists(BUCKET):
            client.make_bucket(BUCKET)
    kubectl.apply(json.dumps(_namespace(SYSTEM)))
    kubectl.apply(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "s3-keys", "namespace": SYSTEM},
                "stringData": {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY},
            }
        )
    )
    settings = {
        "store.s3.endpoint": f"http://s3.{SERVICES}.svc:7070",
        "store.s3.bucket": BUCKET,
        "store.s3.region": "us-east-1",
        "store.s3.credentialsSecret": "s3-keys",
        "image.operator": "savepoint.local/operator:dev",
        "image.sidecar": "savepoint.local/sidecar:dev",
        **values,
    }
    printed = helm(
        kubectl.kubeconfig,
        *(
            "upgrade",
            "--install",
            "savepoint",
            str(ROOT / "charts" / "savepoint"),
            "-n",
            SYSTEM,
            "--wait",
            "--timeout=180s",
        ),
        *(argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")),
    )
    kubectl("wait", "--for=condition=Ready", "agentcheckpointstore/default", "--timeout=60s", timeout=70)
    return printed


def uninstall(kubectl: Kubectl) -> None:
    """Run `helm uninstall`."""
    helm(kubectl.kubeconfig, "uninstall", "savepoint", "-n", SYSTEM, "--wait", "--timeout=120s")


def _namespace(name: str) -> dict[str, Any]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def agents_namespace(kubectl: Kubectl, settings: Settings) -> None:
    """Create the agents' namespace, which enforces the restricted standard, and its policy."""
    kubectl.apply(json.dumps(_namespace(settings.namespace)))
    kubectl.manifest("policy.yaml", NAMESPACE=settings.namespace, PERIOD=str(settings.period_seconds))


@contextlib.contextmanager
def bucket_of(kubectl: Kubectl) -> Iterator[Minio]:
    """Yield an S3 client for the server in the cluster."""
    with forwarded(kubectl.within(SERVICES), "service/s3", 7070) as address:
        yield Minio(address, ACCESS_KEY, SECRET_KEY, secure=False, region="us-east-1")


@contextlib.contextmanager
def opened(kubeconfig: Path, settings: Settings) -> Iterator[Installation]:
    """Yield the Installation on a cluster where ``install`` has run."""
    kubectl = Kubectl(kubeconfig)
    with bucket_of(kubectl) as bucket, forwarded(kubectl.within(SERVICES), "service/services", 8000) as address:
        services = FakeServices(f"http://{address}", f"{settings.namespace}/")
        with urllib.request.urlopen(f"{services.url}/healthz", timeout=10):
            yield Installation(kubectl, NodeController(), services, bucket, settings)
