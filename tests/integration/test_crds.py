"""The kinds of crds/, as the API server validates and prints them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from savepoint.contract import globs

from tests.polling import wait_until
from tests.servers.apiserver import ApiServer
from tests.servers.kubectl import Kubectl, KubectlFailed

API = "savepoint.dev/v1alpha1"
TIME = "2026-01-02T03:04:05Z"
DNS = "must be a DNS label"


@pytest.fixture(scope="module")
def kubectl(apiserver: ApiServer) -> Iterator[Kubectl]:
    admin = Kubectl(apiserver.kubeconfig)
    admin.install_crds()
    yield admin
    for kind in STATUSES:
        apiserver.delete(f"/apis/{API}/namespaces/default/{kind}")
    apiserver.delete(f"/apis/{API}/agentcheckpointstores")


def resource(kind: str, spec: Any = None, name: str = "") -> dict[str, Any]:
    metadata = {"name": name} if name else {"generateName": "t-"}
    return {"apiVersion": API, "kind": kind, "metadata": metadata} | ({} if spec is None else {"spec": spec})


def checkpoint(**spec: Any) -> dict[str, Any]:
    return resource("AgentCheckpoint", spec)


def restore(mode: str, **source: Any) -> dict[str, Any]:
    return resource("AgentRestore", {"mode": mode, "source": source})


def policy(**spec: Any) -> dict[str, Any]:
    return resource("AgentCheckpointPolicy", spec)


def store(**s3: Any) -> dict[str, Any]:
    required = {"endpoint": "https://s3.example.com", "bucket": "agents", "credentialsSecretName": "s3-keys"}
    return resource("AgentCheckpointStore", {"s3": required | s3})


def state_path(mount_path: str, **more: Any) -> dict[str, Any]:
    return policy(state={"paths": [{"mountPath": mount_path} | more]})


def interval_trigger(**interval: Any) -> dict[str, Any]:
    return policy(triggers=[{"interval": interval}])


def selector_expression(operator: str, *values: str) -> dict[str, Any]:
    listed = {"values": list(values)} if values else {}
    return policy(selector={"matchExpressions": [{"key": "k", "operator": operator} | listed]})


def exclude(pattern: str) -> dict[str, Any]:
    return policy(state={"exclude": ["*.tmp", pattern]})


def resources(**more: Any) -> dict[str, Any]:
    return policy(injection={"resources": more})


def labels(**match: str) -> dict[str, Any]:
    return policy(selector={"matchLabels": match})


def admitted(**namespaces: Any) -> dict[str, Any]:
    item = store()
    item["spec"]["allowedNamespaces"] = namespaces
    return item


RESERVED = ("/proc", "/proc/1", "/etc", "/sys", "/sys/fs", "/dev", "/dev/shm", "/usr", "/var", "/run/savepoint/x")
RESERVED_NAMES = ("my-s3alias", "xn--a", "sthree-a", "a--ol-s3", "a.mrap", "a--x-s3", "a--table-s3", "amzn-s3-demo-a")
PORTS = ("https://h:99999", "https://h:0", "https://h:65536", "http://[fd00::1]:0", "https://10.0.0.1:00000/")
ENDPOINTS = (
    "https://[::::]",
    "https://[]",
    "https://[1.2.3]",
    "https://[:]:443",
    "https://...",
    "https://.",
    "https://-h",
    "https://h-.example",
    "https://a..b",
    "https://.h",
    "https://h:",
    "https://h:x",
    "https://h:999999",
    "https://h?x",
    "https://h#x",
    "https://",
    "h:9000",
)

INVALID = [
    *((exclude(pattern), "spec.state.exclude[] must not exclude every file") for pattern in ("**", "*", "**/", "**/*")),
    *((exclude(pattern), "spec.state.exclude[]: '[' needs its ']'") for pattern in ("[", "a[b", "[]", "[!]", "[a/b]")),
    *((exclude(pattern), "spec.state.exclude[] must not contain '.'") for pattern in ("..", "a/../b", "./a", "a/.")),
    (exclude(""), "spec.state.exclude[1]"),
    (exclude("!keep"), "spec.state.exclude[] must not begin with '!'"),
    (exclude("a\n"), "spec.state.exclude[] must not begin with '!' (a pattern cannot re-include files) and must"),
    (exclude("**/" * 12 + "x"), "spec.state.exclude[] may contain '**' at most 8 times"),
    (exclude("**/a/" * 12 + "x"), "spec.state.exclude[] may contain '**' at most 8 times"),
    (exclude("[[:alpha:]]"), "spec.state.exclude[] must not contain named sets"),
    *((state_path(path), "spec.state.paths[].mountPath must not be a directory of the system") for path in RESERVED),
    (
        policy(state={"paths": [{"mountPath": "/a"}, {"mountPath": "/ab"}, {"mountPath": "/a/b"}]}),
        "spec.state.paths[].mountPath must not be inside another",
    ),
    *((state_path("/a", sizeLimit=size), "spec.state.paths[].sizeLimit") for size in ("0", "0Gi", "1e", "Gi", 0, -1)),
    (policy(stage={"sizeLimit": "0"}), "spec.stage.sizeLimit must be quantities above 0"),
    (policy(stage={"sizeLimit": "10GiB"}), "spec.stage.sizeLimit"),
    (resources(limits={"memory": "1"}), "spec.injection.resources.limits.memory must be at least 64Mi"),
    (resources(limits={"memory": 1}), "spec.injection.resources.limits.memory must be at least 64Mi"),
    (resources(limits={"memory": "320m"}), "spec.injection.resources.limits.memory must be at least 64Mi"),
    (
        resources(requests={"memory": "1Gi"}, limits={"memory": "512Mi"}),
        "spec.injection.resources.requests must not exceed",
    ),
    (resources(requests={"cpu": 2}, limits={"cpu": "1500m"}), "spec.injection.resources.requests must not exceed"),
    (resources(limits={"memroy": "1Gi"}), "spec.injection.resources: the names of resources must be"),
    (resources(requests={"example.com/gpu": 1}), "spec.injection.resources: the names of resources must be"),
    (resources(requests={"cpu": "-1"}), "spec.injection.resources.requests.cpu"),
    *(
        (labels(**{key: "x"}), "spec.selector.matchLabels: every key")
        for key in ("a b!", "", "/a", "A.b/c", "-a", "a/b/c")
    ),
    (labels(team="a b"), "spec.selector.matchLabels: every value"),
    (
        policy(selector={"matchExpressions": [{"key": "a b!", "operator": "Exists"}]}),
        "spec.selector.matchExpressions[].key must be a label key",
    ),
    (selector_expression("In", "a b"), "spec.selector.matchExpressions[].values[] must be label values"),
    (
        admitted(selector={"matchLabels": {"a b!": "x"}}),
        "spec.allowedNamespaces.selector.matchLabels: every key must be a label key",
    ),
    (
        admitted(selector={"matchExpressions": [{"key": "a b!", "operator": "Exists"}]}),
        "spec.allowedNamespaces.selector.matchExpressions[].key must be a label key",
    ),
    *(
        (admitted(names=[name]), "spec.allowedNamespaces.names[] must be names")
        for name in ("Foo_Bar", "*", "a.b", "-")
    ),
    *((store(endpoint=url), "spec.s3.endpoint and podEndpoint: the port must be between") for url in PORTS),
    *((store(podEndpoint=url), "spec.s3.endpoint and podEndpoint: the port must be between") for url in PORTS[:1]),
    *((store(endpoint=url), "spec.s3.endpoint and podEndpoint must be https://") for url in ENDPOINTS),
    *((store(bucket=name), "spec.s3.bucket must not contain '..'") for name in ("a..b", "a.-b", "a-.b")),
    (store(bucket="192.168.1.1"), "spec.s3.bucket must not be an IP address"),
    *((store(bucket=name), "spec.s3.bucket must not begin or end as S3 reserves it") for name in RESERVED_NAMES),
    *((store(bucket=name), "spec.s3.bucket must be a bucket name") for name in ("Agents", "-a-", "a/b", "a b")),
    (store(endpoint="http://h", caSecretName="ca"), "spec.s3.caSecretName needs an https:// endpoint"),
    (resource("AgentCheckpoint"), "spec: Required"),
    (resource("AgentCheckpoint", {}), "spec.agent: Required"),
    (checkpoint(agent=""), "spec.agent"),
    (checkpoint(agent="Coder"), f"spec.agent {DNS}"),
    (checkpoint(agent="a.b"), f"spec.agent {DNS}"),
    (checkpoint(agent="a" * 53), "spec.agent: Too long"),
    (checkpoint(agent="a", retention={"hold": "Maybe"}), "spec.retention.hold"),
    (resource("AgentRestore", {"mode": "Rollback"}), "spec.source: Required"),
    (resource("AgentRestore", {"source": {"agent": "a"}}), "spec.mode: Required"),
    (restore("Fork", checkpointName="a-1"), "spec.mode"),
    (restore("Rollback"), "spec.source: exactly one of checkpointName and agent"),
    (restore("Rollback", checkpointName="a-1", agent="a"), "spec.source: exactly one of checkpointName and agent"),
    (restore("Rollback", agent="a"), "spec.source.checkpointName is required for mode Rollback"),
    (restore("Reset", checkpointName="a-1"), "spec.source.agent is required for mode Reset"),
    (restore("Rollback", checkpointName="../b/a-1"), "spec.source.checkpointName must be the name"),
    (restore("Rollback", checkpointName="b/a-1"), "spec.source.checkpointName must be the name"),
    (restore("Reset", agent="A"), f"spec.source.agent {DNS}"),
    (policy(containerName="A"), "spec.containerName must be the name"),
    (policy(storeName="a/b"), "spec.storeName must be the name"),
    (policy(state={"volumes": ["A"]}), "spec.state.volumes[] must be names"),
    (state_path("workspace"), "spec.state.paths[].mountPath must be absolute"),
    (state_path("/workspace/"), "spec.state.paths[].mountPath must be absolute and must not end"),
    (state_path("/a//b"), "spec.state.paths[].mountPath must not contain empty"),
    (state_path("/a/../b"), "spec.state.paths[].mountPath must not contain empty, '.' or '..'"),
    (state_path("/a:b"), "spec.state.paths[].mountPath must not contain ':'"),
    (state_path("/a,b"), "spec.state.paths[].mountPath must not contain ':', ','"),
    (state_path("/a\nb"), "spec.state.paths[].mountPath must not contain"),
    (state_path("/"), "spec.state.paths[0].mountPath"),
    (state_path("/a", sizeLimit="lots"), "spec.state.paths[0].sizeLimit"),
    (state_path("/a", sizeLimit=0), "spec.state.paths[0].sizeLimit"),
    (state_path("/a", sizeLimit="-1Gi"), "spec.state.paths[0].sizeLimit"),
    (state_path("/a", sizeLimit=1.5), "spec.state.paths[0].sizeLimit"),
    (policy(state={"paths": [{"mountPath": "/a"}, {"mountPath": "/a"}]}), "spec.state.paths[1]: Duplicate"),
    (policy(state={"exclude": ["/abs"]}), "spec.state.exclude[]: globs are relative"),
    (policy(quiesce={"timeoutSeconds": 0}), "spec.quiesce.timeoutSeconds"),
    (policy(quiesce={"timeoutSeconds": 3601}), "spec.quiesce.timeoutSeconds"),
    (policy(quiesce={"holdSeconds": 0}), "spec.quiesce.holdSeconds"),
    (interval_trigger(), "spec.triggers[0].interval.periodSeconds: Required"),
    (interval_trigger(periodSeconds=9), "spec.triggers[0].interval.periodSeconds"),
    (interval_trigger(periodSeconds=60, jitterSeconds=61), "spec.triggers[].interval.jitterSeconds must not exceed"),
    (policy(triggers=[{}]), "spec.triggers[0].interval: Required"),
    (policy(triggers=[{"interval": {"periodSeconds": 60}}] * 2), "spec.triggers: Too many"),
    (policy(retention={"keepLast": 0}), "spec.retention.keepLast"),
    *((policy(retention={name: 0}), f"spec.retention.{name}") for name in ("hourly", "daily", "weekly")),
    (policy(retention={"daily": -1}), "spec.retention.daily"),
    (policy(retention={"maxAgeSeconds": 0}), "spec.retention.maxAgeSeconds"),
    (policy(retention={"maxSize": "1Ki"}), "spec.retention.maxSize must be a quantity of at least 1Mi"),
    (policy(retention={"maxSize": "lots"}), "spec.retention.maxSize"),
    (policy(retention={"minKnownGood": -1}), "spec.retention.minKnownGood"),
    (policy(retention={"shrinkPercent": 100}), "spec.retention.shrinkPercent"),
    (policy(state={"dropped": ["data"]}), "spec.state.dropped[] must be an absolute path"),
    (policy(state={"dropped": ["/data/../x"]}), "spec.state.dropped[] must be an absolute path"),
    (policy(state={"dropped": ["/data", "/data"]}), "spec.state.dropped[1]: Duplicate"),
    (policy(state={"moved": [{"from": "/a"}]}), "spec.state.moved[0].to: Required"),
    (policy(state={"moved": [{"from": "/a", "to": "/a"}]}), "spec.state.moved[].from and to must differ"),
    (policy(state={"moved": [{"from": "/a/", "to": "/b"}]}), "spec.state.moved[].from must be an absolute path"),
    (policy(state={"moved": [{"from": "/a", "to": "b"}]}), "spec.state.moved[].to must be an absolute path"),
    (policy(state={"moved": [{"from": "/a", "to": to} for to in ("/b", "/c")]}), "spec.state.moved[1]: Duplicate"),
    (
        policy(state={"moved": [{"from": "/a", "to": "/b"}], "dropped": ["/a"]}),
        "spec.state.moved[].from and spec.state.dropped must not name the same path",
    ),
    (policy(stage={"medium": "Tape"}), "spec.stage.medium"),
    (policy(injection={"runAsUser": -1}), "spec.injection.runAsUser"),
    (policy(injection={"resources": {"limits": {"memory": "much"}}}), "spec.injection.resources.limits.memory"),
    (selector_expression("In"), "spec.selector.matchExpressions: In and NotIn need values"),
    (selector_expression("Exists", "x"), "spec.selector.matchExpressions: In and NotIn need values"),
    (selector_expression("Like", "x"), "spec.selector.matchExpressions[0].operator"),
    (resource("AgentCheckpointStore", {}), "spec.s3: Required"),
    (resource("AgentCheckpointStore", {"s3": {"bucket": "agents"}}), "spec.s3.endpoint: Required"),
    (
        resource("AgentCheckpointStore", {"s3": {"endpoint": "https://s3.test"}}),
        "spec.s3.credentialsSecretName: Required",
    ),
    (store(credentialsSecretName=""), "spec.s3.credentialsSecretName"),
    (store(endpoint="file:///etc/passwd"), "spec.s3.endpoint and podEndpoint must be https://"),
    (store(endpoint="https://user:pass@host"), "spec.s3.endpoint and podEndpoint must be https://"),
    (store(podEndpoint="https://host/path"), "spec.s3.endpoint and podEndpoint must be https://"),
    (store(bucket="A_B"), "spec.s3.bucket must be a bucket name"),
    (store(prefix="/a"), "spec.s3.prefix must be folders"),
    (store(prefix="a/../b"), "spec.s3.prefix must not contain"),
    (store(region="eu 1"), "spec.s3.region must be"),
    (store(addressing="Auto"), "spec.s3.addressing"),
    (store(credentialsSecretName="a/b"), "spec.s3.credentialsSecretName and caSecretName must be names"),
    (resource("ProtectedAgent", name="a.b"), "metadata.name must be an agent's name"),
]


@pytest.mark.parametrize(
    ("item", "message"), INVALID, ids=[f"{item['kind']}-{message[:48]}" for item, message in INVALID]
)
def test_an_invalid_field_is_refused_by_name(kubectl: Kubectl, item: dict[str, Any], message: str) -> None:
    with pytest.raises(KubectlFailed) as refusal:
        kubectl.create(item)
    assert message in str(refusal.value)


@pytest.mark.parametrize("kind", ["checkpoint", "restore", "policy", "store", "protected"])
def test_fields_that_no_kind_has_are_unknown(kubectl: Kubectl, kind: str) -> None:
    item = {
        "checkpoint": checkpoint(agent="a", postCheckpoint="Terminate"),
        "restore": resource("AgentRestore", {"mode": "Reset", "source": {"agent": "a"}, "timeoutSeconds": 5}),
        "policy": policy(fencing="Strict"),
        "store": store(accessKey="AKIA"),
        "protected": resource("ProtectedAgent", {"agent": "a"}, name="a"),
    }[kind]
    with pytest.raises(KubectlFailed, match=r"unknown field"):
        kubectl.create(item, "--validate=strict")


def test_allowed_namespaces_are_either_names_or_a_selector(kubectl: Kubectl) -> None:
    for allowed in ({}, {"names": ["a"], "selector": {}}):
        item = store()
        item["spec"]["allowedNamespaces"] = allowed
        with pytest.raises(KubectlFailed, match=r"spec.allowedNamespaces: exactly one of selector and names"):
            kubectl.create(item)


# -- defaults ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_needs_only_its_agent(kubectl: Kubectl) -> None:
    assert kubectl.create(checkpoint(agent="coder"))["spec"] == {"agent": "coder", "retention": {"hold": "None"}}


def test_an_empty_policy_gets_the_defaults(kubectl: Kubectl) -> None:
    assert kubectl.create(policy())["spec"] == {
        "selector": {},
        "quiesce": {"timeoutSeconds": 10, "holdSeconds": 5},
        "retention": {"keepLast": 12, "minKnownGood": 1, "shrinkPercent": 50},
        "restore": {"onContainerRestart": "KeepLocal", "onUnknownFiles": "Refuse"},
        "stage": {"medium": "Disk"},
        "suspend": False,
    }


def test_a_store_needs_endpoint_bucket_and_credentials(kubectl: Kubectl) -> None:
    assert kubectl.create(store())["spec"] == {
        "s3": {
            "endpoint": "https://s3.example.com",
            "bucket": "agents",
            "credentialsSecretName": "s3-keys",
            "prefix": "",
            "region": "us-east-1",
            "addressing": "Path",
        },
        "default": False,
    }


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://s3.world.svc:7070",
        "https://[fd00::1]:9000",
        "https://10.0.0.1/",
        "https://[::1]",
        "https://[2001:db8::a]:65535/",
        "http://minio:1",
        "https://s3.example.com.",
        "https://S3.Example.com",
    ],
)
def test_valid_endpoints_are_accepted(kubectl: Kubectl, endpoint: str) -> None:
    kubectl.create(store(endpoint=endpoint, podEndpoint=endpoint, prefix="a/b-c/d_e"))


@pytest.mark.parametrize("bucket", ["agents", "a.b-c.d", "1.2.3", "192.168.1.1.a", "0ab"])
def test_valid_buckets_are_accepted(kubectl: Kubectl, bucket: str) -> None:
    kubectl.create(store(bucket=bucket))


def test_a_ca_may_belong_to_the_endpoint_of_pods_alone(kubectl: Kubectl) -> None:
    kubectl.create(store(endpoint="http://s3.world.svc", podEndpoint="https://s3.test", caSecretName="ca"))


@pytest.mark.parametrize(
    "size", ["1Gi", "1.5Gi", "500M", 1073741824, "1e9", "1E9", "100000u", "1Ti", "2.", ".5Gi", "1Ei"]
)
def test_valid_sizes_are_accepted(kubectl: Kubectl, size: Any) -> None:
    kubectl.create(state_path("/home/node/.agent", sizeLimit=size))
    kubectl.create(policy(stage={"sizeLimit": size}))
    kubectl.create(resources(requests={"cpu": size, "ephemeral-storage": size}))


def test_valid_resources_are_accepted(kubectl: Kubectl) -> None:
    kubectl.create(resources(requests={"cpu": "20m", "memory": "64Mi"}, limits={"cpu": 1, "memory": "64Mi"}))
    kubectl.create(resources(limits={"memory": "1e9"}))
    kubectl.create(resources(requests={"cpu": 0}))


@pytest.mark.parametrize(
    "pattern",
    ["**/node_modules", "*.tmp", "a/**/b", "cache/**", "a]", "[]]", "[!]]", "[!!]", "[^a]x", "**/" * 8 + "x", "..."],
)
def test_valid_patterns_are_accepted(kubectl: Kubectl, pattern: str) -> None:
    assert globs.policy_problem(pattern) == ""
    kubectl.create(exclude(pattern))


def test_the_api_server_and_the_operator_refuse_the_same_patterns() -> None:
    refused = [
        item["spec"]["state"]["exclude"][-1]
        for item, _ in INVALID
        if "exclude" in item.get("spec", {}).get("state", {})
    ]
    assert len(refused) == 20
    assert [pattern for pattern in refused if not globs.policy_problem(pattern)] == []


def test_valid_labels_are_accepted(kubectl: Kubectl) -> None:
    item = labels(**{"app.kubernetes.io/name": "x", "team": "", "A_b.c": "A-b_c.d"})
    item["spec"]["selector"]["matchExpressions"] = [{"key": "a/b", "operator": "In", "values": ["", "x.y"]}]
    kubectl.create(item)
    kubectl.create(admitted(selector=item["spec"]["selector"]))
    kubectl.create(admitted(names=["agents", "a-1"]))


def test_a_stored_object_that_a_new_rule_refuses_can_still_be_used(kubectl: Kubectl) -> None:
    """An upgrade must not block the status, or other fields, of what an earlier version accepted."""
    name = "ackptpol/" + kubectl.create(exclude("*.bak"))["metadata"]["name"]
    crd = "crd/agentcheckpointpolicies.savepoint.dev"
    lenient = json.loads(kubectl("get", crd, "-o", "json"))
    items = lenient["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["state"][
        "properties"
    ]["exclude"]["items"]
    del items["x-kubernetes-validations"]
    kubectl("replace", "-f", "-", stdin=lenient)

    def old_rules_are_in_force() -> bool:
        try:
            kubectl.patch(name, {"spec": {"state": {"exclude": ["**"]}}})
        except KubectlFailed:
            return False
        return True

    try:
        wait_until("the API server uses the kind without rules", old_rules_are_in_force)
    finally:
        kubectl.install_crds()

    def new_rules_are_in_force() -> bool:
        try:
            kubectl.create(exclude("**"), "--dry-run=server")
        except KubectlFailed:
            return True
        return False

    wait_until("the API server uses the kind with rules", new_rules_are_in_force)
    kubectl.patch(name, {"status": {"reason": "Ready"}}, "--subresource=status")
    assert kubectl.patch(name, {"spec": {"suspend": True}})["spec"]["state"]["exclude"] == ["**"]


# -- immutable fields ----------------------------------------------------------------------------------------------


def test_only_the_retention_of_a_checkpoint_can_be_changed(kubectl: Kubectl) -> None:
    name = "ackpt/" + kubectl.create(checkpoint(agent="coder"))["metadata"]["name"]
    with pytest.raises(KubectlFailed, match=r"spec.agent is immutable: create another AgentCheckpoint"):
        kubectl.patch(name, {"spec": {"agent": "other"}})
    held = kubectl.patch(name, {"spec": {"retention": {"hold": "Keep"}}})
    assert held["spec"]["retention"] == {"hold": "Keep"}


def test_the_spec_of_a_restore_is_immutable(kubectl: Kubectl) -> None:
    name = "arst/" + kubectl.create(restore("Rollback", checkpointName="coder-1"))["metadata"]["name"]
    for change in ({"mode": "Resume"}, {"source": {"checkpointName": "coder-2"}}):
        with pytest.raises(KubectlFailed, match=r"spec is immutable: create another AgentRestore"):
            kubectl.patch(name, {"spec": change})


def test_a_stores_bucket_is_immutable_once_it_holds_checkpoints(kubectl: Kubectl) -> None:
    name = "ackptstore/" + kubectl.create(store(bucket="agnets"))["metadata"]["name"]
    kubectl.patch(name, {"spec": {"s3": {"bucket": "agents"}}})
    kubectl.patch(name, {"status": {"repositories": 1}}, "--subresource=status")
    for change in ({"bucket": "other"}, {"prefix": "other"}):
        with pytest.raises(
            KubectlFailed, match=r"spec.s3.bucket and spec.s3.prefix are immutable once the store holds"
        ):
            kubectl.patch(name, {"spec": {"s3": change}})
    kubectl.patch(name, {"spec": {"s3": {"endpoint": "https://moved.example.com"}}})


# -- status and columns -------------------------------------------------------------------------------------------


CONDITIONS = [
    {
        "type": "Ready",
        "status": "True",
        "reason": "Tested",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": TIME,
    }
]
BASIC = {"observedGeneration": 1, "conditions": CONDITIONS}
STATUSES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "agentcheckpoints": (
        resource("AgentCheckpoint", {"agent": "coder"}, "coder-42"),
        BASIC
        | {
            "reason": "Ready",
            "attempt": "0" * 32,
            "trigger": {"type": "Drain", "reason": "node n1", "requestedBy": "operator"},
            "podRef": {"name": "coder-7f", "uid": "u"},
            "nodeName": "n1",
            "number": 42,
            "sequence": 57,
            "epoch": 3,
            "run": 1,
            "parentName": "coder-41",
            "type": "Incremental",
            "consistency": "Application",
            "location": {"storeName": "default", "manifestKey": "manifests/ab"},
            "integrity": {"manifestDigest": "ab", "previousDigest": "ef"},
            "formatVersion": 1,
            "components": [
                {"name": "documents", "kind": "Memory", "digest": "d", "size": "3Mi"},
            ],
            "execution": {"step": "docs/7", "openOperations": 1, "uncertainOperations": ["op-1"]},
            "size": {"logical": 429916160, "stored": "409Mi", "uploaded": 3},
            "timing": {
                "start": TIME,
                "quiesced": TIME,
                "resumed": TIME,
                "completion": TIME,
                "pauseMilliseconds": 38,
            },
            "progress": {"percent": 100, "bytesDone": 5, "bytesTotal": 5},
            "summary": {"progress": "100%", "size": "410Mi", "uploaded": "3Mi", "pause": "38ms"},
        },
        {
            "AGENT": "coder",
            "TRIGGER": "Drain",
            "STATUS": "Ready",
            "PROGRESS": "100%",
            "SIZE": "410Mi",
            "UPLOADED": "3Mi",
            "PAUSE": "38ms",
            "TYPE": "Incremental",
            "CONSISTENCY": "Application",
            "PARENT": "coder-41",
            "STORE": "default",
            "DIGEST": "ab",
        },
    ),
    "agentrestores": (
        resource("AgentRestore", {"mode": "Resume", "source": {"checkpointName": "coder-41"}}, "coder-x7k2"),
        BASIC
        | {
            "reason": "Restored",
            "agent": "coder",
            "attempt": "0" * 32,
            "resolved": {"checkpointName": "coder-41", "manifestDigest": "ab", "sequence": 56, "time": TIME},
            "epoch": 4,
            "targets": [
                {
                    "podName": "coder-8a",
                    "podUID": "v",
                    "nodeName": "n2",
                    "state": "Restored",
                    "bytes": 5,
                    "milliseconds": 4000,
                    "message": "",
                }
            ],
            "discarded": {"since": TIME},
            "summary": {"discarded": "0s", "took": "4s"},
            "startTime": TIME,
            "completionTime": TIME,
        },
        {
            "AGENT": "coder",
            "MODE": "Resume",
            "FROM": "coder-41",
            "STATUS": "Restored",
            "DISCARDED": "0s",
            "TOOK": "4s",
            "EPOCH": "4",
            "NODE": "n2",
            "POD": "coder-8a",
        },
    ),
    "agentcheckpointpolicies": (
        resource(
            "AgentCheckpointPolicy",
            {"storeName": "default", "triggers": [{"interval": {"periodSeconds": 300}}]},
            "coders",
        ),
        BASIC | {"reason": "Ready", "matchedPods": 3, "protectedAgents": 2},
        {"STORE": "default", "EVERY": "300", "KEEP": "12", "AGENTS": "2", "SUSPENDED": "false", "STATUS": "Ready"},
    ),
    "agentcheckpointstores": (
        resource(
            "AgentCheckpointStore",
            store(prefix="p", endpoint="https://s3")["spec"] | {"default": True},
            "main",
        ),
        BASIC
        | {
            "reason": "Ready",
            "repositories": 2,
            "storedSize": 12345,
            "lastProbeTime": TIME,
            "lastCollectionTime": TIME,
            "summary": {"size": "12Gi"},
        },
        {
            "BUCKET": "agents",
            "PREFIX": "p",
            "DEFAULT": "true",
            "AGENTS": "2",
            "SIZE": "12Gi",
            "STATUS": "Ready",
            "ENDPOINT": "https://s3",
        },
    ),
    "protectedagents": (
        resource("ProtectedAgent", name="coder"),
        BASIC
        | {
            "reason": "AtRisk",
            "podRef": {"name": "coder-8a", "uid": "v"},
            "nodeName": "n2",
            "epoch": 4,
            "run": 1,
            "head": {"sequence": 58, "recordDigest": "ab"},
            "latest": {"checkpointName": "coder-42", "sequence": 57, "time": TIME, "manifestDigest": "ab"},
            "recoveryPointTime": TIME,
            "lastFailure": {"reason": "QuiesceTimeout", "time": TIME, "message": "in tool crawl"},
            "storedSize": "1Gi",
            "sidecarVersion": "0.1.0",
            "uncertainOperations": ["op-1"],
            "policyName": "coders",
            "storeName": "main",
            "summary": {"size": "1Gi"},
        },
        {
            "STATE": "AtRisk",
            "POD": "coder-8a",
            "NODE": "n2",
            "EPOCH": "4",
            "LAST-FAILURE": "QuiesceTimeout",
            "LATEST": "coder-42",
            "SIZE": "1Gi",
            "POLICY": "coders",
            "STORE": "main",
            "SIDECAR": "0.1.0",
        },
    ),
}
AGES = {"AGE", "RECOVERY-POINT", "PROBED"}


@pytest.mark.parametrize("plural", STATUSES)
def test_a_complete_status_is_stored_and_printed(kubectl: Kubectl, plural: str) -> None:
    item, status, columns = copy.deepcopy(STATUSES[plural])
    created = kubectl.create(item)
    assert "status" not in created
    target, name = f"{plural}/{created['metadata']['name']}", created["metadata"]["name"]

    assert "status" not in kubectl.patch(target, {"status": status}), "status is written by its subresource only"
    assert kubectl.patch(target, {"status": status}, "--subresource=status")["status"] == status
    if "spec" in item:
        assert kubectl.patch(target, {"spec": {"x": None}}, "--subresource=status")["spec"] == created["spec"]

    printed = kubectl.columns(plural, "-o", "wide", f"--field-selector=metadata.name={name}")
    assert printed.pop("NAME") == name
    ages = {heading: printed.pop(heading) for heading in AGES & set(printed)}
    assert printed == columns
    assert all(age and age != "<unknown>" for age in ages.values()), ages


@pytest.mark.parametrize(
    ("plural", "selector"),
    [
        ("agentcheckpoints", "spec.agent=coder,status.reason=Ready"),
        ("agentrestores", "spec.mode=Resume,status.agent=coder,status.reason=Restored"),
        ("agentcheckpointpolicies", "spec.storeName=default,status.reason=Ready"),
        ("agentcheckpointstores", "status.reason=Ready"),
        ("protectedagents", "status.reason=AtRisk,status.nodeName=n2"),
    ],
)
def test_objects_are_found_by_field(kubectl: Kubectl, plural: str, selector: str) -> None:
    item, status, _ = copy.deepcopy(STATUSES[plural])
    item["metadata"] = {"name": "found" if plural == "protectedagents" else "coder-found"}
    kubectl.create(item)
    kubectl.patch(f"{plural}/{item['metadata']['name']}", {"status": status}, "--subresource=status")
    found = json.loads(kubectl("get", plural, f"--field-selector={selector}", "-o", "json"))["items"]
    assert item["metadata"]["name"] in {each["metadata"]["name"] for each in found}
    no_match = selector.replace("Ready", "x").replace("Restored", "x").replace("AtRisk", "x")
    assert kubectl("get", plural, f"--field-selector={no_match}", "-o", "name") == ""


def test_the_kinds_have_short_names_and_a_category(kubectl: Kubectl) -> None:
    printed = kubectl("api-resources", "--api-group=savepoint.dev", "--categories=savepoint", "--no-headers")
    short = {line.split()[1] for line in printed.splitlines()}
    assert short == {"ackpt", "arst", "ackptpol", "ackptstore", "pagent"}
    assert "ackpt" not in kubectl("api-resources", "--categories=all", "--no-headers")
