"""The shutdown of an incarnation, where state is lost most easily: between the preStop hook and the release.

Each of the later tests is one order of events that was seen in real drains or found by reading the code. In all of
them the agent's last state must be committed, or left for the operator to commit.
"""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from savepoint.contract import agent_protocol as wire
from savepoint.errors import StoreUnavailable
from savepoint.repository.format.manifest import manifest_name, open_manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint_sidecar.authority.url_cache import UrlCache
from savepoint_sidecar.authority.url_requests import UrlRequests
from savepoint_sidecar.stage.components import restore_components

from tests.fakes.store import MemoryStore
from tests.polling import until
from tests.unit.sidecar.harness import Agent, Harness, checkpoint, running


def stored_notes(harness: Harness) -> list[Any]:
    """Return document "notes" of every checkpoint that is committed or left for the operator."""
    authority, repository = harness.authority, harness.authority.repository
    where = (repository.key, repository.namespace, repository.agent)
    manifests = [repository.read_manifest(each.manifest.name, each.manifest.size) for each in authority.offers]
    left = [each.manifest for each in authority.pending]
    manifests += [open_manifest(each, *where, manifest_name(each)) for each in left]
    found = []
    for number, manifest in enumerate(manifests):
        with CheckpointReader(repository.store, repository.key, manifest) as reader:
            components = restore_components(reader, harness.stage, f"stored-{number}")
        entries = [entry for each in components if each.name == wire.COMPONENT_DOCUMENTS for entry in each.entries]
        found += [json.loads(entry.inline or "null") for entry in entries if entry.name == "notes"]
    return found


def block_at(harness: Harness, point: str = "before-manifest") -> tuple[threading.Event, threading.Event]:
    """Block the attempt at this failpoint. Return an event that is set there, and an event that releases it."""
    reached, release = threading.Event(), threading.Event()
    original_reach = harness.failpoints.reach

    def reach(name: str) -> None:
        if name == point and not release.is_set():
            reached.set()
            release.wait(20)
        original_reach(name)

    harness.failpoints.reach = reach  # type: ignore[method-assign]
    return reached, release


async def captured_attempt(harness: Harness, notes: str) -> tuple[Agent, threading.Event]:
    """Return an agent whose interval checkpoint is captured but not yet offered, and the event that releases it."""
    agent = await harness.connected()
    reached, release = block_at(harness)
    agent.documents = {"notes": notes}
    harness.authority.order(seconds=1800)
    await agent.flush()
    await until(reached.is_set)
    return agent, release


async def test_the_final_checkpoint_holds_what_the_sdk_flushed_last(tmp_path: Path) -> None:
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


async def test_the_files_of_an_agent_without_the_sdk_are_captured_again_after_its_exit(tmp_path: Path) -> None:
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
    """Its commit could wait for minutes, and the grace period would end before the final checkpoint began."""
    async with running(tmp_path, grace_seconds=4.0) as harness:
        agent = await harness.connected()
        await checkpoint(harness)
        committed = len(harness.authority.offers)
        agent.documents = {"notes": "in the attempt that is not committed"}
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


@pytest.mark.parametrize("unreachable", [False, True], ids=["operator reachable", "operator unreachable"])
async def test_shutdown_after_the_agent_exited_stores_its_interval_flush(tmp_path: Path, unreachable: bool) -> None:
    async with running(tmp_path) as harness:
        agent, release = await captured_attempt(harness, "last")
        await agent.die()
        if unreachable:
            harness.authority.reachable.clear()
        await until(lambda: harness.incarnation.sessions.live is None)
        ending = asyncio.ensure_future(harness.incarnation.shut_down())
        await asyncio.sleep(0.2)
        release.set()
        assert await ending
        assert stored_notes(harness) == ["last"]
        assert len(harness.authority.pending) == unreachable


async def test_an_interval_flush_is_kept_while_a_later_one_may_never_come(tmp_path: Path) -> None:
    """The operator is unreachable, and the agent is killed in a long step: the older state is the best available."""
    async with running(tmp_path, grace_seconds=2.0) as harness:
        agent, release = await captured_attempt(harness, "interval")
        harness.authority.reachable.clear()
        release.set()
        harness.incarnation.begin_shutdown()
        await agent.next(wire.Stopping)
        await asyncio.sleep(
            0.5
        )  # twice as long as the shutdown waits for an unreachable operator once it has the last state
        assert harness.incarnation.attempts()
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert stored_notes(harness) == ["interval"]


async def test_a_last_flush_that_equals_the_interval_checkpoint_commits_nothing(tmp_path: Path) -> None:
    """SIGTERM came between the order and the agent's safe point: both flushes are of the same safe point."""
    async with running(tmp_path) as harness:
        agent, release = await captured_attempt(harness, "last")
        harness.incarnation.begin_shutdown()
        release.set()
        await agent.flush()
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert [each.trigger for each in harness.authority.offers] == ["Agent", "Interval"]
        assert [each.outcome for each in harness.authority.results] == ["Unchanged"]
        assert stored_notes(harness) == ["last"]
        assert harness.authority.releases[-1].message == ""


async def test_files_of_a_killed_agent_do_not_match_the_attempt_in_flight(tmp_path: Path) -> None:
    """It changed files after its flush for the interval checkpoint, so the next start must restore them."""
    async with running(tmp_path) as harness:
        agent, release = await captured_attempt(harness, "interval")
        await agent.die()
        ending = asyncio.ensure_future(harness.incarnation.shut_down())
        await asyncio.sleep(0.05)
        release.set()
        assert await ending
        assert stored_notes(harness) == ["interval"]
        assert not harness.incarnation.roots_match_checkpoint


async def test_a_pending_order_does_not_replace_the_final_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": "last"}
        rebasing, release = asyncio.Event(), asyncio.Event()
        original_rebase = harness.incarnation._recovery.rebase

        async def rebase() -> None:
            if not rebasing.is_set():
                rebasing.set()
                await release.wait()  # as after a reconnect, while the latest manifest is read
            await original_rebase()

        monkeypatch.setattr(harness.incarnation._recovery, "rebase", rebase)
        attempt = harness.authority.order()
        await rebasing.wait()
        harness.incarnation.begin_shutdown()
        release.set()
        await agent.flush()
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert stored_notes(harness) == ["last"]
        assert [(each.attempt, each.reason) for each in harness.authority.results] == [(attempt, "Unavailable")]


async def test_an_order_during_shutdown_is_declined(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.incarnation.begin_shutdown()
        await agent.next(wire.Stopping)
        attempt = harness.authority.order()
        await until(lambda: harness.authority.results)
        assert (harness.authority.results[0].attempt, harness.authority.results[0].outcome) == (attempt, "Failed")


async def test_the_final_checkpoint_retries_a_transient_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, grace_seconds=20.0) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": "last"}
        original_put_new, faults = MemoryStore.put_new, ["briefly unreachable"]

        def put_new(self: MemoryStore, key: str, data: Any) -> None:
            if "packs/" in key and faults:
                raise StoreUnavailable(faults.pop())
            original_put_new(self, key, data)

        monkeypatch.setattr(MemoryStore, "put_new", put_new)
        harness.incarnation.begin_shutdown()
        await agent.flush()
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert stored_notes(harness) == ["last"] and not faults
        assert harness.incarnation.roots_match_checkpoint


async def test_the_wait_for_a_url_ends_with_the_commit_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator fails between the upload of packs and the manifest, and its connection looks alive for a while."""
    async with running(tmp_path, grace_seconds=2.0) as harness:
        agent = await harness.connected()
        connected = asyncio.Event()
        connected.set()
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)  # never answered

        requests = UrlRequests(UrlCache(time.monotonic), connected, send, lambda: f"r{len(sent)}")
        requests.bind()
        original_put_new, left = MemoryStore.put_new, []

        def put_new(self: MemoryStore, key: str, data: Any) -> None:
            if "manifests/" in key:
                requests.put_url(key)
            original_put_new(self, key, data)

        async def leave(attempt: str, trigger: str, completed: bool, manifest: bytes) -> None:
            left.append(trigger)  # its URL came with the welcome

        monkeypatch.setattr(MemoryStore, "put_new", put_new)
        monkeypatch.setattr(harness.authority, "stop_waiting", requests.stop_waiting)
        monkeypatch.setattr(harness.authority, "leave_pending", leave)
        agent.documents = {"notes": "last"}
        harness.incarnation.begin_shutdown()
        await agent.flush()
        await agent.die()
        async with asyncio.timeout(8):
            assert await harness.incarnation.shut_down()
        assert sent and left == ["Shutdown"]
