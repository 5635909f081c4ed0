"""Tests of state roots: their markers, and clearing them."""

import contextlib
import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from savepoint.contract import stage_layout
from savepoint_sidecar.files.roots import Root, clear, is_empty
from savepoint_sidecar.restore import markers
from savepoint_sidecar.restore.markers import MARKER_ATTRIBUTE, Marker, read_marker, write_marker

READY = Marker("demo", "coder", "uid", 3, 41, "ready")
RESTORING = replace(READY, epoch=2, sequence=40, state="restoring")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    path = tmp_path / "files"
    path.mkdir()
    return Root("files", "/data", path)


def test_a_marker_replaces_whatever_an_agent_puts_in_its_place(tmp_path: Path, root: Root) -> None:
    marker = Marker("demo", "coder", "uid", 3, 41, "ready")
    assert read_marker(root) is None and is_empty(root)
    write_marker(root, marker)
    assert read_marker(root) == marker and is_empty(root)
    (root.path / ".savepoint" / "marker.json").write_text("[]")
    assert read_marker(root) is None
    clear(root, keep_marker=False)
    outside = tmp_path / "outside"
    outside.mkdir()
    (root.path / ".savepoint").symlink_to(outside)
    assert read_marker(root) is None
    write_marker(root, marker)
    assert read_marker(root) == marker and list(outside.iterdir()) == []


def test_clear_removes_everything_and_follows_no_link(tmp_path: Path, root: Root) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("k")
    (root.path / "link").symlink_to(outside)
    (root.path / "a" / "b").mkdir(parents=True)
    (root.path / "a" / "b" / "c").write_text("c")
    (root.path / "a" / "b").chmod(0)
    (root.path / "lost+found").mkdir()
    clear(root)
    assert is_empty(root) and (outside / "kept").exists()


def write_both(root: Root, file: Marker, attribute: Marker) -> None:
    """Write different markers into the file and the attribute."""
    write_marker(root, file)
    content = (root.path / ".savepoint" / "marker.json").read_bytes()
    write_marker(root, attribute)
    (root.path / ".savepoint" / "marker.json").write_bytes(content)


def test_a_marker_survives_the_removal_of_its_file(root: Root) -> None:
    write_marker(root, READY)
    (root.path / "work").write_text("w")
    shutil.rmtree(root.path / ".savepoint")
    assert read_marker(root) == READY
    write_marker(root, replace(READY, sequence=42))
    assert read_marker(root) == replace(READY, sequence=42)
    assert (root.path / ".savepoint" / ".gitignore").read_text() == "*\n"


def test_an_emptied_folder_has_no_marker(root: Root) -> None:
    write_marker(root, READY)
    shutil.rmtree(root.path / ".savepoint")
    assert is_empty(root) and read_marker(root) is None


@pytest.mark.parametrize("newer", [replace(READY, sequence=42), replace(READY, epoch=4), RESTORING])
def test_of_two_markers_the_newer_one_or_the_unfinished_restore_counts(root: Root, newer: Marker) -> None:
    for file, attribute in ((READY, newer), (newer, READY)):
        write_both(root, file, attribute)
        assert read_marker(root) == newer


def test_the_attribute_of_another_agent_does_not_count_beside_a_file(root: Root) -> None:
    write_both(root, READY, replace(READY, agent="other", sequence=99))
    assert read_marker(root) == READY


def test_a_damaged_attribute_is_ignored(root: Root) -> None:
    write_marker(root, READY)
    (root.path / "work").write_text("w")
    for content in (b"", b"[]", b"\xff", b"[" * 3000):
        os.setxattr(root.path, MARKER_ATTRIBUTE, content)
        assert read_marker(root) == READY


def test_without_attributes_the_file_is_enough(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    write_marker(root, RESTORING)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "setxattr", fail)
    write_marker(root, READY)
    assert read_marker(root) == READY, "an older attribute counts"
    (root.path / "work").write_text("w")
    shutil.rmtree(root.path / ".savepoint")
    assert read_marker(root) is None


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    return tmp_path / "stage"


def forget(root: Root) -> None:
    """Remove the marker's file and attribute, as a tool does on a file system without attributes."""
    shutil.rmtree(root.path / ".savepoint")
    with contextlib.suppress(OSError):
        os.removexattr(root.path, MARKER_ATTRIBUTE)


def test_the_copy_in_the_stage_counts_for_the_same_folder(root: Root, stage: Path) -> None:
    write_marker(root, READY, stage)
    (root.path / "work").write_text("w")
    forget(root)
    assert read_marker(root) is None and read_marker(root, stage) == READY
    (root.path / "work").unlink()
    assert read_marker(root, stage) is None, "an emptied folder's files are lost"


def test_the_copy_does_not_count_for_another_folder_at_the_path(root: Root, stage: Path) -> None:
    write_marker(root, READY, stage)
    (root.path / "work").write_text("w")
    forget(root)
    root.path.rename(root.path.with_name("old"))
    shutil.copytree(root.path.with_name("old"), root.path)
    assert read_marker(root, stage) is None
    shutil.rmtree(root.path)
    root.path.with_name("old").rename(root.path)
    assert read_marker(root, stage) == READY


def test_a_new_folder_is_another_one_even_with_the_same_inode_number(
    root: Root, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_marker(root, READY, stage)
    (root.path / "work").write_text("w")
    forget(root)
    monkeypatch.setattr(markers, "_generation", lambda top: 99)
    assert read_marker(root, stage) is None


def test_a_copied_folder_brings_its_marker(root: Root, stage: Path) -> None:
    """``mv ws ws2; cp -r ws2 ws``: the files are those of the checkpoint, so the folder is kept."""
    write_marker(root, READY, stage)
    (root.path / "work").write_text("w")
    root.path.rename(root.path.with_name("old"))
    shutil.copytree(root.path.with_name("old"), root.path)
    assert read_marker(root, stage) == READY


def test_an_older_marker_that_is_copied_back_does_not_hide_the_newer_copy(root: Root, stage: Path) -> None:
    """This is what ``rsync`` from a backup does, or ``git stash pop``."""
    write_marker(root, replace(READY, sequence=7), stage)
    old = (root.path / ".savepoint" / "marker.json").read_bytes()
    write_marker(root, READY, stage)
    forget(root)
    (root.path / ".savepoint").mkdir()
    (root.path / ".savepoint" / "marker.json").write_bytes(old)
    assert read_marker(root) == replace(READY, sequence=7) and read_marker(root, stage) == READY


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"folder": 1, "marker": 1}', b"\xff", b"[" * 3000])
def test_a_damaged_copy_is_ignored(root: Root, stage: Path, content: bytes) -> None:
    write_marker(root, READY, stage)
    (root.path / "work").write_text("w")
    stage_layout.marker_copy(stage, root.name).write_bytes(content)
    assert read_marker(root, stage) == READY
    forget(root)
    assert read_marker(root, stage) is None


def test_a_stage_that_cannot_be_written_costs_no_marker(root: Root, stage: Path) -> None:
    stage.write_text("not a folder")
    write_marker(root, READY, stage)
    assert read_marker(root, stage) == READY
