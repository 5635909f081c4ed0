"""The claims of an injected pod that are examined, and those that are left alone."""

import json
from typing import Any

import pytest
from savepoint.contract import names
from savepoint_operator.model.objects import Policy
from savepoint_operator.model.views import ClaimedRoot
from savepoint_operator.rules.admission.injection import Injected, InjectionConfig, inject
from savepoint_operator.rules.shared_volumes import claimed_roots, is_shared, left_out_message, unreadable_message

from tests.fakes.policy import policy

VOLUMES = [
    {"name": "work", "emptyDir": {}},
    {"name": "team", "persistentVolumeClaim": {"claimName": "team-files"}},
    {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}},
    {"name": "read", "persistentVolumeClaim": {"claimName": "read-only", "readOnly": True}},
    {"name": "unmounted", "persistentVolumeClaim": {"claimName": "of-another-container"}},
]
TEAM, SCRATCH = ClaimedRoot("team-files", "team", "team-files"), ClaimedRoot("scratch", "scratch", "coder-1-scratch")


def injected(*policies: Policy, path: str = "/team/files") -> dict[str, Any]:
    mounts = {"work": "/work", "team": path, "scratch": "/scratch", "read": "/read"}
    agent = {
        "name": "agent",
        "image": "coder:7",
        "volumeMounts": [{"name": name, "mountPath": where} for name, where in mounts.items()],
    }
    given = {
        "metadata": {"name": "coder-1", "labels": {names.LABEL_AGENT: "coder"}},
        "spec": {"containers": [agent], "volumes": VOLUMES},
    }
    made = inject(given, policies, "", InjectionConfig("sidecar:1", "wss://operator", "PEM"))
    assert isinstance(made, Injected), made
    return made.pod


def test_claims_that_no_policy_lists_are_examined() -> None:
    assert set(claimed_roots(injected())) == {TEAM, SCRATCH}


def test_a_volume_that_the_policy_lists_is_state_even_if_shared() -> None:
    assert claimed_roots(injected(policy("p", state_volumes=("work", "team")))) == ()


def test_a_path_with_escaped_variables_is_found() -> None:
    (root,) = (each for each in claimed_roots(injected(path="/a$$(b)")) if each.volume == "team")
    assert root.name in json.loads(environment(injected(path="/a$$(b)")).replace("$$", "$"))[0]["name"]


def environment(pod: dict[str, Any]) -> str:
    variables = pod["spec"]["initContainers"][0]["env"]
    return next(str(each["value"]) for each in variables if each["name"] == names.ENV_ROOTS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "5",
        "null",
        '[{"name":"a","path":[],"chosen":false}]',
        "[" * 5000,
        '[{"name": "a"}]',
        '[{"name":"team-files","path":"/x"}]',
    ],
)
def test_malformed_roots_name_no_claims(text: str) -> None:
    pod = injected()
    variables = pod["spec"]["initContainers"][0]["env"]
    next(each for each in variables if each["name"] == names.ENV_ROOTS)["value"] = text
    assert claimed_roots(pod) == ()


def test_a_pod_of_an_older_webhook_names_no_claims() -> None:
    pod = injected()
    roots = [{k: v for k, v in each.items() if k != "chosen"} for each in json.loads(environment(pod))]
    for each in pod["spec"]["initContainers"][0]["env"]:
        if each["name"] == names.ENV_ROOTS:
            each["value"] = json.dumps(roots)
    assert claimed_roots(pod) == ()


def test_a_pod_without_injected_containers_names_no_claims() -> None:
    assert claimed_roots({"metadata": {"name": "bare"}, "spec": {"volumes": VOLUMES, "containers": []}}) == ()


@pytest.mark.parametrize(
    ("modes", "shared"),
    [
        (["ReadWriteMany"], True),
        (["ReadWriteOnce", "ReadWriteMany"], True),
        (["ReadWriteOnce"], False),
        (["ReadWriteOncePod"], False),
        (["ReadOnlyMany"], False),
        (None, False),
    ],
)
def test_a_claim_with_many_writers_is_shared(modes: list[str] | None, shared: bool) -> None:
    assert is_shared({"spec": {"accessModes": modes}}) is shared


def test_the_messages_name_volume_claim_and_remedy() -> None:
    message = left_out_message([TEAM, SCRATCH], "coders")
    assert "volume team (claim team-files)" in message and "volume scratch" in message
    assert 'spec.state.volumes of policy "coders"' in message
    assert "an AgentCheckpointPolicy" in left_out_message([TEAM], None)
    assert "PersistentVolumeClaim team-files of volume team cannot be read: no." in unreadable_message(TEAM, "no")
