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
from savepoint_operator.model.views import PodStanding, Refusal

from tests.fakes.control_harness import AGENT, ControlHarness, attempt, until


@pytest.mark.parametrize("authorization", [None, "Bearer ", "Basic token-of-a", "Bearer token-of-nobody"])
async def test_a_token_that_proves_nothing_is_refused(cell: ControlHarness, authorization: str | None) -> None:
    cell.pod("a")
    headers = {"Authorization": authorization} if authorization else {}
    socket = await cell.session.ws_connect(f"http://127.0.0.1:{cell.port}{PATH}", headers=headers)
    frame = await socket.receive()
    assert (frame.type, frame.data) == (aiohttp.WSMsgType.CLOSE, 4401)
    await socket.close()


async def test_tokens_are_reviewed_once_in_a_while(cell: ControlHarness) -> None:
    await cell.grant("a")
    await cell.grant("a")
    assert cell.reviewer.reviews == 1
    cell.clock.advance(31)
    await cell.grant("a")
    assert cell.reviewer.reviews == 2


async def test_without_reviews_the_pod_dials_again(cell: ControlHarness) -> None:
    cell.reviewer.down = True
    assert await (await cell.dial("a")).closed() == 4503


async def test_another_protocol_is_named(cell: ControlHarness) -> None:
    cell.pod("a")
    pod = await cell.dial("a")
    await pod.send(Hello("sidecar", 2, "9"))
    assert await pod.closed() == 4406


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"v":2,"type":"hello"}', '{"v":1,"type":"exec"}', '{"v":1,"type":"hello","role":1}', "[" * 5000],
)
async def test_what_is_no_message_ends_the_connection(cell: ControlHarness, text: str) -> None:
    cell.pod("a")
    pod = await cell.dial("a")
    await pod.socket.send_str(text)
    assert await pod.closed() == 4406


async def test_the_first_message_is_hello_of_a_known_role(cell: ControlHarness) -> None:
    cell.pod("a")
    pod = await cell.dial("a")
    await pod.send(Heartbeat())
    assert await pod.closed() == 4406
    pod = await cell.hello("a", "admin")
    assert await pod.closed() == 4406


async def test_a_message_of_the_operator_is_no_message_of_a_pod(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    await pod.send(Ack("x"))  # type: ignore[arg-type]
    assert await pod.closed() == 4406


async def test_a_message_that_is_too_large_ends_the_connection(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    await pod.send(Heartbeat(detail="x" * (MESSAGE_MAX_BYTES + 1)))
    assert await pod.closed() == 1009


async def test_a_flood_ends_the_connection(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    cell.store.hold()
    await pod.send(cell.offer(attempt(1), 1))
    for number in range(400):
        await pod.send(NeedUrls(str(number)))
    await until(lambda: cell.recorder.of("disconnected") or not cell.store.release())
    assert await pod.closed() == 1008


async def test_the_newest_connection_of_a_pod_and_role_counts(cell: ControlHarness) -> None:
    await cell.grant("a")
    older, _ = await cell.sidecar("a")
    newer, _ = await cell.sidecar("a")
    assert await older.closed() == 4409
    await newer.ask(Heartbeat(), Ack)
    assert cell.recorder.told[-1] == ("connected", "a")
    assert cell.server is not None
    await cell.server.orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await newer.expect(Checkpoint)


async def test_a_pod_of_no_agent_is_turned_away(cell: ControlHarness) -> None:
    cell.pod("a")
    cell.directory.incarnations["a"] = Refusal("NotAnAgent", "the pod has no label")
    pod = await cell.hello("a", "sidecar")
    assert (await pod.expect(Refused)).reason == "NotAnAgent"
    assert await pod.closed() == 4403
    cell.directory.incarnations["a"] = Refusal("NoStore", "there is none yet", retry=True)
    assert await (await cell.hello("a", "sidecar")).closed() == 4503


async def test_a_store_that_cannot_be_reached_lets_a_sidecar_dial_again(cell: ControlHarness) -> None:
    await cell.grant("a")
    cell.store.broken = True
    assert await (await cell.hello("a", "sidecar")).closed() == 4503


async def test_other_paths_and_plain_requests_get_nothing(cell: ControlHarness) -> None:
    async with cell.session.get(f"http://127.0.0.1:{cell.port}{PATH}") as answer:
        assert answer.status == 400
    async with cell.session.get(f"http://127.0.0.1:{cell.port}/") as answer:
        assert answer.status == 404


async def over(drain: "asyncio.Future[None]") -> None:
    """It ends, and at once: the clock stands still."""
    async with asyncio.timeout(5):
        await drain


async def test_a_stop_finishes_the_shutdown_commit_under_way(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    order = await pod.ask(RequestCheckpoint("r1", "Shutdown"), Checkpoint)
    server = cell.server
    assert server is not None
    cell.clock.advance(JOINED_SECONDS)
    drain = asyncio.ensure_future(server.drain(25))
    await asyncio.sleep(0.1)
    assert not drain.done()
    await pod.ask(cell.offer(order.attempt, 1, trigger="Shutdown"), Committed)
    await drain
    await server.stop()
    assert await pod.closed() == 4503
    assert [kind for kind, _, _ in cell.chain()] == ["grant", "checkpoint"]


async def test_a_stop_waits_for_the_last_word_of_a_pod_that_goes_at_the_same_time(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    server = cell.server
    assert server is not None
    cell.clock.advance(JOINED_SECONDS)
    cell.directory.told_to_end.add("a")
    drain = asyncio.ensure_future(server.drain(25))
    order = await pod.ask(RequestCheckpoint("r1", "Shutdown"), Checkpoint)
    await pod.ask(cell.offer(order.attempt, 1, trigger="Shutdown"), Committed)
    await asyncio.sleep(0.1)
    assert not drain.done()
    await pod.ask(Released(1), Ack)  # its connection is never closed: the pod's network has gone with it
    cell.clock.advance(SUCCESSOR_SECONDS)
    await over(drain)
    assert cell.recorder.of("released") == [("a", False)]


async def test_a_stop_waits_for_nobody_longer_than_its_bound(cell: ControlHarness) -> None:
    await cell.grant("a")
    await cell.sidecar("a")
    assert cell.server is not None
    cell.directory.told_to_end.add("a")
    drain = asyncio.ensure_future(cell.server.drain(25))
    await asyncio.sleep(0.1)
    cell.clock.advance(25)
    await over(drain)


async def test_a_stop_gives_pods_a_moment_to_be_told_that_they_go(cell: ControlHarness) -> None:
    server = await cell.lead(linger_seconds=1.5)
    drain = asyncio.ensure_future(server.drain(25))
    await asyncio.sleep(0.1)
    assert not drain.done()
    cell.clock.advance(2)
    await over(drain)


async def test_a_stop_waits_for_the_successor_of_a_pod_that_goes_until_it_has_what_it_needs(
    cell: ControlHarness,
) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    server = cell.server
    assert server is not None
    cell.directory.told_to_end.add("a")
    cell.end("a", PodStanding.RUNNING)
    drain = asyncio.ensure_future(server.drain(25))
    await pod.ask(Released(1), Ack)
    cell.pod("b")
    successor = await cell.hello("b", "restore")
    assert (await successor.granted()).epoch == 2
    cell.clock.advance(2 * SUCCESSOR_SECONDS)
    await asyncio.sleep(0.1)
    assert not drain.done(), "it restores"
    await successor.ask(Outcome("Restored", "all of it"), Ack)
    await cell.leave(successor)
    await asyncio.sleep(0.1)
    assert not drain.done(), "its sidecar starts"
    await cell.sidecar("b")
    await asyncio.sleep(0.1)
    assert not drain.done(), "it asks for what it needs"
    cell.clock.advance(JOINED_SECONDS)
    await over(drain)


async def test_a_stop_waits_for_no_pods_that_come_and_go_for_other_reasons(cell: ControlHarness) -> None:
    server = await cell.lead(linger_seconds=1.5)
    drain = asyncio.ensure_future(server.drain(25))
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    await pod.ask(Released(1), Ack)  # nobody has told it to end
    cell.clock.advance(1.5)
    await over(drain)


async def test_a_stop_lets_an_agent_that_starts_take_its_first_checkpoint(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    server = cell.server
    assert server is not None
    drain = asyncio.ensure_future(server.drain(25))
    await asyncio.sleep(0.1)
    with pytest.raises(Unavailable):
        await server.orders.checkpoint(AGENT, attempt(2), "Manual", 60)
    order = await pod.ask(RequestCheckpoint("r1", "Agent"), Checkpoint)
    assert order.trigger == "Agent"
    cell.clock.advance(25)
    await over(drain)


async def test_two_connections_of_a_restore_count_as_long_as_one_is_open(cell: ControlHarness) -> None:
    cell.pod("a")
    older = await cell.hello("a", "restore")
    await older.granted()
    newer = await cell.hello("a", "restore")
    await newer.granted()
    assert await older.closed() == 4409
    cell.clock.advance(2 * SUCCESSOR_SECONDS)
    assert cell.server is not None
    drain = asyncio.ensure_future(cell.server.drain(25))
    await asyncio.sleep(0.1)
    assert not drain.done()
    await newer.ask(Outcome("Restored", "all of it"), Ack)
    cell.clock.advance(SUCCESSOR_SECONDS)
    await over(drain)


async def test_a_stop_waits_for_no_successor_of_a_run_that_is_over(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    cell.clock.advance(JOINED_SECONDS)
    await pod.ask(Released(1, completed=True), Ack)
    assert cell.server is not None
    async with asyncio.timeout(5):
        await cell.server.drain(25)


async def test_a_stop_waits_for_nothing_else(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    cell.clock.advance(JOINED_SECONDS)
    cell.pod("b")
    waiting = await cell.hello("b", "restore")
    await waiting.expect(Wait)
    server = cell.server
    assert server is not None
    await server.orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await pod.expect(Checkpoint)
    async with asyncio.timeout(5):
        await server.drain(25)
    await server.stop()
    assert await waiting.closed() == 4503
    assert await pod.closed() == 4503


async def test_no_token_key_or_url_is_logged(cell: ControlHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await cell.grant("a")
    pod, welcome = await cell.sidecar("a")
    await pod.ask(cell.offer(attempt(1), 1), Committed)
    newer, _ = await cell.sidecar("a")
    await newer.send(Heartbeat())
    text = caplog.text + repr(welcome)
    assert "replaces the older one" in text
    for secret in ("token-of-a", welcome.key, "https://store.test"):
        assert secret not in text
