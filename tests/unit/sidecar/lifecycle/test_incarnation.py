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
from savepoint_sidecar.lifecycle import orders

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.harness import Harness, running

QUICK = PolicyTerms(quiesce_timeout_seconds=1, hold_seconds=1)


async def checkpoint(harness: Harness, agent_flushes: bool = True) -> wire.Result | None:
    """Order a checkpoint and see it through."""
    harness.authority.order()
    if not agent_flushes:
        await harness.authority.await_attempts(len(harness.authority.offers) + len(harness.authority.results) + 1)
        return None
    agent = harness.agents[-1]
    await agent.flush()
    result = await agent.result()
    await harness.idle()
    return result


async def until(what: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


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
        await asyncio.sleep(0.05)  # past the tick in which a change could go unseen: files are read again within it
        (harness.files / "f7").write_bytes(os.urandom(20_000))
        await checkpoint(harness)
        assert 20_000 < harness.authority.offers[-1].uploaded_bytes < 60_000


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
        told = wire.Failed(agent.session, order.transaction, "NotEncodable", "notes.x is a socket")
        await agent.post(wire.PATH_FAILED, told.to_wire())
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


async def test_an_agent_without_files_is_given_time_to_connect(tmp_path: Path) -> None:
    async with running(tmp_path, roots=()) as harness:
        harness.authority.order()
        await asyncio.sleep(0)
        agent = await harness.connected()
        await agent.flush()
        assert (await agent.result()).outcome == "Ready"


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
        (back,) = tensors.entries
        assert back.path is not None and back.meta == {"dtype": "u1", "shape": [700_000]}
        assert (harness.stage / back.path).read_bytes() == weights


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


async def test_finish_commits_and_completes(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": "last"}
        answer = await agent.post(wire.PATH_FINISH, agent.flush_of(""))
        assert answer["checkpoint"] == "coder-2"
        assert harness.authority.head.record.kind == "completed"
        attempt = harness.authority.order()  # no order is left without an answer
        await harness.authority.await_attempts(len(harness.authority.offers) + 1)
        assert harness.authority.results[-1].attempt == attempt and harness.authority.results[-1].reason == "Completed"
        assert await harness.incarnation.shut_down()
        assert harness.authority.releases[-1].completed


async def test_finish_without_an_operator_leaves_a_pending_checkpoint(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.reachable.clear()
        agent.documents = {"notes": "last"}
        answer = await agent.post(wire.PATH_FINISH, agent.flush_of(""))
        assert answer["checkpoint"] == ""
        (pending,) = harness.authority.pending
        assert pending.completed and pending_of(pending_bytes(pending), "x") == pending


async def test_shutdown_of_an_agent_with_the_sdk(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": "at the end"}
        harness.incarnation.begin_shutdown()
        await agent.flush()
        (harness.files / "after").write_bytes(b"written while it ended")
        await agent.die()
        assert await harness.incarnation.shut_down()
        offer = harness.authority.offers[-1]
        assert (offer.trigger, offer.consistency) == ("Shutdown", "Application")
        assert [each.trigger for each in harness.authority.requests][-1] == "Shutdown"
        assert harness.authority.releases[-1].message == ""
        with harness.authority.reader() as reader:
            component = reader.manifest.component("files.files")
            assert component is not None
            assert [each.path for each in reader.tree_entries(component)] == ["after"]


async def test_shutdown_without_a_flush_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        await checkpoint(harness)
        before = len(harness.authority.offers)
        harness.incarnation.begin_shutdown()
        await agent.next(wire.Stopping)
        await agent.die()
        assert not await harness.incarnation.shut_down()
        assert len(harness.authority.offers) == before
        assert harness.authority.releases[-1].message != ""


async def test_shutdown_of_an_agent_without_the_sdk(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "a").write_bytes(b"1")
        harness.incarnation.begin_shutdown()
        await harness.authority.await_attempts(1)
        (harness.files / "a").write_bytes(b"22")
        assert await harness.incarnation.shut_down()
        assert [offer.trigger for offer in harness.authority.offers] == ["Shutdown", "Shutdown"]
        with harness.authority.reader() as reader:
            assert reader.manifest.size.logical == 2


async def test_shutdown_without_an_operator_leaves_a_pending_checkpoint(tmp_path: Path) -> None:
    async with running(tmp_path, grace_seconds=2.0) as harness:
        agent = await harness.connected()
        harness.authority.reachable.clear()
        harness.incarnation.begin_shutdown()
        await agent.flush()
        await agent.die()
        assert await harness.incarnation.shut_down()
        (pending,) = harness.authority.pending
        assert pending.trigger == "Shutdown" and not pending.completed and pending.manifest


async def test_a_commit_that_waits_for_an_unreachable_operator_does_not_delay_shutdown(tmp_path: Path) -> None:
    """Its commit could wait for minutes, and the pod's grace would pass before the last checkpoint began."""
    async with running(tmp_path, grace_seconds=4.0) as harness:
        agent = await harness.connected()
        await checkpoint(harness)
        committed = len(harness.authority.offers)
        agent.documents = {"notes": "in the attempt that nobody commits"}
        attempt = harness.authority.order(seconds=60)
        harness.authority.reachable.clear()
        await agent.flush()
        await until(lambda: harness.incarnation.attempts() == ((attempt, "Committing"),))
        harness.incarnation.begin_shutdown()
        agent.documents = {"notes": "at the end"}
        await agent.flush()
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert len(harness.authority.offers) == committed and harness.authority.retries_quickly
        (pending,) = harness.authority.pending
        assert pending.trigger == "Shutdown" and pending.attempt != attempt and pending.manifest


async def test_shutdown_waits_for_an_attempt_that_is_being_committed(tmp_path: Path) -> None:
    async with running(tmp_path, grace_seconds=4.0) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": "before"}
        attempt = harness.authority.order(seconds=60)
        harness.authority.reachable.clear()
        await agent.flush()
        await until(lambda: harness.incarnation.attempts() == ((attempt, "Committing"),))
        harness.incarnation.begin_shutdown()
        harness.authority.reachable.set()
        agent.documents = {"notes": "at the end"}
        await agent.flush()
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert [each.trigger for each in harness.authority.offers][-2:] == ["Interval", "Shutdown"]
        assert not harness.authority.pending


async def test_the_agents_checkpoint_request_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": 1}
        asked = wire.CheckpointRequest(agent.session, "r1", "before a risky call")
        await agent.post(wire.PATH_CHECKPOINT, asked.to_wire(), 202)
        await agent.flush()
        result = await agent.result()
        assert (result.request, result.outcome) == ("r1", "Ready")
        harness.authority.refuse_requests = [Refused("AttemptInFlight", "busy"), Refused("TooOften", "wait a minute")]
        await agent.post(wire.PATH_CHECKPOINT, {**asked.to_wire(), "request": "r2"}, 202)
        result = await agent.result()
        assert (result.request, result.outcome, result.reason) == ("r2", "Failed", "TooOften")


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


async def test_a_stop_fences_the_agent_and_ends_all_attempts(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.stop()
        assert "newer epoch" in (await agent.next(wire.Fenced)).message
        before = len(harness.authority.offers)
        attempt = harness.authority.order()
        await until(lambda: harness.authority.results)
        assert len(harness.authority.offers) == before
        (result,) = harness.authority.results
        assert (result.attempt, result.outcome, result.reason) == (attempt, "Failed", "Fenced")
        await agent.post(wire.PATH_CHECKPOINT, wire.CheckpointRequest(agent.session, "r", "").to_wire(), 202)
        assert (await agent.result()).reason == "Fenced"
        await harness.incarnation.shut_down()
        assert harness.authority.releases == []


async def test_a_stop_declines_an_order_that_waits_for_an_agent_without_files(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, roots=()) as harness:
        attempt = harness.authority.order(seconds=1800)
        await asyncio.sleep(0.05)
        assert harness.authority.results == []
        harness.authority.stop()
        await until(lambda: harness.authority.results, orders.FIRST_CONNECT_SECONDS / 4)
        assert [(each.attempt, each.reason) for each in harness.authority.results] == [(attempt, "Fenced")]


async def test_orders_requested_before_a_stop_are_declined_to_authority_and_agent(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.answers_requests = False
        await agent.post(wire.PATH_CHECKPOINT, wire.CheckpointRequest(agent.session, "r1", "").to_wire(), 202)
        finishing = asyncio.ensure_future(agent.post(wire.PATH_FINISH, agent.flush_of(""), 503))
        await until(lambda: {each.trigger for each in harness.authority.requests} >= {"Agent", "Finish"})
        harness.authority.stop()
        of_agent = harness.authority.order("Agent", request="r1")
        (ask,) = (each for each in harness.authority.requests if each.trigger == "Finish")
        of_end = harness.authority.order("Finish", request=ask.request)
        result = await agent.result()
        assert (result.request, result.outcome, result.reason) == ("r1", "Failed", "Fenced")
        assert (await finishing)["reason"] == "Fenced"
        assert {(each.attempt, each.reason) for each in harness.authority.results} == {
            (of_agent, "Fenced"),
            (of_end, "Fenced"),
        }


async def test_an_order_is_declined_when_the_parent_cannot_be_read(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "a").write_bytes(b"1")
        await checkpoint(harness, agent_flushes=False)
        welcome = await harness.authority.welcome()
        assert welcome.parent is not None
        elsewhere = replace(welcome.parent, sequence=99, manifest=ObjectName("ab" * 32, 100))
        harness.authority.queue.put_nowait(replace(welcome, parent=elsewhere))
        attempt = harness.authority.order(seconds=1800)
        await until(lambda: harness.authority.results)
        assert [(each.attempt, each.reason) for each in harness.authority.results] == [(attempt, "ObjectMissing")]


async def test_silence_raises_the_fence_and_an_answer_lowers_it(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.silence = 11.0
        await agent.next(wire.Fenced)
        harness.authority.silence = 0.0
        await agent.next(wire.Unfenced)


async def test_a_repeated_order_is_handled_once(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        (harness.files / "a").write_bytes(b"1")
        harness.authority.order()
        harness.authority.queue.put_nowait(harness.authority.queue._queue[0])  # type: ignore[attr-defined]
        await harness.authority.await_attempts(1)
        await asyncio.sleep(0.05)
        assert len(harness.authority.offers) == 1 and harness.authority.results == []


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


async def test_a_file_that_changes_during_the_pause_fails_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.order()
        order = await agent.next(wire.Quiesce)
        (harness.files / "busy").write_bytes(b"1")
        take = harness.incarnation.capture._copy

        def disturbed(*arguments: object) -> object:
            taken = take(*arguments)  # type: ignore[arg-type]
            with suppress(OSError):
                (harness.files / "busy").write_bytes(os.urandom(30))
            return taken

        monkeypatch.setattr(harness.incarnation.capture, "_copy", disturbed)
        await agent.post(wire.PATH_FLUSH, agent.flush_of(order.transaction), 409)
        result = await agent.result()
        assert (result.outcome, result.reason) == ("Failed", "StateUnstable")
        assert "/data/busy" in result.message


async def test_a_final_pass_that_takes_too_long_resumes_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, policy=QUICK) as harness:
        agent = await harness.connected()
        take = harness.incarnation.capture._copy

        def slow(*arguments: object) -> object:
            import time

            time.sleep(1.2)
            return take(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(harness.incarnation.capture, "_copy", slow)
        harness.authority.order()
        order = await agent.next(wire.Quiesce)
        (harness.files / "a").write_bytes(b"1")
        (harness.files / "b").write_bytes(b"1")
        await agent.post(wire.PATH_FLUSH, agent.flush_of(order.transaction), 409)
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


async def test_journals_of_another_run_are_removed(tmp_path: Path) -> None:
    for run in ("1", "7"):
        (tmp_path / "stage" / "journal" / run).mkdir(parents=True)
        (tmp_path / "stage" / "journal" / run / "1.log").write_bytes(b"")
    async with running(tmp_path) as harness:
        assert [each.name for each in (harness.stage / "journal").iterdir()] == ["1"]


async def test_an_attempt_waits_briefly_for_an_agent_to_reconnect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from savepoint_sidecar.lifecycle import orders

    monkeypatch.setattr(orders, "RECONNECT_SECONDS", 5.0)
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        await checkpoint(harness)
        await agent.die()
        harness.authority.order()
        await asyncio.sleep(0.1)
        again = await harness.connected("two")
        again.documents = {"notes": 5}
        await again.flush()
        assert (await again.result()).outcome == "Ready"


async def test_an_agent_may_finish_while_its_pod_is_stopping(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.incarnation.begin_shutdown()
        await agent.next(wire.Stopping)
        async with asyncio.timeout(3):
            answer = await agent.post(wire.PATH_FINISH, agent.flush_of(""))
        assert answer["checkpoint"]
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert harness.authority.releases[-1].completed and harness.authority.head.record.kind == "completed"
