"""The kinds of crds/, as the API server validates and prints them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

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


INVALID = [
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
        "retention": {"keepLast": 12},
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


@pytest.mark.parametrize("endpoint", ["http://s3.world.svc:7070", "https://[fd00::1]:9000", "https://10.0.0.1/"])
def test_valid_endpoints_are_accepted(kubectl: Kubectl, endpoint: str) -> None:
    kubectl.create(store(endpoint=endpoint, podEndpoint=endpoint, prefix="a/b-c/d_e"))


@pytest.mark.parametrize("size", ["1Gi", "1.5Gi", "500M", 1073741824])
def test_valid_sizes_are_accepted(kubectl: Kubectl, size: Any) -> None:
    kubectl.create(state_path("/home/node/.agent", sizeLimit=size))


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
