"""A claim that other pods may write is reported to the pod, which leaves it alone, and once to its user."""

import json
from typing import Any

import pytest
from savepoint.contract.names import CONTAINER_RESTORE, CONTAINER_SIDECAR, ENV_ROOTS
from savepoint_operator.cluster.errors import Denied
from savepoint_operator.cluster.kinds import CLAIMS, EVENTS, PODS
from savepoint_operator.model.views import ClaimedRoot, PodIdentity, Refusal
from savepoint_operator.reconcile.pod_resolver import REMEMBER_SECONDS

from tests.fakes.reconcile_harness import NAMESPACE, ReconcileHarness

SHARED = ClaimedRoot("team", "files", "team-files")


def claimed_pod(harness: ReconcileHarness, *, chosen: bool = False) -> PodIdentity:
    """Create a pod whose folder /team lies on a claim."""
    pod = harness.pod()
    spec: dict[str, Any] = harness.cluster.object(PODS, pod.name, NAMESPACE)["spec"]
    roots = [{"name": "team", "mountPath": "/team", "path": "/savepoint/state/team", "persistent": True}]
    restore = {
        "name": CONTAINER_RESTORE,
        "env": [{"name": ENV_ROOTS, "value": json.dumps([{**each, "chosen": chosen} for each in roots])}],
        "volumeMounts": [{"name": "files", "mountPath": "/savepoint/state/team"}],
    }
    spec["initContainers"] = [restore, {"name": CONTAINER_SIDECAR}]
    spec["volumes"] = [{"name": "files", "persistentVolumeClaim": {"claimName": "team-files"}}]
    harness.cluster.put(PODS, pod.name, NAMESPACE, spec=spec)
    return pod


def claim(harness: ReconcileHarness, *modes: str) -> None:
    """Create the claim with these access modes."""
    harness.cluster.put(CLAIMS, "team-files", NAMESPACE, spec={"accessModes": list(modes)})


async def test_a_shared_claim_is_sent_to_the_pod_and_reported_in_one_event(harness: ReconcileHarness) -> None:
    claim(harness, "ReadWriteMany")
    incarnation = await harness.start(claimed_pod(harness))
    assert incarnation.shared == (SHARED,)
    await harness.advance(60)
    (event,) = [each for each in harness.cluster.every(EVENTS) if each["reason"] == "SharedVolumeLeftOut"]
    assert (event["type"], event["involvedObject"]["kind"], event["count"]) == ("Normal", "Pod", 1)
    assert "volume files (claim team-files)" in event["message"]
    assert "spec.state.volumes" in event["message"]


@pytest.mark.parametrize(("modes", "chosen"), [(["ReadWriteOnce"], False), (["ReadWriteMany"], True)])
async def test_a_claim_of_one_writer_or_named_by_the_policy_is_state(
    harness: ReconcileHarness, modes: list[str], chosen: bool
) -> None:
    claim(harness, *modes)
    incarnation = await harness.start(claimed_pod(harness, chosen=chosen))
    assert incarnation.shared == ()
    await harness.advance(10)
    assert harness.cluster.events("SharedVolumeLeftOut") == []


@pytest.mark.parametrize("why", ["missing", "denied"])
async def test_a_pod_whose_claim_cannot_be_read_waits(harness: ReconcileHarness, why: str) -> None:
    if why == "denied":
        claim(harness, "ReadWriteMany")
        harness.cluster.fail["get", "PersistentVolumeClaim"] = Denied("persistentvolumeclaims is forbidden")
    pod, pod_resolver = claimed_pod(harness), harness.leader.pod_resolver
    refused = await pod_resolver.incarnation(pod)
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.retry) == ("ClaimUnreadable", True)
    assert "team-files of volume files cannot be read" in refused.message
    assert refused.incarnation is not None and refused.incarnation.agent.name == "coder"
    claim(harness, "ReadWriteMany")
    await harness.advance(REMEMBER_SECONDS)
    assert (await harness.resolve(pod)).shared == (SHARED,)
