"""Every judgement on a scenario must be able to fail."""

from dataclasses import replace

import pytest

from e2e.checks import report
from e2e.scenarios.main_job import ContainerKill, Corruption, OperatorKill, Reschedule

MOVE = Reschedule("worker", released=1.0, running=3.0, calls_repeated=0, turns_lost=0, trigger="Drain")
OTHER = replace(MOVE, node="worker2")
KILLED = OperatorKill(
    sequence_before=7, sequence_after=9, killed_at=10.0, phase="Quiescing", outcome="Ready", committed_at=12.5
)
CORRUPTED = Corruption("packs/abc", "packs/abc is damaged", agent_started=False, recovered=True)


def test_two_drains_without_loss_pass() -> None:
    moves = [MOVE, replace(OTHER, trigger="Shutdown")]
    assert all(check.holds for check in report.drains(moves, by_twin=40))
    assert report.work_lost([], moves).holds


def test_an_interval_checkpoint_may_be_the_last_one_if_nothing_was_done_after_it() -> None:
    moves = [MOVE, replace(OTHER, trigger="Interval")]
    assert all(check.holds for check in report.drains(moves, by_twin=40))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(OTHER, calls_repeated=1),
        replace(OTHER, trigger="Interval", turns_lost=1),
        replace(OTHER, trigger=""),
        MOVE,
    ],
)
def test_a_drain_that_repeats_calls_or_lacks_a_final_checkpoint_or_another_node_fails(wrong: Reschedule) -> None:
    assert not all(check.holds for check in report.drains([MOVE, wrong], by_twin=40))


def test_no_check_passes_without_drains_or_a_twin() -> None:
    assert not any(check.holds for check in report.drains([], by_twin=0))
    assert not report.work_lost([], []).holds
    assert not report.work_lost([], [MOVE]).holds


def test_work_lost_by_a_drain_fails() -> None:
    check = report.work_lost([], [MOVE, replace(MOVE, turns_lost=8)])
    assert check.failed and "[0, 8]" in check.found


@pytest.mark.parametrize(("repeated", "holds"), [(0, True), (1, True), (2, False)])
def test_a_kill_in_place_may_repeat_the_call_in_flight(repeated: int, holds: bool) -> None:
    assert report.killed_in_place(ContainerKill(repeated)).holds is holds


def test_an_operator_killed_during_a_checkpoint_that_becomes_ready_passes() -> None:
    assert all(check.holds for check in report.operator_killed(KILLED))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(KILLED, outcome="DeadlineExceeded", committed_at=0.0),
        replace(KILLED, phase="Ready"),
        replace(KILLED, phase="Pending"),
        replace(KILLED, committed_at=9.9),
        replace(KILLED, sequence_after=8),
        OperatorKill(0, 0, 0.0, "", "", 0.0),
    ],
)
def test_an_operator_killed_outside_a_checkpoint_or_with_a_loss_fails(wrong: OperatorKill) -> None:
    assert not all(check.holds for check in report.operator_killed(wrong))


def test_a_corruption_that_was_refused_and_repaired_passes() -> None:
    assert all(check.holds for check in report.corrupted(CORRUPTED))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(CORRUPTED, refusal="something is damaged"),
        replace(CORRUPTED, key=""),
        replace(CORRUPTED, agent_started=True),
        replace(CORRUPTED, recovered=False),
    ],
)
def test_a_corruption_that_was_not_named_or_not_refused_or_not_repaired_fails(wrong: Corruption) -> None:
    assert not all(check.holds for check in report.corrupted(wrong))
