"""Pods as their owners write them and as the API server sends them to a webhook."""

from typing import Any

from savepoint_operator.rules.admission.injection import InjectionConfig

CONFIG = InjectionConfig(
    image="savepoint-sidecar:1.2.3",
    control_url="wss://savepoint-operator.savepoint-system.svc:8443/v1/control",
    control_ca_pem="-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n",
)


def pod(
    *,
    agent: str = "coder",
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    container: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return a pod of one container; ``container`` adds fields to it, ``spec`` to the spec."""
    agent_container = {"name": "agent", "image": "coder:7"} | (container or {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{agent}-7d4f-",
            "namespace": "agents",
            "labels": {"savepoint.dev/agent": agent} | (labels or {}),
            **({"annotations": annotations} if annotations is not None else {}),
        },
        "spec": {"containers": [agent_container]} | spec,
    }


def mounted(**mounts: str) -> dict[str, Any]:
    """Return a container's mounts, given as volume=path."""
    return {"volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()]}


def by_name(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the one item of that name."""
    (found,) = (item for item in items if item["name"] == name)
    return found
