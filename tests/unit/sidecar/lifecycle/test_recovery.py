"""Restores for a connecting agent, and parent checkpoints that the incarnation did not commit itself."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.contract.control_protocol import CheckpointRef, PolicyTerms
from savepoint.errors import StoreUnavailable, Unavailable
from savepoint_cli.laptop_messages import laptop_text

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.harness import Agent, checkpoint, running


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
        assert harness.tree() == {"a": b"torn", "b": b"torn"}


RESTORE = PolicyTerms(on_container_restart="Restore")


def files_of(agent: Agent) -> str:
    """Return what the answer to connect says about the files."""
    assert agent.connected is not None and agent.connected.restored is not None
    return agent.connected.restored.files


async def test_files_stay_when_an_agent_crashes_in_place(tmp_path: Path) -> None:
    store = MemoryStore()
    async with running(tmp_path, store) as harness:
        (harness.files / "page").write_bytes(b"1")
        agent = await harness.connected()
        agent.documents = {"notes": ["x"]}
        await checkpoint(harness)
        (harness.files / "page").write_bytes(b"2")
        (harness.files / "later").write_bytes(b"since the checkpoint")
        await agent.die()
        again = await harness.connected("two")
        assert again.documents == {"notes": ["x"]} and files_of(again) == "KeptLocal"
        after = {"page": b"2", "later": b"since the checkpoint"}
        assert harness.tree() == after
        result = await checkpoint(harness)
        assert result is not None and result.outcome == "Ready"
        (harness.files / "page").write_bytes(b"3")
    async with running(tmp_path, store, pod_uid="pod-1") as harness:  # the sidecar's container restarts, too
        assert files_of(await harness.connected("three")) == "KeptLocal"
        assert harness.tree() == {**after, "page": b"3"}


async def test_without_the_records_in_the_stage_files_go_back_and_nothing_is_deleted(tmp_path: Path) -> None:
    """Steps after the checkpoint run again in another pod: on the files that they ran on before."""
    store = MemoryStore()
    async with running(tmp_path, store) as harness:
        (harness.files / "page").write_bytes(b"1")
        agent = await harness.connected()
        agent.documents = {"notes": ["x"]}
        await checkpoint(harness)
        (harness.files / "page").write_bytes(b"2")
    shutil.rmtree(tmp_path / "stage")
    async with running(tmp_path, store, pod_uid="pod-2") as harness:
        assert files_of(await harness.connected()) == "Restored"
        assert harness.tree() == {"page": b"1"}
        (kept,) = (harness.files / ".savepoint").glob("replaced-*/page")
        assert kept.read_bytes() == b"2"
        (harness.files / "page").write_bytes(b"3")
        await harness.agents[-1].die()
        assert files_of(await harness.connected("again")) == "KeptLocal"
        assert harness.tree() == {"page": b"3"}


async def test_a_restore_before_the_start_counts_until_a_process_has_learnt_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "page").write_bytes(b"1")
        agent = await harness.connected()
        await checkpoint(harness)
        await agent.die()
        stage_layout.files_restored_file(harness.stage).touch()  # as the init container does
        deaf = harness.agent("two")
        await deaf.connect(listen=False)
        assert files_of(deaf) == "Restored"
        await deaf.die()
        harness.incarnation.sessions.current.end()  # type: ignore[union-attr]
        again = await harness.connected("three")
        assert files_of(again) == "Restored"
        await again.die()
        assert files_of(await harness.connected("four")) == "KeptLocal"


async def test_a_restart_restores_files_and_values_of_one_checkpoint_if_the_policy_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, policy=RESTORE) as harness:
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
        assert not (harness.files / "new").exists() and files_of(again) == "Restored"
        (aside,) = (harness.files / ".savepoint").glob("replaced-*")
        assert (aside / "new" / "file").read_bytes() == b"n" and (aside / "keep").read_bytes() == b"torn" * 10
        listed = f"files that coder-2 does not have: keep, new, new/file: moved to /data/.savepoint/{aside.name}"
        assert listed in caplog.messages
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
    async with running(tmp_path, policy=replace(RESTORE, exclude=("**/node_modules",))) as harness:
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


async def test_messages_for_the_agent_are_in_the_terms_of_where_it_runs(tmp_path: Path) -> None:
    async with running(tmp_path, reword=laptop_text) as harness:
        agent = await harness.connected()
        harness.authority.commit_error = Unavailable("the operator of this pod cannot be reached")
        harness.authority.order()
        await agent.flush()
        assert (await agent.result()).message == "the supervisor of this run cannot be reached"
        await harness.idle()
        harness.authority.commit_error = None
        await agent.die()
        harness.incarnation._state.completed = True
        answer = await harness.agent("two").post(wire.PATH_CONNECT, wire.Connect(1, "two", "test").to_wire(), 503)
        assert answer["message"] == "The run is completed; the next `savepoint run` starts the next run."
