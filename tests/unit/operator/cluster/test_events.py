"""Events: their place, their count, and faults while writing them."""

from datetime import UTC, datetime, timedelta

from savepoint_operator.cluster.events import Events, EventTarget
from savepoint_operator.cluster.kinds import EVENTS, NODES, PODS

from tests.fakes.cluster import FakeCluster

NOW = datetime.now(UTC)


async def test_an_event_is_in_the_namespace_that_kubectl_reads() -> None:
    cluster = FakeCluster()
    events = Events(cluster, lambda: NOW, "operator-0")
    await events.warning(EventTarget(PODS, "demo", "coder-1", "u1"), "Unprotected", "x" * 2000)
    await events.normal(EventTarget(NODES, "", "n1", "u2"), "Good", "y")
    first, second = cluster.every(EVENTS)
    assert (first["type"], first["metadata"]["namespace"], len(first["message"])) == ("Warning", "demo", 1024)
    assert first["involvedObject"]["uid"] == "u1"
    assert second["metadata"]["namespace"] == "default"


async def test_a_repeated_message_increments_the_count_and_later_makes_a_new_event() -> None:
    cluster, now = FakeCluster(), [NOW]
    events = Events(cluster, lambda: now[0], "operator-0")
    about = EventTarget(PODS, "demo", "coder-1", "u1")
    for _ in range(3):
        await events.warning(about, "Unprotected", "x")
    assert [each["count"] for each in cluster.every(EVENTS)] == [3]
    now[0] += timedelta(hours=1)
    await events.warning(about, "Unprotected", "x")
    assert [each["count"] for each in cluster.every(EVENTS)] == [3, 1]


async def test_an_event_that_cannot_be_written_is_dropped() -> None:
    cluster = FakeCluster()
    cluster.down = True
    events = Events(cluster, lambda: NOW, "operator-0")
    await events.warning(EventTarget(PODS, "demo", "coder-1", "u1"), "Unprotected", "x")
    cluster.down = False
    await events.warning(EventTarget(PODS, "demo", "coder-1", "u1"), "Unprotected", "x")
    assert len(cluster.every(EVENTS)) == 1
