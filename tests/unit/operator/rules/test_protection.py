"""The protection state of an agent: the most serious one that applies."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from savepoint_operator.model.objects import Interval, Meta, Pod
from savepoint_operator.rules.protection import Facts, judge

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def pod(injected: bool = True, phase: str = "Running", blocked: str = "") -> Pod:
    return Pod(Meta("demo", "coder-1", "u1", 1, 1, NOW, False), "n1", phase, None, injected, blocked=blocked)


GOOD = Facts(
    pods=(pod(),),
    connected=True,
    restoring="",
    start_failure="",
    completed=False,
    latest_name="coder-41",
    recovery_point=NOW - timedelta(minutes=2),
    failure=None,
    lost_node="",
    interval=Interval(300),
    disconnected_seconds=0.0,
    now=NOW,
)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (GOOD, "Protected"),
        (replace(GOOD, pods=(pod(injected=False),)), "Unprotected"),
        (replace(GOOD, restoring="Pod coder-1 restores coder-41."), "Restoring"),
        (replace(GOOD, pods=(pod(blocked="No image."),)), "AtRisk"),
        (replace(GOOD, pods=(pod(blocked="No image."),), latest_name="", restoring="It waits."), "Unprotected"),
        (replace(GOOD, pods=(pod(phase="Failed", blocked="No image."),), connected=False), "Protected"),
        (replace(GOOD, connected=False, start_failure="NoSpace: too small"), "AtRisk"),
        (replace(GOOD, connected=False, start_failure="AmbiguousAgent: two", latest_name=""), "Unprotected"),
        (replace(GOOD, start_failure="AmbiguousAgent: another pod is it"), "Protected"),
        (replace(GOOD, completed=True, connected=False, pods=()), "Completed"),
        (replace(GOOD, completed=True), "Completed"),
        (replace(GOOD, pods=(), connected=False), "Protected"),
        (replace(GOOD, pods=(pod(phase="Failed"),), connected=False), "Protected"),
        (replace(GOOD, pods=(), connected=False, latest_name=""), "Unprotected"),
        (replace(GOOD, lost_node="n1"), "AtRisk"),
        (replace(GOOD, connected=False, disconnected_seconds=30), "Protected"),
        (replace(GOOD, connected=False, disconnected_seconds=61), "AtRisk"),
        (replace(GOOD, connected=False, disconnected_seconds=61, latest_name=""), "Unprotected"),
        (replace(GOOD, failure=("QuiesceTimeout", "It was resumed.")), "AtRisk"),
        (replace(GOOD, failure=("QuiesceTimeout", "It was resumed."), pods=(), connected=False), "Protected"),
        (replace(GOOD, failure=("RollbackDetected", "It is missing."), pods=(), connected=False), "AtRisk"),
        (replace(GOOD, failure=("IntegrityError", "Damaged."), completed=True, pods=(), latest_name=""), "Unprotected"),
        (replace(GOOD, latest_name="", recovery_point=None), "AtRisk"),
        (replace(GOOD, recovery_point=NOW - timedelta(seconds=959)), "Protected"),
        (replace(GOOD, recovery_point=NOW - timedelta(seconds=961)), "AtRisk"),
        (replace(GOOD, recovery_point=NOW - timedelta(days=9), interval=None), "Protected"),
        (replace(GOOD, recovery_point=None), "Protected"),
    ],
)
def test_every_combination_of_facts_gives_the_expected_state(facts: Facts, reason: str) -> None:
    protection = judge(facts)
    assert protection.reason == reason
    assert protection.message
    assert protection.holds == (reason in ("Protected", "Completed"))
