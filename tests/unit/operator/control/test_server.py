"""The control server: who may connect, which connection counts, and how leadership ends."""

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

from tests.fakes.control_harness import AGENT, ControlHarness, attempt


@pytest.mark.parametrize("authorization", [None, "Bearer ", "Basic token-of-a", "Bearer token-of-unknown"])
async def test_an_invalid_token_is_refused(harness: ControlHarness, authorization: str | None) -> None:
    harness.pod("a")
    headers = {"Authorization": authorization} if authorization else {}
    socket = await harness.session.ws_connect(f"http://127.0.0.1:{harness.port}{PATH}", headers=headers)
    frame = await socket.receive()
    assert (frame.type, frame.data) == (aiohttp.WSMsgType.CLOSE, 4401)
    await socket.close()


async def test_token_reviews_are_cached_for_a_while(harness: ControlHarness) -> None:
    await harness.grant("a")
    await harness.grant("a")
    assert harness.reviewer.reviews == 1
    harness.clock.advance(31)
    await harness.grant("a")
    assert harness.reviewer.reviews == 2


async def test_a_pod_reconnects_while_tokens_cannot_be_reviewed(harness: ControlHarness) -> None:
    harness.reviewer.down = True
    assert await (await harness.dial("a")).closed() == 4503


async def test_another_protocol_version_is_refused(harness: ControlHarness) -> None:
    harness.pod("a")
    pod = await harness.dial("a")
    await pod.send(Hello("sidecar", 2, "9"))
    assert await pod.closed() == 4406


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"v":2,"type":"hello"}', '{"v":1,"type":"exec"}', '{"v":1,"type":"hello","role":1}', "[" * 5000],
)
async def test_a_malformed_message_ends_the_connection(harness: ControlHarness, text: str) -> None:
    harness.pod("a")
    pod = await harness.dial("a")
    await pod.socket.send_str(text)
    assert await pod.closed() == 4406


async def test_the_first_message_must_be_hello_with_a_known_role(harness: ControlHarness) -> None:
    harness.pod("a")
    pod = await harness.dial("a")
    await pod.send(Heartbeat())
    assert await pod.closed() == 4406
    pod = await harness.hello("a", "admin")
    assert await pod.closed() == 4406


async def test_a_pod_may_not_send_an_operators_message(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.send(Ack("x"))  # type: ignore[arg-type]
    assert await pod.closed() == 4406


async def test_a_message_that_is_too_large_ends_the_connection(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.send(Heartbeat(detail="x" * (MESSAGE_MAX_BYTES + 1)))
    assert await pod.closed() == 1009


async def test_a_flood_of_messages_ends_the_connection(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.store.hold()
    await pod.send(harness.offer(attempt(1), 1))
    for number in range(400):
        await pod.send(NeedUrls(str(number)))
    harness.store.release()
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


async def test_a_pod_that_is_not_an_agent_is_refused(harness: ControlHarness) -> None:
    harness.pod("a")
    harness.pod_resolver.incarnations["a"] = Refusal("NotAnAgent", "the pod has no label")
    pod = await harness.hello("a", "sidecar")
    assert (await pod.expect(Refused)).reason == "NotAnAgent"
    assert await pod.closed() == 4403
    harness.pod_resolver.incarnations["a"] = Refusal("NoStore", "there is none yet", retry=True)
    assert await (await harness.hello("a", "sidecar")).closed() == 4503


async def test_a_sidecar_reconnects_while_the_store_is_unreachable(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.store.broken = True
    assert await (await harness.hello("a", "sidecar")).closed() == 4503


async def test_other_paths_and_plain_requests_are_rejected(harness: ControlHarness) -> None:
    async with harness.session.get(f"http://127.0.0.1:{harness.port}{PATH}") as answer:
        assert answer.status == 400
    async with harness.session.get(f"http://127.0.0.1:{harness.port}/") as answer:
        assert answer.status == 404


async def ends_now(drain: "asyncio.Future[None]") -> None:
    """Assert that the drain ends without the clock moving."""
    async with asyncio.timeout(5):
        await drain


async def test_a_drain_finishes_a_shutdown_commit_in_progress(harness: ControlHarness) -> None:
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


async def test_a_drain_waits_for_the_release_of_a_terminating_pod(harness: ControlHarness) -> None:
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
    await pod.request(Released(1), Ack)  # its connection is never closed: the pod's network disappeared with it
    harness.clock.advance(SUCCESSOR_SECONDS)
    await ends_now(drain)
    assert harness.recorder.calls_of("released") == [("a", False)]


async def test_a_drain_ends_at_its_deadline(harness: ControlHarness) -> None:
    await harness.grant("a")
    await harness.sidecar("a")
    assert harness.server is not None
    harness.pod_resolver.terminating_pods.add("a")
    drain = asyncio.ensure_future(harness.server.drain(25))
    await asyncio.sleep(0.1)
    harness.clock.advance(25)
    await ends_now(drain)


async def test_a_drain_lingers_so_that_evicted_pods_can_be_asked_to_end(harness: ControlHarness) -> None:
    server = await harness.lead(linger_seconds=1.5)
    drain = asyncio.ensure_future(server.drain(25))
    await asyncio.sleep(0.1)
    assert not drain.done()
    harness.clock.advance(2)
    await ends_now(drain)


async def test_a_drain_waits_until_the_successor_of_a_terminating_pod_has_started(
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
    assert not drain.done(), "the successor is restoring"
    await successor.request(Outcome("Restored", "all of it"), Ack)
    await harness.leave(successor)
    await asyncio.sleep(0.1)
    assert not drain.done(), "the successor's sidecar is starting"
    await harness.sidecar("b")
    await asyncio.sleep(0.1)
    assert not drain.done(), "the successor's sidecar may still request URLs"
    harness.clock.advance(JOINED_SECONDS)
    await ends_now(drain)


async def test_a_drain_does_not_wait_for_pods_that_move_for_other_reasons(harness: ControlHarness) -> None:
    server = await harness.lead(linger_seconds=1.5)
    drain = asyncio.ensure_future(server.drain(25))
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.request(Released(1), Ack)  # the pod was not asked to end
    harness.clock.advance(1.5)
    await ends_now(drain)


async def test_during_a_drain_an_agent_may_request_a_checkpoint_but_reconcile_may_not(harness: ControlHarness) -> None:
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
    await ends_now(drain)


async def test_a_restore_with_two_connections_lasts_until_both_have_ended(harness: ControlHarness) -> None:
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
    await ends_now(drain)


async def test_a_drain_does_not_wait_for_a_successor_of_a_completed_run(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.clock.advance(JOINED_SECONDS)
    await pod.request(Released(1, completed=True), Ack)
    assert harness.server is not None
    async with asyncio.timeout(5):
        await harness.server.drain(25)


async def test_a_drain_does_not_wait_for_scheduled_attempts_or_waiting_pods(harness: ControlHarness) -> None:
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
