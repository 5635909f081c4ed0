"""The times of scheduled checkpoints, and the choice of those that expire."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from savepoint.repository.history.retention import RetentionRules
from savepoint_operator.model.objects import CheckpointObject, Interval, Meta
from savepoint_operator.model.views import AgentRef
from savepoint_operator.rules import retention, schedule

START = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.mark.parametrize(
    ("interval", "part", "seconds"),
    [(Interval(300), 0.0, 300), (Interval(300), 1.0, 330), (Interval(300, 60), 0.5, 330), (Interval(300, 0), 1.0, 300)],
)
def test_the_period_is_lengthened_by_the_jitter(interval: Interval, part: float, seconds: float) -> None:
    assert schedule.wait_seconds(interval, part) == seconds


def due(last: float | None, connected: float, has: bool, period: int = 300) -> float:
    return schedule.due_at(Interval(period, 0), 0.5, last_start=last, connected_at=connected, has_checkpoint=has)


def test_the_period_counts_from_the_start_of_the_last_attempt() -> None:
    assert due(1000.0, 900.0, True) == 1300.0


def test_an_agent_without_a_checkpoint_gets_its_first_one_soon() -> None:
    assert due(None, 1000.0, False) == 1000.0 + schedule.FIRST_SECONDS
    assert due(None, 1000.0, False, period=10) == 1010.0
    assert due(None, 1000.0, True) == 1300.0


def test_overdue_checkpoints_are_spread_after_an_outage() -> None:
    assert due(0.0, 5000.0, True) == 5000.0 + 15.0


def test_the_age_of_a_time_is_bounded_even_if_clocks_jump() -> None:
    assert schedule.seconds_since(None, START, 300) is None
    assert schedule.seconds_since(START - timedelta(seconds=20), START, 300) == 20
    assert schedule.seconds_since(START + timedelta(days=3650), START, 300) == 0
    assert schedule.seconds_since(START - timedelta(days=3650), START, 300) == 300


def checkpoint(number: int, *, ready: bool = True, hold: bool = False) -> CheckpointObject:
    meta = Meta("demo", f"coder-{number}", f"u{number}", 1, 1, START + timedelta(minutes=number), False)
    agent = AgentRef("demo", "coder")
    sequence = number if ready else 0
    return CheckpointObject(meta, agent, hold, "", "Ready" if ready else "Failed", ready, number, sequence, "Interval")


def expired(every: list[CheckpointObject], keep: int, latest: str, failed: Iterable[str] = ()) -> list[str]:
    rules = RetentionRules(keep_last=keep)
    return names(retention.expired(every, rules, START, frozenset({latest}), frozenset(failed)))


def names(items: list[CheckpointObject]) -> list[str]:
    return [each.meta.name for each in items]


def test_the_newest_are_kept() -> None:
    every = [checkpoint(number) for number in range(1, 6)]
    assert expired(every, 2, "coder-5") == ["coder-1", "coder-2", "coder-3"]
    assert expired(every, 0, "coder-5") == ["coder-1", "coder-2", "coder-3", "coder-4"]


def test_a_checkpoint_that_is_held_or_would_be_restored_is_kept() -> None:
    every = [checkpoint(1, hold=True), checkpoint(2), checkpoint(3), checkpoint(4)]
    assert expired(every, 1, "coder-2") == ["coder-3"]


def test_the_newest_failed_checkpoints_are_kept() -> None:
    failed = [checkpoint(number, ready=False) for number in range(1, 9)]
    assert expired([*failed, checkpoint(9)], 1, "coder-9", names(failed)) == ["coder-1", "coder-2", "coder-3"]


def test_a_checkpoint_from_before_a_loss_is_kept_while_the_newest_names_the_loss() -> None:
    lossy = {"shrinkages": [{"sequence": 2, "bytesBefore": 9, "bytesNow": 1}]}
    every = [checkpoint(number) for number in range(1, 9)]
    every[-1] = replace(every[-1], status=lossy)
    assert expired(every, 1, "coder-8") == ["coder-1", *(f"coder-{number}" for number in range(3, 8))]
    every.append(checkpoint(9))
    assert "coder-2" in expired(every, 1, "coder-9")


def test_sizes_in_a_status_may_be_quantities() -> None:
    every = [checkpoint(1), checkpoint(2), checkpoint(3)]
    every = [replace(each, status={"size": {"stored": "2Mi", "uploaded": 1 << 20}}) for each in every]
    rules = RetentionRules(max_bytes=3 << 20)
    assert names(retention.expired(every, rules, START, frozenset(), frozenset())) == ["coder-1"]


def test_collection_keeps_the_sequence_of_every_object() -> None:
    every = [checkpoint(1), checkpoint(2, ready=False), checkpoint(7)]
    assert retention.kept_sequences(every) == {1, 7}
