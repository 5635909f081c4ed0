"""Tests of state roots: their markers, and clearing them."""

from pathlib import Path

import pytest
from savepoint_sidecar.files.roots import Marker, Root, clear, is_empty, read_marker, write_marker


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
