"""The seconds in which state is lost: what meets what between the pod's first word of its end and the sidecar's last.

Each test is one order of events that real drains have shown, or that reading has. What must hold: the agent's last
state is committed, or left for the operator.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from savepoint.contract import agent_protocol as wire
from savepoint.errors import StoreUnavailable
from savepoint.repository.format.manifest import manifest_name, open_manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint_sidecar.authority.url_book import UrlBook
from savepoint_sidecar.authority.url_requests import UrlRequests
from savepoint_sidecar.stage.components import restore_components

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.harness import Agent, Harness, running


async def until(what: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


def stored_notes(harness: Harness) -> list[Any]:
    """The document "notes" of everything that is committed or left for the operator."""
    authority, repository = harness.authority, harness.authority.repository
    where = (repository.key, repository.namespace, repository.agent)
    manifests = [repository.read_manifest(each.manifest.name, each.manifest.size) for each in authority.offers]
    left = [each.manifest for each in authority.pending]
    manifests += [open_manifest(each, *where, manifest_name(each)) for each in left]
    found = []
    for number, manifest in enumerate(manifests):
        with CheckpointReader(repository.store, repository.key, manifest) as reader:
            components = restore_components(reader, harness.stage, f"look-{number}")
        entries = [entry for each in components if each.name == wire.COMPONENT_DOCUMENTS for entry in each.entries]
        found += [json.loads(entry.inline or "null") for entry in entries if entry.name == "notes"]
    return found


def held(harness: Harness, point: str = "before-manifest") -> tuple[threading.Event, threading.Event]:
    """(reached, go on): the attempt stands at this point, complete, until it is told to go on."""
    reached, go_on = threading.Event(), threading.Event()
    plain = harness.failpoints.reach

    def reach(at: str) -> None:
        if at == point and not go_on.is_set():
            reached.set()
            go_on.wait(20)
        plain(at)

    harness.failpoints.reach = reach  # type: ignore[method-assign]
    return reached, go_on


async def sealed(harness: Harness, notes: str) -> tuple[Agent, threading.Event]:
    """An agent whose interval checkpoint is complete, and not yet offered."""
    agent = await harness.connected()
    reached, go_on = held(harness)
    agent.documents = {"notes": notes}
    harness.authority.order(seconds=1800)
    await agent.flush()
    await until(reached.is_set)
    return agent, go_on


@pytest.mark.parametrize("away", [False, True], ids=["operator there", "operator away"])
async def test_shutdown_after_the_agent_exited_stores_its_interval_flush(tmp_path: Path, away: bool) -> None:
    async with running(tmp_path) as harness:
        agent, go_on = await sealed(harness, "last")
        await agent.die()
        if away:
            harness.authority.reachable.clear()
        await until(lambda: harness.incarnation.sessions.live is None)
        ending = asyncio.ensure_future(harness.incarnation.shut_down())
        await asyncio.sleep(0.2)
        go_on.set()
        assert await ending
        assert stored_notes(harness) == ["last"]
        assert len(harness.authority.pending) == away


async def test_an_interval_flush_is_kept_while_a_later_one_may_never_come(tmp_path: Path) -> None:
    """The operator is away, the agent is in a long step and is killed there: the older state is the best there is."""
    async with running(tmp_path, grace_seconds=2.0) as harness:
        agent, go_on = await sealed(harness, "interval")
        harness.authority.reachable.clear()
        go_on.set()
        harness.incarnation.begin_shutdown()
        await agent.next(wire.Stopping)
        await asyncio.sleep(0.5)  # twice as long as an absent operator is waited for when the last state is at hand
        assert harness.incarnation.attempts()
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert stored_notes(harness) == ["interval"]


async def test_files_of_a_killed_agent_do_not_match_the_attempt_in_flight(tmp_path: Path) -> None:
    """It went on after what it handed over for the interval: who starts next must set its files back."""
    async with running(tmp_path) as harness:
        agent, go_on = await sealed(harness, "interval")
        await agent.die()
        ending = asyncio.ensure_future(harness.incarnation.shut_down())
        await asyncio.sleep(0.05)
        go_on.set()
        assert await ending
        assert stored_notes(harness) == ["interval"]
        assert not harness.incarnation.roots_match_checkpoint


async def test_a_pending_order_does_not_replace_the_final_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": "last"}
        inside, go_on = asyncio.Event(), asyncio.Event()
        plain = harness.incarnation._recovery.rebase

        async def rebase() -> None:
            if not inside.is_set():
                inside.set()
                await go_on.wait()  # as after a reconnect, while the newest manifest is read
            await plain()

        monkeypatch.setattr(harness.incarnation._recovery, "rebase", rebase)
        attempt = harness.authority.order()
        await inside.wait()
        harness.incarnation.begin_shutdown()
        go_on.set()
        await agent.flush()
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert stored_notes(harness) == ["last"]
        assert [(each.attempt, each.reason) for each in harness.authority.results] == [(attempt, "Unavailable")]


async def test_an_order_during_shutdown_is_declined(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.incarnation.begin_shutdown()
        await agent.next(wire.Stopping)
        attempt = harness.authority.order()
        await until(lambda: harness.authority.results)
        assert (harness.authority.results[0].attempt, harness.authority.results[0].outcome) == (attempt, "Failed")


async def test_the_final_checkpoint_retries_a_transient_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, grace_seconds=20.0) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": "last"}
        plain, faults = MemoryStore.put_new, ["away for a moment"]

        def put_new(self: MemoryStore, key: str, data: Any) -> None:
            if "packs/" in key and faults:
                raise StoreUnavailable(faults.pop())
            plain(self, key, data)

        monkeypatch.setattr(MemoryStore, "put_new", put_new)
        harness.incarnation.begin_shutdown()
        await agent.flush()
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert stored_notes(harness) == ["last"] and not faults
        assert harness.incarnation.roots_match_checkpoint


async def test_the_wait_for_a_url_ends_with_the_commit_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator goes between the offer of packs and the manifest, and its connection looks alive for a while."""
    async with running(tmp_path, grace_seconds=2.0) as harness:
        agent = await harness.connected()
        connected = asyncio.Event()
        connected.set()
        asked: list[Any] = []

        async def send(message: Any) -> None:
            asked.append(message)  # nobody answers

        asks = UrlRequests(UrlBook(time.monotonic), connected, send, lambda: f"r{len(asked)}")
        asks.bind()
        plain, left = MemoryStore.put_new, []

        def put_new(self: MemoryStore, key: str, data: Any) -> None:
            if "manifests/" in key:
                asks.put_url(key)
            plain(self, key, data)

        async def leave(attempt: str, trigger: str, completed: bool, manifest: bytes) -> None:
            left.append(trigger)  # its URL was given with the welcome

        monkeypatch.setattr(MemoryStore, "put_new", put_new)
        monkeypatch.setattr(harness.authority, "stop_waiting", asks.stop_waiting)
        monkeypatch.setattr(harness.authority, "leave_pending", leave)
        agent.documents = {"notes": "last"}
        harness.incarnation.begin_shutdown()
        await agent.flush()
        await agent.die()
        async with asyncio.timeout(8):
            assert await harness.incarnation.shut_down()
        assert asked and left == ["Shutdown"]
