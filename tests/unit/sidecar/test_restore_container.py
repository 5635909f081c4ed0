"""The init container ends within its bound, typed, whoever does not answer, and says meanwhile what is in its way."""

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
from savepoint_sidecar.authority.channel import Dialer
from savepoint_sidecar.authority.restore_client import RestoreClient
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.settings import Settings

from tests.fakes.control_harness import ControlHarness, attempt, running_harness, until
from tests.fakes.operator_ports import Signer

DEADLINE_SECONDS = 0.6


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


@pytest.fixture
def closed() -> int:
    """A port behind which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def settings_of(folder: Path, url: str, token: str = "token") -> Settings:
    """Of a pod that has no state of its own but the stage."""
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
async def cell() -> AsyncIterator[ControlHarness]:
    """An operator that leads."""
    async with running_harness() as running:
        yield running


@pytest.mark.parametrize("door", ["closed", "silent"])
async def test_an_operator_that_never_answers_ends_in_timeout(
    door: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_container, "DEADLINE_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(restore_client, "ACK_SECONDS", 0.1)
    settings = settings_of(tmp_path, f"ws://127.0.0.1:{request.getfixturevalue(door)}/v1/control")
    began = time.monotonic()
    status = await restore_container.restore(settings, Failpoints(), tmp_path / "termination")
    took = time.monotonic() - began
    told = json.loads((tmp_path / "termination").read_text())
    assert status != 0
    assert told["outcome"] == "Timeout"
    assert "the container restarts" in told["message"] and told["milliseconds"] >= DEADLINE_SECONDS * 1000
    assert DEADLINE_SECONDS <= took < DEADLINE_SECONDS + 5, "the bound holds, however the operator fails to answer"
    assert not (tmp_path / "stage").exists(), "nothing was restored"


class Elsewhere(Signer):
    """The operator reaches the store; at the address that pods are given nobody listens."""

    def __init__(self, port: int) -> None:
        self._port = port

    def presign_get(self, key: str, expires_seconds: int) -> str:
        return f"http://127.0.0.1:{self._port}/{key}"


async def successor(cell: ControlHarness) -> None:
    """Pod b is about to follow pod a, of which there is a checkpoint."""
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    await pod.ask(cell.offer(attempt(1), 1), Committed)
    await cell.leave(pod)
    cell.end("a")
    cell.clock.advance(60)
    cell.pod("b")


async def test_a_store_that_only_the_pod_cannot_reach_is_told_and_ends_within_the_bound(
    cell: ControlHarness, closed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_container, "DEADLINE_SECONDS", 2.0)
    monkeypatch.setattr(restore_container, "RETRY_SECONDS", 0.2)
    await successor(cell)
    cell.stores.store = replace(cell.stores.store, signer=Elsewhere(closed))
    settings = settings_of(tmp_path, f"ws://127.0.0.1:{cell.port}{PATH}", "token-of-b")
    restoring = asyncio.ensure_future(restore_container.restore(settings, Failpoints(), tmp_path / "termination"))
    await until(lambda: cell.recorder.of("restore_progress"))
    assert not restoring.done(), "it is told at the first try, not at the end"
    async with asyncio.timeout(10):
        assert await restoring != 0
    told = cell.recorder.of("restore_progress")
    assert {(each.attempt, each.stage, each.reason) for each in told} == {("", "Fetching", "StoreUnavailable")}
    assert "manifests/" in told[0].message and "refused" in told[0].message
    (outcome,) = cell.recorder.of("restored")
    assert outcome.outcome == "StoreUnavailable"
    assert "retried for 2 s; the container restarts" in outcome.message
    assert 1700 <= outcome.milliseconds < 6000
    assert json.loads((tmp_path / "termination").read_text())["outcome"] == "StoreUnavailable"


class Tries:
    """Tries that end as told, at times of a clock that passes only while the container pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ends: SavepointError | Outcome) -> None:
        self.ends, self.seconds, self.told = list(ends), 5000.0, list[tuple[str, str]]()
        self.not_reached = 0
        monkeypatch.setattr(restore_container.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(restore_container.asyncio, "sleep", self._pause)

    async def _pause(self, seconds: float) -> None:
        self.seconds += seconds

    async def run(self) -> Outcome:
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        if isinstance(end, SavepointError):
            raise end
        return end

    async def held_up(self, reason: str, message: str) -> None:
        self.told.append((reason, message))

    def store_not_reached(self) -> None:
        self.not_reached += 1

    async def outcome(self) -> Outcome:
        ends_at = self.seconds + restore_container.DEADLINE_SECONDS
        return await restore_container._restore_with_retries(
            cast(restore_container._RestoreAttempt, self), cast(RestoreClient, self), ends_at
        )


async def test_a_store_is_waited_for_as_long_as_the_bound_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = Tries(monkeypatch, StoreUnavailable("timed out"))
    outcome = await tries.outcome()
    assert (outcome.outcome, outcome.message) == (
        "StoreUnavailable",
        "timed out (retried for 600 s; the container restarts)",
    )
    assert 600 - restore_container.RETRY_SECONDS < tries.seconds - 5000 <= 600
    assert set(tries.told) == {
        ("StoreUnavailable", "The restore in this pod is held up and will be retried: timed out")
    }


async def test_a_restore_goes_on_once_what_was_in_its_way_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Outcome("Restored", "all of it")
    tries = Tries(monkeypatch, StoreUnavailable("timed out"), Unavailable("no URL"), good)
    assert await tries.outcome() == good
    assert [reason for reason, _ in tries.told] == ["StoreUnavailable", "Unavailable"]
    assert tries.not_reached == 1


async def test_what_trying_again_does_not_mend_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = Tries(monkeypatch, IntegrityError("it is damaged", "packs/1-ab"))
    outcome = await tries.outcome()
    assert (outcome.outcome, outcome.object_key, tries.told, tries.seconds) == (
        "IntegrityError",
        "packs/1-ab",
        [],
        5000,
    )


async def test_nothing_is_told_between_a_reconnect_and_the_grant_that_follows_it(
    cell: ControlHarness, tmp_path: Path
) -> None:
    await successor(cell)
    settings_of(tmp_path, "", "token-of-b")
    client = RestoreClient(
        Dialer(f"ws://127.0.0.1:{cell.port}{PATH}", "", tmp_path / "token"),
        node="n1",
        version="0.1.0",
        monotonic=time.monotonic,
        random_id=lambda: Random(1).randbytes(16).hex(),
        jitter=lambda: 0.0,
    )
    try:
        await client.grant()
        assert cell.server is not None
        connections = cell.server._connections
        cell.stores.error = StoreDenied("the credentials were refused")
        connections[("b", "restore")].abort()
        await until(lambda: client.waits_for.reason == "StoreDenied")
        again = connections[("b", "restore")]
        await client.progress(1, 2)
        client.urls.book.add(Urls("r", get={"packs/1-ab": "where the store was"}))
        client.store_not_reached()
        assert client.urls.book.get_url("packs/1-ab"), "nobody could give another one"
        await client.held_up("StoreUnavailable", "timed out")
        cell.stores.error = None
        await until(client._connected.is_set)
        assert connections[("b", "restore")] is again, "an early word would have ended the connection"
        await client.held_up("StoreUnavailable", "timed out")
        await until(lambda: cell.recorder.of("restore_progress"))
        assert cell.recorder.of("restore_progress") == [
            Progress("", "Fetching", reason="StoreUnavailable", message="timed out")
        ]
        client.store_not_reached()
        assert client.urls.book.get_url("packs/1-ab") is None, "the store may have moved"
    finally:
        await client.close()


def test_a_container_that_does_not_know_how_to_say_it_is_understood() -> None:
    older = decode(
        '{"v":1,"type":"progress","attempt":"","stage":"Restoring","percent":5,"bytesDone":1,"bytesTotal":20}'
    )
    assert older == Progress("", "Restoring", 5, 1, 20, reason="", message="")
