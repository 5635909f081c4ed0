"""Tests of files that are rotated, truncated, or replaced by something else while they are captured."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from savepoint.errors import StateUnstable
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.open_files import OpenFile, RootFiles
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import FileNode

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.capture.test_unstable_files import fuzzy, latest, paused

OLD, NEW = b"old line\n" * 1000, b"new\n"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "files").mkdir()
    (tmp_path / "outside").write_bytes(b"secret")
    return Root("files", "/data", tmp_path / "files")


@pytest.fixture
def capture(root: Root) -> Capture:
    return Capture([root], (), time.time_ns)


def rotate(log: Path) -> None:
    log.rename(log.with_name("log.1"))
    log.write_bytes(NEW)


def copytruncate(log: Path) -> None:
    shutil.copyfile(log, log.with_name("log.1"))
    log.write_bytes(NEW)


def shrink(log: Path) -> None:
    os.truncate(log, 9)


def to_folder(log: Path) -> None:
    log.unlink()
    log.mkdir()


def to_pipe(log: Path) -> None:
    log.unlink()
    os.mkfifo(log)


def to_link(log: Path) -> None:
    log.unlink()
    log.symlink_to("../outside")


CHANGES: list[Callable[[Path], None]] = [rotate, copytruncate, shrink, to_folder, to_pipe, to_link]


@pytest.mark.parametrize("change", CHANGES)
def test_what_replaces_a_file_that_is_read_never_stands_for_it(
    root: Root, capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    log = root.path / "log"
    log.write_bytes(OLD)
    (root.path / "quiet").write_bytes(b"quiet")
    original = RootFiles.open
    done: list[FileNode] = []

    def replace_then_open(self: RootFiles, node: FileNode) -> OpenFile:
        if node.path == "log" and not done:
            done.append(node)
            change(log)
        return original(self, node)

    monkeypatch.setattr(RootFiles, "open", replace_then_open)
    draft, target = fuzzy(capture, tmp_path)
    capture.note_moved([draft])
    report = capture.report([draft])
    assert done and report is not None
    named = {*report.unstable, *(each.path for each in report.left_out)}
    assert "/data/log" in named
    assert (target / "quiet").read_bytes() == b"quiet"
    if (target / "log").exists():
        assert (target / "log").read_bytes() in (OLD, NEW, OLD[:9])


@pytest.mark.parametrize("change", CHANGES)
def test_what_replaces_a_copied_file_in_a_pause_is_noticed(
    root: Root, capture: Capture, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    log = root.path / "log"
    (root.path / "quiet").write_bytes(b"quiet")

    def begin() -> None:
        log.write_bytes(OLD)

    try:
        draft = paused(capture, MemoryStore(), tmp_path, act=lambda: change(log), between=begin)
    except StateUnstable as error:
        assert "/data/log" in str(error)
        return
    assert not draft.is_exact and "log" in draft.unstable
    assert (latest(tmp_path) / "log").read_bytes() == OLD
