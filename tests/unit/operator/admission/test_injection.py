"""The webhook's changes to an opted-in pod."""

import copy
import json
from typing import Any

import pytest
from savepoint.contract import names
from savepoint_operator.model.objects import Policy, StatePath
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.injection import Injected, inject

from tests.fakes.policy import policy
from tests.unit.operator.admission.pods import CONFIG, by_name, mounted, pod


def injected(given: dict[str, Any], *policies: Policy, level: str = "") -> Injected:
    before = copy.deepcopy(given)
    result = inject(given, policies, level, CONFIG)
    assert isinstance(result, Injected), result
    assert given == before, "the given pod was changed"
    return result


def refused(given: dict[str, Any], *policies: Policy, level: str = "") -> Refusal:
    result = inject(given, policies, level, CONFIG)
    assert isinstance(result, Refusal), "the pod was injected"
    return result


def roots(result: Injected) -> list[dict[str, Any]]:
    sidecar = by_name(result.pod["spec"]["initContainers"], names.CONTAINER_SIDECAR)
    found: list[dict[str, Any]] = json.loads(by_name(sidecar["env"], names.ENV_ROOTS)["value"])
    return found


# -- containers ---------------------------------------------------------------------------------------------------


def test_the_order_is_own_init_containers_then_meshes_then_restore_then_sidecar() -> None:
    mesh = {"name": "mesh", "image": "mesh:1", "restartPolicy": "Always"}
    result = injected(pod(initContainers=[{"name": "seed", "image": "seed:1"}, mesh]))
    order = [container["name"] for container in result.pod["spec"]["initContainers"]]
    assert order == ["seed", "mesh", "savepoint-restore", "savepoint-sidecar"]


def test_a_later_injectors_container_precedes_the_restore_after_reinvocation() -> None:
    first = injected(pod()).pod
    first["spec"]["initContainers"].append({"name": "mesh", "image": "mesh:1", "restartPolicy": "Always"})
    order = [container["name"] for container in injected(first).pod["spec"]["initContainers"]]
    assert order == ["mesh", "savepoint-restore", "savepoint-sidecar"]


def test_only_the_sidecar_restarts_and_has_probes() -> None:
    containers = injected(pod()).pod["spec"]["initContainers"]
    restore, sidecar = by_name(containers, names.CONTAINER_RESTORE), by_name(containers, names.CONTAINER_SIDECAR)
    assert sidecar["restartPolicy"] == "Always"
    assert "restartPolicy" not in restore
    assert sidecar["startupProbe"]["exec"]["command"] == ["savepoint-sidecar", "ready"]
    assert sidecar["lifecycle"]["preStop"]["exec"]["command"] == ["savepoint-sidecar", "prestop"]
    assert {"name": names.VOLUME_SOCKET, "mountPath": names.SOCKET_DIRECTORY} in sidecar["volumeMounts"]
    assert names.VOLUME_SOCKET not in {mount["name"] for mount in restore["volumeMounts"]}


def test_both_containers_are_small_and_have_no_cpu_limit() -> None:
    for container in injected(pod()).pod["spec"]["initContainers"]:
        assert container["resources"] == {
            "requests": {"cpu": "20m", "memory": "48Mi"},
            "limits": {"memory": "320Mi"},
        }


def test_both_containers_mount_their_token_and_not_the_api_servers() -> None:
    result = injected(pod())
    for container in result.pod["spec"]["initContainers"]:
        token = by_name(container["volumeMounts"], names.VOLUME_TOKEN)
        assert token == {"name": names.VOLUME_TOKEN, "mountPath": names.TOKEN_DIRECTORY, "readOnly": True}
        hidden = by_name(container["volumeMounts"], names.VOLUME_NO_API_TOKEN)
        assert hidden["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    volumes = result.pod["spec"]["volumes"]
    assert by_name(volumes, names.VOLUME_NO_API_TOKEN)["emptyDir"] == {}
    (source,) = by_name(volumes, names.VOLUME_TOKEN)["projected"]["sources"]
    assert source == {"serviceAccountToken": {"audience": "savepoint.dev", "expirationSeconds": 3600, "path": "token"}}


def test_the_agent_gets_socket_and_stage_and_neither_token_nor_url() -> None:
    agent = injected(pod(container={"env": [{"name": "MODEL", "value": "m"}]})).pod["spec"]["containers"][0]
    assert agent["env"] == [
        {"name": "MODEL", "value": "m"},
        {"name": "SAVEPOINT_SOCKET", "value": "/run/savepoint/socket/agent.sock"},
        {"name": "SAVEPOINT_STAGE", "value": "/run/savepoint/stage"},
    ]
    assert [mount["name"] for mount in agent["volumeMounts"]] == [names.VOLUME_SOCKET, names.VOLUME_STAGE]


@pytest.mark.parametrize(("given", "seconds"), [({}, "30"), ({"terminationGracePeriodSeconds": 0}, "0")])
def test_the_sidecar_gets_the_grace_period(given: dict[str, Any], seconds: str) -> None:
    for container in injected(pod(**given)).pod["spec"]["initContainers"]:
        assert by_name(container["env"], names.ENV_GRACE_SECONDS)["value"] == seconds


def test_the_containers_get_the_pods_identity_by_the_downward_api() -> None:
    sidecar = by_name(injected(pod()).pod["spec"]["initContainers"], names.CONTAINER_SIDECAR)
    paths = {item["name"]: item["valueFrom"]["fieldRef"]["fieldPath"] for item in sidecar["env"] if "valueFrom" in item}
    assert paths == {
        "SAVEPOINT_POD_NAME": "metadata.name",
        "SAVEPOINT_POD_NAMESPACE": "metadata.namespace",
        "SAVEPOINT_POD_UID": "metadata.uid",
        "SAVEPOINT_NODE_NAME": "spec.nodeName",
    }


# -- which container is the agent's -------------------------------------------------------------------------------


TWO = [{"name": "helper", "image": "h:1"}, {"name": "brain", "image": "b:1"}]


def agent_of(result: Injected) -> str:
    having = [item["name"] for item in result.pod["spec"]["containers"] if item.get("env")]
    assert len(having) == 1
    return str(having[0])


def test_the_first_container_is_the_agents() -> None:
    assert agent_of(injected(pod(containers=TWO))) == "helper"


def test_the_default_container_annotation_names_the_agents_container() -> None:
    named = {"kubectl.kubernetes.io/default-container": "brain"}
    assert agent_of(injected(pod(containers=TWO, annotations=named))) == "brain"


def test_the_policy_names_the_agents_container() -> None:
    named = {"kubectl.kubernetes.io/default-container": "helper"}
    given = pod(containers=TWO, annotations=named)
    assert agent_of(injected(given, policy("p", container_name="brain"))) == "brain"


def test_a_policy_that_names_a_missing_container_is_refused_with_the_existing_names() -> None:
    refusal = refused(pod(containers=TWO), policy("p", container_name="mind"))
    assert refusal.reason == "ContainerNotFound"
    assert "'mind'" in refusal.message
    assert "helper, brain" in refusal.message


# -- what policies change -----------------------------------------------------------------------------------------


def test_a_policy_sizes_the_stage_and_the_containers() -> None:
    sized = policy(
        "p", stage_size_limit="2Gi", stage_medium="Memory", resources={"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}
    )
    result = injected(pod(), sized)
    assert by_name(result.pod["spec"]["volumes"], names.VOLUME_STAGE)["emptyDir"] == {
        "medium": "Memory",
        "sizeLimit": "2Gi",
    }
    for container in result.pod["spec"]["initContainers"]:
        assert container["resources"] == sized.resources
    assert result.policy == "p"


def test_a_policys_state_path_gets_a_volume_of_its_size() -> None:
    sized = policy("p", state_paths=(StatePath("/workspace", "10Gi"),))
    result = injected(pod(), sized)
    assert by_name(result.pod["spec"]["volumes"], "savepoint-state-workspace")["emptyDir"] == {"sizeLimit": "10Gi"}
    agent = result.pod["spec"]["containers"][0]
    assert {"name": "savepoint-state-workspace", "mountPath": "/workspace"} in agent["volumeMounts"]
    assert roots(result) == [
        {
            "name": "workspace",
            "mountPath": "/workspace",
            "path": "/savepoint/state/workspace",
            "persistent": False,
            "chosen": False,
        }
    ]


def test_invalid_paths_and_uids_are_refused() -> None:
    assert refused(pod(annotations={names.ANNOTATION_STATE: "workspace"})).reason == "StatePathInvalid"
    assert refused(pod(), level="restricted").reason == "RunAsUserRequired"


# -- tolerations and annotations ----------------------------------------------------------------------------------


def toleration(taint: str, seconds: int) -> dict[str, Any]:
    return {
        "key": f"node.kubernetes.io/{taint}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": seconds,
    }


def test_the_api_servers_default_tolerations_are_shortened() -> None:
    given = pod(tolerations=[toleration("not-ready", 300), toleration("unreachable", 300)])
    expected = [toleration("not-ready", 30), toleration("unreachable", 30)]
    assert injected(given).pod["spec"]["tolerations"] == expected
    assert injected(pod()).pod["spec"]["tolerations"] == expected


def test_the_owners_tolerations_stay() -> None:
    own = [toleration("not-ready", 60), {"key": "gpu", "operator": "Exists"}]
    result = injected(pod(tolerations=own)).pod["spec"]["tolerations"]
    assert result == [*own, toleration("unreachable", 30)]
    everything = [{"operator": "Exists"}]
    assert injected(pod(tolerations=everything)).pod["spec"]["tolerations"] == everything


def test_the_autoscaler_annotation_lists_our_volumes_and_the_owners() -> None:
    key = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
    result = injected(pod(annotations={key: "cache", names.ANNOTATION_STATE: "/workspace"}))
    assert result.pod["metadata"]["annotations"][key].split(",") == [
        "cache",
        "savepoint-socket",
        "savepoint-stage",
        "savepoint-no-api-token",
        "savepoint-state-workspace",
    ]


def test_the_injection_is_marked() -> None:
    annotations = injected(pod()).pod["metadata"]["annotations"]
    assert annotations["savepoint.dev/injected"] == "1"
    assert len(annotations["savepoint.dev/config-hash"]) == 64


# -- forged copies ------------------------------------------------------------------------------------------------


def test_everything_under_a_reserved_name_is_replaced() -> None:
    forged = pod(
        annotations={names.ANNOTATION_INJECTED: "9", names.ANNOTATION_CONFIG_HASH: "0" * 64},
        container={"env": [{"name": "SAVEPOINT_SOCKET", "value": "/tmp/x"}]},
        initContainers=[
            {"name": "savepoint-restore", "image": "evil:1"},
            {"name": "savepoint-sidecar", "image": "e:1"},
        ],
        volumes=[
            {"name": "savepoint-socket", "hostPath": {"path": "/"}},
            {"name": "savepoint-token", "emptyDir": {}},
            {"name": "savepoint-state-workspace", "hostPath": {"path": "/etc"}},
        ],
    )
    forged["spec"]["containers"].append({"name": "savepoint-sidecar", "image": "evil:1"})
    assert injected(forged).pod == injected(pod(annotations={})).pod


def test_a_pod_whose_only_container_is_forged_has_no_agent() -> None:
    refusal = refused(pod(containers=[{"name": "savepoint-sidecar", "image": "evil:1"}]))
    assert refusal.reason == "ContainerNotFound"


def test_a_container_that_mounts_our_token_is_refused() -> None:
    refusal = refused(pod(container=mounted(**{"savepoint-token": "/t"})))
    assert refusal.reason == "TokenMounted"
    assert "'agent'" in refusal.message


def test_a_token_for_our_audience_under_another_name_is_refused() -> None:
    source = {"serviceAccountToken": {"audience": "savepoint.dev", "path": "t"}}
    given = pod(container=mounted(mine="/t"), volumes=[{"name": "mine", "projected": {"sources": [source]}}])
    assert refused(given).reason == "TokenMounted"


@pytest.mark.parametrize("path", ["/run/savepoint", "/run/savepoint/socket", "/savepoint/state"])
def test_a_volume_over_reserved_paths_is_refused(path: str) -> None:
    given = pod(container=mounted(mine=path), volumes=[{"name": "mine", "emptyDir": {}}])
    assert refused(given).reason == "MountPathReserved"


@pytest.mark.parametrize("field", ["shareProcessNamespace", "hostPID"])
def test_a_shared_process_namespace_is_refused(field: str) -> None:
    given = pod()
    given["spec"][field] = True
    refusal = refused(given)
    assert refusal.reason == "ProcessNamespaceShared"
    assert field in refusal.message


def test_windows_pods_are_refused() -> None:
    assert refused(pod(os={"name": "windows"})).reason == "PlatformUnsupported"


def test_static_pods_are_refused() -> None:
    refusal = refused(pod(annotations={"kubernetes.io/config.mirror": "x"}))
    assert refusal.reason == "PlatformUnsupported"
    assert "static pods" in refusal.message


@pytest.mark.parametrize("agent", ["", "Coder", "a_b", "-a", "a-", "a.b", "a" * 53])
def test_names_that_are_not_a_dns_label_of_52_characters_are_refused(agent: str) -> None:
    refusal = refused(pod(agent=agent))
    assert refusal.reason == "AgentNameInvalid"
    assert "savepoint.dev/agent" in refusal.message


def test_a_name_of_52_characters_is_accepted() -> None:
    injected(pod(agent="a" * 52))
