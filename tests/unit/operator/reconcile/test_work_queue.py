"""The queue of keys."""

import asyncio

import pytest
from savepoint_operator.reconcile.work_queue import MAX_BACKOFF_SECONDS, KeyedQueue


class Watch:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def queue(watch: Watch) -> KeyedQueue[str]:
    return KeyedQueue(watch, lambda: 1.0)


async def test_a_key_comes_once_however_often_it_is_added(queue: KeyedQueue[str]) -> None:
    for _ in range(3):
        queue.add("a")
    assert await queue.take() == "a"
    assert not queue.due


async def test_what_is_added_during_a_look_comes_after_it(queue: KeyedQueue[str]) -> None:
    queue.add("a")
    await queue.take()
    queue.add("a")
    queue.add("b")
    assert await queue.take() == "b"
    assert not queue.due
    queue.done("a")
    assert await queue.take() == "a"


async def test_the_earlier_of_two_wishes_counts(queue: KeyedQueue[str], watch: Watch) -> None:
    queue.add("a", 60)
    queue.add("b", 5)
    queue.add("a", 10)
    queue.add("a", 90)
    watch.seconds += 10
    assert [await queue.take(), await queue.take()] == ["b", "a"]
    watch.seconds += 1000
    assert not queue.due


async def test_a_look_may_ask_for_the_next(queue: KeyedQueue[str], watch: Watch) -> None:
    queue.add("a")
    await queue.take()
    queue.done("a", requeue_seconds=30)
    assert not queue.due
    watch.seconds += 30
    assert queue.due


async def test_failures_come_again_later_each_time_and_success_forgets_them(
    queue: KeyedQueue[str], watch: Watch
) -> None:
    pauses = []
    for _ in range(10):
        queue.add("a")
        watch.seconds += 1000
        await queue.take()
        pauses.append(queue.failed("a"))
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == MAX_BACKOFF_SECONDS
    watch.seconds += 1000
    await queue.take()
    queue.done("a")
    queue.add("a")
    await queue.take()
    assert queue.failed("a") == 0.5


async def test_whoever_waits_is_woken(queue: KeyedQueue[str]) -> None:
    takers = [asyncio.create_task(queue.take()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    assert set(await asyncio.wait_for(asyncio.gather(*takers), 5)) == {"a", "b"}
    assert len(queue) == 2


async def test_a_key_that_is_due_later_is_waited_for() -> None:
    loop = asyncio.get_running_loop()
    queue: KeyedQueue[str] = KeyedQueue(loop.time, lambda: 0.0)
    queue.add("a", 0.01)
    assert await asyncio.wait_for(queue.take(), 5) == "a"


async def test_many_keys_are_handed_out_fast(queue: KeyedQueue[str], watch: Watch) -> None:
    for number in range(20_000):
        queue.add(f"k{number}", number % 7)
    watch.seconds += 10
    for _ in range(20_000):
        key = await queue.take()
        queue.done(key, requeue_seconds=60)
    assert not queue.due
    assert len(queue) == 20_000
