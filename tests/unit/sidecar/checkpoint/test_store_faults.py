"""A store that fails at every position of a checkpoint: typed, the agent goes on, and the next checkpoint is whole."""

import os
from pathlib import Path

import pytest
from savepoint.contract import agent_protocol as wire
from savepoint.errors import IntegrityError, SavepointError, StoreDenied, StoreUnavailable
from savepoint.repository.read.verify import verify

from tests.fakes.store import Call, Fault, FaultyStore, MemoryStore
from tests.unit.sidecar.harness import Cell, running


async def checkpoint(cell: Cell) -> wire.Result:
    cell.authority.order()
    agent = cell.agents[-1]
    await agent.flush()
    result = await agent.result()
    await cell.idle()
    return result


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("error", [StoreUnavailable("503"), StoreDenied("403")])
async def test_every_call_of_a_checkpoint_may_fail(tmp_path: Path, error: SavepointError, applied: bool) -> None:
    store = FaultyStore(MemoryStore())
    async with running(tmp_path, store) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": 0}
        outcomes = []
        for position in range(1, 40):
            agent.documents = {"notes": position}
            (cell.files / "a").write_bytes(os.urandom(2000))
            begin = len(store.calls)

            def script(call: Call, at: int = begin + position) -> Fault | None:
                return Fault(error, applied and call.method == "put_new") if call.number == at else None

            store.script = script
            result = await checkpoint(cell)
            store.script = lambda call: None
            outcomes.append((result.outcome, result.reason))
            if len(store.calls) < begin + position:
                break  # the checkpoint asks less often than that
            if result.outcome == "Failed":
                assert result.reason == error.reason
                cell.authority.queue.put_nowait(await cell.authority.welcome())
            good = await checkpoint(cell)
            assert good.outcome in ("Ready", "Unchanged"), (position, good)
            with cell.authority.reader() as reader:
                assert verify(reader) == []
        assert outcomes[-1] == ("Ready", "") and ("Failed", error.reason) in outcomes


async def test_a_cut_that_cannot_be_read_refuses_the_agent(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    async with running(tmp_path, store) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": "x" * 100}
        await checkpoint(cell)
        await agent.die()
        (cell.files / "torn").write_bytes(b"t")
        error: SavepointError = StoreUnavailable("the store is away")

        def script(call: Call) -> Fault | None:
            return Fault(error) if "packs/" in call.key else None

        store.script = script
        with pytest.raises(AssertionError, match=r"503.*StoreUnavailable"):
            await cell.agent("two").connect()
        error = IntegrityError("a flipped bit", "packs/x")
        with pytest.raises(AssertionError, match=r"503.*IntegrityError"):
            await cell.agent("three").connect()
        store.script = lambda call: None
        again = await cell.connected("four")
        assert again.documents == {"notes": "x" * 100} and cell.tree() == {}
