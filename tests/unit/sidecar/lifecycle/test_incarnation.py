"""An incarnation as its agent and its authority see it: what a checkpoint holds, and which attempts fail."""

import asyncio
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import PolicyTerms
from savepoint.errors import Superseded
from savepoint.repository.read.verify import verify
from savepoint_sidecar.lifecycle import orders

from tests.fakes.store import MemoryStore
from tests.polling import until
from tests.unit.sidecar.harness import QUICK, checkpoint, running


async def test_a_checkpoint_holds_files_and_values_of_one_moment(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "deep").mkdir()
        (harness.files / "deep" / "a").write_bytes(b"first")
        (harness.files / "link").symlink_to("deep/a")
        agent = await harness.connected()
        agent.documents = {"notes": {"n": 3}}
        (harness.files / "deep" / "a").write_bytes(b"second")
        result = await checkpoint(harness)
        assert result is not None and result.outcome == "Ready" and result.checkpoint == "coder-2"
        offer = harness.authority.offers[-1]
        assert offer.consistency == "Application" and offer.trigger == "Interval"
        assert offer.step == "items 3 of 9" and offer.uncertain_operations == ("e1",)
        manifest = harness.authority.manifest()
        assert {each.name for each in manifest.components} == {"documents", "execution", "files.files"}
        assert manifest.dependencies == {"dep": "1"}
        with harness.authority.reader() as reader:
            assert verify(reader) == []
            tree = manifest.component("files.files")
            assert tree is not None
            assert [each.path for each in reader.tree_entries(tree)] == ["deep", "deep/a", "link"]
        marker = json.loads((harness.files / ".savepoint" / "marker.json").read_text())
        assert marker["state"] == "ready" and marker["sequence"] == harness.authority.head.record.sequence
        assert "manifests/" in harness.authority.expected[0] and len(harness.authority.expected) > 1


async def test_an_unchanged_state_writes_no_objects(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "a").write_bytes(os.urandom(100_000))
        agent = await harness.connected()
        agent.documents = {"notes": 1}
        await checkpoint(harness)
        objects = set(harness.authority.objects(""))
        result = await checkpoint(harness)
        assert result is not None and result.outcome == "Unchanged"
        assert set(harness.authority.objects("")) == objects
        assert harness.authority.results[-1].outcome == "Unchanged"


async def test_an_incremental_checkpoint_stores_only_what_changed(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        for number in range(50):
            (harness.files / f"f{number}").write_bytes(os.urandom(20_000))
        await harness.connected()
        await checkpoint(harness)
        await asyncio.sleep(0.05)  # files are read again within the clock tick in which a change could go unnoticed
        (harness.files / "f7").write_bytes(os.urandom(20_000))
        await checkpoint(harness)
        assert 20_000 < harness.authority.offers[-1].uploaded_bytes < 60_000


async def test_a_second_live_process_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        await harness.connected()
        second = harness.agent("two")
        with pytest.raises(AssertionError, match=r"409.*SessionInUse"):
            await second.connect()


async def test_a_quiesce_timeout_is_reported_and_the_agent_continues(tmp_path: Path) -> None:
    async with running(tmp_path, policy=QUICK) as harness:
        agent = await harness.connected()
        harness.authority.order()
        order = await agent.next(wire.Quiesce)
        result = await agent.result()
        assert result.outcome == "Failed" and result.reason == "QuiesceTimeout"
        assert harness.authority.results[-1].reason == "QuiesceTimeout"
        await agent.post(wire.PATH_FLUSH, agent.flush_of(order.transaction), 409)
        good = await checkpoint(harness)
        assert good is not None and good.outcome == "Ready"


async def test_the_reason_the_agent_gives_for_a_failed_flush_is_reported(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.order()
        order = await agent.next(wire.Quiesce)
        failed = wire.Failed(agent.session, order.transaction, "NotEncodable", "notes.x is a socket")
        await agent.post(wire.PATH_FAILED, failed.to_wire())
        result = await agent.result()
        assert (result.reason, result.message) == ("NotEncodable", "notes.x is a socket")
        assert harness.authority.results[-1].reason == "NotEncodable"


async def test_an_agent_that_dies_during_its_capture_is_not_committed(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        before = len(harness.authority.offers)
        harness.authority.order()
        await agent.next(wire.Quiesce)
        await agent.die()
        await until(lambda: harness.authority.results)
        assert len(harness.authority.offers) == before
        again = await harness.connected("two")
        again.documents = {"notes": 1}
        result = await checkpoint(harness)
        assert result is not None and result.outcome == "Ready"


async def test_files_alone_are_not_a_checkpoint_of_an_agent_with_the_sdk(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        await checkpoint(harness)
        await agent.die()
        (harness.files / "torn").write_bytes(b"t")
        before = len(harness.authority.offers)
        await checkpoint(harness, agent_flushes=False)
        assert len(harness.authority.offers) == before
        assert harness.authority.results[-1].reason == "Unavailable"


async def test_an_agent_with_nothing_to_capture_gets_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "FIRST_CONNECT_SECONDS", 0.0)
    async with running(tmp_path, roots=()) as harness:
        harness.authority.order()
        await until(lambda: harness.authority.results)
        (result,) = harness.authority.results
        assert result.reason == "Unavailable"
        assert "savepoint.dev/state" in result.message
        assert not harness.authority.offers


async def test_an_agent_without_the_sdk_is_captured_while_it_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "a").write_bytes(b"content")
        await checkpoint(harness, agent_flushes=False)
        (offer,) = harness.authority.offers
        assert offer.consistency == "Fuzzy"


async def test_large_values_are_stored_and_restored_through_the_stage(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        weights = os.urandom(700_000)
        (harness.stage / "agent" / "w").write_bytes(weights)
        entry = wire.Entry("w", "tensor", len(weights), path="agent/w", meta={"dtype": "u1", "shape": [700_000]})
        harness.authority.order()
        await agent.flush(wire.Component("tensors.net", "ModelWeights", (entry,)))
        assert (await agent.result()).outcome == "Ready"
        await agent.die()
        again = await harness.connected("two")
        assert again.connected is not None
        (tensors,) = (each for each in again.connected.components if each.name == "tensors.net")
        (restored,) = tensors.entries
        assert restored.path is not None and restored.meta == {"dtype": "u1", "shape": [700_000]}
        assert (harness.stage / restored.path).read_bytes() == weights


@pytest.mark.parametrize("path", ["agent/link", "agent/short", "agent/none"])
async def test_an_invalid_stage_file_fails_the_attempt(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        (tmp_path / "secret").write_bytes(b"s" * 10)
        (harness.stage / "agent" / "link").symlink_to(tmp_path / "secret")
        (harness.stage / "agent" / "short").write_bytes(b"123")
        harness.authority.order()
        entry = wire.Entry("w", "bytes", 10, path=path)
        await agent.flush(wire.Component("tensors.net", "Custom", (entry,)))
        result = await agent.result()
        assert (result.outcome, result.reason) == ("Failed", "StateUnstable")


async def test_a_superseded_commit_fails_and_keeps_the_parent(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.commit_error = Superseded("epoch 2 is held by another pod")
        agent.documents = {"notes": 1}
        result = await checkpoint(harness)
        assert result is not None and (result.outcome, result.reason) == ("Failed", "Fenced")
        harness.authority.commit_error = None
        result = await checkpoint(harness)
        assert result is not None and result.outcome == "Ready"
        with harness.authority.reader() as reader:
            assert verify(reader) == []


async def test_a_file_that_changes_during_the_pause_fails_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.order()
        order = await agent.next(wire.Quiesce)
        (harness.files / "busy").write_bytes(b"1")
        original_copy = harness.incarnation.capture._copy

        def copy_and_change(*arguments: object) -> object:
            copied = original_copy(*arguments)  # type: ignore[arg-type]
            with suppress(OSError):
                (harness.files / "busy").write_bytes(b"2" + os.urandom(29))
            return copied

        monkeypatch.setattr(harness.incarnation.capture, "_copy", copy_and_change)
        problem = await agent.post(wire.PATH_FLUSH, agent.flush_of(order.transaction), 409)
        assert problem["reason"] == "StateUnstable" and "/data/busy" in problem["message"]
        result = await agent.result()
        assert (result.outcome, result.reason) == ("Failed", "StateUnstable")
        assert "/data/busy" in result.message


async def test_a_final_pass_that_takes_too_long_resumes_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, policy=QUICK) as harness:
        agent = await harness.connected()
        original_copy = harness.incarnation.capture._copy

        def copy_slowly(*arguments: object) -> object:
            time.sleep(1.2)
            return original_copy(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(harness.incarnation.capture, "_copy", copy_slowly)
        harness.authority.order()
        order = await agent.next(wire.Quiesce)
        (harness.files / "a").write_bytes(b"1")
        (harness.files / "b").write_bytes(b"1")
        problem = await agent.post(wire.PATH_FLUSH, agent.flush_of(order.transaction), 409)
        assert problem["reason"] == "StateUnstable" and "holdSeconds" in problem["message"]
        result = await agent.result()
        assert (result.outcome, result.reason) == ("Failed", "StateUnstable")


async def test_another_pod_continues_from_the_store(tmp_path: Path) -> None:
    store = MemoryStore()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with running(tmp_path / "one", store) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": [1, 2]}
        (harness.files / "a").write_bytes(b"x" * 5000)
        await checkpoint(harness)
    async with running(tmp_path / "two", store, pod_uid="pod-2") as harness:
        agent = await harness.connected()
        assert agent.documents == {"notes": [1, 2]}
        assert harness.tree() == {"a": b"x" * 5000}
        assert agent.connected is not None and agent.connected.epoch == 2


async def test_a_changed_policy_applies_from_the_next_attempt(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "cache").mkdir()
        (harness.files / "cache" / "x").write_bytes(b"1")
        await checkpoint(harness, agent_flushes=False)
        harness.authority.policy = PolicyTerms(exclude=("cache",))
        harness.authority.queue.put_nowait(await harness.authority.welcome())
        await checkpoint(harness, agent_flushes=False)
        with harness.authority.reader() as reader:
            component = reader.manifest.component("files.files")
            assert component is not None and list(reader.tree_entries(component)) == []


async def test_a_bad_pattern_in_a_changed_policy_costs_no_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "keep").write_bytes(b"1")
        (harness.files / "left.tmp").write_bytes(b"1")
        await checkpoint(harness, agent_flushes=False)
        for bad in ("[z-a]", "**", "[", "[z-a]"):
            harness.authority.policy = PolicyTerms(exclude=("*.tmp", bad, "[z-a]"))
            harness.authority.queue.put_nowait(await harness.authority.welcome())
            (harness.files / "keep").write_bytes(bad.encode())
            result = await checkpoint(harness, agent_flushes=False)
            assert result is None or result.outcome == "Ready"
            with harness.authority.reader() as reader:
                component = reader.manifest.component("files.files")
                assert component is not None
                assert [entry.path for entry in reader.tree_entries(component)] == ["keep"]
        assert harness.incarnation.capture.ignored_patterns == (
            "exclude pattern '[z-a]' contains the reversed range z-a; write a-z",
        )
        logged = [record.getMessage() for record in caplog.records if "exclude pattern '[z-a]'" in record.getMessage()]
        assert len(logged) == 1 and "the files it means are captured" in logged[0]
        (harness.files / "keep").write_bytes(b"last")
        assert await harness.incarnation.shut_down(), "the final checkpoint is taken under the same policy"


async def test_journals_of_another_run_are_removed(tmp_path: Path) -> None:
    for run in ("1", "7"):
        (tmp_path / "stage" / "journal" / run).mkdir(parents=True)
        (tmp_path / "stage" / "journal" / run / "1.log").write_bytes(b"")
    async with running(tmp_path) as harness:
        assert [each.name for each in (harness.stage / "journal").iterdir()] == ["1"]
