"""Which pods have ended their agent's run by exiting with 0."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from savepoint_operator.cluster.parse import pod_of
from savepoint_operator.rules.completion import ends_run

ASKED = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
GRACE = 30


def stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def ended(at: datetime = ASKED, name: str = "agent") -> dict[str, Any]:
    return {"name": name, "state": {"terminated": {"exitCode": 0, "finishedAt": stamp(at)}}}


def pod(
    *containers: dict[str, Any],
    phase: str = "Succeeded",
    policy: str | None = "Never",
    deleted: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """As the API server shows it; ``deleted``: somebody asked for its deletion at ASKED."""
    statuses = list(containers or (ended(),))
    metadata: dict[str, Any] = {"name": "coder-1", "namespace": "demo", "uid": "u"}
    if deleted:
        shown = stamp(ASKED + timedelta(seconds=GRACE))
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
        (pod(policy="Always"), False),  # nothing but its deletion ends such a pod
        (pod(policy=None), False),
        (pod(phase="Failed"), False),
        (pod(phase="Running"), False),
        (pod(**evicted()), False),
        # An agent that is told to stop, traps it and exits with 0:
        (pod(ended(ASKED + timedelta(seconds=4)), deleted=True), False),
        (pod(ended(ASKED + timedelta(seconds=4)), deleted=True, **evicted()), False),
        # Its own end came first, and then its Job was deleted while the last checkpoint was taken:
        (pod(ended(ASKED - timedelta(seconds=6)), deleted=True), True),
        # Nobody can say which came first:
        (pod(ended(ASKED), deleted=True), False),
        (pod(ended(ASKED - timedelta(seconds=5)), deleted=True), False),
        (pod({"name": "agent", "state": {"terminated": {"exitCode": 0, "finishedAt": None}}}, deleted=True), False),
        (pod({"name": "agent"}, deleted=True), False),
        # One container went by itself, the other was told to:
        (pod(ended(ASKED - timedelta(hours=1)), ended(ASKED + timedelta(seconds=1), "helper"), deleted=True), False),
    ],
)
def test_which_pods_end_their_run(raw: dict[str, Any], ends: bool) -> None:
    assert ends_run(pod_of(raw)) is ends


def test_a_container_without_a_status_has_not_said_when_it_ended() -> None:
    raw = pod(ended(ASKED - timedelta(hours=1)), deleted=True)
    raw["spec"]["containers"].append({"name": "unseen"})
    assert not ends_run(pod_of(raw))


def test_a_shorter_grace_on_a_second_thought_moves_nothing() -> None:
    raw = pod(ended(ASKED - timedelta(seconds=6)), deleted=True)
    raw["metadata"] |= {"deletionTimestamp": stamp(ASKED), "deletionGracePeriodSeconds": 0}
    assert ends_run(pod_of(raw))
