"""The small parts: settings, URLs, failpoints, the attempt's bounds, requests, the probe commands."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from savepoint.contract import names
from savepoint.contract.control_protocol import CheckpointRef, NeedUrls, ObjectName, PolicyTerms, Urls, Welcome
from savepoint.errors import (
    DeadlineExceeded,
    Refused,
    SavepointError,
    StateUnstable,
    StoreUnavailable,
    Unavailable,
)
from savepoint_sidecar import probe, settings
from savepoint_sidecar.authority.channel import Backoff
from savepoint_sidecar.authority.url_book import RESERVE, UrlBook
from savepoint_sidecar.authority.url_requests import UrlRequests
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt, in_thread
from savepoint_sidecar.failpoint import NAMES, Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.restore.file_restore import ready_marker, restore_files
from savepoint_sidecar.stage.components import begin_epoch, index_sequence, prepare_stage, read_index, write_index

from tests.unit.sidecar.harness import running

ENVIRONMENT = {
    names.ENV_CONTROL_URL: "wss://operator:8443/v1/control",
    names.ENV_CONTROL_CA: "-----BEGIN CERTIFICATE-----",
    names.ENV_POD_UID: "uid-1",
    names.ENV_GRACE_SECONDS: "45",
    names.ENV_ROOTS: json.dumps(
        [{"name": "data", "mountPath": "/data", "path": "/savepoint/state/data", "persistent": True}]
    ),
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
}


def test_settings_come_from_what_the_webhook_writes() -> None:
    found = settings.from_environment(ENVIRONMENT)
    assert found.roots == (Root("data", "/data", Path("/savepoint/state/data"), True),)
    assert (found.grace_seconds, found.api_server) == (45, ("10.96.0.1", 443))
    assert found.stage == Path(names.STAGE_DIRECTORY) and "BEGIN" not in repr(found)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({names.ENV_CONTROL_URL: ""}, names.ENV_CONTROL_URL),
        ({names.ENV_POD_UID: ""}, names.ENV_POD_UID),
        ({names.ENV_GRACE_SECONDS: "soon"}, names.ENV_GRACE_SECONDS),
        ({names.ENV_ROOTS: "{"}, names.ENV_ROOTS),
        ({names.ENV_ROOTS: '[{"name": "a"}]'}, names.ENV_ROOTS),
        ({names.ENV_ROOTS: json.dumps([{"name": "a", "mountPath": "/a", "path": "/a"}] * 2)}, "twice"),
    ],
)
def test_a_wrong_variable_is_named(change: Mapping[str, str], named: str) -> None:
    with pytest.raises(settings.SettingsError, match=named):
        settings.from_environment({**ENVIRONMENT, **change})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_url_is_used_until_shortly_before_its_end() -> None:
    clock = Clock()
    book = UrlBook(clock)
    book.add(Urls("1", put={"packs/1-a": "P"}, get={"packs/1-b": "G"}, expires_seconds=600))
    assert (book.put_url("packs/1-a"), book.get_url("packs/1-b")) == ("P", "G")
    assert book.get_url("packs/1-a") is None
    clock.now += 541
    assert book.put_url("packs/1-a") is None and book.get_url("packs/1-b") is None


async def test_a_url_that_the_store_refused_is_asked_for_anew() -> None:
    sent: list[NeedUrls] = []
    connected = asyncio.Event()
    connected.set()

    async def send(ask: NeedUrls) -> None:
        sent.append(ask)
        asks.answered(Urls(ask.request, put={key: f"P{len(sent)}" for key in ask.put}))

    asks = UrlRequests(UrlBook(Clock()), connected, send, lambda: f"r{len(sent)}")
    asks.bind()
    key = "packs/1-a"
    assert await asyncio.to_thread(asks.put_url, key) == "P1"
    assert await asyncio.to_thread(asks.put_url, key) == "P1"
    asks.forget(key)
    assert await asyncio.to_thread(asks.put_url, key) == "P2"


@pytest.mark.parametrize(
    ("reason", "error"), [("StoreUnavailable", StoreUnavailable), ("StoreDenied", Refused), ("Refused", Refused)]
)
async def test_urls_that_are_not_signed_now_may_be_later(reason: str, error: type[SavepointError]) -> None:
    connected = asyncio.Event()
    connected.set()

    async def send(ask: NeedUrls) -> None:
        asks.refused(ask.request, Refused("not now", reason))

    asks = UrlRequests(UrlBook(Clock()), connected, send, lambda: "r1")
    asks.bind()
    with pytest.raises(error, match="not now"):
        await asyncio.to_thread(asks.get_url, "packs/1-a")


async def test_a_thread_that_waits_for_a_url_can_be_let_go() -> None:
    async def send(ask: NeedUrls) -> None:
        raise AssertionError("nobody is connected")

    asks = UrlRequests(UrlBook(Clock()), asyncio.Event(), send, lambda: "r1")
    asks.bind()
    waiting = asyncio.ensure_future(asyncio.to_thread(asks.put_url, "packs/1-a"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    async with asyncio.timeout(5):
        while not waiting.done():
            asks.stop_waiting()
            await asyncio.sleep(0.005)
    with pytest.raises(Unavailable):
        await waiting


async def test_a_pause_between_dials_ends_when_the_pod_is_about_to_go() -> None:
    backoff = Backoff(lambda: 1.0)
    backoff._step = 6
    paused = asyncio.ensure_future(backoff.pause())
    await asyncio.sleep(0)
    backoff.hurry()
    async with asyncio.timeout(2):
        await paused


def test_the_reserve_is_renewed_at_half_its_life() -> None:
    clock = Clock()
    book = UrlBook(clock)
    assert book.reserve_missing() == RESERVE
    for number in range(RESERVE):
        book.add(Urls("1", put={f"packs/1-{number}": "P"}, expires_seconds=3600))
        book.reserve(f"1-{number}")
    assert book.reserve_missing() == 0
    name = book.take_reserved()
    assert name is not None and book.put_url(f"packs/{name}") == "P" and book.reserve_missing() == 1
    clock.now += 1801
    assert book.reserve_missing() == RESERVE and book.take_reserved() is None


def test_reads_that_are_expected_are_kept_fresh() -> None:
    clock = Clock()
    book = UrlBook(clock)
    book.expect(f"packs/1-{number}" for number in range(100))
    assert len(book.wanted_reads()) == 64 and book.wanted_reads("packs/1-99")[0] == "packs/1-99"
    book.add(Urls("1", get={f"packs/1-{number}": "G" for number in range(100)}))
    assert book.wanted_reads() == []
    clock.now += 1801
    assert len(book.wanted_reads()) == 64


def test_an_attempt_ends_at_its_bound_its_hold_or_from_outside() -> None:
    clock = Clock()
    attempt = CaptureAttempt("a" * 32, "Interval", clock.now + 10, clock)
    attempt.check()
    attempt.hold(2)
    clock.now += 2
    with pytest.raises(StateUnstable, match="holdSeconds"):
        attempt.check()
    attempt.hold(None)
    attempt.check()
    clock.now += 8
    with pytest.raises(DeadlineExceeded):
        attempt.stored(5)
    attempt.interrupt(Unavailable("first"))
    attempt.interrupt(Unavailable("second"))
    with pytest.raises(Unavailable, match="first"):
        attempt.check()
    assert attempt.progress().bytes_done == 5


async def test_a_cancelled_thread_is_waited_for() -> None:
    clock = Clock()
    attempt = CaptureAttempt("a" * 32, "Interval", clock.now + 10, clock)
    steps: list[str] = []

    def work() -> None:
        try:
            while True:
                attempt.check()
        except SavepointError:
            steps.append("ended")

    running_work = asyncio.ensure_future(in_thread(attempt, work))
    await asyncio.sleep(0.01)
    running_work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running_work
    assert steps == ["ended"]


def test_a_restore_that_waits_ends_at_once_when_it_is_told_to() -> None:
    """As process 1 of its container it would ignore the signal, and its pod's deletion would last the whole grace."""
    environment = {**ENVIRONMENT, names.ENV_CONTROL_URL: "ws://127.0.0.1:9/v1/control"}
    program = "import sys; from savepoint_sidecar.main import restore; sys.exit(restore())"
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "waiting" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143


def test_a_failpoint_kills_at_its_count() -> None:
    program = (
        "from savepoint_sidecar.failpoint import Failpoints\n"
        "f = Failpoints('before-offer:2')\n"
        "f.reach('after-commit'); f.reach('before-offer'); print('once', flush=True); f.reach('before-offer')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"once\n")
    with pytest.raises(ValueError, match="no failpoint"):
        Failpoints("nowhere")


class Passed(Failpoints):
    """Writes down where it came by."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def reach(self, name: str) -> None:
        assert name in NAMES
        self.names.add(name)


async def test_every_failpoint_is_passed(tmp_path: Path) -> None:
    passed = Passed()
    async with running(tmp_path) as cell:
        cell.incarnation.checkpointer._failpoints = passed
        (cell.files / "a").write_bytes(b"x" * 100)
        agent = await cell.connected()
        cell.authority.order()
        await agent.flush()
        assert (await agent.result()).outcome == "Ready"
        await cell.idle()
        ref = CheckpointRef("coder-1", 1, 2, "", ObjectName("0" * 64, 1))
        welcome = Welcome("coder", "demo", 1, 1, "00" * 32, "", PolicyTerms(), ref)
        with cell.authority.reader() as reader:
            restore_files(reader, [cell.root], ready_marker(welcome, "uid", ref), passed)
    assert passed.names == set(NAMES)


def test_an_index_is_read_for_its_cut_only(tmp_path: Path) -> None:
    prepare_stage(tmp_path, 1)
    write_index(tmp_path, 7, ())
    assert index_sequence(tmp_path) == 7 and read_index(tmp_path, 7) == () and read_index(tmp_path, 8) is None
    write_index(tmp_path, -1, ())
    assert index_sequence(tmp_path) is None
    (tmp_path / "restored" / "index.json").write_text("[]")
    assert index_sequence(tmp_path) is None and read_index(tmp_path, 7) is None


async def test_the_probe_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(names.ENV_SOCKET, str(tmp_path / "agent.sock"))
    monkeypatch.setenv(names.ENV_STAGE, str(tmp_path / "nowhere"))
    assert probe.ready(0.0) == 1
    assert probe.prestop() == 0
    assert "could not be told" in capsys.readouterr().out
    async with running(tmp_path):
        assert await asyncio.to_thread(probe.ready) == 0


def test_a_journal_lives_as_long_as_its_epoch_in_one_pod(tmp_path: Path) -> None:
    prepare_stage(tmp_path, 1)
    record = tmp_path / "journal" / "1" / "3.log"
    record.parent.mkdir()
    record.write_text("done")
    for _ in range(2):  # the pod is new; its init container runs again, as after a reboot of its node
        begin_epoch(tmp_path, 4, 1)
        assert record.exists()
    begin_epoch(tmp_path, 5, 1)  # it was rolled back
    assert not record.parent.exists()
    begin_epoch(tmp_path, 5, 1)
