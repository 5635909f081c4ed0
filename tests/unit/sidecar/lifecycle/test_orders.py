"""Orders of the authority: each is carried out once or declined, and the agent's own requests are answered."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import ObjectName, Refused
from savepoint_sidecar.lifecycle import orders

from tests.polling import until
from tests.unit.sidecar.harness import checkpoint, running


async def test_a_repeated_order_is_handled_once(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "a").write_bytes(b"1")
        harness.authority.order()
        harness.authority.queue.put_nowait(harness.authority.queue._queue[0])  # type: ignore[attr-defined]
        await harness.authority.await_attempts(1)
        await asyncio.sleep(0.05)
        assert len(harness.authority.offers) == 1 and harness.authority.results == []


async def test_an_attempt_waits_briefly_for_an_agent_to_reconnect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "RECONNECT_SECONDS", 5.0)
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        await checkpoint(harness)
        await agent.die()
        harness.authority.order()
        await asyncio.sleep(0.1)
        again = await harness.connected("two")
        again.documents = {"notes": 5}
        await again.flush()
        assert (await again.result()).outcome == "Ready"


async def test_an_agent_without_files_is_given_time_to_connect(tmp_path: Path) -> None:
    async with running(tmp_path, roots=()) as harness:
        harness.authority.order()
        await asyncio.sleep(0)
        agent = await harness.connected()
        await agent.flush()
        assert (await agent.result()).outcome == "Ready"


async def test_an_order_is_declined_when_the_parent_cannot_be_read(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "a").write_bytes(b"1")
        await checkpoint(harness, agent_flushes=False)
        welcome = await harness.authority.welcome()
        assert welcome.parent is not None
        elsewhere = replace(welcome.parent, sequence=99, manifest=ObjectName("ab" * 32, 100))
        harness.authority.queue.put_nowait(replace(welcome, parent=elsewhere))
        attempt = harness.authority.order(seconds=1800)
        await until(lambda: harness.authority.results)
        assert [(each.attempt, each.reason) for each in harness.authority.results] == [(attempt, "ObjectMissing")]


async def test_a_stop_fences_the_agent_and_ends_all_attempts(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.stop()
        assert "newer epoch" in (await agent.next(wire.Fenced)).message
        before = len(harness.authority.offers)
        attempt = harness.authority.order()
        await until(lambda: harness.authority.results)
        assert len(harness.authority.offers) == before
        (result,) = harness.authority.results
        assert (result.attempt, result.outcome, result.reason) == (attempt, "Failed", "Fenced")
        await agent.post(wire.PATH_CHECKPOINT, wire.CheckpointRequest(agent.session, "r", "").to_wire(), 202)
        assert (await agent.result()).reason == "Fenced"
        await harness.incarnation.shut_down()
        assert harness.authority.releases == []


async def test_a_stop_declines_an_order_that_waits_for_an_agent_without_files(tmp_path: Path) -> None:
    async with running(tmp_path, roots=()) as harness:
        attempt = harness.authority.order(seconds=1800)
        await asyncio.sleep(0.05)
        assert harness.authority.results == []
        harness.authority.stop()
        await until(lambda: harness.authority.results, orders.FIRST_CONNECT_SECONDS / 4)
        assert [(each.attempt, each.reason) for each in harness.authority.results] == [(attempt, "Fenced")]


async def test_orders_requested_before_a_stop_are_declined_to_authority_and_agent(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.answers_requests = False
        await agent.post(wire.PATH_CHECKPOINT, wire.CheckpointRequest(agent.session, "r1", "").to_wire(), 202)
        finishing = asyncio.ensure_future(agent.post(wire.PATH_FINISH, agent.flush_of(""), 503))
        await until(lambda: {each.trigger for each in harness.authority.requests} >= {"Agent", "Finish"})
        harness.authority.stop()
        agent_attempt = harness.authority.order("Agent", request="r1")
        (finish_request,) = (each for each in harness.authority.requests if each.trigger == "Finish")
        finish_attempt = harness.authority.order("Finish", request=finish_request.request)
        result = await agent.result()
        assert (result.request, result.outcome, result.reason) == ("r1", "Failed", "Fenced")
        assert (await finishing)["reason"] == "Fenced"
        assert {(each.attempt, each.reason) for each in harness.authority.results} == {
            (agent_attempt, "Fenced"),
            (finish_attempt, "Fenced"),
        }


async def test_the_agents_checkpoint_request_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": 1}
        request = wire.CheckpointRequest(agent.session, "r1", "before a risky call")
        await agent.post(wire.PATH_CHECKPOINT, request.to_wire(), 202)
        await agent.flush()
        result = await agent.result()
        assert (result.request, result.outcome) == ("r1", "Ready")
        harness.authority.refuse_requests = [Refused("AttemptInFlight", "busy"), Refused("TooOften", "wait a minute")]
        await agent.post(wire.PATH_CHECKPOINT, {**request.to_wire(), "request": "r2"}, 202)
        result = await agent.result()
        assert (result.request, result.outcome, result.reason) == ("r2", "Failed", "TooOften")


async def test_a_pending_order_does_not_delay_a_connecting_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent cannot flush before connect() has returned, and connect() waits for the lock."""
    async with running(tmp_path) as harness:
        rebasing, release = asyncio.Event(), asyncio.Event()
        original_rebase = harness.incarnation._recovery.rebase

        async def rebase() -> None:
            if not rebasing.is_set():
                rebasing.set()
                await release.wait()
            await original_rebase()

        monkeypatch.setattr(harness.incarnation._recovery, "rebase", rebase)
        attempts = [harness.authority.order() for _ in range(3)]
        await rebasing.wait()
        connecting = asyncio.ensure_future(harness.connected())
        await until(lambda: harness.incarnation.sessions.live is not None)
        release.set()
        async with asyncio.timeout(5):  # half the quiesce timeout
            agent = await connecting
            results = [(each.attempt, each.reason) for each in harness.authority.results]
            assert results == [(attempt, "Unavailable") for attempt in attempts]
            harness.authority.order()
            await agent.flush()
