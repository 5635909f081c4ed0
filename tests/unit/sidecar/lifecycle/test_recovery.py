"""An agent in its connect() and an order for a checkpoint: neither waits for the other, and orders do not pile up."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from savepoint.contract.control_protocol import CheckpointRef
from savepoint.errors import StoreUnavailable

from tests.unit.sidecar.harness import Harness, running


async def until(harness: Harness) -> None:
    """An agent is being connected."""
    async with asyncio.timeout(10):
        while harness.incarnation.sessions.live is None:
            await asyncio.sleep(0.005)


async def test_a_pending_order_does_not_delay_a_connecting_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent cannot flush before connect() has returned, and connect() waits for the lock."""
    async with running(tmp_path) as harness:
        inside, go_on = asyncio.Event(), asyncio.Event()
        plain = harness.incarnation._recovery.rebase

        async def rebase() -> None:
            if not inside.is_set():
                inside.set()
                await go_on.wait()
            await plain()

        monkeypatch.setattr(harness.incarnation._recovery, "rebase", rebase)
        attempts = [harness.authority.order() for _ in range(3)]
        await inside.wait()
        connecting = asyncio.ensure_future(harness.connected())
        await until(harness)
        go_on.set()
        async with asyncio.timeout(5):  # a flush is waited for twice as long
            agent = await connecting
            told = [(each.attempt, each.reason) for each in harness.authority.results]
            assert told == [(attempt, "Unavailable") for attempt in attempts]
            harness.authority.order()
            await agent.flush()


async def test_a_newer_parent_is_retried_when_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next order would build on an older cut, whose packs may be collected by then."""
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.order()
        await agent.flush()
        recovery = harness.incarnation._recovery
        current = harness.incarnation.checkpointer.parent
        assert current is not None
        newer = replace(
            await harness.authority.welcome(),
            parent=replace(current.ref, sequence=current.ref.sequence + 1, name="later"),
        )
        asked: list[str] = []

        async def load(parent: CheckpointRef) -> None:
            asked.append(parent.name)
            if len(asked) == 1:
                raise StoreUnavailable("timed out")

        monkeypatch.setattr(recovery, "_load", load)
        recovery.welcomed(newer)
        with pytest.raises(StoreUnavailable):
            await recovery.rebase()
        await recovery.rebase()
        await recovery.rebase()
        assert asked == ["later", "later"]
