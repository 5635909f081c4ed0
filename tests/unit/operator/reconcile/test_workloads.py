"""An agent belongs to one workload: another one that claims its name later is refused, unless it says so."""

from typing import Any

from savepoint.contract.names import ANNOTATION_MOVED_FROM, LABEL_AGENT
from savepoint_operator.cluster.kinds import AGENTS, DEPLOYMENTS, JOBS, PODS, REPLICASETS, STATEFULSETS
from savepoint_operator.model.views import Incarnation, PodIdentity, Refusal

from tests.fakes.reconcile_harness import NAMESPACE, ReconcileHarness


def owned(kind: str, name: str) -> list[dict[str, Any]]:
    return [{"kind": kind, "name": name, "uid": f"{kind}-{name}", "controller": True}]


def stateful(harness: ReconcileHarness, label: str = "coder") -> PodIdentity:
    """Create pod 0 of StatefulSet db, labelled ``label``."""
    harness.cluster.put(STATEFULSETS, "db", NAMESPACE, metadata={"uid": "StatefulSet-db"}, spec={"replicas": 1})
    labels = {LABEL_AGENT: label, "apps.kubernetes.io/pod-index": "0"}
    return harness.pod("db-0", ownerReferences=owned("StatefulSet", "db"), labels=labels)


def deployed(harness: ReconcileHarness, agent: str, name: str = "web", **annotations: str) -> PodIdentity:
    """Create a pod of a Deployment, labelled ``agent``."""
    put = harness.cluster.put
    put(DEPLOYMENTS, name, NAMESPACE, metadata={"uid": f"Deployment-{name}"}, spec={"replicas": 1})
    metadata = {"uid": f"ReplicaSet-{name}-7f", "ownerReferences": owned("Deployment", name)}
    put(REPLICASETS, f"{name}-7f", NAMESPACE, metadata=metadata, spec={"replicas": 1})
    return harness.pod(agent, ownerReferences=owned("ReplicaSet", f"{name}-7f"), annotations=annotations)


async def resolve(harness: ReconcileHarness, pod: PodIdentity) -> Incarnation | Refusal:
    return await harness.leader.pod_resolver.incarnation(pod)


def status(harness: ReconcileHarness, agent: str) -> dict[str, Any]:
    return dict(harness.cluster.object(AGENTS, agent, NAMESPACE)["status"])


async def ended(harness: ReconcileHarness, pod: PodIdentity) -> None:
    harness.cluster.remove(PODS, pod.name, NAMESPACE)
    await harness.settle()


async def test_a_deployment_with_the_name_of_a_stateful_sets_pod_is_refused_later_too(
    harness: ReconcileHarness,
) -> None:
    first = stateful(harness)
    assert (await harness.start(first)).agent.name == "coder-0"
    await harness.settle()
    assert status(harness, "coder-0")["workload"] == "StatefulSet/db"
    await ended(harness, first)
    second = deployed(harness, "coder-0")
    refused = await resolve(harness, second)
    assert isinstance(refused, Refusal) and (refused.reason, refused.retry) == ("AmbiguousAgent", False)
    assert "Deployment/web" in refused.message and "StatefulSet/db ran before" in refused.message
    assert f"{ANNOTATION_MOVED_FROM}: StatefulSet/db" in refused.message
    assert harness.cluster.events("AmbiguousAgent") == [refused.message]


async def test_the_workload_itself_returns_as_often_as_it_likes(harness: ReconcileHarness) -> None:
    for _ in range(3):
        pod = deployed(harness, "coder")
        assert (await harness.start(pod)).workload == "Deployment/web"
        await ended(harness, pod)


async def test_a_new_leader_knows_the_workload_from_the_status(harness: ReconcileHarness) -> None:
    first = deployed(harness, "coder")
    await harness.start(first)
    await ended(harness, first)
    await harness.settle()
    await harness.new_leader()
    assert isinstance(await resolve(harness, deployed(harness, "coder", "other")), Refusal)


async def test_an_annotation_moves_the_agent_once(harness: ReconcileHarness) -> None:
    first = deployed(harness, "coder")
    await harness.start(first)
    await ended(harness, first)
    annotation = {ANNOTATION_MOVED_FROM: "Deployment/web"}
    second = deployed(harness, "coder", "other", **annotation)
    assert (await harness.start(second)).workload == "Deployment/other"
    await harness.settle()
    assert status(harness, "coder")["workload"] == "Deployment/other"
    await ended(harness, second)
    assert isinstance(await resolve(harness, deployed(harness, "coder", "third", **annotation)), Refusal)


async def test_a_pod_whose_replica_set_is_deleted_is_not_refused(harness: ReconcileHarness) -> None:
    first = deployed(harness, "coder")
    await harness.start(first)
    await ended(harness, first)
    orphan = harness.pod(ownerReferences=owned("ReplicaSet", "web-8a"))
    found = await resolve(harness, orphan)
    assert isinstance(found, Incarnation) and found.workload == ""


async def test_each_run_of_a_job_may_have_another_name(harness: ReconcileHarness) -> None:
    for name in ("nightly-1", "nightly-2"):
        harness.cluster.put(JOBS, name, NAMESPACE, metadata={"uid": f"Job-{name}"}, spec={"parallelism": 1})
        pod = harness.pod(ownerReferences=owned("Job", name))
        assert (await harness.start(pod)).workload == "Job"
        await ended(harness, pod)
    assert isinstance(await resolve(harness, deployed(harness, "coder")), Refusal)


async def test_a_pod_without_an_owner_is_a_persons_own_doing(harness: ReconcileHarness) -> None:
    first = deployed(harness, "coder")
    await harness.start(first)
    await ended(harness, first)
    by_hand = harness.pod()
    assert (await harness.start(by_hand)).workload == ""
    await ended(harness, by_hand)
    assert status(harness, "coder")["workload"] == "Deployment/web"
    assert isinstance(await resolve(harness, deployed(harness, "coder")), Incarnation)
