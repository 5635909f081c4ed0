"""Agents' states, policies, stores, labels in vain: what users see of what is around a checkpoint."""

from typing import Any

import pytest
from savepoint.contract.control_protocol import Outcome, Wait
from savepoint.contract.names import LABEL_AGENT
from savepoint.errors import KeyMismatch, StoreMisconfigured, StoreUnavailable
from savepoint.repository.history.chain import commit_key
from savepoint.repository.repository import open_store
from savepoint.storage import ObjectStore
from savepoint.storage.signature import S3Config
from savepoint_operator.cluster.errors import Missing
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
from savepoint_operator.model.views import NodeStanding, PodIdentity, PodStanding, Refusal, Standing
from savepoint_operator.reconcile import stores
from savepoint_operator.reconcile.keyring import MASTER_KEY_FIELD
from savepoint_operator.reconcile.stores import DEFAULT_LABEL

from tests.fakes.reconcile_harness import CODER, NAMESPACE, STORE, ReconcileHarness


def store(bench: ReconcileHarness, name: str = STORE) -> dict[str, Any]:
    status: dict[str, Any] = bench.cluster.object(STORES, name)["status"]
    return status


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {each["type"]: each["status"] for each in status["conditions"]}


# -- ProtectedAgent -----------------------------------------------------------------------------------------------


async def test_a_pod_that_was_not_injected_is_told_on_both(bench: ReconcileHarness) -> None:
    bench.pod("bare", injected=False)
    await bench.settle()
    assert bench.agent("bare")["reason"] == "Unprotected"
    assert any("was not injected" in message for message in bench.cluster.events("Unprotected"))


async def test_an_agent_on_a_lost_node_is_at_risk(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask()
    await bench.settle()
    await bench.commit(who)
    assert bench.agent()["reason"] == "Protected"
    bench.node("n1", ready=False)
    await bench.settle()
    assert bench.agent()["reason"] == "AtRisk"
    assert bench.cluster.events("AtRisk") == ["Node n1 is lost. Last checkpoint: asked-1."]


async def test_a_recovery_point_that_grows_old_is_a_risk(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask()
    await bench.settle()
    await bench.commit(who)
    bench.orders.in_flight[CODER] = "somebody else's"
    await bench.pass_time(1200, step=20)
    assert bench.agent()["reason"] == "AtRisk"


async def test_the_pin_rises_and_is_read_back(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask()
    await bench.settle()
    head = await bench.commit(who)
    assert bench.agent()["head"] == {"sequence": 2, "recordDigest": head.digest}
    await bench.lead()
    assert await bench.now_leading.directory.pinned(CODER) == (2, head.digest)


async def test_whoever_deletes_it_accepts_what_the_store_holds(bench: ReconcileHarness) -> None:
    await bench.start(bench.pod())
    assert await bench.now_leading.directory.pinned(CODER) is not None
    bench.cluster.remove(AGENTS, "coder", NAMESPACE)
    assert await bench.now_leading.directory.pinned(CODER) is None


@pytest.mark.parametrize("runs", [True, False])
async def test_a_store_that_was_put_back_is_noticed(bench: ReconcileHarness, runs: bool) -> None:
    who = await bench.start(bench.pod())
    bench.ask()
    await bench.settle()
    await bench.commit(who)
    lost = "demo/coder/" + commit_key(2)
    record = bench.objects.get(lost, max_bytes=1 << 20)
    if not runs:
        await bench.disconnect(who, released=True)
        bench.cluster.remove(PODS, who.pod.name, NAMESPACE)
    bench.objects.delete(lost)
    await bench.lead()
    if runs:
        await bench.connect(who)
    status = bench.agent()
    assert (status["reason"], status["lastFailure"]["reason"]) == ("AtRisk", "RollbackDetected")
    assert "delete the ProtectedAgent to accept" in status["conditions"][0]["message"]
    assert status["head"]["sequence"] == 2  # the pin does not follow
    assert len(bench.cluster.events("AtRisk")) == 1
    since = status["lastFailure"]["time"]
    await bench.pass_time(200, step=10)
    assert bench.agent()["lastFailure"]["time"] == since
    bench.objects.put_new(lost, record)
    await bench.pass_time(70)
    assert bench.agent()["reason"] == "Protected"


async def test_a_listing_finds_what_no_watch_told(bench: ReconcileHarness) -> None:
    reconciler = bench.now_leading.reconciler
    assert await reconciler.list_all() == 0
    bench.cluster.watcher = lambda *_: None
    bench.pod("unseen")
    bench.cluster.put(PODS, bench.pod("changed").name, NAMESPACE, status={"phase": "Failed"})
    assert await reconciler.list_all() == 2
    assert await reconciler.list_all() == 0


# -- policies and labels ------------------------------------------------------------------------------------------


async def test_a_policy_counts_its_pods_and_its_rivals(bench: ReconcileHarness) -> None:
    bench.cluster.put(POLICIES, "wide", NAMESPACE, spec={})
    await bench.pass_time(3)
    bench.cluster.put(POLICIES, "narrow", NAMESPACE, spec={"selector": {"matchLabels": {"team": "coding"}}})
    bench.pod()
    bench.pod("mailer", labels={"team": "coding"})
    await bench.pass_time(5)
    wide, narrow = (bench.cluster.object(POLICIES, name, NAMESPACE)["status"] for name in ("wide", "narrow"))
    assert (wide["matchedPods"], wide["protectedAgents"]) == (2, 2)
    assert (narrow["matchedPods"], narrow["protectedAgents"]) == (1, 0)
    assert conditions(wide) == conditions(narrow) == {"Ready": "True", "Conflicting": "True"}


def policy(bench: ReconcileHarness, name: str = "coders") -> tuple[str, str, str]:
    """Reason, and status and message of Ready."""
    status = bench.cluster.object(POLICIES, name, NAMESPACE)["status"]
    ready = next(each for each in status["conditions"] if each["type"] == "Ready")
    assert status["reason"] == ready["reason"]
    return status["reason"], ready["status"], ready["message"]


async def refused_alike(bench: ReconcileHarness, reason: str, message: str) -> None:
    """A pod of the policy is told the same."""
    refused = await bench.now_leading.directory.incarnation(bench.pod())
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.message) == (reason, message)


@pytest.mark.parametrize("names", [{"storeName": "far"}, {}])
async def test_a_policy_without_a_store_is_not_ready_until_there_is_one(
    bench: ReconcileHarness, names: dict[str, str]
) -> None:
    bench.cluster.remove(STORES, STORE)
    bench.cluster.put(POLICIES, "coders", NAMESPACE, spec={**names, "suspend": True})
    await bench.settle()
    reason, status, message = policy(bench)
    assert (reason, status) == ("NoStore", "False")
    await refused_alike(bench, reason, message)
    s3 = {"endpoint": "https://s3.test", "bucket": "agents", "credentialsSecretName": "s3-keys"}
    bench.cluster.put(STORES, "unlike", spec={"s3": s3})
    await bench.settle()
    assert policy(bench)[0] == "NoStore"
    bench.cluster.put(STORES, "far", spec={"s3": s3, "default": True})
    await bench.settle()
    assert policy(bench) == ("Suspended", "True", "")
    bench.cluster.remove(STORES, "far")
    await bench.settle()
    assert policy(bench)[:2] == ("NoStore", "False")


async def test_a_policy_whose_store_is_closed_to_its_namespace_is_not_ready(bench: ReconcileHarness) -> None:
    spec = bench.cluster.object(STORES, STORE)["spec"]
    bench.cluster.put(POLICIES, "coders", NAMESPACE, spec={"storeName": STORE})
    await bench.settle()
    assert policy(bench) == ("Ready", "True", "")
    bench.cluster.put(STORES, STORE, spec={**spec, "allowedNamespaces": {"names": ["other"]}})
    await bench.settle()
    reason, status, message = policy(bench)
    assert (reason, status) == ("StoreNotAllowed", "False")
    await refused_alike(bench, reason, message)
    bench.cluster.put(STORES, STORE, spec=spec)
    await bench.settle()
    assert policy(bench)[0] == "Ready"


async def test_a_policy_learns_of_its_namespaces_labels_by_the_next_listing(bench: ReconcileHarness) -> None:
    spec = bench.cluster.object(STORES, STORE)["spec"]
    selector = {"selector": {"matchLabels": {"agents": "yes"}}}
    bench.cluster.put(STORES, STORE, spec={**spec, "allowedNamespaces": selector})
    bench.cluster.put(POLICIES, "coders", NAMESPACE, spec={})
    await bench.settle()
    assert policy(bench)[:2] == ("StoreNotAllowed", "False")
    bench.cluster.put(NAMESPACES, NAMESPACE, metadata={"labels": {"agents": "yes"}})
    await bench.now_leading.reconciler.list_all()
    await bench.settle()
    assert policy(bench)[:2] == ("Ready", "True")


@pytest.mark.parametrize(
    ("reason", "words"),
    [("ErrImagePull", "image far/away:1 cannot be pulled. Correct"), ("CreateContainerConfigError", "no such key")],
)
async def test_a_pod_whose_container_cannot_start_says_why(bench: ReconcileHarness, reason: str, words: str) -> None:
    pod = bench.pod()
    waiting = {"waiting": {"reason": reason, "message": "no such key"}}
    blocked = {"containerStatuses": [{"name": "agent", "image": "far/away:1", "state": waiting}]}
    bench.cluster.put(PODS, pod.name, NAMESPACE, status={"phase": "Pending", **blocked})
    await bench.settle()
    (message,) = bench.cluster.events("CannotStart")
    assert words in message
    assert bench.agent()["reason"] == "Unprotected"
    assert words in bench.agent()["conditions"][0]["message"]


async def test_a_label_on_the_deployment_only_is_told_there(bench: ReconcileHarness) -> None:
    labels = {"labels": {LABEL_AGENT: "coder"}}
    bench.cluster.put(DEPLOYMENTS, "coder", NAMESPACE, metadata=labels, spec={"template": {"metadata": {}}})
    bench.cluster.put(DEPLOYMENTS, "good", NAMESPACE, metadata=labels, spec={"template": {"metadata": labels}})
    await bench.settle()
    (message,) = bench.cluster.events("LabelNotOnTemplate")
    assert "spec.template.metadata.labels" in message


async def test_the_same_words_are_one_event(bench: ReconcileHarness) -> None:
    pod = bench.pod("Coder!", injected=False)
    await bench.settle()
    for step in range(3):
        bench.cluster.put(PODS, pod.name, NAMESPACE, metadata={"annotations": {"touched": str(step)}})
        await bench.settle()
    assert len(bench.cluster.events("AgentNameInvalid")) == 1


# -- the directory ------------------------------------------------------------------------------------------------


async def test_a_deployment_of_two_is_refused_with_an_event(bench: ReconcileHarness) -> None:
    bench.cluster.put(DEPLOYMENTS, "coder", NAMESPACE, metadata={"uid": "d"}, spec={"replicas": 2})
    owner = {"kind": "Deployment", "name": "coder", "uid": "d", "controller": True}
    bench.cluster.put(REPLICASETS, "coder-7f", NAMESPACE, metadata={"uid": "rs", "ownerReferences": [owner]}, spec={})
    held = {"kind": "ReplicaSet", "name": "coder-7f", "uid": "rs", "controller": True}
    pod = bench.pod(ownerReferences=[held])
    refused = await bench.now_leading.directory.incarnation(pod)
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.retry) == ("AmbiguousAgent", False)
    assert bench.cluster.events("AmbiguousAgent") == [refused.message]
    assert refused.who is not None
    await bench.now_leading.recorder.restored(refused.who, Outcome(refused.reason, refused.message))
    await bench.settle()
    assert bench.restores()[-1]["reason"] == "AmbiguousAgent"
    assert refused.message in bench.agent()["conditions"][0]["message"]
    bench.cluster.put(DEPLOYMENTS, "coder", NAMESPACE, spec={"replicas": 1})
    who = await bench.start(pod)
    bench.cluster.put(DEPLOYMENTS, "coder", NAMESPACE, spec={"replicas": 2})
    await bench.pass_time(10)
    assert await bench.who(pod) == who  # it holds the epoch: only the others are too many


async def test_a_pod_of_another_uid_is_gone(bench: ReconcileHarness) -> None:
    pod = bench.pod()
    refused = await bench.now_leading.directory.incarnation(PodIdentity(NAMESPACE, pod.name, "another"))
    assert isinstance(refused, Refusal)
    assert refused.reason == "PodGone"


async def test_without_a_store_a_pod_waits(bench: ReconcileHarness) -> None:
    bench.cluster.put(POLICIES, "far", NAMESPACE, spec={"storeName": "far"})
    await bench.settle()
    refused = await bench.now_leading.directory.incarnation(bench.pod())
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.retry) == ("NoStore", True)
    assert refused.who is not None
    assert refused.who.policy_name == "far"
    await bench.now_leading.recorder.waiting(refused.who, Wait(refused.reason, refused.message))
    await bench.settle()
    assert bench.restores()[-1]["reason"] == "NoStore"
    assert bench.cluster.events("NoStore", "Pod") == [refused.message]


async def test_how_a_predecessor_stands_is_read_afresh(bench: ReconcileHarness) -> None:
    directory = bench.now_leading.directory
    pod = bench.pod()
    running = Standing(PodStanding.RUNNING, NodeStanding.READY)
    assert await directory.standing(CODER, pod.uid, "n1") == running
    bench.cluster.watcher = lambda *_: None  # a blind watch must not decide a grant
    bench.cluster.put(PODS, pod.name, NAMESPACE, status={"phase": "Failed"})
    assert (await directory.standing(CODER, pod.uid, "n1")).pod is PodStanding.TERMINAL
    bench.cluster.remove(PODS, pod.name, NAMESPACE)
    assert (await directory.standing(CODER, pod.uid, "n1")).pod is PodStanding.GONE
    bench.node("n1", ready=False)
    assert (await directory.standing(CODER, pod.uid, "n1")).node is NodeStanding.LOST
    assert (await directory.standing(CODER, pod.uid, "n9")).node is NodeStanding.LOST
    assert (await directory.standing(CODER, pod.uid, "")).node is NodeStanding.READY


async def test_a_pod_that_lost_its_label_is_not_taken_for_gone(bench: ReconcileHarness) -> None:
    pod = bench.pod()
    bench.cluster.watcher(PODS, True, bench.cluster.object(PODS, pod.name, NAMESPACE))
    standing = await bench.now_leading.directory.standing(CODER, pod.uid, "n1")
    assert standing.pod is PodStanding.RUNNING


# -- stores -------------------------------------------------------------------------------------------------------


async def test_a_good_store_is_ready(bench: ReconcileHarness) -> None:
    status = store(bench)
    assert conditions(status) == {"Available": "True", "ConditionalWrites": "True", "Ready": "True"}
    assert status["reason"] == "Ready"
    assert status["lastProbeTime"]
    opened = await bench.now_leading.stores.open(STORE)
    assert await bench.now_leading.stores.open(STORE) is opened


async def test_the_master_key_is_made_once(bench: ReconcileHarness) -> None:
    before = bench.master()
    await bench.lead()
    assert bench.master().check == before.check
    assert len(bench.cluster.object(SECRETS, "savepoint-master-key", "savepoint-system")["data"]) == 1


def told(bench: ReconcileHarness) -> list[tuple[str, str]]:
    """Type and reason of the Events on the store, oldest first."""
    events = [each for each in bench.cluster.every(EVENTS) if each["involvedObject"]["kind"] == "AgentCheckpointStore"]
    assert {each["metadata"]["namespace"] for each in events} == {"default"}
    return [(each["type"], each["reason"]) for each in events]


async def test_a_store_says_in_events_what_has_changed(
    bench: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(bench) == [("Normal", "StoreReady")]
    await bench.lead()
    await bench.pass_time(180, step=5)
    assert told(bench) == [("Normal", "StoreReady")]  # nothing was new

    def away(*_: object) -> None:
        raise StoreUnavailable("nobody answers")

    monkeypatch.setattr(bench.objects, "head", away)
    await bench.pass_time(180, step=5)
    assert told(bench)[1:] == [("Warning", "StoreUnavailable")]
    assert "nobody answers. Earlier checkpoints are safe" in bench.cluster.events("StoreUnavailable")[0]
    assert store(bench)["conditions"][-1]["message"] == bench.cluster.events("StoreUnavailable")[0]
    bench.cluster.remove(SECRETS, "s3-keys", "savepoint-system")
    await bench.pass_time(60, step=5)
    assert told(bench)[2:] == [("Warning", "StoreMisconfigured")]
    monkeypatch.undo()
    bench.cluster.put(SECRETS, "s3-keys", "savepoint-system", data={"accessKey": "YQ==", "secretKey": "Yg=="})
    await bench.pass_time(60, step=5)
    assert told(bench)[3:] == [("Normal", "StoreReady")]


async def test_a_store_that_is_deleted_while_it_is_looked_at_is_let_go(bench: ReconcileHarness) -> None:
    bench.cluster.fail["patch", "AgentCheckpointStore"] = Missing("it does not exist")
    bench.cluster.put(STORES, STORE, spec={"s3": {"endpoint": "https://other.test", "bucket": "agents"}})
    await bench.settle()
    assert told(bench) == [("Normal", "StoreReady")]


async def test_a_store_of_another_cluster_is_not_taken(bench: ReconcileHarness) -> None:
    bench.objects.delete("savepoint.json")
    open_store(bench.objects, "another-cluster", bench.master())
    await bench.lead()
    status = store(bench)
    assert status["reason"] == "NotAdopted"
    assert conditions(status)["Available"] == "True"


async def test_another_key_is_a_mismatch_and_never_regenerated(bench: ReconcileHarness) -> None:
    data = {MASTER_KEY_FIELD: "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="}
    bench.cluster.put(SECRETS, "savepoint-master-key", "savepoint-system", data=data)
    await bench.pass_time(61)
    assert store(bench)["reason"] == "KeyMismatch"
    with pytest.raises(KeyMismatch):
        await bench.now_leading.stores.open(STORE)
    assert bench.cluster.object(SECRETS, "savepoint-master-key", "savepoint-system")["data"] == data


@pytest.mark.parametrize(
    ("data", "word"), [(None, "does not exist"), ({"accessKey": "YQ=="}, "accessKey and secretKey")]
)
async def test_missing_credentials_are_named(bench: ReconcileHarness, data: dict[str, str] | None, word: str) -> None:
    bench.cluster.remove(SECRETS, "s3-keys", "savepoint-system")
    if data is not None:
        bench.cluster.put(SECRETS, "s3-keys", "savepoint-system", data=data)
    await bench.pass_time(61)
    status = store(bench)
    assert status["reason"] == "StoreMisconfigured"
    assert word in status["conditions"][-1]["message"]
    assert "YQ==" not in str(status)
    with pytest.raises(StoreMisconfigured):
        await bench.now_leading.stores.open(STORE)
    bench.cluster.put(SECRETS, "s3-keys", "savepoint-system", data={"accessKey": "YQ==", "secretKey": "Yg=="})
    await bench.pass_time(16)
    assert store(bench)["reason"] == "Ready"


async def test_a_store_that_is_not_opened_yet_may_pass(bench: ReconcileHarness) -> None:
    with pytest.raises(StoreMisconfigured):
        await bench.now_leading.stores.open("never")
    s3 = {"endpoint": "https://s3.test", "bucket": "b", "credentialsSecretName": "s3-keys"}
    bench.cluster.put(STORES, "new", spec={"s3": s3})
    with pytest.raises(StoreUnavailable):
        await bench.now_leading.stores.open("new")


async def test_the_same_fault_of_a_store_has_the_same_words(
    bench: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(_: ObjectStore, random_hex: str) -> None:
        raise StoreUnavailable(f"the store could not be asked to GET 'probe/{random_hex}'")

    monkeypatch.setattr(stores, "probe", faulty)
    await bench.lead()
    told = store(bench)["conditions"]
    assert "'probe/…'" in told[-1]["message"]
    await bench.pass_time(60)
    assert store(bench)["conditions"] == told


async def test_a_store_that_was_never_ready_says_why_to_those_who_wait(bench: ReconcileHarness) -> None:
    def build(_: S3Config) -> ObjectStore:
        raise StoreUnavailable("nobody answers at s3.test")

    await bench.lead(build_store=build)
    with pytest.raises(StoreUnavailable, match="default: nobody answers at s3"):
        await bench.now_leading.stores.open(STORE)
    s3 = {"endpoint": "https://s3.test", "bucket": "b", "credentialsSecretName": "none"}
    bench.cluster.put(STORES, "new", spec={"s3": s3})
    await bench.settle()
    with pytest.raises(StoreMisconfigured, match="Secret"):
        await bench.now_leading.stores.open("new")


async def test_the_default_store_follows_the_values_until_somebody_takes_it_over(bench: ReconcileHarness) -> None:
    make = bench.now_leading.stores.make_default
    spec = {"s3": {"endpoint": "https://s3.test", "bucket": "b"}, "default": True}
    await make("chart", spec)
    assert bench.cluster.object(STORES, "chart")["metadata"]["labels"] == DEFAULT_LABEL
    await make("chart", {**spec, "s3": {"endpoint": "https://other.test", "bucket": "b"}})
    assert bench.cluster.object(STORES, "chart")["spec"]["s3"]["endpoint"] == "https://other.test"
    bench.cluster.put(STORES, "chart", metadata={"labels": {}})
    await make("chart", spec)
    assert bench.cluster.object(STORES, "chart")["spec"]["s3"]["endpoint"] == "https://other.test"
