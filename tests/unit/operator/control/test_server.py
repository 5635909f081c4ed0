"""Who may connect, which connection counts, and how leadership ends."""

import asyncio
import logging

import aiohttp
import pytest
from savepoint.contract.control_protocol import (
    MESSAGE_MAX_BYTES,
    Ack,
    Checkpoint,
    Committed,
    Heartbeat,
    Hello,
    NeedUrls,
    Outcome,
    Refused,
    Released,
    RequestCheckpoint,
    Wait,
)
from savepoint.errors import Unavailable
from savepoint_operator.control.registry import JOINED_SECONDS, SUCCESSOR_SECONDS
from savepoint_operator.control.server import PATH
from savepoint_operator.model.views import PodState, Refusal

from tests.fakes.control_harness import AGENT, ControlHarness, attempt, until


@pytest.mark.parametrize("authorization", [None, "Bearer ", "Basic token-of-a", "Bearer token-of-nobody"])
async def test_a_token_that_proves_nothing_is_refused(harness: ControlHarness, authorization: str | None) -> None:
    harness.pod("a")
    headers = {"Authorization": authorization} if authorization else {}
    socket = await harness.session.ws_connect(f"http://127.0.0.1:{harness.port}{PATH}", headers=headers)
    frame = await socket.receive()
    assert (frame.type, frame.data) == (aiohttp.WSMsgType.CLOSE, 4401)
    await socket.close()


async def test_tokens_are_reviewed_once_in_a_while(harness: ControlHarness) -> None:
    await harness.grant("a")
    await harness.grant("a")
    assert harness.reviewer.reviews == 1
    harness.clock.advance(31)
    await harness.grant("a")
    assert harness.reviewer.reviews == 2


async def test_without_reviews_the_pod_dials_again(harness: ControlHarness) -> None:
    harness.reviewer.down = True
    assert await (await harness.dial("a")).closed() == 4503


async def test_another_protocol_is_named(harness: ControlHarness) -> None:
    harness.pod("a")
    pod = await harness.dial("a")
    await pod.send(Hello("sidecar", 2, "9"))
    assert await pod.closed() == 4406


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"v":2,"type":"hello"}', '{"v":1,"type":"exec"}', '{"v":1,"type":"hello","role":1}', "[" * 5000],
)
async def test_what_is_no_message_ends_the_connection(harness: ControlHarness, text: str) -> None:
    harness.pod("a")
    pod = await harness.dial("a")
    await pod.socket.send_str(text)
    assert await pod.closed() == 4406


async def test_the_first_message_is_hello_of_a_known_role(harness: ControlHarness) -> None:
    harness.pod("a")
    pod = await harness.dial("a")
    await pod.send(Heartbeat())
    assert await pod.closed() == 4406
    pod = await harness.hello("a", "admin")
    assert await pod.closed() == 4406


async def test_a_message_of_the_operator_is_no_message_of_a_pod(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.send(Ack("x"))  # type: ignore[arg-type]
    assert await pod.closed() == 4406


async def test_a_message_that_is_too_large_ends_the_connection(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.send(Heartbeat(detail="x" * (MESSAGE_MAX_BYTES + 1)))
    assert await pod.closed() == 1009


async def test_a_flood_ends_the_connection(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.store.hold()
    await pod.send(harness.offer(attempt(1), 1))
    for number in range(400):
        await pod.send(NeedUrls(str(number)))
    await until(lambda: harness.recorder.calls_of("disconnected") or not harness.store.release())
    assert await pod.closed() == 1008


async def test_the_newest_connection_of_a_pod_and_role_counts(harness: ControlHarness) -> None:
    await harness.grant("a")
    older, _ = await harness.sidecar("a")
    newer, _ = await harness.sidecar("a")
    assert await older.closed() == 4409
    await newer.request(Heartbeat(), Ack)
    assert harness.recorder.calls[-1] == ("connected", "a")
    assert harness.server is not None
    await harness.server.orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await newer.expect(Checkpoint)


async def test_a_pod_of_no_agent_is_turned_away(harness: ControlHarness) -> None:
    harness.pod("a")
    harness.pod_resolver.incarnations["a"] = Refusal("NotAnAgent", "the pod has no label")
    pod = await harness.hello("a", "sidecar")
    assert (await pod.expect(Refused)).reason == "NotAnAgent"
    assert await pod.closed() == 4403
    harness.pod_resolver.incarnations["a"] = Refusal("NoStore", "there is none yet", retry=True)
    assert await (await harness.hello("a", "sidecar")).closed() == 4503


async def test_a_store_that_cannot_be_reached_lets_a_sidecar_dial_again(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.store.broken = True
    assert await (await harness.hello("a", "sidecar")).closed() == 4503


async def test_other_paths_and_plain_requests_get_nothing(harness: ControlHarness) -> None:
    async with harness.session.get(f"http://127.0.0.1:{harness.port}{PATH}") as answer:
        assert answer.status == 400
    async with harness.session.get(f"http://127.0.0.1:{harness.port}/") as answer:
        assert answer.status == 404


async def over(drain: "asyncio.Future[None]") -> None:
    """It ends, and at once: the clock stands still."""
    async with asyncio.timeout(5):
        await drain


async def test_a_stop_finishes_the_shutdown_commit_under_way(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    order = await pod.request(RequestCheckpoint("r1", "Shutdown"), Checkpoint)
    server = harness.server
    assert server is not None
    harness.clock.advance(JOINED_SECONDS)
    drain = asyncio.ensure_future(server.drain(25))
    await asyncio.sleep(0.1)
    assert not drain.done()
    await pod.request(harness.offer(order.attempt, 1, trigger="Shutdown"), Committed)
    await drain
    await server.stop()
    assert await pod.closed() == 4503
    assert [kind for kind, _, _ in harness.chain()] == ["grant", "checkpoint"]


async def test_a_stop_waits_for_the_last_word_of_a_pod_that_goes_at_the_same_time(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    server = harness.server
    assert server is not None
    harness.clock.advance(JOINED_SECONDS)
    harness.pod_resolver.terminating_pods.add("a")
    drain = asyncio.ensure_future(server.drain(25))
    order = await pod.request(RequestCheckpoint("r1", "Shutdown"), Checkpoint)
    await pod.request(harness.offer(order.attempt, 1, trigger="Shutdown"), Committed)
    await asyncio.sleep(0.1)
    assert not drain.done()
    await pod.request(Released(1), Ack)  # its connection is never closed: the pod's network has gone with it
    harness.clock.advance(SUCCESSOR_SECONDS)
    await over(drain)
    assert harness.recorder.calls_of("released") == [("a", False)]


async def test_a_stop_waits_for_nobody_longer_than_its_bound(harness: ControlHarness) -> None:
    await harness.grant("a")
    await harness.sidecar("a")
    assert harness.server is not None
    harness.pod_resolver.terminating_pods.add("a")
    drain = asyncio.ensure_future(harness.server.drain(25))
    await asyncio.sleep(0.1)
    harness.clock.advance(25)
    await over(drain)


async def test_a_stop_gives_pods_a_moment_to_be_told_that_they_go(harness: ControlHarness) -> None:
    server = await harness.lead(linger_seconds=1.5)
    drain = asyncio.ensure_future(server.drain(25))
    await asyncio.sleep(0.1)
    assert not drain.done()
    harness.clock.advance(2)
    await over(drain)


async def test_a_stop_waits_for_the_successor_of_a_pod_that_goes_until_it_has_what_it_needs(
    harness: ControlHarness,
) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    server = harness.server
    assert server is not None
    harness.pod_resolver.terminating_pods.add("a")
    harness.end("a", PodState.RUNNING)
    drain = asyncio.ensure_future(server.drain(25))
    await pod.request(Released(1), Ack)
    harness.pod("b")
    successor = await harness.hello("b", "restore")
    assert (await successor.granted()).epoch == 2
    harness.clock.advance(2 * SUCCESSOR_SECONDS)
    await asyncio.sleep(0.1)
    assert not drain.done(), "it restores"
    await successor.request(Outcome("Restored", "all of it"), Ack)
    await harness.leave(successor)
    await asyncio.sleep(0.1)
    assert not drain.done(), "its sidecar starts"
    await harness.sidecar("b")
    await asyncio.sleep(0.1)
    assert not drain.done(), "it asks for what it needs"
    harness.clock.advance(JOINED_SECONDS)
    await over(drain)


async def test_a_stop_waits_for_no_pods_that_come_and_go_for_other_reasons(harness: ControlHarness) -> None:
    server = await harness.lead(linger_seconds=1.5)
    drain = asyncio.ensure_future(server.drain(25))
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.request(Released(1), Ack)  # nobody has told it to end
    harness.clock.advance(1.5)
    await over(drain)


async def test_a_stop_lets_an_agent_that_starts_take_its_first_checkpoint(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    server = harness.server
    assert server is not None
    drain = asyncio.ensure_future(server.drain(25))
    await asyncio.sleep(0.1)
    with pytest.raises(Unavailable):
        await server.orders.checkpoint(AGENT, attempt(2), "Manual", 60)
    order = await pod.request(RequestCheckpoint("r1", "Agent"), Checkpoint)
    assert order.trigger == "Agent"
    harness.clock.advance(25)
    await over(drain)


async def test_two_connections_of_a_restore_count_as_long_as_one_is_open(harness: ControlHarness) -> None:
    harness.pod("a")
    older = await harness.hello("a", "restore")
    await older.granted()
    newer = await harness.hello("a", "restore")
    await newer.granted()
    assert await older.closed() == 4409
    harness.clock.advance(2 * SUCCESSOR_SECONDS)
    assert harness.server is not None
    drain = asyncio.ensure_future(harness.server.drain(25))
    await asyncio.sleep(0.1)
    assert not drain.done()
    await newer.request(Outcome("Restored", "all of it"), Ack)
    harness.clock.advance(SUCCESSOR_SECONDS)
    await over(drain)


async def test_a_stop_waits_for_no_successor_of_a_run_that_is_over(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.clock.advance(JOINED_SECONDS)
    await pod.request(Released(1, completed=True), Ack)
    assert harness.server is not None
    async with asyncio.timeout(5):
        await harness.server.drain(25)


async def test_a_stop_waits_for_nothing_else(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.clock.advance(JOINED_SECONDS)
    harness.pod("b")
    waiting = await harness.hello("b", "restore")
    await waiting.expect(Wait)
    server = harness.server
    assert server is not None
    await server.orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await pod.expect(Checkpoint)
    async with asyncio.timeout(5):
        await server.drain(25)
    await server.stop()
    assert await waiting.closed() == 4503
    assert await pod.closed() == 4503


async def test_no_token_key_or_url_is_logged(harness: ControlHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await harness.grant("a")
    pod, welcome = await harness.sidecar("a")
    await pod.request(harness.offer(attempt(1), 1), Committed)
    newer, _ = await harness.sidecar("a")
    await newer.send(Heartbeat())
    text = caplog.text + repr(welcome)
    assert "closing the older one" in text
    for secret in ("token-of-a", welcome.key, "https://store.test"):
        assert secret not in text
