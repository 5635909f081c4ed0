"""An incarnation as its agent and its authority see it: checkpoints, crashes in place, the end, the fence."""

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import ObjectName, PolicyTerms, Refused
from savepoint.errors import Superseded, Unavailable
from savepoint.repository.history.lineage import pending_bytes, pending_of
from savepoint.repository.read.verify import verify
from savepoint_sidecar.lifecycle import incarnation

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.harness import Cell, running

QUICK = PolicyTerms(quiesce_timeout_seconds=1, hold_seconds=1)


async def checkpoint(cell: Cell, agent_flushes: bool = True) -> wire.Result | None:
    """Order a checkpoint and see it through."""
    cell.authority.order()
    if not agent_flushes:
        await cell.authority.ended(len(cell.authority.offers) + len(cell.authority.results) + 1)
        return None
    agent = cell.agents[-1]
    await agent.flush()
    result = await agent.result()
    await cell.idle()
    return result


async def until(what: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


async def test_a_cut_holds_files_and_values_together(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        (cell.files / "deep").mkdir()
        (cell.files / "deep" / "a").write_bytes(b"first")
        (cell.files / "link").symlink_to("deep/a")
        agent = await cell.connected()
        agent.documents = {"notes": {"n": 3}}
        (cell.files / "deep" / "a").write_bytes(b"second")
        result = await checkpoint(cell)
        assert result is not None and result.outcome == "Ready" and result.checkpoint == "coder-2"
        offer = cell.authority.offers[-1]
        assert offer.consistency == "Application" and offer.trigger == "Interval"
        assert offer.step == "items 3 of 9" and offer.uncertain_operations == ("e1",)
        manifest = cell.authority.manifest()
        assert {each.name for each in manifest.components} == {"documents", "execution", "files.files"}
        assert manifest.dependencies == {"dep": "1"}
        with cell.authority.reader() as reader:
            assert verify(reader) == []
            tree = manifest.component("files.files")
            assert tree is not None
            assert [each.path for each in reader.tree_entries(tree)] == ["deep", "deep/a", "link"]
        marker = json.loads((cell.files / ".savepoint" / "marker.json").read_text())
        assert marker["state"] == "ready" and marker["sequence"] == cell.authority.head.record.sequence
        assert "manifests/" in cell.authority.expected[0] and len(cell.authority.expected) > 1


async def test_the_first_connect_waits_for_a_checkpoint_of_the_files_as_they_are(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        (cell.files / "a").write_bytes(b"before")
        agent = await cell.connected()
        assert agent.connected is not None and agent.connected.restored is None
        assert [offer.trigger for offer in cell.authority.offers] == ["Agent"]
        (cell.files / "a").write_bytes(b"torn")
        (cell.files / "b").write_bytes(b"torn")
        await agent.die()
        again = await cell.connected("two")
        assert again.connected is not None and again.connected.restored is not None
        assert cell.tree() == {"a": b"before"}


async def test_nothing_changed_writes_no_object(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        (cell.files / "a").write_bytes(os.urandom(100_000))
        agent = await cell.connected()
        agent.documents = {"notes": 1}
        await checkpoint(cell)
        objects = set(cell.authority.objects(""))
        result = await checkpoint(cell)
        assert result is not None and result.outcome == "Unchanged"
        assert set(cell.authority.objects("")) == objects
        assert cell.authority.results[-1].outcome == "Unchanged"


async def test_an_increment_stores_what_changed_and_no_more(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        for number in range(50):
            (cell.files / f"f{number}").write_bytes(os.urandom(20_000))
        await cell.connected()
        await checkpoint(cell)
        await asyncio.sleep(0.05)  # past the tick in which a change could go unseen: files are read again within it
        (cell.files / "f7").write_bytes(os.urandom(20_000))
        await checkpoint(cell)
        assert 20_000 < cell.authority.offers[-1].uploaded_bytes < 60_000


async def test_after_a_crash_in_place_files_and_values_are_at_one_cut(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        (cell.files / "keep").write_bytes(b"k" * 3000)
        (cell.files / "gone").write_bytes(b"g")
        agent = await cell.connected()
        agent.documents = {"notes": ["x"]}
        await checkpoint(cell)
        (cell.files / "keep").write_bytes(b"torn" * 10)
        (cell.files / "gone").unlink()
        (cell.files / "new").mkdir()
        (cell.files / "new" / "file").write_bytes(b"n")
        await agent.die()
        again = await cell.connected("two")
        assert again.documents == {"notes": ["x"]}
        restored = again.connected.restored if again.connected else None
        assert restored is not None and restored.how == "Restarted" and restored.checkpoint == "coder-2"
        assert cell.tree() == {"keep": b"k" * 3000, "gone": b"g"}
        assert not (cell.files / "new").exists()
        result = await checkpoint(cell)
        assert result is not None and result.outcome == "Unchanged"


async def test_a_live_process_reattaches_without_losing_anything(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": 1}
        await checkpoint(cell)
    (tmp_path / "files" / "later").write_bytes(b"written since")
    async with running(tmp_path, cell.store, pod_uid="pod-1") as cell:
        agent = cell.agent()
        connected = await agent.connect(reattach=True)
        assert connected.components == () and connected.restored is None
        assert cell.tree() == {"later": b"written since"}
        agent.documents = {"notes": 2}
        result = await checkpoint(cell)
        assert result is not None and result.outcome == "Ready"


async def test_a_second_live_process_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        await cell.connected()
        second = cell.agent("two")
        with pytest.raises(AssertionError, match=r"409.*SessionInUse"):
            await second.connect()


async def test_an_agent_that_never_reaches_a_safe_point_is_told_and_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path, policy=QUICK) as cell:
        agent = await cell.connected()
        cell.authority.order()
        order = await agent.next(wire.Quiesce)
        result = await agent.result()
        assert result.outcome == "Failed" and result.reason == "QuiesceTimeout"
        assert cell.authority.results[-1].reason == "QuiesceTimeout"
        await agent.post(wire.PATH_FLUSH, agent.flush_of(order.transaction), 409)
        good = await checkpoint(cell)
        assert good is not None and good.outcome == "Ready"


async def test_the_agent_itself_says_why_it_cannot_flush(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        cell.authority.order()
        order = await agent.next(wire.Quiesce)
        told = wire.Failed(agent.session, order.transaction, "NotEncodable", "notes.x is a socket")
        await agent.post(wire.PATH_FAILED, told.to_wire())
        result = await agent.result()
        assert (result.reason, result.message) == ("NotEncodable", "notes.x is a socket")
        assert cell.authority.results[-1].reason == "NotEncodable"


async def test_an_agent_that_dies_while_it_is_captured_is_not_committed(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        before = len(cell.authority.offers)
        cell.authority.order()
        await agent.next(wire.Quiesce)
        await agent.die()
        await until(lambda: cell.authority.results)
        assert len(cell.authority.offers) == before
        again = await cell.connected("two")
        again.documents = {"notes": 1}
        result = await checkpoint(cell)
        assert result is not None and result.outcome == "Ready"


async def test_files_alone_are_no_checkpoint_of_an_agent_with_the_sdk(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        await checkpoint(cell)
        await agent.die()
        (cell.files / "torn").write_bytes(b"t")
        before = len(cell.authority.offers)
        await checkpoint(cell, agent_flushes=False)
        assert len(cell.authority.offers) == before
        assert cell.authority.results[-1].reason == "Unavailable"


async def test_an_agent_without_files_is_given_time_to_connect(tmp_path: Path) -> None:
    async with running(tmp_path, roots=()) as cell:
        cell.authority.order()
        await asyncio.sleep(0)
        agent = await cell.connected()
        await agent.flush()
        assert (await agent.result()).outcome == "Ready"


async def test_nothing_to_capture_says_how_there_would_be_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incarnation, "START_SECONDS", 0.0)
    async with running(tmp_path, roots=()) as cell:
        cell.authority.order()
        await until(lambda: cell.authority.results)
        (result,) = cell.authority.results
        assert result.reason == "Unavailable"
        assert "savepoint.dev/state" in result.message
        assert not cell.authority.offers


async def test_an_agent_without_the_sdk_is_captured_while_it_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        (cell.files / "a").write_bytes(b"content")
        await checkpoint(cell, agent_flushes=False)
        (offer,) = cell.authority.offers
        assert offer.consistency == "Fuzzy"


async def test_large_values_go_through_the_stage_and_come_back(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        weights = os.urandom(700_000)
        (cell.stage / "agent" / "w").write_bytes(weights)
        entry = wire.Entry("w", "tensor", len(weights), path="agent/w", meta={"dtype": "u1", "shape": [700_000]})
        cell.authority.order()
        await agent.flush(wire.Component("tensors.net", "ModelWeights", (entry,)))
        assert (await agent.result()).outcome == "Ready"
        await agent.die()
        again = await cell.connected("two")
        assert again.connected is not None
        (tensors,) = (each for each in again.connected.components if each.name == "tensors.net")
        (back,) = tensors.entries
        assert back.path is not None and back.meta == {"dtype": "u1", "shape": [700_000]}
        assert (cell.stage / back.path).read_bytes() == weights


@pytest.mark.parametrize("path", ["agent/link", "agent/short", "agent/none"])
async def test_what_is_not_in_the_stage_as_told_fails_the_attempt(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        (tmp_path / "secret").write_bytes(b"s" * 10)
        (cell.stage / "agent" / "link").symlink_to(tmp_path / "secret")
        (cell.stage / "agent" / "short").write_bytes(b"123")
        cell.authority.order()
        entry = wire.Entry("w", "bytes", 10, path=path)
        await agent.flush(wire.Component("tensors.net", "Custom", (entry,)))
        result = await agent.result()
        assert (result.outcome, result.reason) == ("Failed", "StateUnstable")


async def test_finish_commits_and_completes(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": "last"}
        answer = await agent.post(wire.PATH_FINISH, agent.flush_of(""))
        assert answer["checkpoint"] == "coder-2"
        assert cell.authority.head.record.kind == "completed"
        attempt = cell.authority.order()  # no order is left without an answer
        await cell.authority.ended(len(cell.authority.offers) + 1)
        assert cell.authority.results[-1].attempt == attempt and cell.authority.results[-1].reason == "Completed"
        assert await cell.incarnation.end()
        assert cell.authority.releases[-1].completed


async def test_finish_without_an_operator_is_left_for_it(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        cell.authority.up.clear()
        agent.documents = {"notes": "last"}
        answer = await agent.post(wire.PATH_FINISH, agent.flush_of(""))
        assert answer["checkpoint"] == ""
        (pending,) = cell.authority.pending
        assert pending.completed and pending_of(pending_bytes(pending), "x") == pending


async def test_the_end_of_an_agent_with_the_sdk(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": "at the end"}
        cell.incarnation.begin_end()
        await agent.flush()
        (cell.files / "after").write_bytes(b"written while it ended")
        await agent.die()
        assert await cell.incarnation.end()
        offer = cell.authority.offers[-1]
        assert (offer.trigger, offer.consistency) == ("Shutdown", "Application")
        assert [each.trigger for each in cell.authority.requests][-1] == "Shutdown"
        assert cell.authority.releases[-1].message == ""
        with cell.authority.reader() as reader:
            component = reader.manifest.component("files.files")
            assert component is not None
            assert [each.path for each in reader.tree_entries(component)] == ["after"]


async def test_an_end_without_a_flush_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        await checkpoint(cell)
        before = len(cell.authority.offers)
        cell.incarnation.begin_end()
        await agent.next(wire.Stopping)
        await agent.die()
        assert not await cell.incarnation.end()
        assert len(cell.authority.offers) == before
        assert cell.authority.releases[-1].message != ""


async def test_the_end_of_an_agent_without_the_sdk(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        (cell.files / "a").write_bytes(b"1")
        cell.incarnation.begin_end()
        await cell.authority.ended(1)
        (cell.files / "a").write_bytes(b"22")
        assert await cell.incarnation.end()
        assert [offer.trigger for offer in cell.authority.offers] == ["Shutdown", "Shutdown"]
        with cell.authority.reader() as reader:
            assert reader.manifest.size.logical == 2


async def test_an_end_without_an_operator_is_left_for_it(tmp_path: Path) -> None:
    async with running(tmp_path, grace_seconds=2.0) as cell:
        agent = await cell.connected()
        cell.authority.up.clear()
        cell.incarnation.begin_end()
        await agent.flush()
        await agent.die()
        assert await cell.incarnation.end()
        (pending,) = cell.authority.pending
        assert pending.trigger == "Shutdown" and not pending.completed and pending.manifest


async def test_an_attempt_that_waits_for_an_absent_operator_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Its commit could wait for minutes, and the pod's grace would pass before the last checkpoint began."""
    async with running(tmp_path, grace_seconds=4.0) as cell:
        agent = await cell.connected()
        await checkpoint(cell)
        committed = len(cell.authority.offers)
        agent.documents = {"notes": "in the attempt that nobody commits"}
        attempt = cell.authority.order(seconds=60)
        cell.authority.up.clear()
        await agent.flush()
        await until(lambda: cell.incarnation.attempts() == ((attempt, "Committing"),))
        cell.incarnation.begin_end()
        agent.documents = {"notes": "at the end"}
        await agent.flush()
        await agent.die()
        assert await cell.incarnation.end()
        assert len(cell.authority.offers) == committed and cell.authority.hurried
        (pending,) = cell.authority.pending
        assert pending.trigger == "Shutdown" and pending.attempt != attempt and pending.manifest


async def test_an_attempt_that_is_being_committed_is_waited_for_at_the_end(tmp_path: Path) -> None:
    async with running(tmp_path, grace_seconds=4.0) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": "before"}
        attempt = cell.authority.order(seconds=60)
        cell.authority.up.clear()
        await agent.flush()
        await until(lambda: cell.incarnation.attempts() == ((attempt, "Committing"),))
        cell.incarnation.begin_end()
        cell.authority.up.set()
        agent.documents = {"notes": "at the end"}
        await agent.flush()
        await agent.die()
        assert await cell.incarnation.end()
        assert [each.trigger for each in cell.authority.offers][-2:] == ["Interval", "Shutdown"]
        assert not cell.authority.pending


async def test_a_request_of_the_agent_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": 1}
        asked = wire.CheckpointRequest(agent.session, "r1", "before a risky call")
        await agent.post(wire.PATH_CHECKPOINT, asked.to_wire(), 202)
        await agent.flush()
        result = await agent.result()
        assert (result.request, result.outcome) == ("r1", "Ready")
        cell.authority.refuse_requests = [Refused("AttemptInFlight", "busy"), Refused("TooOften", "wait a minute")]
        await agent.post(wire.PATH_CHECKPOINT, {**asked.to_wire(), "request": "r2"}, 202)
        result = await agent.result()
        assert (result.request, result.outcome, result.reason) == ("r2", "Failed", "TooOften")


async def test_a_superseded_commit_fails_and_keeps_the_cut(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        cell.authority.commit_error = Superseded("epoch 2 is held by another pod")
        agent.documents = {"notes": 1}
        result = await checkpoint(cell)
        assert result is not None and (result.outcome, result.reason) == ("Failed", "Fenced")
        cell.authority.commit_error = None
        result = await checkpoint(cell)
        assert result is not None and result.outcome == "Ready"
        with cell.authority.reader() as reader:
            assert verify(reader) == []


async def test_a_stop_fences_the_agent_and_ends_all_attempts(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        cell.authority.stop()
        assert "newer epoch" in (await agent.next(wire.Fenced)).message
        before = len(cell.authority.offers)
        attempt = cell.authority.order()
        await until(lambda: cell.authority.results)
        assert len(cell.authority.offers) == before
        (result,) = cell.authority.results
        assert (result.attempt, result.outcome, result.reason) == (attempt, "Failed", "Fenced")
        await agent.post(wire.PATH_CHECKPOINT, wire.CheckpointRequest(agent.session, "r", "").to_wire(), 202)
        assert (await agent.result()).reason == "Fenced"
        await cell.incarnation.end()
        assert cell.authority.releases == []


async def test_an_order_that_waits_for_an_agent_without_files_is_answered_as_soon_as_a_stop_comes(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, roots=()) as cell:
        attempt = cell.authority.order(seconds=1800)
        await asyncio.sleep(0.05)
        assert cell.authority.results == []
        cell.authority.stop()
        await until(lambda: cell.authority.results, incarnation.START_SECONDS / 4)
        assert [(each.attempt, each.reason) for each in cell.authority.results] == [(attempt, "Fenced")]


async def test_an_order_that_was_asked_for_before_the_stop_is_answered_to_both_who_wait(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        cell.authority.answers_requests = False
        await agent.post(wire.PATH_CHECKPOINT, wire.CheckpointRequest(agent.session, "r1", "").to_wire(), 202)
        finishing = asyncio.ensure_future(agent.post(wire.PATH_FINISH, agent.flush_of(""), 503))
        await until(lambda: {each.trigger for each in cell.authority.requests} >= {"Agent", "Finish"})
        cell.authority.stop()
        of_agent = cell.authority.order("Agent", request="r1")
        (ask,) = (each for each in cell.authority.requests if each.trigger == "Finish")
        of_end = cell.authority.order("Finish", request=ask.request)
        result = await agent.result()
        assert (result.request, result.outcome, result.reason) == ("r1", "Failed", "Fenced")
        assert (await finishing)["reason"] == "Fenced"
        assert {(each.attempt, each.reason) for each in cell.authority.results} == {
            (of_agent, "Fenced"),
            (of_end, "Fenced"),
        }


async def test_an_order_is_answered_when_what_it_would_build_on_cannot_be_read(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        (cell.files / "a").write_bytes(b"1")
        await checkpoint(cell, agent_flushes=False)
        welcome = await cell.authority.welcome()
        assert welcome.parent is not None
        elsewhere = replace(welcome.parent, sequence=99, manifest=ObjectName("ab" * 32, 100))
        cell.authority.queue.put_nowait(replace(welcome, parent=elsewhere))
        attempt = cell.authority.order(seconds=1800)
        await until(lambda: cell.authority.results)
        assert [(each.attempt, each.reason) for each in cell.authority.results] == [(attempt, "ObjectMissing")]


async def test_silence_fences_and_an_answer_lifts_it(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        cell.authority.silent = 11.0
        await agent.next(wire.Fenced)
        cell.authority.silent = 0.0
        await agent.next(wire.Unfenced)


async def test_every_order_may_come_twice(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        (cell.files / "a").write_bytes(b"1")
        cell.authority.order()
        cell.authority.queue.put_nowait(cell.authority.queue._queue[0])  # type: ignore[attr-defined]
        await cell.authority.ended(1)
        await asyncio.sleep(0.05)
        assert len(cell.authority.offers) == 1 and cell.authority.results == []


async def test_a_checkpoint_committed_without_us_is_the_next_parent(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": 1}
        lost = False

        def lose_once(_: object) -> None:
            nonlocal lost
            if not lost:
                lost = True
                raise Unavailable("the answer was lost")

        commit = cell.authority.commit

        async def commit_and_lose(offer: object) -> object:
            ref = await commit(offer)  # type: ignore[arg-type]
            lose_once(offer)
            return ref

        cell.authority.commit = commit_and_lose  # type: ignore[method-assign,assignment]
        result = await checkpoint(cell)
        assert result is not None and result.outcome == "Failed"
        cell.authority.queue.put_nowait(await cell.authority.welcome())
        await asyncio.sleep(0)
        result = await checkpoint(cell)
        assert result is not None and result.outcome == "Unchanged"
        status = await agent.get(wire.PATH_STATUS)
        assert status["lastCheckpoint"] == "coder-2" and status["connected"] is True


async def test_a_file_that_changes_during_the_pause_fails_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        cell.authority.order()
        order = await agent.next(wire.Quiesce)
        (cell.files / "busy").write_bytes(b"1")
        take = cell.incarnation.capture._copy

        def disturbed(*arguments: object) -> object:
            taken = take(*arguments)  # type: ignore[arg-type]
            with suppress(OSError):
                (cell.files / "busy").write_bytes(os.urandom(30))
            return taken

        monkeypatch.setattr(cell.incarnation.capture, "_copy", disturbed)
        await agent.post(wire.PATH_FLUSH, agent.flush_of(order.transaction), 409)
        result = await agent.result()
        assert (result.outcome, result.reason) == ("Failed", "StateUnstable")
        assert "/data/busy" in result.message


async def test_a_final_pass_that_lasts_too_long_lets_the_agent_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, policy=QUICK) as cell:
        agent = await cell.connected()
        take = cell.incarnation.capture._copy

        def slow(*arguments: object) -> object:
            import time

            time.sleep(1.2)
            return take(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(cell.incarnation.capture, "_copy", slow)
        cell.authority.order()
        order = await agent.next(wire.Quiesce)
        (cell.files / "a").write_bytes(b"1")
        (cell.files / "b").write_bytes(b"1")
        await agent.post(wire.PATH_FLUSH, agent.flush_of(order.transaction), 409)
        result = await agent.result()
        assert (result.outcome, result.reason) == ("Failed", "StateUnstable")


async def test_another_pod_goes_on_from_the_store(tmp_path: Path) -> None:
    store = MemoryStore()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with running(tmp_path / "one", store) as cell:
        agent = await cell.connected()
        agent.documents = {"notes": [1, 2]}
        (cell.files / "a").write_bytes(b"x" * 5000)
        await checkpoint(cell)
    async with running(tmp_path / "two", store, pod_uid="pod-2") as cell:
        agent = await cell.connected()
        assert agent.documents == {"notes": [1, 2]}
        assert cell.tree() == {"a": b"x" * 5000}
        assert agent.connected is not None and agent.connected.epoch == 2


async def test_a_policy_that_was_changed_counts_from_the_next_attempt(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        (cell.files / "cache").mkdir()
        (cell.files / "cache" / "x").write_bytes(b"1")
        await checkpoint(cell, agent_flushes=False)
        cell.authority.policy = PolicyTerms(exclude=("cache",))
        cell.authority.queue.put_nowait(await cell.authority.welcome())
        await checkpoint(cell, agent_flushes=False)
        with cell.authority.reader() as reader:
            component = reader.manifest.component("files.files")
            assert component is not None and list(reader.tree_entries(component)) == []


async def test_what_is_excluded_survives_the_way_back(tmp_path: Path) -> None:
    async with running(tmp_path, policy=PolicyTerms(exclude=("**/node_modules",))) as cell:
        agent = await cell.connected()
        (cell.files / "app").mkdir()
        (cell.files / "app" / "a").write_bytes(b"1")
        await checkpoint(cell)
        (cell.files / "app" / "node_modules").mkdir()
        (cell.files / "app" / "node_modules" / "big").write_bytes(b"2")
        (cell.files / "app" / "a").write_bytes(b"torn")
        await agent.die()
        await cell.connected("two")
        assert cell.tree() == {"app/a": b"1", "app/node_modules/big": b"2"}


async def test_journals_of_another_run_are_removed(tmp_path: Path) -> None:
    for run in ("1", "7"):
        (tmp_path / "stage" / "journal" / run).mkdir(parents=True)
        (tmp_path / "stage" / "journal" / run / "1.log").write_bytes(b"")
    async with running(tmp_path) as cell:
        assert [each.name for each in (cell.stage / "journal").iterdir()] == ["1"]


async def test_an_attempt_waits_a_moment_for_an_agent_that_reattaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from savepoint_sidecar.lifecycle import incarnation

    monkeypatch.setattr(incarnation, "AGENT_SECONDS", 5.0)
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        await checkpoint(cell)
        await agent.die()
        cell.authority.order()
        await asyncio.sleep(0.1)
        again = await cell.connected("two")
        again.documents = {"notes": 5}
        await again.flush()
        assert (await again.result()).outcome == "Ready"


async def test_an_agent_may_finish_while_its_pod_stops(tmp_path: Path) -> None:
    async with running(tmp_path) as cell:
        agent = await cell.connected()
        cell.incarnation.begin_end()
        await agent.next(wire.Stopping)
        async with asyncio.timeout(3):
            answer = await agent.post(wire.PATH_FINISH, agent.flush_of(""))
        assert answer["checkpoint"]
        await agent.die()
        assert await cell.incarnation.end()
        assert cell.authority.releases[-1].completed and cell.authority.head.record.kind == "completed"
