"""The Lease: one candidate leads at a time, and stops leading when it cannot renew."""

import asyncio
from datetime import UTC, datetime, timedelta

from savepoint_operator.cluster.kinds import LEASES
from savepoint_operator.leadership import Leadership, LeaseConfig
from savepoint_operator.model.clocks import Clocks

from tests.fakes.cluster import FakeCluster

NOW = datetime(2026, 11, 24, tzinfo=UTC)


class Candidate:
    """A process that wants to lead, with a clock of its own."""

    def __init__(self, cluster: FakeCluster, name: str) -> None:
        self.seconds = 1000.0
        self.leadership = Leadership(
            cluster,
            LeaseConfig("savepoint-system", "lease", name, lease_seconds=15, retry_seconds=0),
            Clocks(lambda: NOW + timedelta(days=365), lambda: self.seconds),  # a wrong wall clock must not matter
        )

    async def try_once(self) -> bool:
        """Try to acquire or renew the Lease once."""
        return await self.leadership._try()


def holder(cluster: FakeCluster) -> str:
    """Return the identity that holds the Lease."""
    return str(cluster.object(LEASES, "lease", "savepoint-system")["spec"]["holderIdentity"])


async def test_a_second_candidate_waits_until_the_first_stops_renewing() -> None:
    cluster = FakeCluster()
    first, second = Candidate(cluster, "a"), Candidate(cluster, "b")
    assert await first.try_once()
    assert first.leadership.held
    assert not await second.try_once()
    second.seconds += 14
    assert await first.try_once()  # it renews: the version changes
    assert not await second.try_once()
    second.seconds += 14
    assert not await second.try_once()
    second.seconds += 2
    assert await second.try_once()
    assert holder(cluster) == "b"
    assert cluster.object(LEASES, "lease", "savepoint-system")["spec"]["leaseTransitions"] == 1
    assert not await first.try_once()
    assert not first.leadership.held


async def test_one_of_several_concurrent_candidates_wins() -> None:
    cluster = FakeCluster()
    candidates = [Candidate(cluster, name) for name in "abc"]
    won = await asyncio.gather(*(each.try_once() for each in candidates))
    assert sum(won) == 1


async def test_a_released_lease_can_be_acquired_at_once() -> None:
    cluster = FakeCluster()
    first, second = Candidate(cluster, "a"), Candidate(cluster, "b")
    await first.leadership.acquire()
    await first.leadership.release()
    assert not first.leadership.held
    assert await second.try_once()
    await first.leadership.release()
    assert holder(cluster) == "b"


async def test_a_process_that_was_suspended_gives_up_leadership() -> None:
    cluster = FakeCluster()
    first = Candidate(cluster, "a")
    await first.leadership.acquire()
    first.seconds += 60
    assert not first.leadership.held
    before = len(cluster.calls)
    await asyncio.wait_for(first.leadership.keep(), 5)
    assert len(cluster.calls) == before  # it does not try to renew: another process may lead by now


async def test_leadership_ends_when_it_cannot_be_renewed() -> None:
    cluster = FakeCluster()
    first = Candidate(cluster, "a")
    await first.leadership.acquire()
    cluster.down = True
    keeping = asyncio.create_task(first.leadership.keep())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not keeping.done()
    first.seconds += 11
    await asyncio.wait_for(keeping, 5)
