"""Tests that the init container ends within its deadline with a typed outcome, and reports meanwhile what delays it."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import cast

import pytest
from savepoint.contract.control_protocol import Committed, Outcome, Progress, Urls, decode
from savepoint.errors import IntegrityError, SavepointError, StoreDenied, StoreUnavailable, Unavailable
from savepoint_operator.control.server import PATH
from savepoint_sidecar import restore_container
from savepoint_sidecar.authority import restore_client
from savepoint_sidecar.authority.control_connection import Dialer
from savepoint_sidecar.authority.restore_client import RestoreClient
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.settings import Settings

from tests.fakes.control_harness import ControlHarness, attempt, running_harness, until
from tests.fakes.operator_ports import Signer

DEADLINE_SECONDS = 0.6


@pytest.fixture
def silent() -> Iterator[int]:
    """Yield a port that accepts connections and never responds."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


@pytest.fixture
def closed() -> int:
    """Return a port that refuses connections."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def settings_of(folder: Path, url: str, token: str = "token") -> Settings:
    """Return the settings of a pod without state roots."""
    (folder / "token").write_text(token)
    return Settings(
        control_url=url,
        control_ca="",
        pod_name="coder-1",
        pod_namespace="demo",
        pod_uid="uid",
        node="n1",
        grace_seconds=30,
        roots=(),
        token_path=folder / "token",
        stage=folder / "stage",
    )


@pytest.fixture
async def harness() -> AsyncIterator[ControlHarness]:
    """Yield an operator that is the leader."""
    async with running_harness() as running:
        yield running


@pytest.mark.parametrize("port", ["closed", "silent"])
async def test_an_unreachable_operator_ends_in_timeout(
    port: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_container, "DEADLINE_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(restore_client, "ACK_SECONDS", 0.1)
    settings = settings_of(tmp_path, f"ws://127.0.0.1:{request.getfixturevalue(port)}/v1/control")
    began = time.monotonic()
    status = await restore_container.restore(settings, Failpoints(), tmp_path / "termination")
    elapsed = time.monotonic() - began
    written = json.loads((tmp_path / "termination").read_text())
    assert status != 0
    assert written["outcome"] == "Timeout"
    assert "the container restarts" in written["message"] and written["milliseconds"] >= DEADLINE_SECONDS * 1000
    assert DEADLINE_SECONDS <= elapsed < DEADLINE_SECONDS + 5, (
        "the deadline holds, however the operator fails to respond"
    )
    assert not (tmp_path / "stage").exists(), "nothing was restored"


class UnreachableSigner(Signer):
    """The operator reaches the store, but the address that it gives to pods refuses connections."""

    def __init__(self, port: int) -> None:
        self._port = port

    def presign_get(self, key: str, expires_seconds: int) -> str:
        return f"http://127.0.0.1:{self._port}/{key}"


async def prepare_successor(harness: ControlHarness) -> None:
    """Let pod b be the successor of pod a, which left a checkpoint."""
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.request(harness.offer(attempt(1), 1), Committed)
    await harness.leave(pod)
    harness.end("a")
    harness.clock.advance(60)
    harness.pod("b")


async def test_a_store_that_only_the_pod_cannot_reach_is_reported_and_ends_within_the_deadline(
    harness: ControlHarness, closed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_container, "DEADLINE_SECONDS", 2.0)
    monkeypatch.setattr(restore_container, "RETRY_SECONDS", 0.2)
    await prepare_successor(harness)
    harness.stores.store = replace(harness.stores.store, signer=UnreachableSigner(closed))
    settings = settings_of(tmp_path, f"ws://127.0.0.1:{harness.port}{PATH}", "token-of-b")
    restoring = asyncio.ensure_future(restore_container.restore(settings, Failpoints(), tmp_path / "termination"))
    await until(lambda: harness.recorder.calls_of("restore_progressed"))
    assert not restoring.done(), "it is reported after the first attempt, not at the end"
    async with asyncio.timeout(10):
        assert await restoring != 0
    reported = harness.recorder.calls_of("restore_progressed")
    assert {(each.attempt, each.stage, each.reason) for each in reported} == {("", "Fetching", "StoreUnavailable")}
    assert "manifests/" in reported[0].message and "refused" in reported[0].message
    (outcome,) = harness.recorder.calls_of("restore_ended")
    assert outcome.outcome == "StoreUnavailable"
    assert "retried for 2 s; the container restarts" in outcome.message
    assert 1700 <= outcome.milliseconds < 6000
    assert json.loads((tmp_path / "termination").read_text())["outcome"] == "StoreUnavailable"


class ScriptedAttempts:
    """Attempts with scripted ends, under a clock that advances only while the container sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ends: SavepointError | Outcome) -> None:
        self.ends, self.seconds, self.reported = list(ends), 5000.0, list[tuple[str, str]]()
        self.not_reached = 0
        monkeypatch.setattr(time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(asyncio, "sleep", self._pause)

    async def _pause(self, seconds: float) -> None:
        self.seconds += seconds

    async def run(self) -> Outcome:
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        if isinstance(end, SavepointError):
            raise end
        return end

    async def report_delay(self, reason: str, message: str) -> None:
        self.reported.append((reason, message))

    def discard_read_urls(self) -> None:
        self.not_reached += 1

    async def outcome(self) -> Outcome:
        ends_at = self.seconds + restore_container.DEADLINE_SECONDS
        return await restore_container._restore_with_retries(
            cast(restore_container._RestoreAttempt, self), cast(RestoreClient, self), ends_at
        )


async def test_a_store_is_waited_for_until_the_deadline_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = ScriptedAttempts(monkeypatch, StoreUnavailable("timed out"))
    outcome = await attempts.outcome()
    assert (outcome.outcome, outcome.message) == (
        "StoreUnavailable",
        "timed out (retried for 600 s; the container restarts)",
    )
    assert 600 - restore_container.RETRY_SECONDS < attempts.seconds - 5000 <= 600
    assert set(attempts.reported) == {
        ("StoreUnavailable", "The restore in this pod is held up and will be retried: timed out")
    }


async def test_a_restore_is_retried_after_a_transient_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Outcome("Restored", "all of it")
    attempts = ScriptedAttempts(monkeypatch, StoreUnavailable("timed out"), Unavailable("no URL"), good)
    assert await attempts.outcome() == good
    assert [reason for reason, _ in attempts.reported] == ["StoreUnavailable", "Unavailable"]
    assert attempts.not_reached == 1


async def test_a_permanent_fault_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = ScriptedAttempts(monkeypatch, IntegrityError("it is damaged", "packs/1-ab"))
    outcome = await attempts.outcome()
    assert (outcome.outcome, outcome.object_key, attempts.reported, attempts.seconds) == (
        "IntegrityError",
        "packs/1-ab",
        [],
        5000,
    )


async def test_nothing_is_reported_between_a_reconnect_and_the_next_grant(
    harness: ControlHarness, tmp_path: Path
) -> None:
    await prepare_successor(harness)
    settings_of(tmp_path, "", "token-of-b")
    client = RestoreClient(
        Dialer(f"ws://127.0.0.1:{harness.port}{PATH}", "", tmp_path / "token"),
        node="n1",
        version="0.1.0",
        monotonic=time.monotonic,
        random_id=lambda: Random(1).randbytes(16).hex(),
        jitter=lambda: 0.0,
    )
    try:
        await client.grant()
        assert harness.server is not None
        connections = harness.server._connections
        harness.stores.error = StoreDenied("the credentials were refused")
        connections[("b", "restore")].abort()
        await until(lambda: client.latest_wait.reason == "StoreDenied")
        again = connections[("b", "restore")]
        await client.report_progress(1, 2)
        client.urls.cache.add(Urls("r", get={"packs/1-ab": "old address"}))
        client.discard_read_urls()
        assert client.urls.cache.get_url("packs/1-ab"), "no other URL is available now"
        await client.report_delay("StoreUnavailable", "timed out")
        harness.stores.error = None
        await until(client._connected.is_set)
        assert connections[("b", "restore")] is again, "a report before the grant would have ended the connection"
        await client.report_delay("StoreUnavailable", "timed out")
        await until(lambda: harness.recorder.calls_of("restore_progressed"))
        assert harness.recorder.calls_of("restore_progressed") == [
            Progress("", "Fetching", reason="StoreUnavailable", message="timed out")
        ]
        client.discard_read_urls()
        assert client.urls.cache.get_url("packs/1-ab") is None, "the store may have moved"
    finally:
        await client.close()


def test_a_report_of_an_older_version_without_a_reason_is_understood() -> None:
    older = decode(
        '{"v":1,"type":"progress","attempt":"","stage":"Restoring","percent":5,"bytesDone":1,"bytesTotal":20}'
    )
    assert older == Progress("", "Restoring", 5, 1, 20, reason="", message="")
