"""Tests of an in-place restore in folders without write permission, by an owner who may not pass over permissions."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from savepoint.errors import RunAsUserRequired
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.format.tree import TreeDirectory, TreeEntry, TreeFile, TreeSymlink
from savepoint.repository.read.reader import CheckpointReader
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.files.roots import Root, open_directory
from savepoint_sidecar.restore.in_place import restore_in_place
from savepoint_sidecar.restore.writable_folders import WritableFolders

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.checkpoints import KEY, finish, writer_of

USER = 1234


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Act as this user; uid 0 loses its right to pass over permissions meanwhile."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder of USER, outside pytest's own folders, which are closed to other users."""
    if os.geteuid() != 0:
        top = Path(tempfile.mkdtemp())
        yield top
    else:
        top = Path(tempfile.mkdtemp())
        os.chown(top, USER, USER)
        with acting_as(USER):
            yield top
    for path, _, _ in os.walk(top):
        Path(path).chmod(0o700)
    shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def manifest(store: MemoryStore) -> Manifest:
    """Return a checkpoint of read-only folders in one another, with a file, a link and an empty folder."""
    writer = writer_of(store)

    def file(path: str) -> TreeFile:
        return TreeFile(path, 0o444, 10**18, writer.store_bytes(path.encode(), "Files"))

    entries: list[TreeEntry] = [
        TreeDirectory("mod", 0o555, 10**18),
        TreeDirectory("mod/deep", 0o555, 10**18),
        TreeDirectory("mod/deep/empty", 0o500, 10**18),
        file("mod/deep/file"),
        TreeSymlink("mod/deep/link", "file", 10**18),
        file("mod/file"),
    ]
    writer.add_tree("files.files", "Files", entries)
    return finish(writer)


def restore(store: MemoryStore, manifest: Manifest, top: Path, exclude: tuple[str, ...] = ()) -> None:
    root = Root("files", "/data", top, persistent=True)
    with CheckpointReader(store, KEY, manifest) as reader:
        restore_in_place(reader, Capture([root], exclude, time.time_ns), "20260101-000000")


def tree(top: Path) -> dict[str, tuple[int, int, str]]:
    """Return mode, modification time and content of everything but what a restore moved."""
    found: dict[str, tuple[int, int, str]] = {}
    for path in sorted(each for each in top.rglob("*") if ".savepoint" not in each.parts):
        status = path.lstat()
        link = path.is_symlink()
        content = str(path.readlink()) if link else path.read_text() if path.is_file() else ""
        found[str(path.relative_to(top))] = (0 if link else status.st_mode & 0o777, status.st_mtime_ns, content)
    return found


def open_up(path: Path) -> None:
    path.chmod(0o755)


def _file_lost(top: Path) -> None:
    open_up(top / "mod" / "deep")
    (top / "mod" / "deep" / "file").unlink()
    (top / "mod" / "deep").chmod(0o555)


def _file_changed(top: Path) -> None:
    (top / "mod" / "file").chmod(0o644)
    (top / "mod" / "file").write_text("changed")
    (top / "mod" / "file").chmod(0o000)


def _link_changed(top: Path) -> None:
    deep = top / "mod" / "deep"
    open_up(deep)
    (deep / "link").unlink()
    (deep / "link").symlink_to("elsewhere")
    deep.chmod(0o555)


def _stray_read_only_folder(top: Path) -> None:
    open_up(top / "mod")
    (top / "mod" / "new" / "er").mkdir(parents=True)
    (top / "mod" / "new" / "er" / "half").write_text("a download")
    for name in ("mod/new/er", "mod/new", "mod"):
        (top / name).chmod(0o555)


def _folder_without_any_permission_to_write_or_search(top: Path) -> None:
    (top / "mod" / "deep" / "empty").chmod(0o400)
    (top / "mod" / "deep").chmod(0o500)


def _folder_became_a_file(top: Path) -> None:
    deep = top / "mod" / "deep"
    open_up(deep)
    (deep / "empty").rmdir()
    (deep / "empty").write_text("now a file")
    (deep / "empty").chmod(0o000)
    deep.chmod(0o555)


def _folder_became_a_link(top: Path) -> None:
    for path in (top / "mod", top / "mod" / "deep"):
        open_up(path)
    shutil.rmtree(top / "mod" / "deep")
    (top / "mod" / "deep").symlink_to("/tmp")
    (top / "mod").chmod(0o555)


@pytest.mark.parametrize(
    "change",
    [
        _file_lost,
        _file_changed,
        _link_changed,
        _stray_read_only_folder,
        _folder_without_any_permission_to_write_or_search,
        _folder_became_a_file,
        _folder_became_a_link,
    ],
)
def test_read_only_folders_are_restored_with_their_modes(
    folder: Path, store: MemoryStore, manifest: Manifest, change: Callable[[Path], None]
) -> None:
    restore(store, manifest, folder)
    before = tree(folder)
    assert before["mod"][0] == before["mod/deep"][0] == 0o555 and before["mod/deep/empty"][0] == 0o500
    change(folder)
    restore(store, manifest, folder)
    assert tree(folder) == before


def test_a_read_only_folder_with_excluded_content_keeps_it_and_its_mode(
    folder: Path, store: MemoryStore, manifest: Manifest
) -> None:
    restore(store, manifest, folder)
    (folder / "extra").mkdir()
    for name in ("keep.tmp", "stray"):
        (folder / "extra" / name).write_text(name)
    (folder / "extra").chmod(0o555)
    restore(store, manifest, folder, exclude=("*.tmp",))
    assert [each.name for each in (folder / "extra").iterdir()] == ["keep.tmp"]
    assert (folder / "extra").stat().st_mode & 0o777 == 0o555


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_named(folder: Path, store: MemoryStore, manifest: Manifest) -> None:
    restore(store, manifest, folder)
    _file_lost(folder)
    os.seteuid(0)
    os.chown(folder / "mod" / "deep", 4321, 4321)
    os.seteuid(USER)
    with pytest.raises(RunAsUserRequired, match="mod/deep/file"):
        restore(store, manifest, folder)
    os.seteuid(0)
    os.chown(folder / "mod" / "deep", USER, USER)
    os.seteuid(USER)


def test_a_folder_that_was_replaced_meanwhile_does_not_get_the_mode(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    for name in ("a/b", "a"):
        (folder / name).chmod(0o555)
    with open_directory(folder) as top, WritableFolders(top) as folders:
        folders.unlock(["a/b", "a", "missing", "a/missing"])
        assert [(folder / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o755, 0o755]
        (folder / "a" / "b").rename(folder / "a" / "old")
        (folder / "a" / "b").mkdir(0o700)
    assert (folder / "a").stat().st_mode & 0o777 == 0o555
    assert (folder / "a" / "b").stat().st_mode & 0o777 == 0o700
