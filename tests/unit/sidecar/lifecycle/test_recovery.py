"""An agent in its connect() and an order for a checkpoint: neither waits for the other, and orders do not pile up."""

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from savepoint.contract.control_protocol import Checkpoint, CheckpointRef, Result
from savepoint.errors import StoreUnavailable
from savepoint.repository.format.keys import MasterKey
from savepoint_sidecar.authority.local import LocalAuthority, LocalConfig

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.harness import Cell, running


async def until(cell: Cell) -> None:
    """An agent is being connected."""
    async with asyncio.timeout(10):
        while cell.incarnation.sessions.live is None:
            await asyncio.sleep(0.005)


async def test_an_order_that_is_about_to_be_obeyed_does_not_hold_up_an_agent_that_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent cannot flush before connect() has returned, and connect() waits for the lock."""
    async with running(tmp_path) as cell:
        inside, go_on = asyncio.Event(), asyncio.Event()
        plain = cell.incarnation._recovery.rebase

        async def rebase() -> None:
            if not inside.is_set():
                inside.set()
                await go_on.wait()
            await plain()

        monkeypatch.setattr(cell.incarnation._recovery, "rebase", rebase)
        attempts = [cell.authority.order() for _ in range(3)]
        await inside.wait()
        connecting = asyncio.ensure_future(cell.connected())
        await until(cell)
        go_on.set()
        async with asyncio.timeout(5):  # a flush is waited for twice as long
            agent = await connecting
            told = [(each.attempt, each.reason) for each in cell.authority.results]
            assert told == [(attempt, "Unavailable") for attempt in attempts]
            cell.authority.order()
            await agent.flush()


async def test_the_interval_waits_for_an_attempt_that_is_in_flight() -> None:
    def now() -> datetime:
        return datetime.now(UTC)

    authority = LocalAuthority.open(
        MemoryStore(now),
        "coder",
        MasterKey(bytes(32)),
        LocalConfig(interval_seconds=0.01),
        incarnation="one",
        node="here",
        now=now,
        random_bytes=os.urandom,
    )
    await authority.welcome()
    try:
        orders = authority.orders()
        first = await anext(orders)
        assert isinstance(first, Checkpoint)
        waiting = asyncio.ensure_future(anext(orders))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await authority.result(Result(first.attempt, "Unchanged"))
        second = await asyncio.wait_for(waiting, 10)
        assert isinstance(second, Checkpoint)
        assert second.attempt != first.attempt
    finally:
        await authority.close()


async def test_where_the_lineage_stands_is_not_forgotten_when_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next order would build on an older cut, whose packs may be collected by then."""
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        cell.authority.order()
        await agent.flush()
        recovery = cell.incarnation._recovery
        current = cell.incarnation.checkpointer.cut
        assert current is not None
        newer = replace(
            await cell.authority.welcome(), parent=replace(current.ref, sequence=current.ref.sequence + 1, name="later")
        )
        asked: list[str] = []

        async def load(parent: CheckpointRef) -> None:
            asked.append(parent.name)
            if len(asked) == 1:
                raise StoreUnavailable("timed out")

        monkeypatch.setattr(recovery, "_load", load)
        recovery.heard(newer)
        with pytest.raises(StoreUnavailable):
            await recovery.rebase()
        await recovery.rebase()
        await recovery.rebase()
        assert asked == ["later", "later"]
