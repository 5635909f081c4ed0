"""Names, depths and sizes at the limits of file systems and of the format: captured and restored, or named."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from savepoint.repository.format.tree import MAX_FILE_BYTES
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.restore import restore_tree
from savepoint.repository.write.worker_pool import WorkerPool
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.capture.open_files import RootFiles, equals_content
from savepoint_sidecar.files.roots import Root, clear

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.checkpoints import KEY, finish, writer_of

GIBIBYTE = 1 << 30


@pytest.fixture(params=["/tmp", "/dev/shm"])  # a block file system, usually, and a memory file system
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Yield a folder; what is too deep for other tools is removed by the restore's own ``clear``."""
    with tempfile.TemporaryDirectory(dir=request.param) as name:
        path = Path(name)
        for each in ("files", "scratch", "restored"):
            (path / each).mkdir()
        yield path
        for each in ("files", "restored"):
            clear(Root(each, f"/{each}", path / each, persistent=False))


def captured(folder: Path) -> tuple[Capture, Draft, Path]:
    """Capture the folder and restore it; return the capture, its draft and the restored folder."""
    capture = Capture([Root("files", "/data", folder / "files", persistent=False)], (), time.time_ns)
    store = MemoryStore()
    writer = writer_of(store)
    drafts = capture.read_fuzzy(writer, folder / "scratch")
    capture.store(writer, drafts, None)
    manifest = finish(writer)
    with CheckpointReader(store, KEY, manifest) as reader:
        restore_tree(reader, manifest.components[0], folder / "restored")
    return capture, drafts[0], folder / "restored"


def make_nest(top: Path, name: str, levels: int, content: bytes) -> None:
    """Make nested folders with a file in each tenth, as a program does that changes its directory at every step."""
    current = os.open(top, os.O_RDONLY)
    for level in range(levels):
        if level % 10 == 0:
            descriptor = os.open("f", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=current)
            os.write(descriptor, content)
            os.close(descriptor)
        os.mkdir(name, dir_fd=current)
        below = os.open(name, os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)


def depth_of(top: Path, name: str) -> int:
    """Return how many nested folders of this name there are."""
    current, depth = os.open(top, os.O_RDONLY), 0
    while True:
        try:
            below = os.open(name, os.O_RDONLY, dir_fd=current)
        except FileNotFoundError:
            os.close(current)
            return depth
        os.close(current)
        current, depth = below, depth + 1


def test_names_of_255_bytes_and_paths_up_to_4096_are_restored(folder: Path) -> None:
    longest = "ü" * 127 + "x"
    assert len(longest.encode()) == 255
    (folder / "files" / longest).write_bytes(b"content")
    make_nest(folder / "files", "n" * 99, 40, b"deep")  # below this root, the paths exceed PATH_MAX
    _, draft, restored = captured(folder)
    assert (restored / longest).read_bytes() == b"content"
    assert depth_of(restored, "n" * 99) == 40
    assert draft.is_exact and draft.left_out() == []


def test_what_lies_too_deep_is_named_and_the_rest_is_restored(folder: Path) -> None:
    make_nest(folder / "files", "n" * 99, 60, b"deep")
    (folder / "files" / "beside").write_bytes(b"content")
    capture, draft, restored = captured(folder)
    assert (restored / "beside").read_bytes() == b"content" and depth_of(restored, "n" * 99) == 40
    (warning,) = capture.warnings(draft)
    assert "left out, with everything in it" in warning and "longer than 4,096 bytes" in warning and len(warning) < 400
    assert not draft.is_exact


def test_a_sparse_file_of_a_tebibyte_is_neither_read_nor_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = 0
    original = WorkerPool.store_blocks

    def count(*arguments: object, **more: object) -> object:
        nonlocal ranges
        ranges += 1
        return original(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(WorkerPool, "store_blocks", count)
    with (folder / "files" / "disk.img").open("wb") as file:
        file.truncate(1024 * GIBIBYTE)
        file.seek(300 * GIBIBYTE + 5)
        file.write(b"middle")
    capture, draft, restored = captured(folder)
    assert ranges <= 4, "one range without data and the one that has some, which may be read twice"
    found = (restored / "disk.img").stat()
    assert (found.st_size, found.st_blocks * 512) == (1024 * GIBIBYTE, 4096)
    with (restored / "disk.img").open("rb") as read:
        read.seek(300 * GIBIBYTE + 4)
        assert read.read(8) == b"\0middle\0"
    content = draft.table.contents().find("disk.img")
    assert content is not None
    with RootFiles(draft.walk) as files:
        assert equals_content(files, draft.walk.nodes[0], content, has_holes=True)
        with (folder / "files" / "disk.img").open("r+b") as changed:
            changed.seek(700 * GIBIBYTE)
            changed.write(b"x")
        assert not equals_content(files, draft.walk.nodes[0], content, has_holes=True)
    assert capture.warnings(draft) == []


def test_a_file_beyond_the_formats_limit_is_named_and_the_rest_is_restored(folder: Path) -> None:
    with (folder / "files" / "huge.img").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    (folder / "files" / "beside").write_bytes(b"content")
    capture, draft, restored = captured(folder)
    assert sorted(os.listdir(restored)) == ["beside"]  # noqa: PTH208 - the names
    (warning,) = capture.warnings(draft)
    assert "'huge.img' is larger than 4 TiB" in warning and not draft.is_exact


def test_content_around_holes_is_restored_byte_by_byte(folder: Path) -> None:
    path = folder / "files" / "mixed"
    with path.open("wb") as file:
        for at in (0, (1 << 30) - 3, (2 << 30) + (1 << 20) - 1, (3 << 30) + 17):
            file.seek(at)
            file.write(b"data")
    _, _, restored = captured(folder)
    assert _digest(restored / "mixed") == _digest(path)


def _digest(path: Path) -> str:
    """Return the digest of a file's data and of where it lies; holes are not read."""
    digest, at = hashlib.sha256(), 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // 4096 * 4096
            except OSError:
                return f"{size} {digest.hexdigest()}"
            piece = os.pread(file.fileno(), 4096, at)
            if piece.strip(b"\0"):
                digest.update(at.to_bytes(8) + piece)
            at += 4096
