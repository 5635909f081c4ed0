"""A store that fails at every call of a checkpoint: the error is typed, the agent continues, the next one is whole."""

import os
from pathlib import Path

import pytest
from savepoint.contract import agent_protocol as wire
from savepoint.errors import IntegrityError, SavepointError, StoreDenied, StoreUnavailable
from savepoint.repository.read.verify import verify

from tests.fakes.store import Call, Fault, FaultyStore, MemoryStore
from tests.unit.sidecar.harness import Harness, running


async def checkpoint(harness: Harness) -> wire.Result:
    harness.authority.order()
    agent = harness.agents[-1]
    await agent.flush()
    result = await agent.result()
    await harness.idle()
    return result


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("error", [StoreUnavailable("503"), StoreDenied("403")])
async def test_every_call_of_a_checkpoint_may_fail(tmp_path: Path, error: SavepointError, applied: bool) -> None:
    store = FaultyStore(MemoryStore())
    async with running(tmp_path, store) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": 0}
        outcomes = []
        for position in range(1, 40):
            agent.documents = {"notes": position}
            (harness.files / "a").write_bytes(os.urandom(2000))
            begin = len(store.calls)

            def script(call: Call, at: int = begin + position) -> Fault | None:
                return Fault(error, applied and call.method == "put_new") if call.number == at else None

            store.script = script
            result = await checkpoint(harness)
            store.script = lambda call: None
            outcomes.append((result.outcome, result.reason))
            if len(store.calls) < begin + position:
                break  # the checkpoint makes fewer calls than that
            if result.outcome == "Failed":
                assert result.reason == error.reason
                harness.authority.queue.put_nowait(await harness.authority.welcome())
            good = await checkpoint(harness)
            assert good.outcome in ("Ready", "Unchanged"), (position, good)
            with harness.authority.reader() as reader:
                assert verify(reader) == []
        assert outcomes[-1] == ("Ready", "") and ("Failed", error.reason) in outcomes


async def test_an_unreadable_checkpoint_refuses_the_connect(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    async with running(tmp_path, store) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": "x" * 100}
        await checkpoint(harness)
        await agent.die()
        (harness.files / "torn").write_bytes(b"t")
        error: SavepointError = StoreUnavailable("the store cannot be reached")

        def script(call: Call) -> Fault | None:
            return Fault(error) if "packs/" in call.key else None

        store.script = script
        with pytest.raises(AssertionError, match=r"503.*StoreUnavailable"):
            await harness.agent("two").connect()
        error = IntegrityError("a flipped bit", "packs/x")
        with pytest.raises(AssertionError, match=r"503.*IntegrityError"):
            await harness.agent("three").connect()
        store.script = lambda call: None
        again = await harness.connected("four")
        assert again.documents == {"notes": "x" * 100} and harness.tree() == {"torn": b"t"}
