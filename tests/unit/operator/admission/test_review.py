"""The AdmissionReview wire format around the injection."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from savepoint_operator.admission.review import ReviewError, answer
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.injection import Injected, inject

from tests.unit.operator.admission.pods import CONFIG, mounted, pod


def review(given: Any, **request: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "agents",
            "operation": "CREATE",
            "object": given,
        }
        | request,
    }


def decide(given: Mapping[str, Any], namespace: str) -> Injected | Refusal:
    assert namespace == "agents"
    return inject(given, [], "", CONFIG)


def apply(given: dict[str, Any], patch: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(given))
    for operation in patch:
        assert operation["op"] == "add"
        _, section, field = operation["path"].split("/")
        result[section][field] = operation["value"]
    return result


def patch_of(response: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(base64.b64decode(response["patch"]))
    return found


def test_the_patch_produces_the_injected_pod() -> None:
    given = pod()
    reply = answer(review(given), decide)
    assert reply["response"]["uid"] == "u-1"
    assert reply["response"]["allowed"] is True
    result = inject(given, [], "", CONFIG)
    assert isinstance(result, Injected)
    assert apply(given, patch_of(reply["response"])) == result.pod


def test_an_injected_pod_gets_no_patch() -> None:
    first = inject(pod(), [], "", CONFIG)
    assert isinstance(first, Injected)
    assert answer(review(first.pod), decide)["response"] == {"uid": "u-1", "allowed": True}


def test_a_refusal_carries_reason_and_remedy() -> None:
    response = answer(review(pod(hostPID=True)), decide)["response"]
    assert response["allowed"] is False
    assert response["status"]["code"] == 422
    assert response["status"]["message"].startswith("savepoint: ProcessNamespaceShared: spec.hostPID ")


def test_warnings_are_short_enough_for_the_api_server() -> None:
    given = pod(container=mounted(v="/" + "x" * 400), volumes=[{"name": "v", "hostPath": {"path": "/"}}])
    (warning,) = answer(review(given), decide)["response"]["warnings"]
    assert warning.startswith("savepoint: /xxx")
    assert len(warning) <= 256


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "text",
        {},
        {"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"},
        review(pod(), operation="UPDATE"),
        review(pod(), resource={"group": "", "version": "v1", "resource": "nodes"}),
        review(pod(), subResource="ephemeralcontainers"),
        review(None),
        review({"metadata": {"labels": {"savepoint.dev/agent": "a"}}}),
        review({"metadata": {"labels": ["a"]}, "spec": {}}),
        review(pod(volumes=[{"emptyDir": {}}])),
    ],
)
def test_anything_but_a_review_of_a_new_pod_is_an_error(broken: Any) -> None:
    with pytest.raises(ReviewError):
        answer(broken, decide)
