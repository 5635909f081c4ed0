"""The agent that a pod is, and when that is ambiguous."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from savepoint.contract.names import LABEL_AGENT
from savepoint_operator.model.objects import Meta, Owner, Pod, Policy, S3Spec, Store, Workload
from savepoint_operator.model.selector import LabelSelector
from savepoint_operator.model.views import AgentRef, Refusal
from savepoint_operator.rules import identity
from savepoint_operator.rules.policy import matching_policies

START = datetime(2026, 11, 24, tzinfo=UTC)
CODER = AgentRef("demo", "coder")


def meta(name: str, uid: str = "", age: int = 0, **more: Any) -> Meta:
    created = START - timedelta(seconds=age)
    return Meta("demo", name, uid or f"uid-{name}", 1, 1, created, more.pop("deleting", False), **more)


def pod(name: str = "coder-1", agent: str = "coder", owner: Owner | None = None, **more: Any) -> Pod:
    labels = {LABEL_AGENT: agent, **more.pop("labels", {})} if agent else more.pop("labels", {})
    kept = {key: more.pop(key) for key in ("annotations", "deleting") if key in more}
    return Pod(meta(name, labels=labels, **kept), "n1", more.pop("phase", "Running"), owner, True, **more)


def workload(kind: str, name: str, replicas: int = 1, owner: Owner | None = None, indexed: bool = False) -> Workload:
    return Workload(meta(name), kind, replicas, indexed, False, owner, True)


@pytest.mark.parametrize(
    ("made", "agent"),
    [
        (pod(), "coder"),
        (pod(owner=Owner("ReplicaSet", "coder-7f", "rs")), "coder"),
        (pod("coder-2", owner=Owner("StatefulSet", "coder", "ss")), "coder-2"),
        (pod("x", owner=Owner("StatefulSet", "coder", "ss"), labels={identity.POD_INDEX: "3"}), "coder-3"),
        (pod(owner=Owner("Job", "batch", "j")), "coder"),
        (pod(owner=Owner("Job", "batch", "j"), labels={identity.COMPLETION_INDEX: "4"}), "coder-4"),
        (pod(owner=Owner("Job", "batch", "j"), annotations={identity.COMPLETION_INDEX: "5"}), "coder-5"),
    ],
)
def test_the_agent_name_is_the_label_plus_an_index_if_there_is_one(made: Pod, agent: str) -> None:
    assert identity.agent_of(made) == AgentRef("demo", agent)


@pytest.mark.parametrize("name", ["Coder", "a" * 53, "-a", "a.b", "a_b"])
def test_a_name_that_is_not_a_dns_label_is_refused(name: str) -> None:
    refused = identity.agent_of(pod(agent=name))
    assert isinstance(refused, Refusal)
    assert refused.reason == "AgentNameInvalid"


def test_an_index_may_make_a_name_too_long() -> None:
    refused = identity.agent_of(pod(f"{'a' * 52}-0", "a" * 52, Owner("StatefulSet", "a", "ss")))
    assert isinstance(refused, Refusal)


def test_a_pod_without_the_label_did_not_opt_in() -> None:
    refused = identity.agent_of(pod(agent=""))
    assert isinstance(refused, Refusal)
    assert refused.reason == "NotAnAgent"


def test_one_replica_is_one_agent_and_more_are_ambiguous() -> None:
    owner = Owner("Deployment", "coder", "uid-coder")
    replica_set = workload("ReplicaSet", "coder-7f", 5, owner)  # during a rollout its own number does not count
    assert identity.refuse_owner(CODER, [replica_set, workload("Deployment", "coder", 1)]) is None
    refused = identity.refuse_owner(CODER, [replica_set, workload("Deployment", "coder", 2)])
    assert refused is not None
    assert (refused.reason, refused.retry) == ("AmbiguousAgent", False)
    assert "StatefulSet" in refused.message
    assert identity.refuse_owner(CODER, [workload("StatefulSet", "coder", 9, indexed=True)]) is None
    assert identity.refuse_owner(CODER, [workload("ReplicaSet", "bare", 2)]) is not None
    job = identity.refuse_owner(CODER, [workload("Job", "batch", 3)])
    assert job is not None
    assert "parallelism" in job.message


def test_a_daemon_set_is_refused() -> None:
    refused = identity.refuse_kind(pod(owner=Owner("DaemonSet", "each", "ds")))
    assert refused is not None
    assert refused.reason == "AmbiguousAgent"
    assert identity.refuse_kind(pod()) is None


def test_the_root_is_the_topmost_known_owner() -> None:
    owner = Owner("ReplicaSet", "coder-7f", "uid-coder-7f")
    made = pod(owner=owner)
    replica_set = workload("ReplicaSet", "coder-7f", 1, Owner("Deployment", "coder", "uid-coder"))
    assert identity.root_of(made, [replica_set, workload("Deployment", "coder")]) == ("Deployment", "uid-coder")
    assert identity.root_of(made, []) == ("ReplicaSet", "uid-coder-7f")
    assert identity.root_of(pod(), []) == ("Pod", "uid-coder-1")


def test_two_live_pods_of_different_owners_are_ambiguous() -> None:
    ours, root = pod("a"), ("Deployment", "d1")
    other = ("Deployment", "d2")
    assert identity.refuse_peers(CODER, ours, root, [(pod("b"), root), (ours, root)]) is None
    refused = identity.refuse_peers(CODER, ours, root, [(pod("b"), other)])
    assert refused is not None
    assert "b" in refused.message
    assert identity.refuse_peers(CODER, ours, root, [(pod("b", phase="Failed"), other)]) is None
    assert identity.refuse_peers(CODER, ours, root, [(pod("b", deleting=True), other)]) is None


def test_the_oldest_policy_that_selects_the_pod_applies() -> None:
    wide = Policy(meta("wide", age=10))
    older = Policy(meta("older", age=20), selector=LabelSelector.parse({"matchLabels": {"team": "coding"}}))
    strange = Policy(meta("strange", age=30), selector=LabelSelector.parse({"matchLabels": {"team": "mail"}}))
    made = pod(labels={"team": "coding"})
    assert [each.meta.name for each in matching_policies([wide, older, strange], made.meta.labels)] == ["older", "wide"]


def store(name: str, age: int = 0, default: bool = False, **more: Any) -> Store:
    return Store(meta(name, age=age), S3Spec("https://s3", "agents"), default, **more)


def test_the_oldest_default_store_applies() -> None:
    assert identity.default_store([]) is None
    assert identity.default_store([store("a")]) is None
    found = identity.default_store([store("a", 1, True), store("b", 2, True), store("c", 3)])
    assert found is not None
    assert found.meta.name == "b"


def test_a_policy_names_its_store_or_gets_the_default_one() -> None:
    near, far = store("near", 1, True), store("far", 2)
    assert identity.store_for("far", [near, far]) is far
    assert identity.store_for(None, [near, far]) is near
    for name, text in (("none", "AgentCheckpointStore none does not exist. Create it"), (None, "is the default one")):
        refused = identity.store_for(name, [far])
        assert isinstance(refused, Refusal)
        assert (refused.reason, refused.retry) == ("NoStore", True)
        assert text in refused.message


def test_a_store_may_be_closed_to_a_namespace() -> None:
    assert identity.refuse_store(store("a"), "demo", {}) is None
    assert identity.refuse_store(store("a", allowed_names=frozenset({"demo"})), "demo", {}) is None
    refused = identity.refuse_store(store("a", allowed_names=frozenset({"other"})), "demo", {})
    assert refused is not None
    assert refused.reason == "StoreNotAllowed"
    labelled = store("a", allowed_selector=LabelSelector.parse({"matchLabels": {"agents": "yes"}}))
    assert identity.refuse_store(labelled, "demo", {"agents": "yes"}) is None
    assert identity.refuse_store(labelled, "demo", {}) is not None
