"""The local cluster meets the requirements of the other tests, and fault injection has the documented effects.

Savepoint is not involved. If a test here fails, failures of other tests may have the same cause.
"""

import json
import time
from typing import Any

import pytest

from e2e.cluster.command import ClusterError
from e2e.cluster.nodes import NodeController
from e2e.harness.kube import CommandFailed, Kubectl, until

IMAGE = "savepoint.local/busybox:dev"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
SERVE = "mkdir -p /tmp/www && hostname >/tmp/www/name && exec httpd -f -p 8080 -h /tmp/www"
DETECTION_SECONDS = 30  # measured: 8 to 10


def container(name: str, script: str, **more: Any) -> dict[str, Any]:
    command = ["sh", "-c", script]
    return {"name": name, "image": IMAGE, "command": command, "securityContext": RESTRICTED, **more}


def pod(name: str, *containers: dict[str, Any], node: str = "", **spec: Any) -> str:
    """Return a pod's manifest; with a node, for that node only."""
    selector = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"containers": containers, "terminationGracePeriodSeconds": 1, **selector, **spec},
        }
    )


def run_pod(kubectl: Kubectl, name: str, *containers: dict[str, Any], node: str = "", **spec: Any) -> dict[str, Any]:
    """Create a pod and return it once it is Ready; without containers it serves its name on port 8080."""
    kubectl.apply(pod(name, *(containers or (container("main", SERVE),)), node=node, **spec))
    kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    found: dict[str, Any] = kubectl.get("pod", name)
    return found


def fetch(kubectl: Kubectl, client: str, address: str) -> str:
    """Return the response of the server at the address to a client pod; empty if there is none within two seconds."""
    try:
        command = ("timeout", "2", "wget", "-q", "-O", "-", f"http://{address}/name")
        return kubectl("exec", client, "--", *command).strip()
    except CommandFailed:
        return ""


def test_three_nodes_are_ready_and_run_one_version(kubectl: Kubectl) -> None:
    listed = kubectl.items("nodes")
    assert len(listed) == 3
    for node in listed:
        conditions = {condition["type"]: condition["status"] for condition in node["status"]["conditions"]}
        assert conditions["Ready"] == "True", node["metadata"]["name"]
        assert node["status"]["nodeInfo"]["kubeletVersion"].startswith("v1.37.")


def test_init_container_native_sidecar_and_main_share_a_volume(namespace: Kubectl) -> None:
    mounts = {"volumeMounts": [{"name": "work", "mountPath": "/data"}]}
    run_pod(
        namespace,
        "trio",
        container("main", "cat /data/lines && sleep 600", **mounts),
        initContainers=[
            container("init", "echo init >/data/lines", **mounts),
            container("sidecar", "echo sidecar >>/data/lines && sleep 600", restartPolicy="Always", **mounts),
        ],
        volumes=[{"name": "work", "emptyDir": {}}],
        securityContext={"fsGroup": 1000},
    )
    until(
        "both lines are printed",
        lambda: namespace("logs", "trio", "-c", "main").split() == ["init", "sidecar"],
        seconds=20,
    )


def test_privileged_pod_is_rejected_in_a_restricted_namespace(namespace: Kubectl) -> None:
    privileged = container("main", "true") | {"securityContext": {"privileged": True}}
    with pytest.raises(CommandFailed, match="violates PodSecurity"):
        namespace.apply(pod("bad", privileged))


def test_pods_reach_pods_services_and_the_api_server_across_nodes(namespace: Kubectl, nodes: NodeController) -> None:
    first, second = nodes.workers()
    server = run_pod(namespace, "server", node=second)
    run_pod(namespace, "client", node=first)
    namespace("expose", "pod", "server", "--port=80", "--target-port=8080")
    assert fetch(namespace, "client", f"{server['status']['podIP']}:8080") == "server"
    service = f"server.{namespace.namespace}.svc.cluster.local"
    assert until("the service answers", lambda: fetch(namespace, "client", service), seconds=20) == "server"
    request = r"printf 'GET / HTTP/1.0\r\n\r\n' | timeout 5 nc kubernetes.default.svc.cluster.local 443"
    assert "HTTPS server" in namespace("exec", "client", "--", "sh", "-c", request)


def test_dns_resolves_service_names(namespace: Kubectl) -> None:
    run_pod(namespace, "client")
    answer = namespace("exec", "client", "--", "nslookup", "kubernetes.default.svc.cluster.local")
    assert "10.96.0.1" in answer


def test_a_volume_claim_keeps_its_content_between_pods(namespace: Kubectl) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "disk"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}},
    }
    namespace.apply(json.dumps(claim))
    volume: dict[str, Any] = {"volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]}
    mounts = {"volumeMounts": [{"name": "disk", "mountPath": "/disk"}]}
    run_pod(namespace, "writer", container("main", "echo kept >/disk/file; sleep 600", **mounts), **volume)
    namespace("delete", "pod", "writer", "--timeout=60s")
    run_pod(namespace, "reader", container("main", "cat /disk/file; sleep 600", **mounts), **volume)
    assert namespace("logs", "reader").strip() == "kept"


def test_killed_container_restarts_in_place(namespace: Kubectl, nodes: NodeController) -> None:
    mounts = {"volumeMounts": [{"name": "work", "mountPath": "/data"}]}
    before = run_pod(
        namespace,
        "victim",
        container("main", "sleep 600", **mounts),
        initContainers=[container("init", "echo ran >>/data/inits", **mounts)],
        volumes=[{"name": "work", "emptyDir": {}}],
        securityContext={"fsGroup": 1000},
    )
    nodes.kill_container(str(namespace.namespace), "victim", "main")

    def restarted() -> dict[str, Any] | None:
        found: dict[str, Any] = namespace.get("pod", "victim")
        status = found["status"]["containerStatuses"][0]
        return found if status["restartCount"] == 1 and "running" in status["state"] else None

    after = until("the container restarts", restarted, seconds=60)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137
    assert namespace("exec", "victim", "-c", "main", "--", "cat", "/data/inits").split() == ["ran"]


def test_frozen_container_stops_until_it_is_thawed(namespace: Kubectl, nodes: NodeController) -> None:
    run_pod(namespace, "ticker", container("main", "while true; do date +%s >/tmp/tick; sleep 0.2; done"))
    node = nodes.node_of(str(namespace.namespace), "ticker")

    def tick() -> str:
        # not through the API server: `exec` into a frozen container never returns
        root = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{identifier}/rootfs"
        return nodes.execute(node, "cat", f"{root}/tmp/tick").strip()

    status = namespace.get("pod", "ticker")["status"]["containerStatuses"][0]
    identifier = status["containerID"].rpartition("/")[2]
    nodes.freeze_container(str(namespace.namespace), "ticker", "main")
    frozen = tick()
    time.sleep(2.5)
    assert tick() == frozen
    nodes.thaw_container(str(namespace.namespace), "ticker", "main")
    until("the container ticks again", lambda: tick() > frozen, seconds=10)


@pytest.mark.timeout(300)
def test_drain_moves_a_pod_to_another_node(namespace: Kubectl, nodes: NodeController) -> None:
    spec = json.loads(pod("mover", container("main", SERVE)))
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "mover"},
        "spec": {
            "selector": {"matchLabels": {"app": "mover"}},
            "template": {"metadata": {"labels": {"app": "mover"}}, "spec": spec["spec"]},
        },
    }
    namespace.apply(json.dumps(deployment))
    namespace("rollout", "status", "deployment/mover", "--timeout=60s")
    (mover,) = namespace.items("pods", "app=mover")
    node = mover["spec"]["nodeName"]
    namespace("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
    namespace("rollout", "status", "deployment/mover", "--timeout=60s")
    used = [item["spec"]["nodeName"] for item in namespace.items("pods", "app=mover")]
    assert node not in used
    namespace("uncordon", node)


@pytest.mark.timeout(300)
def test_power_loss_of_a_worker_is_detected_and_it_returns_rebooted(namespace: Kubectl, nodes: NodeController) -> None:
    worker, other = nodes.workers()
    boot = namespace.get("node", worker)["status"]["nodeInfo"]["bootID"]
    nodes.kill(worker)
    nodes.wait_not_ready(worker, seconds=DETECTION_SECONDS)
    nodes.start(worker)
    nodes.wait_ready(worker, seconds=60)
    until(
        "the boot ID changes", lambda: namespace.get("node", worker)["status"]["nodeInfo"]["bootID"] != boot, seconds=20
    )
    server = run_pod(namespace, "server", node=worker)
    run_pod(namespace, "client", node=other)
    address = f"{server['status']['podIP']}:8080"
    assert until("the pods reach each other", lambda: fetch(namespace, "client", address), seconds=30) == "server"


@pytest.mark.timeout(300)
def test_frozen_worker_is_detected_and_returns_when_thawed(nodes: NodeController) -> None:
    worker = nodes.workers()[0]
    nodes.freeze(worker)
    nodes.wait_not_ready(worker, seconds=DETECTION_SECONDS)
    nodes.thaw(worker)
    nodes.wait_ready(worker, seconds=60)


@pytest.mark.timeout(300)
def test_control_plane_returns_after_a_power_loss(namespace: Kubectl, nodes: NodeController) -> None:
    server = run_pod(namespace, "server")["metadata"]["uid"]
    nodes.kill(nodes.control_plane)
    with pytest.raises(CommandFailed):
        namespace("get", "nodes", "--request-timeout=3s")
    nodes.start(nodes.control_plane)
    nodes.wait_ready(nodes.control_plane, seconds=90)
    assert namespace.get("pod", "server")["metadata"]["uid"] == server


@pytest.mark.timeout(300)
def test_pods_keep_running_on_an_unplugged_worker(namespace: Kubectl, nodes: NodeController) -> None:
    worker = nodes.workers()[0]
    run_pod(namespace, "isolated", node=worker)
    nodes.cut_off(worker)
    nodes.wait_not_ready(worker, seconds=DETECTION_SECONDS)
    assert "isolated" in nodes.execute(worker, "crictl", "pods", "--state", "ready")
    nodes.reconnect(worker)
    nodes.wait_ready(worker, seconds=60)


@pytest.mark.timeout(300)
def test_block_drops_packets_of_one_pod_only(namespace: Kubectl, nodes: NodeController) -> None:
    first, second = nodes.workers()
    store = run_pod(namespace, "store", node=second)["status"]["podIP"]
    bystander = run_pod(namespace, "bystander", node=second)["status"]["podIP"]
    run_pod(namespace, "client", node=first)
    assert fetch(namespace, "client", f"{store}:8080") == "store"
    nodes.block_pods(first, str(namespace.namespace), "app=store")
    assert fetch(namespace, "client", f"{store}:8080") == ""
    assert fetch(namespace, "client", f"{bystander}:8080") == "bystander"
    nodes.unblock(first)
    assert fetch(namespace, "client", f"{store}:8080") == "store"


@pytest.mark.timeout(300)
def test_killed_kubelet_stays_dead_while_its_containers_run(namespace: Kubectl, nodes: NodeController) -> None:
    first, second = nodes.workers()
    server = run_pod(namespace, "server", node=first)["status"]["podIP"]
    run_pod(namespace, "client", node=second)
    nodes.kill_kubelet(first)
    nodes.wait_not_ready(first, seconds=DETECTION_SECONDS)
    assert fetch(namespace, "client", f"{server}:8080") == "server"
    nodes.start_kubelet(first)
    nodes.wait_ready(first, seconds=60)


def test_a_missing_container_is_a_cluster_error(namespace: Kubectl, nodes: NodeController) -> None:
    run_pod(namespace, "present")
    with pytest.raises(ClusterError, match="no running container absent"):
        nodes.kill_container(str(namespace.namespace), "present", "absent")
