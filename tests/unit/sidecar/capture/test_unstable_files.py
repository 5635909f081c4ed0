"""Tests of captures of files that move, grow, cannot be read, have absurd dates, or change without a sign."""

import errno
import hashlib
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from savepoint.errors import RunAsUserRequired, StateUnstable
from savepoint.repository.write.source import FileSource
from savepoint_sidecar.capture import change_detector
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.change_detector import ChangeDetector, probe
from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.capture.file_table import is_racy
from savepoint_sidecar.capture.open_files import RootFiles
from savepoint_sidecar.capture.spool import Spool
from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import Signature, walk

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.capture.test_capture import restored
from tests.unit.sidecar.checkpoints import finish, writer_of

BY_CONTENT = ChangeDetector("tmpfs", by_stat=False, reason="a test")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "files").mkdir()
    return Root("files", "/data", tmp_path / "files")


@pytest.fixture
def capture(root: Root) -> Capture:
    return Capture([root], (), time.time_ns)


def settle(path: Path) -> None:
    """Make the file so old that its stat counts."""
    old = time.time_ns() - 10**10
    while is_racy(Signature(0, 0, path.stat().st_ctime_ns, 0), time.time_ns(), 40_000_000):
        os.utime(path.parent, ns=(old, old))


def paused(
    capture: Capture,
    store: MemoryStore,
    folder: Path,
    act: Callable[[], None] = lambda: None,
    between: Callable[[], None] = lambda: None,
) -> Draft:
    """Take a checkpoint of a paused agent.

    ``act`` happens during the pause, after the files were copied; ``between`` before it, after the pre-copy.
    """
    writer = writer_of(store)
    drafts = capture.precopy(writer)
    between()
    original = capture._read_links

    def act_then_read(files: RootFiles, draft: Draft) -> None:
        act()
        original(files, draft)

    capture._read_links = act_then_read  # type: ignore[method-assign]
    try:
        with Spool(folder) as spool:
            (final,) = capture.final_pass(writer, drafts, spool)
            capture.store(writer, [final], spool)
    finally:
        capture._read_links = original  # type: ignore[method-assign]
    manifest = finish(writer)
    capture.committed([final])
    restored(store, manifest, folder / f"restored{len(list(folder.iterdir()))}")
    return final


def latest(folder: Path) -> Path:
    return max(folder.glob("restored*"), key=lambda path: path.stat().st_ctime_ns)


def fuzzy(capture: Capture, folder: Path) -> tuple[Draft, Path]:
    store = MemoryStore()
    writer = writer_of(store)
    (draft,) = capture.read_fuzzy(writer, folder)
    capture.store(writer, [draft], None)
    return draft, restored(store, finish(writer), folder / f"restored{time.monotonic_ns()}")


def test_a_quiet_pause_is_exact(root: Root, capture: Capture, tmp_path: Path) -> None:
    (root.path / "a").write_text("a")
    assert paused(capture, MemoryStore(), tmp_path).is_exact


@pytest.mark.parametrize("change", ["append", "add", "remove", "rename", "touch"])
def test_what_moves_in_a_pause_makes_the_checkpoint_fuzzy(
    root: Root, capture: Capture, tmp_path: Path, change: str
) -> None:
    (root.path / "log").write_bytes(b"line\n")
    (root.path / "old").write_bytes(b"old")
    settle(root.path / "old")

    def act() -> None:
        if change == "append":
            with (root.path / "log").open("ab") as log:
                log.write(b"more\n")
        elif change == "add":
            (root.path / "new").write_bytes(b"new")
        elif change == "remove":
            (root.path / "old").unlink()
        elif change == "rename":
            (root.path / "old").rename(root.path / "older")
        else:
            os.utime(root.path / "old", ns=(5, 5))

    draft = paused(capture, MemoryStore(), tmp_path, act)
    assert not draft.is_exact and "while the agent was paused" in draft.doubts[0]
    assert (latest(tmp_path) / "log").read_bytes() == b"line\n"
    assert (latest(tmp_path) / "old").read_bytes() == b"old"


@pytest.mark.parametrize("size", [5, 3_000_000])
def test_a_copied_file_that_is_rewritten_in_a_pause_fails_the_attempt(
    root: Root, capture: Capture, tmp_path: Path, size: int
) -> None:
    busy = root.path / "busy"

    def write(content: bytes) -> None:
        busy.write_bytes(content)

    with pytest.raises(StateUnstable, match="/data/busy"):
        paused(
            capture, MemoryStore(), tmp_path,
            act=lambda: write(b"2" * (size + 9)), between=lambda: write(b"1" * size),
        )  # fmt: skip


def test_a_file_that_grows_at_every_read_is_captured_up_to_the_size_seen(
    root: Root, capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = root.path / "log"
    original = Spool.append

    def append_and_grow(
        self: Spool, descriptor: int, size: int, check: Callable[[], None], *, has_holes: bool = False
    ) -> object:
        with log.open("ab") as file:
            file.write(b"line\n")
        return original(self, descriptor, size, check, has_holes=has_holes)

    monkeypatch.setattr(Spool, "append", append_and_grow)

    def begin() -> None:
        log.write_bytes(b"begin\n")

    draft = paused(capture, MemoryStore(), tmp_path, between=begin)
    assert not draft.is_exact
    assert (latest(tmp_path) / "log").read_bytes() == b"begin\n"


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("is_paused", [True, False])
def test_one_unreadable_file_is_left_out_and_named(
    root: Root, capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_paused: bool
) -> None:
    (root.path / "bad").write_bytes(b"bad")
    (root.path / "good").write_bytes(b"good")
    original = RootFiles._open_node

    def fail(self: RootFiles, node: object) -> int:
        if getattr(node, "path", "") == "bad":
            raise OSError(number, os.strerror(number))
        return original(self, node)  # type: ignore[arg-type]

    monkeypatch.setattr(RootFiles, "_open_node", fail)
    if is_paused:
        draft, target = paused(capture, MemoryStore(), tmp_path), latest(tmp_path)
    else:
        draft, target = fuzzy(capture, tmp_path)
    assert not draft.is_exact and [path.name for path in target.iterdir()] == ["good"]
    (warning,) = capture.warnings(draft)
    assert "/data/bad" in warning and ("exclude it" in warning)
    (root.path / "good").unlink()
    with pytest.raises(RunAsUserRequired, match="/data/bad"):
        fuzzy(capture, tmp_path)


@pytest.mark.parametrize("is_paused", [True, False])
def test_absurd_dates_are_clamped_and_reported(root: Root, capture: Capture, tmp_path: Path, is_paused: bool) -> None:
    (root.path / "dir").mkdir()
    for path in (root.path / "file", root.path / "dir" / "inner"):
        path.write_text("x")
    (root.path / "link").symlink_to("file")
    late = 2**63 + 10**9 * 3600 * 24 * 365
    for path in (root.path / "file", root.path / "dir" / "inner", root.path / "link", root.path / "dir"):
        os.utime(path, ns=(late, late), follow_symlinks=False)
    if (root.path / "file").stat().st_mtime_ns != late:
        late = (root.path / "file").stat().st_mtime_ns
    if is_paused:
        draft, target = paused(capture, MemoryStore(), tmp_path), latest(tmp_path)
    else:
        draft, target = fuzzy(capture, tmp_path)
    (warning,) = capture.warnings(draft)
    assert "4 entries" in warning and "/data/dir/inner" in warning
    assert draft.is_exact
    assert (target / "file").stat().st_mtime_ns == 2**63 - 1 and (target / "dir" / "inner").read_text() == "x"
    again, _ = (paused(capture, MemoryStore(), tmp_path), 0) if is_paused else fuzzy(capture, tmp_path)
    assert "4 entries" in capture.warnings(again)[0]


def test_a_file_dated_in_the_far_future_is_not_read_at_every_checkpoint() -> None:
    now = time.time_ns()
    assert not is_racy(Signature(1, now + 10**17, now - 10**9, 1), now)
    assert is_racy(Signature(1, now + 10**9, now - 10**9, 1), now)
    assert is_racy(Signature(1, now - 10**9, now + 10**17, 1), now), "the clock was set back"


def test_a_folder_that_is_renamed_after_the_walk_is_still_read(root: Root, capture: Capture, tmp_path: Path) -> None:
    for name in ("a", "a/b", "c"):
        (root.path / name).mkdir()
        (root.path / name / "file").write_text(name)
    found = walk(root, Excluded((), "/data"))
    (root.path / "a" / "b").rename(root.path / "a" / "x")
    (root.path / "a").rename(root.path / "moved")
    (root.path / "c").rename(root.path / "a")
    (root.path / "moved" / "file").rename(root.path / "moved" / "other")
    (root.path / "moved" / "file").write_text("not what the walk saw")
    with RootFiles(found) as files:
        for node in found.nodes:
            if node.is_file:
                with files.open(node) as handle:
                    assert os.read(handle.descriptor, 100).decode() == node.path.removesuffix("/file")


def test_a_replaced_file_is_read_and_a_removed_one_is_not_found(root: Root) -> None:
    for name in ("replaced", "removed", "pipe"):
        (root.path / name).write_text("old")
    found = walk(root, Excluded((), "/data"))
    for name in ("removed", "pipe"):
        (root.path / name).unlink()
    os.mkfifo(root.path / "pipe")
    (root.path / "new").write_text("new")
    (root.path / "new").replace(root.path / "replaced")
    nodes = {node.path: node for node in found.nodes}
    with RootFiles(found) as files:
        with files.open(nodes["replaced"]) as handle:
            assert os.read(handle.descriptor, 10) == b"new"
        for name in ("removed", "pipe"):
            with pytest.raises(FileNotFoundError):
                files.open(nodes[name])


@pytest.fixture
def mapped(root: Root) -> Iterator[mmap.mmap]:
    path = root.path / "index"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as found:
        found[0] = 1
        yield found


@pytest.mark.parametrize("by_stat", [True, False])
def test_a_mapped_write_without_a_flush_is_seen(
    root: Root, capture: Capture, tmp_path: Path, mapped: mmap.mmap, by_stat: bool
) -> None:
    if not by_stat:
        capture._detectors["files"] = BY_CONTENT
    for value in (7, 8, 9):
        settle(root.path / "index")
        mapped[5000] = value
        paused(capture, MemoryStore(), tmp_path)
        assert (latest(tmp_path) / "index").read_bytes()[5000] == value


def test_unchanged_files_are_not_copied_in_a_pause_where_contents_are_compared(
    root: Root, capture: Capture, tmp_path: Path
) -> None:
    capture._detectors["files"] = BY_CONTENT
    (root.path / "same").write_bytes(os.urandom(2_500_000))
    settle(root.path / "same")
    assert paused(capture, MemoryStore(), tmp_path).spooled == {}


def test_a_change_without_a_sign_is_found_where_contents_are_compared(
    root: Root, capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture._detectors["files"] = BY_CONTENT
    (root.path / "a").write_bytes(b"1" * 3_000_000)
    settle(root.path / "a")
    store = MemoryStore()
    paused(capture, store, tmp_path)
    monkeypatch.setattr("savepoint_sidecar.capture.file_table.FileTable.matches", lambda *_: True)
    (root.path / "a").write_bytes(b"1" * 2_999_999 + b"2")
    assert paused(capture, MemoryStore(), tmp_path).table.contents().find("a") is not None
    assert (latest(tmp_path) / "a").read_bytes().endswith(b"2")


def test_coarse_time_stamps_widen_the_time_in_which_a_file_counts_as_changing() -> None:
    detector = ChangeDetector("ext4", by_stat=True, granularity_ns=50_000_000)
    now = time.time_ns()
    assert detector.is_racy(Signature(1, now - 90_000_000, 0, 1), now)
    assert not detector.is_racy(Signature(1, now - 110_000_000, 0, 1), now)


def test_the_probe_leaves_nothing_behind(root: Root) -> None:
    probe(root)
    assert list(root.path.iterdir()) == []


def test_an_unknown_file_system_is_compared_by_content(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, name in ((0x6969, "nfs"), (0x1234, "unknown")):
        monkeypatch.setattr(change_detector, "_file_system_type", lambda _, kind=kind: kind)
        detector = probe(root)
        assert not detector.by_stat and name in str(detector)


def test_a_root_that_cannot_be_probed_is_compared_by_content(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_detector, "_file_system_type", lambda _: 0xEF53)

    def refuse(_: Path) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(change_detector, "_unnamed_file", refuse)
    detector = probe(root)
    assert not detector.by_stat and "Read-only file system" in str(detector)


SPARSE_BYTES = 40 << 20


def make_sparse(path: Path) -> bytes:
    """Create a file of 40 MiB with a little data, also across the border of a block; return the data's digest."""
    with path.open("wb") as file:
        file.truncate(SPARSE_BYTES + 5)
        for offset in (0, (7 << 20) - 2, 20 << 20, SPARSE_BYTES + 1):
            file.seek(offset)
            file.write(b"data")
    return hashlib.sha256(path.read_bytes()).digest()


@pytest.mark.parametrize("by_stat", [True, False])
@pytest.mark.parametrize("is_paused", [True, False])
def test_a_sparse_file_is_restored_sparse(
    root: Root, capture: Capture, tmp_path: Path, is_paused: bool, by_stat: bool
) -> None:
    capture._detectors["files"] = BY_CONTENT if not by_stat else ChangeDetector("ext4", by_stat=True)
    digests: list[bytes] = []
    path = root.path / "disk.img"
    if is_paused:
        paused(capture, MemoryStore(), tmp_path, between=lambda: digests.append(make_sparse(path)))
        target = latest(tmp_path)
    else:
        digests.append(make_sparse(path))
        _, target = fuzzy(capture, tmp_path)
    assert hashlib.sha256((target / "disk.img").read_bytes()).digest() == digests[0]
    assert (target / "disk.img").stat().st_blocks * 512 < 1 << 20


def test_a_hole_is_not_read(root: Root, capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture._detectors["files"] = ChangeDetector("ext4", by_stat=True)
    make_sparse(root.path / "disk.img")
    sizes: list[int] = []
    original = FileSource.read_into

    def count(self: FileSource, offset: int, target: memoryview) -> int:
        sizes.append(len(target))
        return original(self, offset, target)

    monkeypatch.setattr(FileSource, "read_into", count)
    fuzzy(capture, tmp_path)
    assert sum(sizes) < 8 << 20


def test_the_room_for_a_copy_is_that_of_the_data(root: Root) -> None:
    make_sparse(root.path / "disk.img")
    found = walk(root, Excluded((), "/data"))
    with RootFiles(found) as files:
        assert files.allocated_bytes(found.nodes[0]) < 1 << 20
