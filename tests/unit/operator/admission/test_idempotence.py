"""Injecting an injected pod changes nothing, whatever the pod looks like."""

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from savepoint.contract import names
from savepoint_operator.model.objects import Policy, StatePath
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.injection import Injected, inject

from tests.fakes.policy import policy
from tests.unit.operator.admission.pods import CONFIG, pod

VOLUMES = ["work", "data", "conf", "host", names.VOLUME_SOCKET, names.VOLUME_STAGE, names.STATE_VOLUME_PREFIX + "x"]
FOLDERS = ["/workspace", "/workspace/src", "/data", "/home/node/.agent", "/c"]
SOURCES: list[dict[str, Any]] = [
    {"emptyDir": {}},
    {"persistentVolumeClaim": {"claimName": "c"}},
    {"configMap": {"name": "m"}},
    {"hostPath": {"path": "/x"}},
]


@st.composite
def named(draw: st.DrawFn, wanted: list[str], values: st.SearchStrategy[dict[str, Any]]) -> list[dict[str, Any]]:
    """Draw a list of objects with distinct names."""
    chosen = draw(st.lists(st.sampled_from(wanted), unique=True, max_size=len(wanted)))
    return [{"name": name} | draw(values) for name in chosen]


mounts = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(VOLUMES), "mountPath": st.sampled_from(FOLDERS)},
        optional={"readOnly": st.booleans(), "subPath": st.sampled_from(["a", "a/b"])},
    ),
    max_size=4,
    unique_by=lambda mount: mount["mountPath"],
)
containers = st.fixed_dictionaries(
    {"image": st.sampled_from(["a:1", "b:2"])},
    optional={
        "env": named(["A", "SAVEPOINT_SOCKET", "SAVEPOINT_STAGE"], st.just({"value": "1"})),
        "volumeMounts": mounts,
        "securityContext": st.fixed_dictionaries({"runAsUser": st.integers(0, 3)}),
    },
)
tolerations = st.lists(
    st.fixed_dictionaries(
        {"operator": st.just("Exists")},
        optional={
            "key": st.sampled_from(["gpu", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]),
            "effect": st.sampled_from(["NoExecute", "NoSchedule"]),
            "tolerationSeconds": st.sampled_from([30, 60, 300]),
        },
    ),
    max_size=3,
)
annotations = st.fixed_dictionaries(
    {},
    optional={
        names.ANNOTATION_STATE: st.lists(st.sampled_from(FOLDERS)).map(",".join),
        names.ANNOTATION_INJECTED: st.just("0"),
        "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes": st.sampled_from(["", "a", "a,savepoint-stage"]),
    },
)


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "containers": draw(named(["agent", "helper", "savepoint-sidecar"], containers).filter(bool)),
        "initContainers": draw(named(["seed", "mesh", "savepoint-restore"], containers)),
        "volumes": draw(named(VOLUMES, st.sampled_from(SOURCES))),
        "tolerations": draw(tolerations),
    }
    for field in ("initContainers", "volumes", "tolerations"):
        if draw(st.booleans()) and not spec[field]:
            del spec[field]
    return pod(annotations=draw(annotations), **spec)


policies = st.lists(
    st.builds(
        policy,
        name=st.sampled_from(["p", "q"]),
        state_paths=st.lists(st.builds(StatePath, st.sampled_from(FOLDERS), st.sampled_from([None, "1Gi"]))).map(tuple),
        stage_size_limit=st.sampled_from([None, "1Gi"]),
    ),
    max_size=2,
)


@settings(max_examples=300, deadline=None)
@given(pods(), policies)
def test_injecting_an_injected_pod_changes_nothing(subject: dict[str, Any], chosen: list[Policy]) -> None:
    before = copy.deepcopy(subject)
    first = inject(subject, chosen, "", CONFIG)
    assert subject == before
    if isinstance(first, Refusal):
        return
    assert inject(first.pod, chosen, "", CONFIG) == first
    spec = first.pod["spec"]
    everything = [item["name"] for kind in ("initContainers", "containers") for item in spec[kind]]
    assert len(set(everything)) == len(everything)
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert len(volumes) == len(spec["volumes"])
    for container in spec["initContainers"][-2:]:
        places = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert len(set(places)) == len(places)


@settings(max_examples=100, deadline=None)
@given(pods(), policies)
def test_the_owners_containers_stay(subject: dict[str, Any], chosen: list[Policy]) -> None:
    result = inject(subject, chosen, "", CONFIG)
    if not isinstance(result, Injected):
        return
    ours = {names.CONTAINER_RESTORE, names.CONTAINER_SIDECAR}
    for kind in ("initContainers", "containers"):
        own = [item["name"] for item in subject["spec"].get(kind, []) if item["name"] not in ours]
        assert [item["name"] for item in result.pod["spec"][kind] if item["name"] not in ours] == own
