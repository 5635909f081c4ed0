"""The store loses a pack while the agent lives: the next checkpoint stores its data again, even if nothing changed."""

import logging
import os
from pathlib import Path

import pytest
from savepoint.errors import StoreDenied
from savepoint.repository.read.verify import verify

from tests.fakes.store import Call, Fault, FaultyStore, MemoryStore
from tests.unit.sidecar.harness import Agent, Harness, running


async def take(harness: Harness, agent: Agent) -> str:
    harness.authority.order()
    await agent.flush()
    result = await agent.result()
    await harness.idle()
    return result.outcome


def lose_packs(store: FaultyStore) -> None:
    for info in list(store.list("")):
        if "/packs/" in info.key:
            store.delete(info.key)


async def test_lost_packs_are_stored_again_though_nothing_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FaultyStore(MemoryStore())
    async with running(tmp_path, store) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": "x" * 5000}
        (harness.files / "weights").write_bytes(os.urandom(300_000))
        assert await take(harness, agent) == "Ready"
        assert await take(harness, agent) == "Unchanged"
        lose_packs(store)
        with caplog.at_level(logging.WARNING):
            assert await take(harness, agent) == "Ready"
        assert "a pack of earlier checkpoints is lost" in caplog.text
        with harness.authority.reader() as reader:
            assert verify(reader) == []
        assert await take(harness, agent) == "Unchanged"


async def test_a_store_that_does_not_answer_the_check_costs_no_checkpoint(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    async with running(tmp_path, store) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": 1}
        assert await take(harness, agent) == "Ready"

        def deny_heads(call: Call) -> Fault | None:
            return Fault(StoreDenied("403")) if call.method == "head" and "/packs/" in call.key else None

        store.script = deny_heads
        assert await take(harness, agent) == "Unchanged"
        store.script = lambda call: None
        lose_packs(store)
        assert await take(harness, agent) == "Ready"
