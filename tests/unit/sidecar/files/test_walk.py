"""Tests of the walk: links are not followed, unsupported entries are named, signatures come from stat."""

import os
import socket
from contextlib import closing
from pathlib import Path

from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import signature_of, walk


def test_a_walk_follows_no_link_and_names_unsupported_entries(tmp_path: Path) -> None:
    root = Root("files", "/data", tmp_path / "files")
    root.path.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("s")
    (root.path / "link").symlink_to(tmp_path / "outside")
    (root.path / "a").mkdir()
    (root.path / "a.b").write_text("1")
    (root.path / "a" / "z").write_text("2")
    (root.path / ".savepoint").mkdir()
    (root.path / ".savepoint" / "marker.json").write_text("{}")
    os.mkfifo(root.path / "pipe")
    (root.path / b"caf\xe9".decode("utf-8", "surrogateescape")).write_text("3")
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(root.path / "sock"))
        found = walk(root, Excluded((), "/data"))
    assert [node.path for node in found.nodes] == ["a", "a.b", "a/z", "caf\udce9", "link"]
    assert (
        len(found.skipped) == 2
        and "socket" in "".join(found.skipped.values())
        and "named pipe" in "".join(found.skipped.values())
    )


def test_a_signature_is_taken_from_stat(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    status = (tmp_path / "a").stat()
    assert signature_of(status) == (3, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
