"""The cluster: one control plane and two workers, made by kind.

What it is: the configuration, create, delete, and waiting until everything works. What it is not: an engine (engine)
and not a node image (node_image); it is given both.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.command import ClusterError, run
from e2e.cluster.engine import Engine
from e2e.cluster.paths import Paths
from e2e.cluster.programs import program

NAME = "savepoint"
WORKERS = 2
READY_SECONDS = 180
_SYSTEM = (
    ("kube-system", "daemonset/kube-proxy"),
    ("kube-system", "deployment/coredns"),
    ("local-path-storage", "deployment/local-path-provisioner"),
)


@dataclass(frozen=True, slots=True)
class Detection:
    """How soon the cluster notices that a node is gone, and moves its pods."""

    grace_seconds: int
    status_seconds: int
    lease_seconds: int
    toleration_seconds: int


FAST = Detection(grace_seconds=8, status_seconds=1, lease_seconds=4, toleration_seconds=10)
"""For tests: Unknown about 8 s after the loss. Kubernetes' own values take 50 s, and 300 s more for the pods."""


def configuration(detection: Detection | None) -> str:
    """kind's configuration file, as JSON (which is YAML). None leaves Kubernetes' own times."""
    kubelet: dict[str, object] = {"failCgroupV1": False}
    patches: list[dict[str, object]] = []
    if detection is not None:
        kubelet["nodeStatusUpdateFrequency"] = f"{detection.status_seconds}s"
        kubelet["nodeLeaseDurationSeconds"] = detection.lease_seconds
        api_server = {
            "runtime-config": "",  # kind's own: a patch replaces the whole list
            "default-not-ready-toleration-seconds": str(detection.toleration_seconds),
            "default-unreachable-toleration-seconds": str(detection.toleration_seconds),
        }
        controllers = {
            "enable-hostpath-provisioner": "true",  # kind's own, too
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
    return NAME in run([program("kind"), "get", "clusters"], env=engine.env, check=False).stdout.split()


def create(engine: Engine, paths: Paths, image: str | None, detection: Detection | None) -> None:
    """Create the cluster and wait until it works. image None takes kind's published one. Raises ClusterError."""
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
    run(
        [program("kind"), "delete", "cluster", "--name", NAME, "--kubeconfig", paths.kubeconfig],
        env=engine.env,
        check=False,
        timeout=120,
    )
    paths.kubeconfig.unlink(missing_ok=True)


def wait(paths: Paths, seconds: int = READY_SECONDS) -> None:
    """Wait until every node is Ready and the cluster's own services run. Raises ClusterError."""
    kubectl(paths, "wait", "--for=condition=Ready", "nodes", "--all", f"--timeout={seconds}s")
    for namespace, workload in _SYSTEM:
        kubectl(paths, "--namespace", namespace, "rollout", "status", workload, f"--timeout={seconds}s")


def answers(paths: Paths) -> bool:
    """Whether the cluster of our kubeconfig is up: all nodes Ready."""
    if not paths.kubeconfig.exists():
        return False
    template = '{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
    listed = run(_kubectl(paths, "get", "nodes", "-o", f"jsonpath={template}", "--request-timeout=5s"), check=False)
    states = listed.stdout.split()
    return listed.returncode == 0 and len(states) == 1 + WORKERS and set(states) == {"True"}


def kubectl(paths: Paths, *arguments: str, stdin: str | None = None, timeout: float | None = None) -> str:
    """What `kubectl ARGUMENTS` printed. Raises ClusterError."""
    return run(_kubectl(paths, *arguments), stdin=stdin, timeout=timeout).stdout.strip()


def _kubectl(paths: Paths, *arguments: str) -> list[str | Path]:
    return [program("kubectl"), "--kubeconfig", paths.kubeconfig, *arguments]


def environment(paths: Paths) -> dict[str, str]:
    """The environment for programs that talk to the cluster: kubectl and helm on PATH, KUBECONFIG set."""
    rooms = os.pathsep.join(str(program(name).parent) for name in ("kubectl",))
    return {**os.environ, "KUBECONFIG": str(paths.kubeconfig), "PATH": f"{rooms}{os.pathsep}{os.environ['PATH']}"}


def _arguments(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]
