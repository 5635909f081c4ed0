"""Pods that have, and have not, ended their agent's run by exiting with 0."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from savepoint_operator.cluster.parse import pod_of
from savepoint_operator.rules.completion import ends_run

REQUESTED = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
GRACE = 30


def stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def ended(at: datetime = REQUESTED, name: str = "agent") -> dict[str, Any]:
    return {"name": name, "state": {"terminated": {"exitCode": 0, "finishedAt": stamp(at)}}}


def pod(
    *containers: dict[str, Any],
    phase: str = "Succeeded",
    policy: str | None = "Never",
    deleted: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Return a pod as the API server shows it; ``deleted``: its deletion was requested at REQUESTED."""
    statuses = list(containers or (ended(),))
    metadata: dict[str, Any] = {"name": "coder-1", "namespace": "demo", "uid": "u"}
    if deleted:
        shown = stamp(REQUESTED + timedelta(seconds=GRACE))
        metadata |= {"deletionTimestamp": shown, "deletionGracePeriodSeconds": GRACE}
    spec = {"containers": [{"name": each["name"]} for each in statuses], "restartPolicy": policy}
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase, "containerStatuses": statuses, **more}}


def evicted(status: str = "True") -> dict[str, Any]:
    return {"conditions": [{"type": "DisruptionTarget", "status": status, "reason": "EvictionByEvictionAPI"}]}


@pytest.mark.parametrize(
    ("raw", "ends"),
    [
        (pod(), True),
        (pod(policy="OnFailure"), True),
        (pod(ended(), ended(name="helper")), True),
        (pod(**evicted("False")), True),
        (pod(policy="Always"), False),  # only its deletion ends such a pod
        (pod(policy=None), False),
        (pod(phase="Failed"), False),
        (pod(phase="Running"), False),
        (pod(**evicted()), False),
        # An agent that is asked to stop, traps the signal and exits with 0:
        (pod(ended(REQUESTED + timedelta(seconds=4)), deleted=True), False),
        (pod(ended(REQUESTED + timedelta(seconds=4)), deleted=True, **evicted()), False),
        # It ended on its own, and then its Job was deleted while the final checkpoint was taken:
        (pod(ended(REQUESTED - timedelta(seconds=6)), deleted=True), True),
        # It is unknown which came first:
        (pod(ended(REQUESTED), deleted=True), False),
        (pod(ended(REQUESTED - timedelta(seconds=5)), deleted=True), False),
        (pod({"name": "agent", "state": {"terminated": {"exitCode": 0, "finishedAt": None}}}, deleted=True), False),
        (pod({"name": "agent"}, deleted=True), False),
        # One container ended on its own, the other was asked to:
        (
            pod(ended(REQUESTED - timedelta(hours=1)), ended(REQUESTED + timedelta(seconds=1), "helper"), deleted=True),
            False,
        ),
    ],
)
def test_only_a_pod_that_succeeded_on_its_own_ends_its_run(raw: dict[str, Any], ends: bool) -> None:
    assert ends_run(pod_of(raw)) is ends


def test_a_container_without_a_status_has_no_exit_time() -> None:
    raw = pod(ended(REQUESTED - timedelta(hours=1)), deleted=True)
    raw["spec"]["containers"].append({"name": "unseen"})
    assert not ends_run(pod_of(raw))


def test_a_grace_period_shortened_later_does_not_matter() -> None:
    raw = pod(ended(REQUESTED - timedelta(seconds=6)), deleted=True)
    raw["metadata"] |= {"deletionTimestamp": stamp(REQUESTED), "deletionGracePeriodSeconds": 0}
    assert ends_run(pod_of(raw))
