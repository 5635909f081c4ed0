"""Response time of the webhook, in its own process over TLS, with a real API server: `python -m bench.webhook_latency`.

Reviews arrive at a steady rate over several connections. The benchmark fails if the 99th percentile exceeds its goal.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import urllib3

from bench.figure import Figure, report
from tests.servers.apiserver import api_server
from tests.servers.helm import NAMESPACE, find, render
from tests.servers.kubectl import Kubectl
from tests.servers.process import HOST, free_ports, running

GOAL_MILLISECONDS = 50.0
NAMESPACES, POLICIES = 20, 200
CALLERS, CALLS, REVIEWS_PER_SECOND = 4, 250, 50


def main() -> int:
    """Run the benchmark; return 0 if the goal is met."""
    with tempfile.TemporaryDirectory(prefix="savepoint-bench-") as scratch:
        latencies = _measure(Path(scratch))
    latencies.sort()
    p50, p99 = statistics.median(latencies), latencies[int(len(latencies) * 0.99)]
    print(
        f"webhook: {len(latencies)} reviews, {REVIEWS_PER_SECOND} per second, {POLICIES} policies: "
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {latencies[-1]:.1f} ms"
    )
    return report([Figure("webhook, 99th percentile", p99, "ms", GOAL_MILLISECONDS)])


def _measure(root: Path) -> list[float]:
    """Run the webhook and return the milliseconds that each review took."""
    with api_server(root) as server:
        kubectl = Kubectl(server.kubeconfig)
        kubectl.install_crds()
        kubectl("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": _objects()})
        token = kubectl("create", "token", "savepoint-webhook", "-n", NAMESPACE).strip()
        tls = root / "tls"
        tls.mkdir()
        pair = server.authority.issue_server([HOST])
        for name, content in (
            ("tls.crt", pair.certificate),
            ("tls.key", pair.key),
            ("ca.crt", server.authority.certificate),
        ):
            (tls / name).write_bytes(content)
        port, health_port = free_ports(2)
        environment = {
            "KUBECONFIG": str(server.kubeconfig_with_token("savepoint-webhook", token)),
            "SAVEPOINT_SIDECAR_IMAGE": "savepoint-sidecar:bench",
            "SAVEPOINT_CONTROL_URL": "wss://savepoint-operator.savepoint-system.svc:8443/v1/control",
            "SAVEPOINT_TLS_DIRECTORY": str(tls),
            "SAVEPOINT_WEBHOOK_PORT": str(port),
            "SAVEPOINT_HEALTH_PORT": str(health_port),
            "SAVEPOINT_LOG_LEVEL": os.environ.get("SAVEPOINT_LOG_LEVEL", "INFO"),
        }
        command = [sys.executable, "-m", "savepoint_operator.webhook"]

        def ready() -> bool:
            try:
                answer = urllib3.request("GET", f"http://{HOST}:{health_port}/readyz", retries=False, timeout=1)
            except urllib3.exceptions.HTTPError:
                return False
            return answer.status == 200

        with running("webhook", command, root, ready, environment=environment):
            return _call(f"https://{HOST}:{port}/mutate-pods", tls / "ca.crt")


def _call(url: str, ca: Path) -> list[float]:
    """Send the reviews at a steady rate; return the milliseconds that each took."""
    body = json.dumps(_review()).encode()
    latencies: list[float] = []
    failures: list[str] = []

    def caller(number: int) -> None:
        begin = time.perf_counter() + number / REVIEWS_PER_SECOND
        with urllib3.PoolManager(ca_certs=str(ca), retries=False, timeout=10) as pool:
            for call in range(CALLS):
                due = begin + call * CALLERS / REVIEWS_PER_SECOND
                time.sleep(max(0.0, due - time.perf_counter()))
                started = time.perf_counter()
                answer = pool.request("POST", url, body=body, headers={"Content-Type": "application/json"})
                latencies.append((time.perf_counter() - started) * 1000)
                if answer.status != 200 or not answer.json()["response"].get("patch"):
                    failures.append(f"{answer.status} {answer.data[:200]!r}")

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} reviews failed: {failures[0]}")
    return latencies


def _objects() -> list[dict[str, Any]]:
    chart = render()
    permissions = [
        find(chart, kind, "savepoint-webhook") for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")
    ]
    names = [NAMESPACE, *(f"team-{number}" for number in range(NAMESPACES))]
    namespaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names]
    policies = [
        {
            "apiVersion": "savepoint.dev/v1alpha1",
            "kind": "AgentCheckpointPolicy",
            "metadata": {"name": f"policy-{number}", "namespace": f"team-{number % NAMESPACES}"},
            "spec": {
                "selector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": [f"t{number}"]}]},
                "state": {"paths": [{"mountPath": "/workspace", "sizeLimit": "1Gi"}]},
            },
        }
        for number in range(POLICIES)
    ]
    return [*namespaces, *permissions, *policies]


def _review() -> dict[str, Any]:
    """Return the review of a rather large pod: five containers with a hundred variables each."""
    environment = [{"name": f"VARIABLE_{number}", "value": "x" * 40} for number in range(100)]
    containers = [
        {
            "name": f"c{number}",
            "image": f"image:{number}",
            "env": environment,
            "volumeMounts": [{"name": "work", "mountPath": "/work"}],
        }
        for number in range(5)
    ]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "coder-",
            "namespace": "team-1",
            "labels": {"savepoint.dev/agent": "coder", "tier": "t21"},
        },
        "spec": {"containers": containers, "volumes": [{"name": "work", "emptyDir": {}}]},
    }
    request = {
        "uid": "00000000-0000-0000-0000-000000000000",
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "team-1",
        "operation": "CREATE",
        "object": pod,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


if __name__ == "__main__":
    sys.exit(main())
