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
from tests.unit.sidecar.harness import Agent, Cell, running


async def until(what: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


def stored_notes(cell: Cell) -> list[Any]:
    """The document "notes" of everything that is committed or left for the operator."""
    authority, repository = cell.authority, cell.authority.repository
    where = (repository.key, repository.namespace, repository.agent)
    manifests = [repository.read_manifest(each.manifest.name, each.manifest.size) for each in authority.offers]
    left = [each.manifest for each in authority.pending]
    manifests += [open_manifest(each, *where, manifest_name(each)) for each in left]
    found = []
    for number, manifest in enumerate(manifests):
        with CheckpointReader(repository.store, repository.key, manifest) as reader:
            components = restore_components(reader, cell.stage, f"look-{number}")
        entries = [entry for each in components if each.name == wire.COMPONENT_DOCUMENTS for entry in each.entries]
        found += [json.loads(entry.inline or "null") for entry in entries if entry.name == "notes"]
    return found


def held(cell: Cell, point: str = "before-manifest") -> tuple[threading.Event, threading.Event]:
    """(reached, go on): the attempt stands at this point, complete, until it is told to go on."""
    reached, go_on = threading.Event(), threading.Event()
    plain = cell.failpoints.reach

    def reach(at: str) -> None:
        if at == point and not go_on.is_set():
            reached.set()
            go_on.wait(20)
        plain(at)

    cell.failpoints.reach = reach  # type: ignore[method-assign]
    return reached, go_on


async def sealed(cell: Cell, notes: str) -> tuple[Agent, threading.Event]:
    """An agent whose interval checkpoint is complete, and not yet offered."""
    agent = await cell.connected()
    reached, go_on = held(cell)
    agent.documents = {"notes": notes}
    cell.authority.order(seconds=1800)
    await agent.flush()
    await until(reached.is_set)
    return agent, go_on


@pytest.mark.parametrize("away", [False, True], ids=["operator there", "operator away"])
async def test_the_pod_says_that_it_stops_after_the_agent_has_left_with_an_intervals_flush(
    tmp_path: Path, away: bool
) -> None:
    async with running(tmp_path) as cell:
        agent, go_on = await sealed(cell, "last")
        await agent.die()
        if away:
            cell.authority.up.clear()
        await until(lambda: cell.incarnation.sessions.live is None)
        ending = asyncio.ensure_future(cell.incarnation.end())
        await asyncio.sleep(0.2)
        go_on.set()
        assert await ending
        assert stored_notes(cell) == ["last"]
        assert len(cell.authority.pending) == away


async def test_an_intervals_flush_is_not_given_up_for_one_that_may_never_come(tmp_path: Path) -> None:
    """The operator is away, the agent is in a long step and is killed there: the older state is the best there is."""
    async with running(tmp_path, grace_seconds=2.0) as cell:
        agent, go_on = await sealed(cell, "interval")
        cell.authority.up.clear()
        go_on.set()
        cell.incarnation.begin_end()
        await agent.next(wire.Stopping)
        await asyncio.sleep(0.5)  # twice as long as an absent operator is waited for when the last state is at hand
        assert cell.incarnation.attempts()
        await agent.die()
        assert await cell.incarnation.end()
        assert stored_notes(cell) == ["interval"]


async def test_files_of_an_agent_that_was_killed_are_not_those_of_the_cut_under_way(tmp_path: Path) -> None:
    """It went on after what it handed over for the interval: who starts next must set its files back."""
    async with running(tmp_path) as cell:
        agent, go_on = await sealed(cell, "interval")
        await agent.die()
        ending = asyncio.ensure_future(cell.incarnation.end())
        await asyncio.sleep(0.05)
        go_on.set()
        assert await ending
        assert stored_notes(cell) == ["interval"]
        assert not cell.incarnation.stands_at_cut


async def test_an_order_that_is_about_to_be_obeyed_does_not_take_the_last_flushs_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": "last"}
        inside, go_on = asyncio.Event(), asyncio.Event()
        plain = cell.incarnation._recovery.rebase

        async def rebase() -> None:
            if not inside.is_set():
                inside.set()
                await go_on.wait()  # as after a reconnect, while the newest manifest is read
            await plain()

        monkeypatch.setattr(cell.incarnation._recovery, "rebase", rebase)
        attempt = cell.authority.order()
        await inside.wait()
        cell.incarnation.begin_end()
        go_on.set()
        await agent.flush()
        await agent.die()
        assert await cell.incarnation.end()
        assert stored_notes(cell) == ["last"]
        assert [(each.attempt, each.reason) for each in cell.authority.results] == [(attempt, "Unavailable")]


async def test_an_order_that_comes_while_the_pod_stops_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        cell.incarnation.begin_end()
        await agent.next(wire.Stopping)
        attempt = cell.authority.order()
        await until(lambda: cell.authority.results)
        assert (cell.authority.results[0].attempt, cell.authority.results[0].outcome) == (attempt, "Failed")


async def test_what_is_in_the_way_of_the_last_checkpoint_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, grace_seconds=20.0) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": "last"}
        plain, faults = MemoryStore.put_new, ["away for a moment"]

        def put_new(self: MemoryStore, key: str, data: Any) -> None:
            if "packs/" in key and faults:
                raise StoreUnavailable(faults.pop())
            plain(self, key, data)

        monkeypatch.setattr(MemoryStore, "put_new", put_new)
        cell.incarnation.begin_end()
        await agent.flush()
        await agent.die()
        assert await cell.incarnation.end()
        assert stored_notes(cell) == ["last"] and not faults
        assert cell.incarnation.stands_at_cut


async def test_the_wait_for_a_url_does_not_outlive_the_patience_for_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator goes between the offer of packs and the manifest, and its connection looks alive for a while."""
    async with running(tmp_path, grace_seconds=2.0) as cell:
        agent = await cell.connected()
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
        monkeypatch.setattr(cell.authority, "stop_waiting", asks.stop_waiting)
        monkeypatch.setattr(cell.authority, "leave_pending", leave)
        agent.documents = {"notes": "last"}
        cell.incarnation.begin_end()
        await agent.flush()
        await agent.die()
        async with asyncio.timeout(8):
            assert await cell.incarnation.end()
        assert asked and left == ["Shutdown"]
