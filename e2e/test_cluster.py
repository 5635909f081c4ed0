"""The local cluster does what the rest of the suite builds on, and its faults do what they say.

Nothing of Savepoint runs here. A failure means that the other tests' failures may not be theirs.
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
NOTICED_SECONDS = 30  # measured: 8 to 10


def container(name: str, script: str, **more: Any) -> dict[str, Any]:
    command = ["sh", "-c", script]
    return {"name": name, "image": IMAGE, "command": command, "securityContext": RESTRICTED, **more}


def pod(name: str, *containers: dict[str, Any], node: str = "", **spec: Any) -> str:
    """A pod's manifest. With a node it goes there and nowhere else."""
    where = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"containers": containers, "terminationGracePeriodSeconds": 1, **where, **spec},
        }
    )


def running(kubectl: Kubectl, name: str, *containers: dict[str, Any], node: str = "", **spec: Any) -> dict[str, Any]:
    """Create a pod and wait until it is Ready; without containers it serves its name on port 8080."""
    kubectl.apply(pod(name, *(containers or (container("main", SERVE),)), node=node, **spec))
    kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    found: dict[str, Any] = kubectl.get("pod", name)
    return found


def fetches(kubectl: Kubectl, client: str, address: str) -> str:
    """What the client gets from the server at the address; empty when it gets nothing within two seconds."""
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
    running(
        namespace,
        "trio",
        container("main", "cat /data/words && sleep 600", **mounts),
        initContainers=[
            container("init", "echo init >/data/words", **mounts),
            container("sidecar", "echo sidecar >>/data/words && sleep 600", restartPolicy="Always", **mounts),
        ],
        volumes=[{"name": "work", "emptyDir": {}}],
        securityContext={"fsGroup": 1000},
    )
    until("words", lambda: namespace("logs", "trio", "-c", "main").split() == ["init", "sidecar"], seconds=20)


def test_privileged_pod_is_refused_in_a_restricted_namespace(namespace: Kubectl) -> None:
    privileged = container("main", "true") | {"securityContext": {"privileged": True}}
    with pytest.raises(CommandFailed, match="violates PodSecurity"):
        namespace.apply(pod("bad", privileged))


def test_pods_reach_each_other_services_and_api_server_across_nodes(namespace: Kubectl, nodes: NodeController) -> None:
    here, there = nodes.workers()
    server = running(namespace, "server", node=there)
    running(namespace, "client", node=here)
    namespace("expose", "pod", "server", "--port=80", "--target-port=8080")
    assert fetches(namespace, "client", f"{server['status']['podIP']}:8080") == "server"
    service = f"server.{namespace.namespace}.svc.cluster.local"
    assert until("service", lambda: fetches(namespace, "client", service), seconds=20) == "server"
    ask = r"printf 'GET / HTTP/1.0\r\n\r\n' | timeout 5 nc kubernetes.default.svc.cluster.local 443"
    assert "HTTPS server" in namespace("exec", "client", "--", "sh", "-c", ask)


def test_names_are_resolved(namespace: Kubectl) -> None:
    running(namespace, "asker")
    answer = namespace("exec", "asker", "--", "nslookup", "kubernetes.default.svc.cluster.local")
    assert "10.96.0.1" in answer


def test_claim_keeps_its_content_from_pod_to_pod(namespace: Kubectl) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "disk"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}},
    }
    namespace.apply(json.dumps(claim))
    volume: dict[str, Any] = {"volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]}
    mounts = {"volumeMounts": [{"name": "disk", "mountPath": "/disk"}]}
    running(namespace, "writer", container("main", "echo kept >/disk/file; sleep 600", **mounts), **volume)
    namespace("delete", "pod", "writer", "--timeout=60s")
    running(namespace, "reader", container("main", "cat /disk/file; sleep 600", **mounts), **volume)
    assert namespace("logs", "reader").strip() == "kept"


def test_killed_container_restarts_in_place(namespace: Kubectl, nodes: NodeController) -> None:
    mounts = {"volumeMounts": [{"name": "work", "mountPath": "/data"}]}
    before = running(
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

    after = until("restart", restarted, seconds=60)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137
    assert namespace("exec", "victim", "-c", "main", "--", "cat", "/data/inits").split() == ["ran"]


def test_frozen_container_stops_and_goes_on(namespace: Kubectl, nodes: NodeController) -> None:
    running(namespace, "ticker", container("main", "while true; do date +%s >/tmp/tick; sleep 0.2; done"))
    node = nodes.node_of(str(namespace.namespace), "ticker")

    def tick() -> str:
        # not through the API server: `exec` into a frozen container waits for ever
        root = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{identifier}/rootfs"
        return nodes.execute(node, "cat", f"{root}/tmp/tick").strip()

    status = namespace.get("pod", "ticker")["status"]["containerStatuses"][0]
    identifier = status["containerID"].rpartition("/")[2]
    nodes.freeze_container(str(namespace.namespace), "ticker", "main")
    frozen = tick()
    time.sleep(2.5)
    assert tick() == frozen
    nodes.thaw_container(str(namespace.namespace), "ticker", "main")
    until("ticks", lambda: tick() > frozen, seconds=10)


@pytest.mark.timeout(300)
def test_drain_moves_a_pod_and_uncordon_brings_the_node_back(namespace: Kubectl, nodes: NodeController) -> None:
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
    (first,) = namespace.items("pods", "app=mover")
    node = first["spec"]["nodeName"]
    namespace("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
    namespace("rollout", "status", "deployment/mover", "--timeout=60s")
    places = [item["spec"]["nodeName"] for item in namespace.items("pods", "app=mover")]
    assert node not in places
    namespace("uncordon", node)


@pytest.mark.timeout(300)
def test_worker_without_power_is_noticed_and_comes_back_rebooted(namespace: Kubectl, nodes: NodeController) -> None:
    worker, other = nodes.workers()
    boot = namespace.get("node", worker)["status"]["nodeInfo"]["bootID"]
    nodes.kill(worker)
    nodes.wait_not_ready(worker, seconds=NOTICED_SECONDS)
    nodes.start(worker)
    nodes.wait_ready(worker, seconds=60)
    until("new boot id", lambda: namespace.get("node", worker)["status"]["nodeInfo"]["bootID"] != boot, seconds=20)
    server = running(namespace, "server", node=worker)
    running(namespace, "client", node=other)
    address = f"{server['status']['podIP']}:8080"
    assert until("traffic", lambda: fetches(namespace, "client", address), seconds=30) == "server"


@pytest.mark.timeout(300)
def test_frozen_worker_is_noticed_and_thaws(nodes: NodeController) -> None:
    worker = nodes.workers()[0]
    nodes.freeze(worker)
    nodes.wait_not_ready(worker, seconds=NOTICED_SECONDS)
    nodes.thaw(worker)
    nodes.wait_ready(worker, seconds=60)


@pytest.mark.timeout(300)
def test_control_plane_without_power_comes_back(namespace: Kubectl, nodes: NodeController) -> None:
    server = running(namespace, "server")["metadata"]["uid"]
    nodes.kill(nodes.control_plane)
    with pytest.raises(CommandFailed):
        namespace("get", "nodes", "--request-timeout=3s")
    nodes.start(nodes.control_plane)
    nodes.wait_ready(nodes.control_plane, seconds=90)
    assert namespace.get("pod", "server")["metadata"]["uid"] == server


@pytest.mark.timeout(300)
def test_worker_with_its_cable_pulled_runs_on_alone(namespace: Kubectl, nodes: NodeController) -> None:
    worker = nodes.workers()[0]
    running(namespace, "loner", node=worker)
    nodes.cut_off(worker)
    nodes.wait_not_ready(worker, seconds=NOTICED_SECONDS)
    assert "loner" in nodes.execute(worker, "crictl", "pods", "--state", "ready")
    nodes.reconnect(worker)
    nodes.wait_ready(worker, seconds=60)


@pytest.mark.timeout(300)
def test_block_cuts_one_pod_off_and_nothing_else(namespace: Kubectl, nodes: NodeController) -> None:
    here, there = nodes.workers()
    store = running(namespace, "store", node=there)["status"]["podIP"]
    bystander = running(namespace, "bystander", node=there)["status"]["podIP"]
    running(namespace, "client", node=here)
    assert fetches(namespace, "client", f"{store}:8080") == "store"
    nodes.block_pods(here, str(namespace.namespace), "app=store")
    assert fetches(namespace, "client", f"{store}:8080") == ""
    assert fetches(namespace, "client", f"{bystander}:8080") == "bystander"
    nodes.unblock(here)
    assert fetches(namespace, "client", f"{store}:8080") == "store"


@pytest.mark.timeout(300)
def test_killed_kubelet_stays_dead_while_its_containers_run(namespace: Kubectl, nodes: NodeController) -> None:
    here, there = nodes.workers()
    server = running(namespace, "server", node=here)["status"]["podIP"]
    running(namespace, "client", node=there)
    nodes.kill_kubelet(here)
    nodes.wait_not_ready(here, seconds=NOTICED_SECONDS)
    assert fetches(namespace, "client", f"{server}:8080") == "server"
    nodes.start_kubelet(here)
    nodes.wait_ready(here, seconds=60)


def test_container_that_is_not_there_is_a_typed_error(namespace: Kubectl, nodes: NodeController) -> None:
    running(namespace, "present")
    with pytest.raises(ClusterError, match="no running container absent"):
        nodes.kill_container(str(namespace.namespace), "present", "absent")
