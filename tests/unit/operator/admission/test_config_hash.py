"""Changes of the configuration hash: which parts of a pod count."""

from dataclasses import replace
from typing import Any

import pytest
from savepoint.contract.names import ANNOTATION_CONFIG_HASH
from savepoint_operator.rules.admission.config_hash import annotated_hash, config_hash
from savepoint_operator.rules.admission.injection import Injected, inject

from tests.unit.operator.admission.pods import CONFIG, pod


def hashed(volumes: list[dict[str, Any]] | None = None, **fields: Any) -> str:
    given = pod(container=fields, volumes=volumes or [])
    return config_hash(given, given["spec"]["containers"][0])


def variable(value: str) -> dict[str, Any]:
    return {"env": [{"name": "K", "value": value}]}


VOLUMES = [{"name": "c", "configMap": {"name": "settings"}}]


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "coder:8"},
        {"command": ["x"]},
        {"args": ["x"]},
        variable(""),
        variable("1"),
        variable("2"),
        {"env": [{"name": "L", "value": "1"}]},
        {"env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}]},
        {"envFrom": [{"configMapRef": {"name": "a"}}]},
        {"envFrom": [{"secretRef": {"name": "a"}}]},
        {"volumes": VOLUMES, "volumeMounts": [{"name": "c", "mountPath": "/c"}]},
    ],
)
def test_the_hash_changes_with_image_command_arguments_environment_and_config_maps(fields: dict[str, Any]) -> None:
    others = [hashed(), hashed(**variable("3")), hashed(image="coder:9")]
    assert hashed(**fields) not in others


def test_the_hash_covers_names_but_no_values_from_secrets() -> None:
    def secret(name: str, key: str) -> str:
        return hashed(env=[{"name": "K", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}])

    assert secret("a", "b") == secret("c", "d")
    assert secret("a", "b") != hashed()


def test_the_order_of_variables_does_not_count() -> None:
    one, two = {"name": "A", "value": "1"}, {"name": "B", "value": "2"}
    assert hashed(env=[one, two]) == hashed(env=[two, one])


def test_parts_that_differ_from_pod_to_pod_do_not_count() -> None:
    token = {
        "name": "kube-api-access-x7k2p",
        "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "kube-root-ca"}}]},
    }
    mount = {"name": token["name"], "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    state = {"name": "s", "mountPath": "/workspace"}
    assert hashed([token, {"name": "s", "emptyDir": {}}], volumeMounts=[mount, state]) == hashed()


def test_a_projected_config_map_counts() -> None:
    volume = {"name": "c", "projected": {"sources": [{"configMap": {"name": "settings"}}]}}
    mounts = [{"name": "c", "mountPath": "/c"}]
    assert hashed([volume], volumeMounts=mounts) == hashed(VOLUMES, volumeMounts=mounts)


def admitted(given: dict[str, Any], **config: Any) -> dict[str, Any]:
    """Return the pod as the webhook returns it."""
    made = inject(given, (), "baseline", replace(CONFIG, **config))
    assert isinstance(made, Injected), made
    return made.pod


def annotated(given: dict[str, Any], **config: Any) -> str:
    return str(admitted(given, **config)["metadata"]["annotations"][ANNOTATION_CONFIG_HASH])


def from_template(number: int = 0, **container: Any) -> dict[str, Any]:
    """Return one of the pods that a controller creates from one template, as the API server sends it to the webhook."""
    token = {
        "name": f"kube-api-access-{number:05}",
        "projected": {
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            ]
        },
    }
    mounts = [
        {"name": "work", "mountPath": "/workspace"},
        {"name": token["name"], "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True},
    ]
    where = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}
    env = [{"name": "MODE", "value": "work"}, {"name": "POD", "valueFrom": where}]
    made = pod(
        container={"args": ["--run"], "env": env, "volumeMounts": mounts, **container},
        labels={"apps.kubernetes.io/pod-index": str(number), "pod-template-hash": "7d4f"},
        volumes=[{"name": "work", "persistentVolumeClaim": {"claimName": f"work-coder-{number}"}}, token],
        hostname=f"coder-{number}",
        nodeName=f"n{number}",
    )
    made["metadata"] |= {"name": f"coder-{number}", "uid": f"uid-{number}"}
    return made


def test_pods_of_one_template_have_one_hash() -> None:
    first = annotated(from_template(1))
    assert len(first) == 64
    assert {annotated(from_template(number)) for number in range(2, 6)} == {first}


def test_injected_parts_do_not_count() -> None:
    """Neither our own, on reinvocation or after an upgrade, nor what other injectors add beside the agent."""
    first = annotated(from_template())
    once = admitted(from_template())
    assert annotated(once) == first
    upgraded = {
        "image": "savepoint-sidecar:2",
        "control_url": "wss://elsewhere:8443/v1/control",
        "node_loss_seconds": 9,
    }
    assert annotated(once, **upgraded) == annotated(from_template(), **upgraded) == first
    mesh = from_template()
    mesh["spec"]["containers"].append({"name": "mesh", "image": "mesh:1"})
    assert annotated(mesh) == first
    forged = from_template()
    forged["metadata"]["annotations"] = {ANNOTATION_CONFIG_HASH: "0" * 64}
    assert annotated(forged) == first


@pytest.mark.parametrize(
    "container",
    [
        {"image": "coder:8"},
        {"command": ["python"]},
        {"args": ["--run", "--fast"]},
        {"args": ["--run", ""]},
        {"env": []},
        variable("another"),
    ],
)
def test_another_template_has_another_hash(container: dict[str, Any]) -> None:
    assert annotated(from_template(**container)) != annotated(from_template())


def test_an_annotation_that_is_not_a_hash_counts_as_empty() -> None:
    """Otherwise it would be written into the manifest, which could then not be read."""
    assert annotated_hash(annotated(from_template())) == annotated(from_template())
    assert {annotated_hash(text) for text in ("", "mine", "AB" * 32, "ab" * 31, "ab" * 32 + "\n")} == {""}
