"""The directories that are state, and how the injected containers mount them."""

import json
from typing import Any

import pytest
from savepoint_operator.model.objects import Policy, StatePath
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.state_roots import Root, State, find_state
from savepoint_operator.rules.policy import NO_POLICY

from tests.cpu import cpu_ratio
from tests.fakes.policy import policy
from tests.unit.operator.admission.pods import mounted, pod


def state(given: dict[str, Any], policy: Policy = NO_POLICY) -> State:
    result = find_state(given, given["spec"]["containers"][0], policy)
    assert isinstance(result, State), result
    return result


def paths(found: State) -> list[str]:
    return [root.mount_path for root in found.roots]


def test_every_writable_volume_of_the_agent_is_state() -> None:
    given = pod(
        container=mounted(work="/workspace", data="/data", scratch="/scratch", conf="/etc/conf", key="/key"),
        volumes=[
            {"name": "work", "emptyDir": {}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}},
            {"name": "conf", "configMap": {"name": "conf"}},
            {"name": "key", "secret": {"secretName": "key"}},
            {"name": "unused", "emptyDir": {}},
        ],
    )
    found = state(given)
    assert [(root.mount_path, root.persistent) for root in found.roots] == [
        ("/data", True),
        ("/scratch", False),
        ("/workspace", False),
    ]
    assert found.warnings == ()
    assert found.added == ()


@pytest.mark.parametrize(
    ("volume", "mount"),
    [
        ({"emptyDir": {}}, {"readOnly": True}),
        ({"persistentVolumeClaim": {"claimName": "c", "readOnly": True}}, {}),
        ({"emptyDir": {"medium": "Memory"}}, {"mountPath": "/dev/shm"}),
        ({"projected": {"sources": []}}, {}),
    ],
)
def test_read_only_volumes_and_shared_memory_are_not_state(volume: dict[str, Any], mount: dict[str, Any]) -> None:
    given = pod(
        container={"volumeMounts": [{"name": "v", "mountPath": "/v"} | mount]}, volumes=[{"name": "v"} | volume]
    )
    found = state(given)
    assert found.roots == ()
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("volume", "mount", "cause"),
    [
        ({"hostPath": {"path": "/x"}}, {}, "hostPath"),
        ({"nfs": {"server": "s", "path": "/"}}, {}, "nfs"),
        ({"csi": {"driver": "d"}}, {}, "csi"),
        ({"ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteMany"]}}}}, {}, "ReadWriteMany"),
        ({"emptyDir": {}}, {"subPathExpr": "$(POD)"}, "subPathExpr"),
    ],
)
def test_a_warning_names_what_looks_like_state_but_is_not(
    volume: dict[str, Any], mount: dict[str, Any], cause: str
) -> None:
    given = pod(
        container={"volumeMounts": [{"name": "v", "mountPath": "/v"} | mount]}, volumes=[{"name": "v"} | volume]
    )
    found = state(given)
    assert found.roots == ()
    (warning,) = found.warnings
    assert cause in warning
    assert "/v" in warning


def test_a_policy_may_list_the_volumes_that_are_state() -> None:
    given = pod(
        container=mounted(work="/workspace", shared="/shared"),
        volumes=[{"name": "work", "emptyDir": {}}, {"name": "shared", "persistentVolumeClaim": {"claimName": "c"}}],
    )
    found = state(given, policy("p", state_volumes=("work", "gone")))
    assert paths(found) == ["/workspace"]
    assert found.warnings == ("policy 'p' lists volume 'gone' as state, but container 'agent' does not mount it",)
    assert paths(state(given, policy("p", state_volumes=()))) == []


def test_a_shared_volume_that_the_policy_lists_is_state() -> None:
    many = {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteMany"]}}}
    given = pod(
        container=mounted(claim="/claim", scratch="/scratch"),
        volumes=[
            {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
            {"name": "scratch", "ephemeral": many},
        ],
    )
    found = state(given, policy("p", state_volumes=("claim", "scratch"), state_paths=(StatePath("/more"),)))
    assert [(root.mount_path, root.chosen) for root in found.roots] == [
        ("/claim", True),
        ("/more", False),
        ("/scratch", True),
    ]
    assert found.warnings == ()
    (left,) = state(given).roots
    assert (left.mount_path, left.chosen) == ("/claim", False)


def test_a_sub_path_is_mounted_in_the_injected_containers() -> None:
    given = pod(
        container={"volumeMounts": [{"name": "v", "mountPath": "/v/", "subPath": "a/b"}]},
        volumes=[{"name": "v", "emptyDir": {}}],
    )
    (root,) = state(given).roots
    assert root.mount() == {"name": "v", "mountPath": "/savepoint/state/v", "subPath": "a/b"}


def test_each_part_of_a_volume_is_captured_once() -> None:
    mounts = [
        {"name": "v", "mountPath": "/inner", "subPath": "a/b"},
        {"name": "v", "mountPath": "/outer", "subPath": "a"},
        {"name": "v", "mountPath": "/again", "subPath": "a"},
        {"name": "v", "mountPath": "/other", "subPath": "ab"},
    ]
    given = pod(container={"volumeMounts": mounts}, volumes=[{"name": "v", "emptyDir": {}}])
    assert paths(state(given)) == ["/other", "/outer"]
    given["spec"]["containers"][0]["volumeMounts"].append({"name": "v", "mountPath": "/all"})
    assert paths(state(given)) == ["/all"]


def test_an_annotated_path_gets_an_empty_volume() -> None:
    found = state(pod(annotations={"savepoint.dev/state": " /workspace , /home/node/.agent/,"}))
    assert paths(found) == ["/home/node/.agent", "/workspace"]
    assert [root.volume for root, _ in found.added] == [f"savepoint-state-{root.name}" for root in found.roots]


def test_a_path_inside_a_volume_gets_no_volume() -> None:
    given = pod(
        annotations={"savepoint.dev/state": "/workspace,/workspace/src,/data"},
        container=mounted(work="/workspace"),
        volumes=[{"name": "work", "emptyDir": {}}],
    )
    found = state(given)
    assert [root.mount_path for root, _ in found.added] == ["/data"]
    assert paths(found) == ["/data", "/workspace"]


def test_a_path_inside_another_is_covered_by_it() -> None:
    found = state(
        pod(annotations={"savepoint.dev/state": "/a/b,/ab"}),
        policy("p", state_paths=(StatePath("/a", "1Gi"),)),
    )
    assert [(path.mount_path, path.size_limit) for _, path in found.added] == [("/a", "1Gi"), ("/ab", None)]


def test_the_policy_sizes_a_path_that_annotation_and_policy_list() -> None:
    given = pod(annotations={"savepoint.dev/state": "/a/"})
    found = state(given, policy("p", state_paths=(StatePath("/a", "1Gi"),)))
    assert [path.size_limit for _, path in found.added] == ["1Gi"]


def test_a_warning_names_a_path_in_a_volume_that_cannot_be_captured() -> None:
    given = pod(
        annotations={"savepoint.dev/state": "/v/x"},
        container=mounted(v="/v"),
        volumes=[{"name": "v", "hostPath": {"path": "/x"}}],
    )
    found = state(given)
    assert found.roots == ()
    assert "/v/x" in found.warnings[-1]


@pytest.mark.parametrize(
    "path", ["workspace", "/", "//", "/.", "/a/../b", "/a:b", "/a\nb", "/etc", "/usr/", "/proc/1", "/run/savepoint/x"]
)
def test_paths_that_cannot_be_state_are_refused(path: str) -> None:
    for given, chosen in (
        (pod(annotations={"savepoint.dev/state": path}), NO_POLICY),
        (pod(), policy("p", state_paths=(StatePath(path),))),
    ):
        result = find_state(given, given["spec"]["containers"][0], chosen)
        assert isinstance(result, Refusal)
        assert result.reason == "StatePathInvalid"


@pytest.mark.parametrize(
    ("path", "name"),
    [("/workspace", "workspace"), ("/data/a1", "data-a1"), ("/home/node/.agent", "home-node-agent-a007c009")],
)
def test_the_name_of_a_root_is_derived_from_its_path(path: str, name: str) -> None:
    assert Root(path, "v", persistent=False).name == name


def test_the_names_of_roots_are_distinct_dns_labels() -> None:
    alike = ["/a-b", "/a/b", "/A/b", "/a_b", "/" + "x" * 80, "/" + "x" * 81, "/___", "/a/b-"]
    made = [Root(path, "v", persistent=False).name for path in alike]
    assert len(set(made)) == len(alike)
    assert all(len(name) <= 47 and name.replace("-", "").isalnum() and name == name.strip("-") for name in made)


def test_the_kubelet_expands_no_variable_in_the_roots() -> None:
    found = state(pod(annotations={"savepoint.dev/state": "/a/$(HOME)"}))
    assert '"mountPath":"/a/$$(HOME)"' in found.environment()


@pytest.mark.parametrize(
    "huge",
    [
        pod(annotations={"savepoint.dev/state": ",".join(f"/a{n}" for n in range(30_000))}),
        pod(
            container={
                "volumeMounts": [{"name": "v", "mountPath": f"/m{n}", "subPath": f"s{n}"} for n in range(30_000)]
            },
            volumes=[{"name": "v", "emptyDir": {}}],
        ),
        pod(
            container={
                "volumeMounts": [
                    {"name": "v", "mountPath": f"/m{n}", "subPath": "a/" * 5000 + str(n)} for n in range(256)
                ]
            },
            volumes=[{"name": "v", "emptyDir": {}}],
        ),
    ],
    ids=["paths", "mounts", "long subPaths"],
)
def test_a_huge_pod_does_not_delay_the_admission_of_others(huge: dict[str, Any]) -> None:
    """The webhook handles the pods of the whole cluster one after another."""
    review = json.dumps(huge)
    result = find_state(huge, huge["spec"]["containers"][0], NO_POLICY)
    ratio = cpu_ratio(lambda: find_state(huge, huge["spec"]["containers"][0], NO_POLICY), lambda: json.loads(review))
    assert ratio < 100
    assert isinstance(result, State) or result.reason == "StatePathInvalid"
