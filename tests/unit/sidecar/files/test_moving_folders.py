"""Tests of walks of roots whose folders are renamed, removed or unreadable while they are walked."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from savepoint.errors import RunAsUserRequired
from savepoint_sidecar.files import listing
from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.listing import FolderLister
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import Walk, walk

NOTHING = Excluded((), "/data")


def root_of(path: Path) -> Root:
    path.mkdir()
    return Root("files", "/data", path)


def files_of(found: Walk) -> list[str]:
    return [node.path for node in found.nodes if node.is_file]


@pytest.fixture
def acting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Callable[[], None]], None]]:
    """Return a function that sets what happens once, right after the folder of this path was listed."""
    original = FolderLister._list
    actions: dict[str, Callable[[], None]] = {}

    def list_then_act(self: FolderLister, handle: int, path: str) -> listing.Listing:
        found = original(self, handle, path)
        actions.pop(path, lambda: None)()
        return found

    monkeypatch.setattr(FolderLister, "_list", list_then_act)
    yield actions.__setitem__
    assert not actions, "an action did not happen"


def test_a_folder_renamed_after_its_parent_was_listed_keeps_its_files(
    tmp_path: Path, acting: Callable[[str, Callable[[], None]], None]
) -> None:
    root = root_of(tmp_path / "files")
    (root.path / "a" / "deep").mkdir(parents=True)
    (root.path / "a" / "deep" / "x").write_text("x")
    acting("", lambda: (root.path / "a").rename(root.path / "b").touch())
    found = walk(root, NOTHING)
    assert [node.path for node in found.nodes] == ["b", "b/deep", "b/deep/x"]
    assert found.unsettled == ()


def test_a_folder_moved_to_a_folder_that_was_already_listed_is_found_there(
    tmp_path: Path, acting: Callable[[str, Callable[[], None]], None]
) -> None:
    root = root_of(tmp_path / "files")
    for name in ("p", "q"):
        (root.path / name / "inner").mkdir(parents=True)
        (root.path / name / "inner" / name).write_text("x")

    def move() -> None:
        (root.path / "p" / "inner").rename(root.path / "q" / "moved")

    acting("p", move)
    assert files_of(walk(root, NOTHING)) == ["q/inner/q", "q/moved/p"]


def test_two_folders_that_swap_names_are_not_mixed(
    tmp_path: Path, acting: Callable[[str, Callable[[], None]], None]
) -> None:
    root = root_of(tmp_path / "files")
    for name in ("build", "build.new"):
        (root.path / name).mkdir()
        (root.path / name / f"in-{name}").write_text("x")

    def swap() -> None:
        (root.path / "build").rename(root.path / "build.old")
        (root.path / "build.new").rename(root.path / "build")

    acting("build", swap)
    assert files_of(walk(root, NOTHING)) == ["build.old/in-build", "build/in-build.new"]


def test_a_folder_renamed_from_an_excluded_name_is_walked(
    tmp_path: Path, acting: Callable[[str, Callable[[], None]], None]
) -> None:
    root = root_of(tmp_path / "files")
    (root.path / "work.tmp").mkdir()
    (root.path / "work.tmp" / "x").write_text("x")
    acting("", lambda: (root.path / "work.tmp").rename(root.path / "work").touch())
    assert files_of(walk(root, Excluded(("*.tmp",), "/data"))) == ["work/x"]


def test_a_file_added_after_its_folder_was_listed_is_found(
    tmp_path: Path, acting: Callable[[str, Callable[[], None]], None]
) -> None:
    root = root_of(tmp_path / "files")
    acting("", (root.path / "late").touch)
    assert files_of(walk(root, NOTHING)) == ["late"]


@contextmanager
def renaming(root: Root, count: int) -> Iterator[None]:
    """Rename folders one after the other, back and forth, until the context ends."""
    stop, started = threading.Event(), threading.Event()

    def run() -> None:
        while not stop.is_set():
            for a, b in (("a", "b"), ("b", "a")):
                for number in range(count):
                    (root.path / f"{number}-{a}").rename(root.path / f"{number}-{b}")
                    started.set()
                    stop.wait(0.0005)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(20)
        yield
    finally:
        stop.set()
        thread.join()


def test_folders_that_are_renamed_all_the_time_lose_no_file(tmp_path: Path) -> None:
    root = root_of(tmp_path / "files")
    for number in range(20):
        (root.path / f"{number}-a").mkdir()
        for file in range(20):
            (root.path / f"{number}-a" / str(file)).write_text("x")
    with renaming(root, 20):
        found = walk(root, NOTHING)
    assert len(files_of(found)) == 400
    assert len({(path.partition("-")[0], path.partition("/")[2]) for path in files_of(found)}) == 400


def test_a_folder_that_changes_whenever_it_is_listed_is_named_and_the_walk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = root_of(tmp_path / "files")
    for name in ("busy", "quiet"):
        (root.path / name).mkdir()
        (root.path / name / "file").write_text("x")
    original = FolderLister._list
    count = 0

    def list_then_add(self: FolderLister, handle: int, path: str) -> listing.Listing:
        nonlocal count
        found = original(self, handle, path)
        if path == "busy":
            count += 1
            (root.path / "busy" / str(count)).write_text("x")
        return found

    monkeypatch.setattr(FolderLister, "_list", list_then_add)
    found = walk(root, NOTHING)
    assert found.unsettled == ("busy",) and {"busy/file", "quiet/file"} <= set(files_of(found))
    assert count < 100


def test_a_folder_of_another_user_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = root_of(tmp_path / "files")
    (root.path / "theirs" / "inner").mkdir(parents=True)
    (root.path / "mine").write_text("x")
    original = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "theirs":
            raise PermissionError(13, "Permission denied", path)
        return original(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    found = walk(root, NOTHING)
    assert [node.path for node in found.nodes] == ["mine"] and set(found.unreadable) == {"theirs"}
    (root.path / "mine").unlink()
    with pytest.raises(RunAsUserRequired, match="/data/theirs"):
        walk(root, NOTHING)


@pytest.mark.parametrize("depth", [1, 19])
def test_paths_longer_than_one_call_can_name_are_walked(tmp_path: Path, depth: int) -> None:
    root = root_of(tmp_path / "files")
    here = os.open(root.path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=here)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    found = walk(root, NOTHING)
    assert len(found.nodes) == depth + 1 and found.unsettled == ()
