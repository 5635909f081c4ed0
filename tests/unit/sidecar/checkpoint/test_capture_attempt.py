"""The deadline, the hold and the interruption of an attempt."""

import asyncio

import pytest
from savepoint.errors import DeadlineExceeded, SavepointError, StateUnstable, Unavailable
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt, in_thread

from tests.unit.sidecar.environment import ManualClock


def test_an_attempt_ends_at_its_deadline_at_the_end_of_its_hold_or_when_interrupted() -> None:
    clock = ManualClock()
    attempt = CaptureAttempt("a" * 32, "Interval", clock.now + 10, clock)
    attempt.check()
    attempt.hold(2)
    clock.now += 2
    with pytest.raises(StateUnstable, match="holdSeconds"):
        attempt.check()
    attempt.hold(None)
    attempt.check()
    clock.now += 8
    with pytest.raises(DeadlineExceeded):
        attempt.report_stored(5)
    attempt.interrupt(Unavailable("first"))
    attempt.interrupt(Unavailable("second"))
    with pytest.raises(Unavailable, match="first"):
        attempt.check()
    assert attempt.progress().bytes_done == 5


async def test_a_cancelled_call_waits_for_its_thread() -> None:
    clock = ManualClock()
    attempt = CaptureAttempt("a" * 32, "Interval", clock.now + 10, clock)
    steps: list[str] = []

    def work() -> None:
        try:
            while True:
                attempt.check()
        except SavepointError:
            steps.append("ended")

    running_work = asyncio.ensure_future(in_thread(attempt, work))
    await asyncio.sleep(0.01)
    running_work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running_work
    assert steps == ["ended"]
