"""Tests of errors that no code expects: they fail their attempt with a reason, and nothing else."""

import errno
import struct
from pathlib import Path

import pytest
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt
from savepoint_sidecar.checkpoint.failures import to_savepoint_error

from tests.unit.sidecar.harness import running


@pytest.mark.parametrize("error", [struct.error("argument out of range"), RecursionError(), MemoryError(), KeyError(5)])
async def test_an_unexpected_error_fails_only_its_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()

        def fail(*_: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Capture, "precopy", fail)
            harness.authority.order()
            result = await agent.result()
            assert (result.outcome, result.reason) == ("Failed", "Unavailable")
            assert type(error).__name__ in result.message
            await harness.idle()
        agent.documents = {"notes": 1}
        harness.authority.order()
        await agent.flush()
        assert (await agent.result()).outcome == "Ready"


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (TimeoutError(), "the store or the operator did not answer in time"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), "cannot read the agent's state: timed out"),
        (PermissionError(errno.EACCES, "denied"), "cannot read the agent's state: denied"),
    ],
)
def test_a_timeout_of_the_store_does_not_blame_the_files(cause: Exception, text: str) -> None:
    attempt = CaptureAttempt("a", "Interval", 10.0, lambda: 0.0)
    assert text in str(to_savepoint_error(cause, attempt))


async def test_an_unexpected_error_does_not_refuse_the_first_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as harness:

        def fail(*_: object) -> int:
            raise struct.error("argument out of range")

        monkeypatch.setattr(Capture, "file_bytes", fail)
        await harness.connected()


async def test_an_unexpected_error_does_not_break_the_shutdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as harness:

        def fail(*_: object) -> None:
            raise struct.error("argument out of range")

        monkeypatch.setattr(Capture, "read_fuzzy", fail)
        assert not await harness.incarnation.shut_down()


async def test_a_checkpoint_that_lacks_a_file_is_fuzzy_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        for documents, inexact in (({"notes": 1}, True), ({"notes": 1}, True), ({"notes": 2}, False)):
            with monkeypatch.context() as patch:
                if inexact:
                    patch.setattr("savepoint_sidecar.capture.capture.time_warning", lambda _: "a clamped date")
                    patch.setattr("savepoint_sidecar.capture.draft.Draft.is_exact", property(lambda _: False))
                agent.documents = dict(documents)
                harness.authority.order()
                await agent.flush()
                await agent.result()
                await harness.idle()
            assert harness.incarnation.checkpointer.parent is not None
            manifest = harness.incarnation.checkpointer.parent.manifest
            assert manifest.consistency == ("Fuzzy" if inexact else "Application")
        assert sum("a clamped date" in record.message for record in caplog.records) == 1
