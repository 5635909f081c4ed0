"""Kubernetes objects for tests of the whole operator: those that the chart installs, nodes, and requests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE, find, render
from tests.servers.kubectl import Kubectl

ACCOUNT = "savepoint-operator"
API = "/apis/savepoint.dev/v1alpha1"


def install(server: ApiServer, *more: dict[str, Any]) -> None:
    """Install the kinds, the operator's rights and its namespace from the chart, and further objects.

    Delete the stores that other tests have left: the oldest one with ``default`` would be the default store.
    """
    kubectl = Kubectl(server.kubeconfig)
    kubectl.install_crds()
    server.delete(f"{API}/agentcheckpointstores")
    chart = render()
    items = [core_object("Namespace", NAMESPACE)]
    items += [
        find(chart, kind, ACCOUNT)
        for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    ]
    # The webhook does not run in these tests, so that the configuration must not match any pod.
    configuration = find(chart, "MutatingWebhookConfiguration", "savepoint")
    configuration["webhooks"][0]["namespaceSelector"] = {"matchLabels": {"webhook": "served"}}
    nodes = ("n1", "n2")
    items += [configuration, *(core_object("Node", name) for name in nodes), *more]
    kubectl("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": items})
    for name in nodes:
        set_node_ready(kubectl, name, ready=True)


def core_object(kind: str, name: str, namespace: str = "", **more: Any) -> dict[str, Any]:
    """Return an object of the core API group."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **more}


def checkpoint_request(agent: str, **spec: Any) -> dict[str, Any]:
    """Return the AgentCheckpoint with which a user requests a checkpoint."""
    return {
        "apiVersion": "savepoint.dev/v1alpha1",
        "kind": "AgentCheckpoint",
        "metadata": {"generateName": f"{agent}-"},
        "spec": {"agent": agent, **spec},
    }


def set_node_ready(kubectl: Kubectl, name: str, *, ready: bool) -> None:
    """Report the node as Ready like kubelet, or as Unknown like the node lifecycle controller."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": "Ready",
        "status": "True" if ready else "Unknown",
        "reason": "Test",
        "message": "",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    kubectl.patch(f"node/{name}", {"status": {"conditions": [condition]}}, "--subresource=status")
