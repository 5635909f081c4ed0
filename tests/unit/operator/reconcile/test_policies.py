"""ProtectedAgents, policies, stores, misplaced labels, and the pod resolver."""

from typing import Any

import pytest
from savepoint.contract.control_protocol import Outcome, Wait
from savepoint.contract.names import LABEL_AGENT
from savepoint.errors import KeyMismatch, StoreMisconfigured, StoreUnavailable
from savepoint.repository.format.object_keys import commit_key
from savepoint.repository.repository import open_store
from savepoint.storage import ObjectStore
from savepoint.storage.signature import S3Config
from savepoint_operator.cluster.errors import Invalid, NotFound
from savepoint_operator.cluster.kinds import (
    AGENTS,
    DEPLOYMENTS,
    EVENTS,
    NAMESPACES,
    PODS,
    POLICIES,
    REPLICASETS,
    SECRETS,
    STORES,
)
from savepoint_operator.model.views import NodeState, PodIdentity, PodState, PredecessorState, Refusal
from savepoint_operator.reconcile import stores
from savepoint_operator.reconcile.keyring import MASTER_KEY_FIELD
from savepoint_operator.reconcile.stores import DEFAULT_LABEL

from tests.fakes.reconcile_harness import CODER, NAMESPACE, STORE, ReconcileHarness


def store(harness: ReconcileHarness, name: str = STORE) -> dict[str, Any]:
    status: dict[str, Any] = harness.cluster.object(STORES, name)["status"]
    return status


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {each["type"]: each["status"] for each in status["conditions"]}


# -- ProtectedAgent -----------------------------------------------------------------------------------------------


async def test_a_pod_without_a_sidecar_is_reported_on_agent_and_pod(harness: ReconcileHarness) -> None:
    harness.pod("bare", injected=False)
    await harness.settle()
    assert harness.agent("bare")["reason"] == "Unprotected"
    assert any("was not injected" in message for message in harness.cluster.events("Unprotected"))


async def test_an_agent_on_a_lost_node_is_at_risk(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    await harness.commit(incarnation)
    assert harness.agent()["reason"] == "Protected"
    harness.node("n1", ready=False)
    await harness.settle()
    assert harness.agent()["reason"] == "AtRisk"
    assert harness.cluster.events("AtRisk") == ["Node n1 is lost. Last checkpoint: manual-1."]


async def test_an_agent_with_an_old_recovery_point_is_at_risk(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    await harness.commit(incarnation)
    harness.orders.in_flight[CODER] = "another attempt"
    await harness.advance(1200, step=20)
    assert harness.agent()["reason"] == "AtRisk"


async def test_the_pin_advances_and_is_read_by_a_new_leader(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    head = await harness.commit(incarnation)
    assert harness.agent()["head"] == {"sequence": 2, "recordDigest": head.digest}
    await harness.new_leader()
    assert await harness.leader.pod_resolver.pinned(CODER) == (2, head.digest)


async def test_deleting_the_protected_agent_removes_its_pin(harness: ReconcileHarness) -> None:
    await harness.start(harness.pod())
    assert await harness.leader.pod_resolver.pinned(CODER) is not None
    harness.cluster.remove(AGENTS, "coder", NAMESPACE)
    assert await harness.leader.pod_resolver.pinned(CODER) is None


async def test_an_agent_whose_deletion_no_watch_reported_is_created_again_without_its_pin(
    harness: ReconcileHarness,
) -> None:
    await harness.start(harness.pod())
    before = harness.cluster.object(AGENTS, "coder", NAMESPACE)["metadata"]["uid"]
    watcher, harness.cluster.watcher = harness.cluster.watcher, lambda *_: None
    harness.cluster.remove(AGENTS, "coder", NAMESPACE)
    harness.cluster.watcher = watcher
    harness.node("n1", ready=False)
    await harness.settle()
    assert harness.cluster.object(AGENTS, "coder", NAMESPACE)["metadata"]["uid"] != before
    assert await harness.leader.pod_resolver.pinned(CODER) is None


@pytest.mark.parametrize("runs", [True, False])
async def test_a_store_restored_from_an_old_copy_is_detected(harness: ReconcileHarness, runs: bool) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    await harness.commit(incarnation)
    lost = "demo/coder/" + commit_key(2)
    record = harness.objects.get(lost, max_bytes=1 << 20)
    if not runs:
        await harness.disconnect(incarnation, released=True)
        harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    harness.objects.delete(lost)
    await harness.new_leader()
    if runs:
        await harness.connect(incarnation)
    status = harness.agent()
    assert (status["reason"], status["lastFailure"]["reason"]) == ("AtRisk", "RollbackDetected")
    assert "delete the ProtectedAgent to accept" in status["conditions"][0]["message"]
    assert status["head"]["sequence"] == 2  # the pin does not follow
    assert len(harness.cluster.events("AtRisk")) == 1
    since = status["lastFailure"]["time"]
    await harness.advance(200, step=10)
    assert harness.agent()["lastFailure"]["time"] == since
    harness.objects.put_new(lost, record)
    await harness.advance(70)
    assert harness.agent()["reason"] == "Protected"


async def test_a_listing_counts_changes_that_the_watches_missed(harness: ReconcileHarness) -> None:
    reconciler = harness.leader.reconciler
    assert await reconciler.list_all() == 0
    harness.cluster.watcher = lambda *_: None
    harness.pod("unseen")
    harness.cluster.put(PODS, harness.pod("changed").name, NAMESPACE, status={"phase": "Failed"})
    assert await reconciler.list_all() == 2
    assert await reconciler.list_all() == 0


# -- policies and labels ------------------------------------------------------------------------------------------


async def test_a_policy_counts_its_pods_and_reports_overlaps(harness: ReconcileHarness) -> None:
    harness.cluster.put(POLICIES, "wide", NAMESPACE, spec={})
    await harness.advance(3)
    harness.cluster.put(POLICIES, "narrow", NAMESPACE, spec={"selector": {"matchLabels": {"team": "coding"}}})
    harness.pod()
    harness.pod("mailer", labels={"team": "coding"})
    await harness.advance(5)
    wide, narrow = (harness.cluster.object(POLICIES, name, NAMESPACE)["status"] for name in ("wide", "narrow"))
    assert (wide["matchedPods"], wide["protectedAgents"]) == (2, 2)
    assert (narrow["matchedPods"], narrow["protectedAgents"]) == (1, 0)
    assert conditions(wide) == conditions(narrow) == {"Ready": "True", "Conflicting": "True"}


def policy(harness: ReconcileHarness, name: str = "coders") -> tuple[str, str, str]:
    """Return the policy's reason, and the status and message of its condition Ready."""
    status = harness.cluster.object(POLICIES, name, NAMESPACE)["status"]
    ready = next(each for each in status["conditions"] if each["type"] == "Ready")
    assert status["reason"] == ready["reason"]
    return status["reason"], ready["status"], ready["message"]


async def assert_pod_is_refused(harness: ReconcileHarness, reason: str, message: str) -> None:
    """Assert that a pod of the policy is refused with the same message."""
    refused = await harness.leader.pod_resolver.incarnation(harness.pod())
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.message) == (reason, message)


@pytest.mark.parametrize("names", [{"storeName": "far"}, {}])
async def test_a_policy_is_not_ready_until_its_store_exists(harness: ReconcileHarness, names: dict[str, str]) -> None:
    harness.cluster.remove(STORES, STORE)
    harness.cluster.put(POLICIES, "coders", NAMESPACE, spec={**names, "suspend": True})
    await harness.settle()
    reason, status, message = policy(harness)
    assert (reason, status) == ("NoStore", "False")
    await assert_pod_is_refused(harness, reason, message)
    s3 = {"endpoint": "https://s3.test", "bucket": "agents", "credentialsSecretName": "s3-keys"}
    harness.cluster.put(STORES, "not-default", spec={"s3": s3})
    await harness.settle()
    assert policy(harness)[0] == "NoStore"
    harness.cluster.put(STORES, "far", spec={"s3": s3, "default": True})
    await harness.settle()
    assert policy(harness) == ("Suspended", "True", "")
    harness.cluster.remove(STORES, "far")
    await harness.settle()
    assert policy(harness)[:2] == ("NoStore", "False")


async def test_a_policy_whose_store_excludes_its_namespace_is_not_ready(harness: ReconcileHarness) -> None:
    spec = harness.cluster.object(STORES, STORE)["spec"]
    harness.cluster.put(POLICIES, "coders", NAMESPACE, spec={"storeName": STORE})
    await harness.settle()
    assert policy(harness) == ("Ready", "True", "")
    harness.cluster.put(STORES, STORE, spec={**spec, "allowedNamespaces": {"names": ["other"]}})
    await harness.settle()
    reason, status, message = policy(harness)
    assert (reason, status) == ("StoreNotAllowed", "False")
    await assert_pod_is_refused(harness, reason, message)
    harness.cluster.put(STORES, STORE, spec=spec)
    await harness.settle()
    assert policy(harness)[0] == "Ready"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"exclude": ["*.tmp", "[z-a]"]}, "spec.state.exclude: '[z-a]' contains the reversed range z-a; write a-z"),
        ({"exclude": ["**"]}, "spec.state.exclude: '**' excludes every file"),
        ({"exclude": ["/abs"]}, "spec.state.exclude: '/abs' is absolute"),
        ({"paths": [{"mountPath": "/etc"}]}, "spec.state.paths: '/etc' is a directory of the system"),
    ],
)
async def test_a_policy_with_an_invalid_field_is_not_ready_and_stays_in_force(
    harness: ReconcileHarness, state: dict[str, Any], text: str
) -> None:
    harness.cluster.put(POLICIES, "coders", NAMESPACE, spec={"state": {"exclude": ["*.tmp"]}})
    await harness.settle()
    assert policy(harness) == ("Ready", "True", "")
    harness.cluster.put(POLICIES, "coders", NAMESPACE, spec={"state": state})
    await harness.settle()
    reason, status, message = policy(harness)
    assert (reason, status) == ("PolicyInvalid", "False") and text in message
    assert harness.cluster.events("PolicyInvalid") == [message]
    incarnation = await harness.leader.pod_resolver.incarnation(harness.pod())
    assert not isinstance(incarnation, Refusal), "a live policy change never stops an agent"
    harness.cluster.put(POLICIES, "coders", NAMESPACE, spec={"state": {"exclude": ["*.tmp"]}})
    await harness.settle()
    assert policy(harness) == ("Ready", "True", "")


async def test_a_policy_names_its_invalid_field_beside_a_missing_store(harness: ReconcileHarness) -> None:
    bad = [f"[z-{letter}]" for letter in "abcdefg"]
    harness.cluster.put(POLICIES, "coders", NAMESPACE, spec={"storeName": "none", "state": {"exclude": bad}})
    await harness.settle()
    reason, status, message = policy(harness)
    assert (reason, status) == ("NoStore", "False")
    assert "'[z-a]' contains the reversed range" in message and "and 2 more" in message


async def test_new_namespace_labels_apply_after_the_next_listing(harness: ReconcileHarness) -> None:
    spec = harness.cluster.object(STORES, STORE)["spec"]
    selector = {"selector": {"matchLabels": {"agents": "yes"}}}
    harness.cluster.put(STORES, STORE, spec={**spec, "allowedNamespaces": selector})
    harness.cluster.put(POLICIES, "coders", NAMESPACE, spec={})
    await harness.settle()
    assert policy(harness)[:2] == ("StoreNotAllowed", "False")
    harness.cluster.put(NAMESPACES, NAMESPACE, metadata={"labels": {"agents": "yes"}})
    await harness.leader.reconciler.list_all()
    await harness.settle()
    assert policy(harness)[:2] == ("Ready", "True")


@pytest.mark.parametrize(
    ("reason", "text"),
    [("ErrImagePull", "image far/away:1 cannot be pulled. Correct"), ("CreateContainerConfigError", "no such key")],
)
async def test_a_pod_with_a_blocked_container_is_reported(harness: ReconcileHarness, reason: str, text: str) -> None:
    pod = harness.pod()
    waiting = {"waiting": {"reason": reason, "message": "no such key"}}
    blocked = {"containerStatuses": [{"name": "agent", "image": "far/away:1", "state": waiting}]}
    harness.cluster.put(PODS, pod.name, NAMESPACE, status={"phase": "Pending", **blocked})
    await harness.settle()
    (message,) = harness.cluster.events("CannotStart")
    assert text in message
    assert harness.agent()["reason"] == "Unprotected"
    assert text in harness.agent()["conditions"][0]["message"]


async def test_a_label_on_the_deployment_only_is_reported_on_it(harness: ReconcileHarness) -> None:
    labels = {"labels": {LABEL_AGENT: "coder"}}
    harness.cluster.put(DEPLOYMENTS, "coder", NAMESPACE, metadata=labels, spec={"template": {"metadata": {}}})
    harness.cluster.put(DEPLOYMENTS, "good", NAMESPACE, metadata=labels, spec={"template": {"metadata": labels}})
    await harness.settle()
    (message,) = harness.cluster.events("LabelNotOnTemplate")
    assert "spec.template.metadata.labels" in message


async def test_a_repeated_message_is_one_event(harness: ReconcileHarness) -> None:
    pod = harness.pod("Coder!", injected=False)
    await harness.settle()
    for step in range(3):
        harness.cluster.put(PODS, pod.name, NAMESPACE, metadata={"annotations": {"touched": str(step)}})
        await harness.settle()
    assert len(harness.cluster.events("AgentNameInvalid")) == 1


# -- the pod resolver ---------------------------------------------------------------------------------------------


async def test_a_deployment_with_two_replicas_is_refused_with_an_event(harness: ReconcileHarness) -> None:
    harness.cluster.put(DEPLOYMENTS, "coder", NAMESPACE, metadata={"uid": "d"}, spec={"replicas": 2})
    owner = {"kind": "Deployment", "name": "coder", "uid": "d", "controller": True}
    harness.cluster.put(REPLICASETS, "coder-7f", NAMESPACE, metadata={"uid": "rs", "ownerReferences": [owner]}, spec={})
    held = {"kind": "ReplicaSet", "name": "coder-7f", "uid": "rs", "controller": True}
    pod = harness.pod(ownerReferences=[held])
    refused = await harness.leader.pod_resolver.incarnation(pod)
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.retry) == ("AmbiguousAgent", False)
    assert harness.cluster.events("AmbiguousAgent") == [refused.message]
    assert refused.incarnation is not None
    await harness.leader.recorder.restore_ended(refused.incarnation, Outcome(refused.reason, refused.message))
    await harness.settle()
    assert harness.restores()[-1]["reason"] == "AmbiguousAgent"
    assert refused.message in harness.agent()["conditions"][0]["message"]
    harness.cluster.put(DEPLOYMENTS, "coder", NAMESPACE, spec={"replicas": 1})
    incarnation = await harness.start(pod)
    harness.cluster.put(DEPLOYMENTS, "coder", NAMESPACE, spec={"replicas": 2})
    await harness.advance(10)
    assert await harness.resolve(pod) == incarnation  # it holds the epoch, so only other pods are refused


async def test_a_pod_with_another_uid_is_refused_as_gone(harness: ReconcileHarness) -> None:
    pod = harness.pod()
    refused = await harness.leader.pod_resolver.incarnation(PodIdentity(NAMESPACE, pod.name, "another"))
    assert isinstance(refused, Refusal)
    assert refused.reason == "PodGone"


async def test_a_pod_waits_until_its_store_exists(harness: ReconcileHarness) -> None:
    harness.cluster.put(POLICIES, "far", NAMESPACE, spec={"storeName": "far"})
    await harness.settle()
    refused = await harness.leader.pod_resolver.incarnation(harness.pod())
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.retry) == ("NoStore", True)
    assert refused.incarnation is not None
    assert refused.incarnation.policy_name == "far"
    await harness.leader.recorder.waiting(refused.incarnation, Wait(refused.reason, refused.message))
    await harness.settle()
    assert harness.restores()[-1]["reason"] == "NoStore"
    assert harness.cluster.events("NoStore", "Pod") == [refused.message]


async def test_the_predecessors_state_is_read_from_the_api_server(harness: ReconcileHarness) -> None:
    pod_resolver = harness.leader.pod_resolver
    pod = harness.pod()
    running = PredecessorState(PodState.RUNNING, NodeState.READY)
    assert await pod_resolver.predecessor_state(CODER, pod.uid, "n1") == running
    harness.cluster.watcher = lambda *_: None  # a grant must not depend on a watch
    harness.cluster.put(PODS, pod.name, NAMESPACE, status={"phase": "Failed"})
    assert (await pod_resolver.predecessor_state(CODER, pod.uid, "n1")).pod is PodState.TERMINAL
    harness.cluster.remove(PODS, pod.name, NAMESPACE)
    assert (await pod_resolver.predecessor_state(CODER, pod.uid, "n1")).pod is PodState.GONE
    harness.node("n1", ready=False)
    assert (await pod_resolver.predecessor_state(CODER, pod.uid, "n1")).node is NodeState.LOST
    assert (await pod_resolver.predecessor_state(CODER, pod.uid, "n9")).node is NodeState.LOST
    assert (await pod_resolver.predecessor_state(CODER, pod.uid, "")).node is NodeState.READY


async def test_a_pod_that_lost_its_label_still_runs(harness: ReconcileHarness) -> None:
    pod = harness.pod()
    harness.cluster.watcher(PODS, True, harness.cluster.object(PODS, pod.name, NAMESPACE))
    standing = await harness.leader.pod_resolver.predecessor_state(CODER, pod.uid, "n1")
    assert standing.pod is PodState.RUNNING


# -- stores -------------------------------------------------------------------------------------------------------


async def test_a_usable_store_is_ready(harness: ReconcileHarness) -> None:
    status = store(harness)
    assert conditions(status) == {"Available": "True", "ConditionalWrites": "True", "Ready": "True"}
    assert status["reason"] == "Ready"
    assert status["lastProbeTime"]
    opened = await harness.leader.stores.open(STORE)
    assert await harness.leader.stores.open(STORE) is opened


async def test_the_master_key_is_created_once(harness: ReconcileHarness) -> None:
    before = harness.master()
    await harness.new_leader()
    assert harness.master().check == before.check
    assert len(harness.cluster.object(SECRETS, "savepoint-master-key", "savepoint-system")["data"]) == 1


def store_events(harness: ReconcileHarness) -> list[tuple[str, str]]:
    """Return type and reason of the Events on stores, oldest first."""
    events = [
        each for each in harness.cluster.every(EVENTS) if each["involvedObject"]["kind"] == "AgentCheckpointStore"
    ]
    assert {each["metadata"]["namespace"] for each in events} == {"default"}
    return [(each["type"], each["reason"]) for each in events]


async def test_changes_of_a_store_are_reported_in_events(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store_events(harness) == [("Normal", "StoreReady")]
    await harness.new_leader()
    await harness.advance(180, step=5)
    assert store_events(harness) == [("Normal", "StoreReady")]  # nothing has changed

    def unavailable(*_: object) -> None:
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(harness.objects, "head", unavailable)
    await harness.advance(180, step=5)
    assert store_events(harness)[1:] == [("Warning", "StoreUnavailable")]
    assert "the store does not answer. Earlier checkpoints are safe" in harness.cluster.events("StoreUnavailable")[0]
    assert store(harness)["conditions"][-1]["message"] == harness.cluster.events("StoreUnavailable")[0]
    harness.cluster.remove(SECRETS, "s3-keys", "savepoint-system")
    await harness.advance(60, step=5)
    assert store_events(harness)[2:] == [("Warning", "StoreMisconfigured")]
    monkeypatch.undo()
    harness.cluster.put(SECRETS, "s3-keys", "savepoint-system", data={"accessKey": "YQ==", "secretKey": "Yg=="})
    await harness.advance(60, step=5)
    assert store_events(harness)[3:] == [("Normal", "StoreReady")]


async def test_a_store_deleted_during_its_reconcile_gets_no_event(harness: ReconcileHarness) -> None:
    harness.cluster.fail["patch", "AgentCheckpointStore"] = NotFound("it does not exist")
    harness.cluster.put(STORES, STORE, spec={"s3": {"endpoint": "https://other.test", "bucket": "agents"}})
    await harness.settle()
    assert store_events(harness) == [("Normal", "StoreReady")]


async def test_a_store_of_another_cluster_is_not_adopted(harness: ReconcileHarness) -> None:
    harness.objects.delete("savepoint.json")
    open_store(harness.objects, "another-cluster", harness.master())
    await harness.new_leader()
    status = store(harness)
    assert status["reason"] == "NotAdopted"
    assert conditions(status)["Available"] == "True"


async def test_a_wrong_master_key_is_reported_and_never_replaced(harness: ReconcileHarness) -> None:
    data = {MASTER_KEY_FIELD: "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="}
    harness.cluster.put(SECRETS, "savepoint-master-key", "savepoint-system", data=data)
    await harness.advance(61)
    assert store(harness)["reason"] == "KeyMismatch"
    with pytest.raises(KeyMismatch):
        await harness.leader.stores.open(STORE)
    assert harness.cluster.object(SECRETS, "savepoint-master-key", "savepoint-system")["data"] == data


@pytest.mark.parametrize(
    ("data", "text"), [(None, "does not exist"), ({"accessKey": "YQ=="}, "accessKey and secretKey")]
)
async def test_missing_credentials_are_reported_and_recovered_from(
    harness: ReconcileHarness, data: dict[str, str] | None, text: str
) -> None:
    harness.cluster.remove(SECRETS, "s3-keys", "savepoint-system")
    if data is not None:
        harness.cluster.put(SECRETS, "s3-keys", "savepoint-system", data=data)
    await harness.advance(61)
    status = store(harness)
    assert status["reason"] == "StoreMisconfigured"
    assert text in status["conditions"][-1]["message"]
    assert "YQ==" not in str(status)
    with pytest.raises(StoreMisconfigured):
        await harness.leader.stores.open(STORE)
    harness.cluster.put(SECRETS, "s3-keys", "savepoint-system", data={"accessKey": "YQ==", "secretKey": "Yg=="})
    await harness.advance(16)
    assert store(harness)["reason"] == "Ready"


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("https://h:99999", "not an S3 endpoint"),
        ("https://[::::]", "not an S3 endpoint"),
        ("https://...", "has no host or port 0"),
        ("https://h:0", "has no host or port 0"),
        ("https://h:x", "not an S3 endpoint"),
    ],
)
async def test_an_endpoint_that_an_earlier_version_accepted_is_a_condition(
    harness: ReconcileHarness, endpoint: str, text: str
) -> None:
    spec = harness.cluster.object(STORES, STORE)["spec"]
    harness.cluster.put(STORES, STORE, spec={"s3": {**spec["s3"], "endpoint": endpoint}})
    await harness.advance(61)
    status = store(harness)
    assert status["reason"] == "StoreMisconfigured" and text in status["conditions"][-1]["message"]
    assert harness.cluster.events("StoreMisconfigured") == [status["conditions"][-1]["message"]]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such address\nat 0x7f00deadbeef, https://h/b/k?X-Amz-Signature=secret"),
        KeyError("odd"),
        RuntimeError(),
        UnicodeError("label empty or too long"),
        OSError("[SSL] PEM lib"),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_any_error_while_a_store_is_opened_is_a_condition_and_one_event(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> ObjectStore:
        raise error

    registry = harness.leader.stores
    monkeypatch.setattr(registry, "_build_store", fail)
    spec = harness.cluster.object(STORES, STORE)["spec"]
    harness.cluster.put(STORES, STORE, spec={"s3": {**spec["s3"], "region": "elsewhere"}})
    await harness.advance(180, step=15)
    status = store(harness)
    assert status["reason"] == "StoreMisconfigured"
    message = status["conditions"][-1]["message"]
    assert type(error).__name__ in message and "correct spec.s3" in message
    assert "secret" not in message and "deadbeef" not in message
    assert harness.cluster.events("StoreMisconfigured") == [message]
    assert "Traceback" not in caplog.text
    with pytest.raises(StoreMisconfigured):
        await registry.open(STORE)
    monkeypatch.undo()
    await harness.advance(16)
    assert store(harness)["reason"] == "Ready"


async def test_any_error_while_a_store_is_checked_is_a_condition_and_is_retried(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("odd answer at 0x7f12")

    monkeypatch.setattr(harness.objects, "head", fail)
    await harness.advance(180, step=15)
    status = store(harness)
    assert status["reason"] == "StoreUnavailable"
    assert "RuntimeError: odd answer at 0x…" in status["conditions"][-1]["message"]
    assert len(harness.cluster.events("StoreUnavailable")) == 1
    monkeypatch.undo()
    await harness.advance(16)
    assert store(harness)["reason"] == "Ready"


def conflicting(harness: ReconcileHarness, name: str) -> tuple[str, str, str]:
    """Return status, reason and message of a store's condition Conflicting."""
    found = harness.cluster.object(STORES, name)["status"]["conditions"]
    condition = next(each for each in found if each["type"] == "Conflicting")
    return condition["status"], condition["reason"], condition["message"]


async def test_two_default_stores_are_reported_on_both(harness: ReconcileHarness) -> None:
    s3 = {"endpoint": "https://s3.test", "bucket": "agents", "prefix": "b", "credentialsSecretName": "s3-keys"}
    harness.cluster.put(STORES, "second", spec={"s3": s3, "default": True})
    await harness.advance(61)
    for name, other in ((STORE, "second"), ("second", STORE)):
        status, reason, message = conflicting(harness, name)
        assert (status, reason) == ("True", "DefaultStoreRepeated")
        assert f"AgentCheckpointStore {other} is marked as default too" in message
        assert f"oldest one, {STORE}, applies" in message
        assert harness.cluster.object(STORES, name)["status"]["reason"] == "Ready"
    assert len(harness.cluster.events("DefaultStoreRepeated")) == 2
    harness.cluster.put(STORES, "second", spec={"s3": s3})
    await harness.advance(61)
    assert conflicting(harness, STORE)[:2] == conflicting(harness, "second")[:2] == ("False", "NoConflict")
    assert len(harness.cluster.events("DefaultStoreRepeated")) == 2


@pytest.mark.parametrize("endpoint", ["https://s3.test", "https://S3.test:443/", "https://s3.test."])
async def test_two_stores_in_one_place_are_reported(harness: ReconcileHarness, endpoint: str) -> None:
    s3 = {"endpoint": endpoint, "bucket": "agents", "credentialsSecretName": "s3-keys"}
    harness.cluster.put(STORES, "second", spec={"s3": s3})
    harness.cluster.put(STORES, "third", spec={"s3": {**s3, "prefix": "third"}})
    harness.cluster.put(STORES, "fourth", spec={"s3": {**s3, "endpoint": "https://s4.test"}})
    await harness.advance(61)
    assert conflicting(harness, "second")[:2] == ("True", "StoreLocationShared")
    assert "(bucket agents, prefix none)" in conflicting(harness, STORE)[2]
    for name in ("third", "fourth"):
        assert "Conflicting" not in conditions(harness.cluster.object(STORES, name)["status"])
    assert len(harness.cluster.events("StoreLocationShared")) == 2


async def test_a_store_that_lost_its_contents_is_reported(harness: ReconcileHarness) -> None:
    head = {"sequence": 3, "recordDigest": "ab"}
    harness.cluster.put(AGENTS, "coder", NAMESPACE, status={"storeName": STORE, "head": head})
    await harness.advance(61)
    assert harness.cluster.events("RollbackDetected", "AgentCheckpointStore") == []
    harness.objects.delete("savepoint.json")
    await harness.new_leader()
    (message,) = harness.cluster.events("RollbackDetected", "AgentCheckpointStore")
    assert "1 agents have checkpoints in this store, among them demo/coder" in message


async def test_refused_values_of_the_chart_leave_the_operator_running(harness: ReconcileHarness) -> None:
    registry = harness.leader.stores
    spec = harness.cluster.object(STORES, STORE)["spec"]
    harness.cluster.put(STORES, STORE, metadata={"labels": DEFAULT_LABEL}, spec=spec)
    refusal = "spec.s3.bucket and spec.s3.prefix are immutable"
    harness.cluster.fail["patch", "AgentCheckpointStore"] = Invalid(refusal)
    await registry.make_default(STORE, {**spec, "s3": {**spec["s3"], "bucket": "other"}})
    (message,) = harness.cluster.events("StoreMisconfigured")
    assert f"The chart's values for this store are refused: {refusal}" in message
    harness.cluster.fail["create", "AgentCheckpointStore"] = Invalid("no")
    await registry.make_default("absent", spec)


async def test_a_store_that_is_not_probed_yet_is_a_transient_fault(harness: ReconcileHarness) -> None:
    with pytest.raises(StoreMisconfigured):
        await harness.leader.stores.open("never")
    s3 = {"endpoint": "https://s3.test", "bucket": "b", "credentialsSecretName": "s3-keys"}
    harness.cluster.put(STORES, "new", spec={"s3": s3})
    with pytest.raises(StoreUnavailable):
        await harness.leader.stores.open("new")


async def test_the_same_fault_of_a_store_has_the_same_message(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(_: ObjectStore, random_hex: str) -> None:
        raise StoreUnavailable(f"the store did not answer GET 'probe/{random_hex}'")

    monkeypatch.setattr(stores, "probe", faulty)
    await harness.new_leader()
    before = store(harness)["conditions"]
    assert "'probe/…'" in before[-1]["message"]
    await harness.advance(60)
    assert store(harness)["conditions"] == before


async def test_opening_a_store_that_was_never_ready_gives_the_cause(harness: ReconcileHarness) -> None:
    def build(_: S3Config) -> ObjectStore:
        raise StoreUnavailable("no answer from s3.test")

    await harness.new_leader(build_store=build)
    with pytest.raises(StoreUnavailable, match="default: no answer from s3"):
        await harness.leader.stores.open(STORE)
    s3 = {"endpoint": "https://s3.test", "bucket": "b", "credentialsSecretName": "none"}
    harness.cluster.put(STORES, "new", spec={"s3": s3})
    await harness.settle()
    with pytest.raises(StoreMisconfigured, match="Secret"):
        await harness.leader.stores.open("new")


async def test_the_default_store_follows_the_chart_until_its_label_is_removed(harness: ReconcileHarness) -> None:
    make = harness.leader.stores.make_default
    spec = {"s3": {"endpoint": "https://s3.test", "bucket": "b"}, "default": True}
    await make("chart", spec)
    assert harness.cluster.object(STORES, "chart")["metadata"]["labels"] == DEFAULT_LABEL
    await make("chart", {**spec, "s3": {"endpoint": "https://other.test", "bucket": "b"}})
    assert harness.cluster.object(STORES, "chart")["spec"]["s3"]["endpoint"] == "https://other.test"
    harness.cluster.put(STORES, "chart", metadata={"labels": {}})
    await make("chart", spec)
    assert harness.cluster.object(STORES, "chart")["spec"]["s3"]["endpoint"] == "https://other.test"
