"""Tests of files whose change began before they were read, or leaves no trace in their stat."""

import mmap
import os
import time
from pathlib import Path

import pytest
from savepoint.repository.format.content import Content
from savepoint.repository.write.source import FileSource
from savepoint.repository.write.writer import CheckpointWriter
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.change_detector import ChangeDetector
from savepoint_sidecar.capture.spool import Spool
from savepoint_sidecar.files.roots import Root

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.capture.test_capture import restored
from tests.unit.sidecar.checkpoints import finish, writer_of

BY_CONTENT = ChangeDetector("tmpfs", by_stat=False, reason="a test")
SECOND_NS = 10**9


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def __call__(self) -> int:
        return time.time_ns() + self.ahead_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "files").mkdir()
    return Root("files", "/data", tmp_path / "files")


@pytest.fixture
def capture(root: Root, clock: Clock) -> Capture:
    return Capture([root], (), clock)


def read_slowly(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    original = CheckpointWriter.store_file

    def slow(self: CheckpointWriter, descriptor: int, size: int, kind: str = "files", **options: bool) -> Content:
        clock.ahead_ns += 10 * SECOND_NS
        return original(self, descriptor, size, kind, **options)

    monkeypatch.setattr(CheckpointWriter, "store_file", slow)


@pytest.mark.parametrize("during", ["precopy", "fuzzy"])
def test_a_file_that_takes_long_to_read_counts_as_changed_if_it_was_new_when_that_began(
    root: Root, capture: Capture, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    path = root.path / "index"
    path.write_bytes(b"1")
    new = time.time_ns() + 5 * SECOND_NS
    os.utime(path, ns=(new, new))
    read_slowly(monkeypatch, clock)
    writer = writer_of(MemoryStore())
    (draft,) = capture.precopy(writer) if during == "precopy" else capture.read_fuzzy(writer, tmp_path)
    (node,) = draft.walk.nodes
    assert "index" in draft.table and not draft.table.matches("index", node.signature)


def test_a_copy_in_the_pause_of_a_file_that_was_new_counts_as_changed(
    root: Root, capture: Capture, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of(MemoryStore())
    drafts = capture.precopy(writer)
    path = root.path / "index"
    path.write_bytes(b"1")
    new = time.time_ns() + 5 * SECOND_NS
    os.utime(path, ns=(new, new))
    with Spool(tmp_path) as spool:
        original = spool.append

        def slow(*arguments: object, **options: object) -> object:
            clock.ahead_ns += 10 * SECOND_NS
            return original(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(spool, "append", slow)
        (draft,) = capture.final_pass(writer, drafts, spool)
    assert draft.spooled["index"].racy


def test_a_mapped_file_is_never_half_old_and_half_new_where_stamps_prove_nothing(
    root: Root, capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, states = 9 << 20, []
    path = root.path / "index"
    path.write_bytes(bytes(size))
    monkeypatch.setitem(capture._detectors, "files", BY_CONTENT)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = mapped[size - 1] = 2  # the pages are dirty, so that no later write moves a stamp
        states.append(bytes(mapped))
        original = FileSource.read_into
        poked: list[bool] = []

        def read_then_poke(self: FileSource, offset: int, target: memoryview) -> int:
            count = original(self, offset, target)
            if offset == 0 and not poked:
                poked.append(True)
                for at in (0, size - 1):
                    mapped[at] = 1
                    states.append(bytes(mapped))
            return count

        monkeypatch.setattr(FileSource, "read_into", read_then_poke)
        store = MemoryStore()
        writer = writer_of(store)
        (draft,) = capture.read_fuzzy(writer, tmp_path)
        capture.store(writer, [draft], None)
        found = restored(store, finish(writer), tmp_path / "restored")
    assert poked and (found / "index").read_bytes() in states and not draft.warnings


def test_a_database_that_a_precopy_read_as_a_file_is_read_again_as_a_database(
    root: Root, capture: Capture, tmp_path: Path
) -> None:
    path = root.path / "a.db"
    head = bytearray(4096)
    head[:20] = b"SQLite format 3\0\x10\x00\x01\x01"
    path.write_bytes(head)
    (root.path / "other").write_bytes(b"other")
    time.sleep(0.03)
    writer = writer_of(MemoryStore())
    before = capture.precopy(writer)
    assert "a.db" in before[0].table
    capture.read_fuzzy(writer, tmp_path, before)
    assert "a.db" not in before[0].table and "other" in before[0].table
