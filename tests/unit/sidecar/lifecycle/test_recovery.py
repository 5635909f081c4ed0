"""Restores for a connecting agent, and parent checkpoints that the incarnation did not commit itself."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import CheckpointRef, PolicyTerms
from savepoint.errors import StoreUnavailable, Unavailable

from tests.unit.sidecar.harness import checkpoint, running


async def test_the_first_connect_takes_a_baseline_checkpoint(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "a").write_bytes(b"before")
        agent = await harness.connected()
        assert agent.connected is not None and agent.connected.restored is None
        assert [offer.trigger for offer in harness.authority.offers] == ["Agent"]
        (harness.files / "a").write_bytes(b"torn")
        (harness.files / "b").write_bytes(b"torn")
        await agent.die()
        again = await harness.connected("two")
        assert again.connected is not None and again.connected.restored is not None
        assert harness.tree() == {"a": b"before"}


async def test_a_crash_in_place_restores_files_and_values_of_one_checkpoint(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "keep").write_bytes(b"k" * 3000)
        (harness.files / "gone").write_bytes(b"g")
        agent = await harness.connected()
        agent.documents = {"notes": ["x"]}
        await checkpoint(harness)
        (harness.files / "keep").write_bytes(b"torn" * 10)
        (harness.files / "gone").unlink()
        (harness.files / "new").mkdir()
        (harness.files / "new" / "file").write_bytes(b"n")
        await agent.die()
        again = await harness.connected("two")
        assert again.documents == {"notes": ["x"]}
        restored = again.connected.restored if again.connected else None
        assert restored is not None and restored.how == "Restarted" and restored.checkpoint == "coder-2"
        assert harness.tree() == {"keep": b"k" * 3000, "gone": b"g"}
        assert not (harness.files / "new").exists()
        result = await checkpoint(harness)
        assert result is not None and result.outcome == "Unchanged"


async def test_a_live_process_reattaches_without_losing_state(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": 1}
        await checkpoint(harness)
    (tmp_path / "files" / "later").write_bytes(b"written since")
    async with running(tmp_path, harness.store, pod_uid="pod-1") as harness:
        agent = harness.agent()
        connected = await agent.connect(reattach=True)
        assert connected.components == () and connected.restored is None
        assert harness.tree() == {"later": b"written since"}
        agent.documents = {"notes": 2}
        result = await checkpoint(harness)
        assert result is not None and result.outcome == "Ready"


async def test_excluded_files_survive_a_restore(tmp_path: Path) -> None:
    async with running(tmp_path, policy=PolicyTerms(exclude=("**/node_modules",))) as harness:
        agent = await harness.connected()
        (harness.files / "app").mkdir()
        (harness.files / "app" / "a").write_bytes(b"1")
        await checkpoint(harness)
        (harness.files / "app" / "node_modules").mkdir()
        (harness.files / "app" / "node_modules" / "big").write_bytes(b"2")
        (harness.files / "app" / "a").write_bytes(b"torn")
        await agent.die()
        await harness.connected("two")
        assert harness.tree() == {"app/a": b"1", "app/node_modules/big": b"2"}


async def test_a_checkpoint_whose_answer_was_lost_becomes_the_parent(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": 1}
        lost = False

        def lose_once(_: object) -> None:
            nonlocal lost
            if not lost:
                lost = True
                raise Unavailable("the answer was lost")

        commit = harness.authority.commit

        async def commit_and_lose(offer: object) -> object:
            ref = await commit(offer)  # type: ignore[arg-type]
            lose_once(offer)
            return ref

        harness.authority.commit = commit_and_lose  # type: ignore[method-assign,assignment]
        result = await checkpoint(harness)
        assert result is not None and result.outcome == "Failed"
        harness.authority.queue.put_nowait(await harness.authority.welcome())
        await asyncio.sleep(0)
        result = await checkpoint(harness)
        assert result is not None and result.outcome == "Unchanged"
        status = await agent.get(wire.PATH_STATUS)
        assert status["lastCheckpoint"] == "coder-2" and status["connected"] is True


async def test_a_newer_parent_is_retried_when_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next checkpoint would build on an older parent, whose packs may have been deleted."""
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
        loaded: list[str] = []

        async def load(parent: CheckpointRef) -> None:
            loaded.append(parent.name)
            if len(loaded) == 1:
                raise StoreUnavailable("timed out")

        monkeypatch.setattr(recovery, "_load", load)
        recovery.handle_welcome(newer)
        with pytest.raises(StoreUnavailable):
            await recovery.rebase()
        await recovery.rebase()
        await recovery.rebase()
        assert loaded == ["later", "later"]
