"""Owners are part of a tree; a restore gives entries back as far as its process may."""

import errno
import os
from pathlib import Path

import pytest
from savepoint.errors import IntegrityError
from savepoint.repository.format.canonical import decode
from savepoint.repository.format.content import Content
from savepoint.repository.format.tree import (
    MAX_ID,
    Owner,
    TreeDirectory,
    TreeEntry,
    TreeFile,
    TreeSymlink,
    entry_of,
    line_of,
)
from savepoint.repository.read import ownership
from savepoint.repository.read.ownership import give_file

ENTRIES: tuple[TreeEntry, ...] = (
    TreeFile("f", 0o640, 1, Content(0), Owner(1000, 2000)),
    TreeDirectory("d", 0o750, 1, Owner(0, MAX_ID)),
    TreeSymlink("l", "f", 1, Owner(MAX_ID, 0)),
)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_owner_is_stored_and_read_again(entry: TreeEntry) -> None:
    assert entry_of(decode(line_of(entry), "x"), "x") == entry


def test_a_line_without_owner_is_as_it_was() -> None:
    line = line_of(TreeDirectory("d", 0o750, 1))
    assert line == b'{"mode":488,"mtimeNs":1,"path":"d","type":"dir"}\n'
    assert entry_of(decode(line, "x"), "x").owner is None


@pytest.mark.parametrize("fields", [{"uid": 1}, {"gid": 1}, {"uid": -1, "gid": 1}, {"uid": 1, "gid": MAX_ID + 1}])
def test_half_an_owner_or_an_impossible_one_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(IntegrityError, match=r"uid|gid"):
        entry_of({"path": "d", "type": "dir", "mode": 0, "mtimeNs": 1, **fields}, "x")


class Changes:
    """Records the uid and gid of every change, which fails with ``error`` if that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, may: bool, groups: frozenset[int] = frozenset()) -> None:
        self.made: list[tuple[int, int]] = []
        self.error = 0
        monkeypatch.setattr(ownership, "may_change_owners", lambda: may)
        monkeypatch.setattr(ownership, "_groups", lambda: groups)
        monkeypatch.setattr(os, "fchown", self._change)

    def _change(self, _descriptor: int, uid: int, gid: int) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.made.append((uid, gid))


def test_a_process_with_the_capability_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = Changes(monkeypatch, may=True)
    give_file(3, Owner(1000, 2000))
    give_file(3, None)
    assert changes.made == [(1000, 2000)]


def test_a_process_without_it_keeps_the_groups_that_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = Changes(monkeypatch, may=False, groups=frozenset({2000}))
    give_file(3, Owner(1000, 2000))
    give_file(3, Owner(1000, 3000))
    assert changes.made == [(-1, 2000)]


def test_a_file_system_without_owners_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes = Changes(monkeypatch, may=True)
    changes.error = errno.EINVAL
    for _ in range(3):
        give_file(3, Owner(4711, 4712))
    assert [text for text in caplog.messages if "cannot be given to uid 4711" in text] == caplog.messages
    assert len(caplog.messages) == 1
    changes.error = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        give_file(3, Owner(1, 1))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_gives_files_folders_and_links_back(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "l").symlink_to("f")
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    folder = os.open(tmp_path, os.O_RDONLY)
    give_file(descriptor, Owner(1234, 5678))
    ownership.give_link(folder, b"l", Owner(4321, 8765))
    os.close(descriptor)
    os.close(folder)
    assert ((tmp_path / "f").stat().st_uid, (tmp_path / "f").stat().st_gid) == (1234, 5678)
    assert ((tmp_path / "l").lstat().st_uid, (tmp_path / "l").lstat().st_gid) == (4321, 8765)
