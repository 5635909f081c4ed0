"""The kind cluster: one control plane and two workers.

Configuration, creation, deletion, and waiting until everything works. The engine (engine.py) and the node image
(node_image.py) are given.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.command import ClusterError, run
from e2e.cluster.engine import Engine
from e2e.cluster.paths import Paths
from e2e.cluster.programs import program

NAME = "savepoint"
WORKERS = 2
READY_SECONDS = 180
_SYSTEM_WORKLOADS = (
    ("kube-system", "daemonset/kube-proxy"),
    ("kube-system", "deployment/coredns"),
    ("local-path-storage", "deployment/local-path-provisioner"),
)


@dataclass(frozen=True, slots=True)
class Detection:
    """Times after which the cluster detects the loss of a node and evicts its pods."""

    grace_seconds: int
    status_seconds: int
    lease_seconds: int
    toleration_seconds: int


FAST = Detection(grace_seconds=8, status_seconds=1, lease_seconds=4, toleration_seconds=10)
"""For tests: Ready becomes Unknown about 8 s after the loss. By default it takes 50 s, and 300 s more for pods."""


def configuration(detection: Detection | None) -> str:
    """Return kind's configuration file as JSON, which is YAML. None keeps Kubernetes' default detection times."""
    kubelet: dict[str, object] = {"failCgroupV1": False}
    patches: list[dict[str, object]] = []
    if detection is not None:
        kubelet["nodeStatusUpdateFrequency"] = f"{detection.status_seconds}s"
        kubelet["nodeLeaseDurationSeconds"] = detection.lease_seconds
        api_server = {
            "runtime-config": "",  # kind sets it, and a patch replaces the whole list
            "default-not-ready-toleration-seconds": str(detection.toleration_seconds),
            "default-unreachable-toleration-seconds": str(detection.toleration_seconds),
        }
        controllers = {
            "enable-hostpath-provisioner": "true",  # set by kind, too
            "node-monitor-grace-period": f"{detection.grace_seconds}s",
            "node-monitor-period": "1s",
        }
        patches.append(
            {
                "kind": "ClusterConfiguration",
                "apiVersion": "kubeadm.k8s.io/v1beta4",
                "apiServer": {"extraArgs": _arguments(api_server)},
                "controllerManager": {"extraArgs": _arguments(controllers)},
            }
        )
    patches.append({"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1", **kubelet})
    return json.dumps(
        {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "nodes": [{"role": "control-plane"}, *({"role": "worker"} for _ in range(WORKERS))],
            "kubeadmConfigPatches": [json.dumps(patch) for patch in patches],
        }
    )


def exists(engine: Engine) -> bool:
    """Return whether kind knows the cluster, in whatever state it is."""
    return NAME in run([program("kind"), "get", "clusters"], env=engine.env, check=False).stdout.split()


def create(engine: Engine, paths: Paths, image: str | None, detection: Detection | None) -> None:
    """Create the cluster and wait until it works. Raises ClusterError.

    Args:
        engine: The engine whose containers are the nodes.
        paths: Where the kubeconfig is written.
        image: The node image; None for the one that kind publishes.
        detection: How soon lost nodes are detected; None for Kubernetes' defaults.
    """
    command: list[str | Path] = [program("kind"), "create", "cluster", "--name", NAME, "--kubeconfig", paths.kubeconfig]
    if image is not None:
        command += ["--image", image]
    try:
        run([*command, "--config", "-"], env=engine.env, stdin=configuration(detection), timeout=600)
    except ClusterError:
        delete(engine, paths)
        raise
    wait(paths)


def delete(engine: Engine, paths: Paths) -> None:
    """Delete the cluster and its kubeconfig, if they exist."""
    run(
        [program("kind"), "delete", "cluster", "--name", NAME, "--kubeconfig", paths.kubeconfig],
        env=engine.env,
        check=False,
        timeout=120,
    )
    paths.kubeconfig.unlink(missing_ok=True)


def wait(paths: Paths, seconds: int = READY_SECONDS) -> None:
    """Wait until every node is Ready and the system workloads are rolled out. Raises ClusterError."""
    kubectl(paths, "wait", "--for=condition=Ready", "nodes", "--all", f"--timeout={seconds}s")
    for namespace, workload in _SYSTEM_WORKLOADS:
        kubectl(paths, "--namespace", namespace, "rollout", "status", workload, f"--timeout={seconds}s")


def is_ready(paths: Paths) -> bool:
    """Return whether the cluster of the suite's kubeconfig answers and all nodes are Ready."""
    if not paths.kubeconfig.exists():
        return False
    template = '{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
    listed = run(_kubectl(paths, "get", "nodes", "-o", f"jsonpath={template}", "--request-timeout=5s"), check=False)
    states = listed.stdout.split()
    return listed.returncode == 0 and len(states) == 1 + WORKERS and set(states) == {"True"}


def kubectl(paths: Paths, *arguments: str, stdin: str | None = None, timeout: float | None = None) -> str:
    """Run `kubectl ARGUMENTS` and return its output. Raises ClusterError."""
    return run(_kubectl(paths, *arguments), stdin=stdin, timeout=timeout).stdout.strip()


def _kubectl(paths: Paths, *arguments: str) -> list[str | Path]:
    return [program("kubectl"), "--kubeconfig", paths.kubeconfig, *arguments]


def _arguments(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]
