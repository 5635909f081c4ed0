"""Tests of files that a restore moves aside: nothing is deleted, whatever is in the root."""

import os
from pathlib import Path

import pytest
from savepoint.errors import NoSpace
from savepoint.repository.format.tree import TreeFile
from savepoint.repository.read.reader import CheckpointReader
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.roots import Marker, Root, is_empty, read_marker, write_marker
from savepoint_sidecar.files.walk import walk
from savepoint_sidecar.restore.aside import move_aside
from savepoint_sidecar.restore.file_restore import restore_files

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.checkpoints import KEY, finish, writer_of

READY = Marker("demo", "coder", "uid", 2, 40, "ready")


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


def test_everything_is_moved_with_its_mode(root: Root) -> None:
    where, names = move_aside(root, "1")
    assert where == "/work/.savepoint/replaced-1"
    assert sorted(names) == sorted([".git", "deep", "link", "note", "pipe", os.fsdecode(b"\xff")])
    assert is_empty(root) and read_marker(root) == READY and (root.path / "lost+found").is_dir()
    aside = root.path / ".savepoint" / "replaced-1"
    assert (aside / "deep" / "er" / "file").read_text() == "deep" and (aside / "note").read_text() == "note"
    assert (aside / "deep").stat().st_mode & 0o777 == 0o555 and (aside / "link").readlink() == Path("/")


def test_files_moved_before_are_neither_captured_nor_replaced(root: Root) -> None:
    move_aside(root, "1")
    assert move_aside(root, "1") == ("", [])
    (root.path / "note").write_text("later")
    assert move_aside(root, "1") == ("/work/.savepoint/replaced-1-2", ["note"])
    folder = root.path / ".savepoint"
    assert [(folder / name / "note").read_text() for name in ("replaced-1", "replaced-1-2")] == ["note", "later"]
    assert [node.path for node in walk(root, Excluded((), "/work")).nodes] == ["lost+found"]


def test_a_restore_moves_files_aside_and_counts_their_space(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    writer = writer_of(store)
    writer.add_tree("files.work", "Files", [TreeFile("note", 0o640, 0, writer.store_bytes(b"restored", "Files"))])
    manifest = finish(writer)

    def aside(root: Root) -> None:
        move_aside(root, "1")

    with CheckpointReader(store, KEY, manifest) as reader:
        with monkeypatch.context() as full:
            full.setattr(os, "statvfs", lambda path: type("Status", (), {"f_bavail": 0, "f_frsize": 4096}))
            with pytest.raises(NoSpace, match="0 are free: nothing was changed"):
                restore_files(reader, [root], READY, Failpoints(), make_empty=aside)
        assert (root.path / "note").read_text() == "note"
        restore_files(reader, [root], READY, Failpoints(), make_empty=aside)
    assert (root.path / "note").read_text() == "restored"
    assert (root.path / ".savepoint" / "replaced-1" / "note").read_text() == "note"
