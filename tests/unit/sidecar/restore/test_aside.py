"""Tests of files that a restore moves aside: nothing is deleted, whatever is in the root."""

import os
import time
from pathlib import Path

import pytest
from savepoint.contract.control_protocol import Replaced
from savepoint.errors import NoSpace
from savepoint.repository.format.tree import TreeFile
from savepoint.repository.read.reader import CheckpointReader
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.restore.aside import describe, expired
from savepoint_sidecar.restore.file_restore import InPlace, restore_files
from savepoint_sidecar.restore.markers import Marker, read_marker, write_marker

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.checkpoints import KEY, finish, writer_of
from tests.unit.sidecar.restore.test_restore import Killed, Killing

READY = Marker("demo", "coder", "uid", 2, 40, "ready")
LABEL = "20260101-000000"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Return a root with a file, folders of which one is read-only, a link, a pipe and a file of an odd name."""
    top = tmp_path / "work"
    (top / "deep" / "er").mkdir(parents=True)
    (top / "deep" / "er" / "file").write_text("deep")
    (top / "note").write_text("note")
    (top / ".git").mkdir()
    (top / "link").symlink_to("/")
    os.mkfifo(top / "pipe")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff")).write_text("odd")
    (top / "deep").chmod(0o555)
    (top / "lost+found").mkdir()
    root = Root("work", "/work", top, persistent=True)
    write_marker(root, READY)
    return root


def restored(
    store: MemoryStore, root: Root, content: bytes = b"restored", *, exclude: tuple[str, ...] = (), label: str = LABEL
) -> list[Replaced]:
    """Restore a checkpoint of one file, and return what it moved."""
    writer = writer_of(store)
    writer.add_tree("files.work", "Files", [TreeFile("note", 0o640, 0, writer.store_bytes(content, "Files"))])
    in_place = InPlace(Capture([root], exclude, time.time_ns), label)
    with CheckpointReader(store, KEY, finish(writer)) as reader:
        restore_files(reader, [root], READY, Failpoints(), in_place=in_place)
    return in_place.report.replaced


def test_everything_that_a_restore_replaces_is_moved_and_listed(root: Root) -> None:
    (replaced,) = restored(MemoryStore(), root)
    aside = root.path / ".savepoint" / f"replaced-{LABEL}"
    assert replaced.path == f"/work/.savepoint/replaced-{LABEL}"
    assert replaced.names == (".git", "deep", "deep/er", "deep/er/file", "link", "note", "\\udcff")
    assert replaced.entries == 7 and describe(replaced).endswith(f"\\udcff: moved to {replaced.path}")
    assert (aside / "deep" / "er" / "file").read_text() == "deep" and (aside / "note").read_text() == "note"
    assert (aside / "link").readlink() == Path("/")
    assert sorted(each.name for each in root.path.iterdir()) == [".savepoint", "lost+found", "note", "pipe"]
    assert (root.path / "note").read_text() == "restored" and read_marker(root) == READY


def test_a_pipe_in_the_way_is_moved_too(root: Root) -> None:
    (root.path / "note").unlink()
    os.mkfifo(root.path / "note")
    (replaced,) = restored(MemoryStore(), root)
    assert "note" in replaced.names and (root.path / "note").read_text() == "restored"
    assert (root.path / ".savepoint" / f"replaced-{LABEL}" / "note").is_fifo()


def test_what_is_equal_or_excluded_stays_where_it_is(root: Root) -> None:
    inode = (root.path / "note").stat().st_ino
    (replaced,) = restored(MemoryStore(), root, b"note", exclude=("deep", "link"))
    assert replaced.names == (".git", "\\udcff")
    assert (root.path / "note").stat().st_ino == inode and (root.path / "note").stat().st_mtime_ns == 0
    assert (root.path / "deep" / "er" / "file").exists() and (root.path / "link").is_symlink()
    assert restored(MemoryStore(), root, b"note", exclude=("deep", "link")) == []


def test_the_folders_of_three_restores_are_kept(root: Root) -> None:
    mine = root.path / ".savepoint" / "replaced-mine"
    mine.mkdir()
    for number in range(5):
        restored(MemoryStore(), root, str(number).encode(), label=f"20260101-00000{number // 2}")
    folder = root.path / ".savepoint"
    kept = {each.name: (each / "note").read_text() for each in folder.iterdir() if each.is_dir() and each != mine}
    assert kept == {
        "replaced-20260101-000001": "1",
        "replaced-20260101-000001-2": "2",
        "replaced-20260101-000002": "3",
    }
    assert mine.exists(), "a folder of another name was deleted"


def test_names_expire_by_time_and_number() -> None:
    names = ["replaced-20260101-000000-10", "replaced-20260101-000000-9", "replaced-20251231-235959", "replaced-x", "y"]
    assert expired(names, 1) == ["replaced-20260101-000000-9", "replaced-20251231-235959"]
    assert expired(names, 3) == []


def test_space_is_judged_with_the_folders_that_expire(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    with monkeypatch.context() as full:
        full.setattr(os, "statvfs", lambda path: type("Status", (), {"f_bavail": 0, "f_frsize": 4096}))
        with pytest.raises(NoSpace, match=r"0 are free: nothing was changed; .* or delete files .*replaced-\* there"):
            restored(store, root)
        assert (root.path / "note").read_text() == "note" and read_marker(root) == READY
        for number in range(3):
            old = root.path / ".savepoint" / f"replaced-20250101-00000{number}"
            old.mkdir()
            (old / "large").write_bytes(b"x" * 100_000)
        restored(store, root)
    assert (root.path / "note").read_text() == "restored"
    folders = sorted(each.name for each in (root.path / ".savepoint").glob("replaced-*"))
    assert folders == ["replaced-20250101-000001", "replaced-20250101-000002", f"replaced-{LABEL}"]


@pytest.mark.parametrize("name", ["restore-marked", "restore-half", "restore-before-ready"])
def test_a_killed_restore_is_demanded_again_and_keeps_what_it_moved(root: Root, name: str) -> None:
    store = MemoryStore()
    writer = writer_of(store)
    writer.add_tree("files.work", "Files", [TreeFile("note", 0o640, 0, writer.store_bytes(b"restored", "Files"))])
    killing = Killing(name)
    with CheckpointReader(store, KEY, finish(writer)) as reader:
        in_place = InPlace(Capture([root], (), time.time_ns), LABEL)
        with pytest.raises(Killed):
            restore_files(reader, [root], READY, killing, in_place=in_place)
    found = read_marker(root)
    assert found is not None and (found.state, found.sequence) == ("ready", 0), "the root counts as restored"
    restored(store, root)
    assert (root.path / "note").read_text() == "restored" and read_marker(root) == READY
    (kept,) = (root.path / ".savepoint").glob("replaced-*/note")
    assert kept.read_text() == "note"
