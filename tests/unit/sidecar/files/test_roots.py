"""Tests of state roots: their markers, and clearing them."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from savepoint_sidecar.files.roots import (
    MARKER_ATTRIBUTE,
    Marker,
    Root,
    clear,
    is_empty,
    read_marker,
    write_marker,
)

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
