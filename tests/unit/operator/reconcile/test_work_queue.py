"""The work queue."""

import asyncio

import pytest
from savepoint_operator.reconcile.work_queue import MAX_BACKOFF_SECONDS, KeyedQueue


class Clock:
    """A monotonic clock that the test moves."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> KeyedQueue[str]:
    return KeyedQueue(clock, lambda: 1.0)


async def test_a_key_is_taken_once_however_often_it_is_added(queue: KeyedQueue[str]) -> None:
    for _ in range(3):
        queue.add("a")
    assert await queue.take() == "a"
    assert not queue.due


async def test_a_key_added_while_in_progress_is_taken_again_afterwards(queue: KeyedQueue[str]) -> None:
    queue.add("a")
    await queue.take()
    queue.add("a")
    queue.add("b")
    assert await queue.take() == "b"
    assert not queue.due
    queue.done("a")
    assert await queue.take() == "a"


async def test_the_earlier_of_two_times_applies(queue: KeyedQueue[str], clock: Clock) -> None:
    queue.add("a", 60)
    queue.add("b", 5)
    queue.add("a", 10)
    queue.add("a", 90)
    clock.seconds += 10
    assert [await queue.take(), await queue.take()] == ["b", "a"]
    clock.seconds += 1000
    assert not queue.due


async def test_a_key_can_be_requeued_when_it_is_done(queue: KeyedQueue[str], clock: Clock) -> None:
    queue.add("a")
    await queue.take()
    queue.done("a", requeue_seconds=30)
    assert not queue.due
    clock.seconds += 30
    assert queue.due


async def test_failures_back_off_and_success_resets_the_backoff(queue: KeyedQueue[str], clock: Clock) -> None:
    pauses = []
    for _ in range(10):
        queue.add("a")
        clock.seconds += 1000
        await queue.take()
        pauses.append(queue.failed("a"))
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == MAX_BACKOFF_SECONDS
    clock.seconds += 1000
    await queue.take()
    queue.done("a")
    queue.add("a")
    await queue.take()
    assert queue.failed("a") == 0.5


async def test_waiting_takers_are_woken(queue: KeyedQueue[str]) -> None:
    takers = [asyncio.create_task(queue.take()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    assert set(await asyncio.wait_for(asyncio.gather(*takers), 5)) == {"a", "b"}
    assert len(queue) == 2


async def test_take_waits_for_a_key_that_is_due_later() -> None:
    loop = asyncio.get_running_loop()
    queue: KeyedQueue[str] = KeyedQueue(loop.time, lambda: 0.0)
    queue.add("a", 0.01)
    assert await asyncio.wait_for(queue.take(), 5) == "a"


async def test_many_keys_are_taken_fast(queue: KeyedQueue[str], clock: Clock) -> None:
    for number in range(20_000):
        queue.add(f"k{number}", number % 7)
    clock.seconds += 10
    for _ in range(20_000):
        key = await queue.take()
        queue.done(key, requeue_seconds=60)
    assert not queue.due
    assert len(queue) == 20_000
