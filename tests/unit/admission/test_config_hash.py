"""What changes the configuration hash, and what does not."""

from typing import Any

import pytest
from savepoint_operator.rules.admission_config import config_hash

from tests.unit.admission.pods import pod


def hashed(volumes: list[dict[str, Any]] | None = None, **fields: Any) -> str:
    given = pod(container=fields, volumes=volumes or [])
    return config_hash(given, given["spec"]["containers"][0])


def variable(value: str) -> dict[str, Any]:
    return {"env": [{"name": "K", "value": value}]}


CONFIG = [{"name": "c", "configMap": {"name": "settings"}}]


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
        {"volumes": CONFIG, "volumeMounts": [{"name": "c", "mountPath": "/c"}]},
    ],
)
def test_it_changes_with_image_command_arguments_environment_and_config_maps(fields: dict[str, Any]) -> None:
    others = [hashed(), hashed(**variable("3")), hashed(image="coder:9")]
    assert hashed(**fields) not in others


def test_it_holds_no_value_from_a_secret_but_its_name() -> None:
    def secret(name: str, key: str) -> str:
        return hashed(env=[{"name": "K", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}])

    assert secret("a", "b") == secret("c", "d")
    assert secret("a", "b") != hashed()


def test_the_order_of_variables_does_not_count() -> None:
    one, two = {"name": "A", "value": "1"}, {"name": "B", "value": "2"}
    assert hashed(env=[one, two]) == hashed(env=[two, one])


def test_what_differs_from_pod_to_pod_does_not_count() -> None:
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
    assert hashed([volume], volumeMounts=mounts) == hashed(CONFIG, volumeMounts=mounts)
