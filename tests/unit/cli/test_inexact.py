"""``savepoint log`` and ``verify`` of a checkpoint that is not exactly the state of one moment."""

from pathlib import Path

import pytest
from savepoint.contract.capture_report import CaptureReport, LeftOut, RootReport
from savepoint.repository.write.writer import CheckpointWriter
from savepoint_cli.main import main

from tests.unit.cli.test_cli import store

__all__ = ["store"]

ROOTS = (RootReport("/work", "Stat", "ext4", 4_000_000),)


@pytest.fixture(autouse=True)
def report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the store's checkpoint a report."""
    found = CaptureReport(ROOTS, ("/work/log",), 3, (LeftOut("/work/locked", "cannot read it"),), 1)
    original = CheckpointWriter.finish

    def finish(self: CheckpointWriter, **more: object) -> object:
        return original(self, **more, capture=found)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointWriter, "finish", finish)


def test_log_marks_the_checkpoint_and_verify_names_the_files(
    report: None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["log", str(store)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("  StateInexact")
    assert main(["verify", str(store)]) == 0
    intact, left_out, changed, more = capsys.readouterr().out.splitlines()
    assert "all readable" in intact
    assert left_out.endswith("coder-1: left out: /work/locked: cannot read it")
    assert changed.endswith("coder-1: changed while it was captured: /work/log")
    assert more.endswith("and 2 more that are left out or changed while they were captured")
