"""What was seen in the scenes must be able to be too little."""

from dataclasses import replace

import pytest

from e2e.checks import report
from e2e.scenarios.main_job import Move, Observations

MOVE = Move("worker", released=1.0, running=3.0, calls_repeated=0, turns_lost=0, trigger="Drain")
OTHER = replace(MOVE, node="worker2")
KILLED = Observations(
    operator_before=7,
    operator_stage="Quiescing",
    operator_killed_at=10.0,
    operator_checkpoint="Ready",
    operator_committed=12.5,
    operator_after=9,
)


def facts(*moves: Move) -> Observations:
    return Observations(moves=list(moves))


def test_two_drains_that_cost_nothing_hold() -> None:
    seen = facts(MOVE, replace(OTHER, trigger="Shutdown"))
    assert all(entry.holds for entry in report.drains(seen, by_twin=40))
    assert report.work_lost([], seen).holds


@pytest.mark.parametrize(
    "wrong",
    [replace(OTHER, calls_repeated=1), replace(OTHER, trigger="Interval"), replace(OTHER, trigger=""), MOVE],
)
def test_a_drain_that_cost_calls_or_took_no_last_checkpoint_or_was_of_the_same_node_fails(wrong: Move) -> None:
    assert not all(entry.holds for entry in report.drains(facts(MOVE, wrong), by_twin=40))


def test_without_drains_and_without_a_twin_nothing_is_proven() -> None:
    assert not any(entry.holds for entry in report.drains(facts(), by_twin=0))
    assert not report.work_lost([], facts()).holds
    assert not report.work_lost([], facts(MOVE)).holds


def test_work_lost_by_a_drain_fails() -> None:
    line = report.work_lost([], facts(MOVE, replace(MOVE, turns_lost=8)))
    assert line.failed and "[0, 8]" in line.found


def test_an_operator_killed_during_a_checkpoint_that_becomes_ready_holds() -> None:
    assert all(entry.holds for entry in report.operator_killed(KILLED))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(KILLED, operator_checkpoint="DeadlineExceeded", operator_committed=0.0),
        replace(KILLED, operator_stage="Ready"),
        replace(KILLED, operator_stage="Pending"),
        replace(KILLED, operator_committed=9.9),
        replace(KILLED, operator_after=8),
        Observations(),
    ],
)
def test_an_operator_killed_before_or_after_or_with_a_loss_fails(wrong: Observations) -> None:
    assert not all(entry.holds for entry in report.operator_killed(wrong))
