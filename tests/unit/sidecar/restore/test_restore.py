"""Tests of the restore before an agent starts: the decision for each root, free space, and a kill at every step."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from savepoint.contract.control_protocol import CheckpointRef, ObjectName, PolicyTerms, Welcome
from savepoint.errors import IntegrityError, NoSpace, RunAsUserRequired, SavepointError, TargetNotEmpty, TargetUnusable
from savepoint.repository.format.entry import EntryRecord
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.format.tree import TreeDirectory, TreeFile
from savepoint.repository.read.reader import CheckpointReader
from savepoint_sidecar.failpoint import NAMES, Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.restore import file_restore
from savepoint_sidecar.restore.file_restore import (
    config_changed,
    ready_marker,
    restore_files,
    root_action,
    root_actions,
)
from savepoint_sidecar.restore.markers import Marker, read_marker, write_marker
from savepoint_sidecar.restore_container import planned_bytes
from savepoint_sidecar.stage import components
from savepoint_sidecar.stage.components import restore_components, write_index

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.checkpoints import KEY, finish, writer_of

PARENT = CheckpointRef("coder-4", 4, 40, "2026-01-01T00:00:00.000000Z", ObjectName("0" * 64, 1))


def welcome(parent: CheckpointRef | None = PARENT) -> Welcome:
    return Welcome("coder", "demo", 3, 1, "00" * 32, "", PolicyTerms(), parent)


def marker(state: str = "ready", sequence: int = 40, agent: str = "coder") -> Marker:
    return Marker("demo", agent, "uid", 2, sequence, "ready" if state == "ready" else "restoring")


KEEP, RESTORE = "keep", "restore"


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize(
    ("found", "empty", "parent", "in_checkpoint", "action"),
    [
        (None, True, None, False, KEEP),
        (None, False, None, False, KEEP),
        (marker("restoring"), False, None, False, RESTORE),
        (marker("ready"), False, None, False, KEEP),
        (None, True, PARENT, True, RESTORE),
        (None, False, PARENT, False, KEEP),
        (marker("ready", 40), False, PARENT, True, KEEP),
        (marker("ready", 41), False, PARENT, True, KEEP),
        (marker("ready", 39), False, PARENT, True, RESTORE),
        (marker("restoring", 40), False, PARENT, True, RESTORE),
        (marker("ready", 40, agent="other"), True, PARENT, True, RESTORE),
    ],
)
def test_a_root_is_kept_or_restored(
    found: Marker | None, empty: bool, parent: CheckpointRef | None, in_checkpoint: bool, action: str, persistent: bool
) -> None:
    root = Root("files", "/data", Path("/nowhere"), persistent)
    assert root_action(root, found, welcome(parent), empty=empty, in_checkpoint=in_checkpoint) == action


@pytest.mark.parametrize("found", [None, marker("ready", 99, agent="other")])
def test_a_volume_with_files_of_unknown_origin_is_not_overwritten(found: Marker | None) -> None:
    volume, folder = Root("a", "/data", Path("/x"), True), Root("a", "/data", Path("/x"), False)
    with pytest.raises(TargetNotEmpty, match="/data"):
        root_action(volume, found, welcome(), empty=False, in_checkpoint=True)
    assert root_action(folder, found, welcome(), empty=False, in_checkpoint=True) == RESTORE


def test_files_of_unknown_origin_are_moved_aside_if_the_policy_says_so() -> None:
    volume = Root("a", "/data", Path("/x"), True)
    allowed = replace(welcome(), policy=PolicyTerms(on_unknown_files="MoveAside"))
    assert root_action(volume, None, allowed, empty=False, in_checkpoint=True) == RESTORE
    assert root_action(volume, marker("ready", 41), allowed, empty=False, in_checkpoint=True) == KEEP


@pytest.mark.parametrize(
    ("attempt", "rolled_back", "action"), [("a1", False, KEEP), ("a1", True, RESTORE), ("a2", False, RESTORE)]
)
def test_a_root_from_which_the_checkpoint_was_captured_is_kept(attempt: str, rolled_back: bool, action: str) -> None:
    """The process died, or lost the answer, between the commit and its note of it; a rollback is another matter."""
    root, found = Root("a", "/data", Path("/x"), True), replace(marker("ready", 39), attempt="a1")
    asked = welcome(replace(PARENT, rolled_back=rolled_back))
    assert root_action(root, found, asked, empty=False, in_checkpoint=True, attempt=attempt) == action
    unfinished = replace(found, state="restoring")
    assert root_action(root, unfinished, asked, empty=False, in_checkpoint=True, attempt=attempt) == RESTORE


def test_an_older_marker_names_no_attempt() -> None:
    root = Root("a", "/data", Path("/x"), True)
    assert root_action(root, marker("ready", 39), welcome(), empty=False, in_checkpoint=True, attempt="") == RESTORE


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def manifest(store: MemoryStore) -> Manifest:
    writer = writer_of(store)
    contents = {f"d/f{number}": bytes([number]) * 3000 for number in range(20)}
    entries = [TreeDirectory("d", 0o750, 10**18)]
    files = [TreeFile(path, 0o640, 10**18, writer.store_bytes(data, "Files")) for path, data in contents.items()]
    writer.add_tree("files.files", "Files", [*entries, *sorted(files, key=lambda each: each.path)])
    return finish(writer)


@pytest.mark.parametrize(
    ("pod", "checkpoint", "changed"),
    [("ab", "ab", False), ("ab", "cd", True), ("", "cd", False), ("ab", "", False), ("", "", False)],
)
def test_configurations_are_compared_if_both_are_known(
    manifest: Manifest, pod: str, checkpoint: str, changed: bool
) -> None:
    assert config_changed(replace(welcome(), config_hash=pod), replace(manifest, config_hash=checkpoint)) is changed


def test_progress_counts_all_roots_together(tmp_path: Path, store: MemoryStore) -> None:
    writer = writer_of(store)
    for name in ("a", "b"):
        writer.add_tree(
            f"files.{name}", "Files", [TreeFile("f", 0o640, 0, writer.store_bytes(name.encode() * 500_000, "Files"))]
        )
    values = (
        EntryRecord("small", "json", writer.store_bytes(b"[1]", "Memory"), {}),
        EntryRecord("large", "json", writer.store_bytes(b"[" + b"1," * 200_000 + b"1]", "Memory"), {}),
        EntryRecord("raw", "bytes", writer.store_bytes(bytes(range(256)) * 3000, "Memory"), {}),
    )
    writer.add_stored_entries("documents", "Memory", values)
    manifest = finish(writer)
    roots = [Root(name, f"/{name}", tmp_path / name) for name in ("a", "b")]
    for root in roots:
        root.path.mkdir()
    reported: list[int] = []
    with CheckpointReader(store, KEY, manifest) as reader:
        written = restore_files(reader, roots, ready_marker(welcome(), "uid", PARENT), Failpoints(), reported.append)
        assert (
            reported == sorted(reported)
            and reported[-1] == written == planned_bytes(manifest, roots, with_values=False) == 1_000_000
        )
        reported.clear()
        restore_components(reader, tmp_path / "stage", "40", progress=reported.append)
    assert reported == sorted(reported)
    assert written + reported[-1] == planned_bytes(manifest, roots, with_values=True)
    assert planned_bytes(manifest, [Root("c", "/c", tmp_path / "c")], with_values=False) == 0


class Killed(BaseException):
    """Stands for SIGKILL."""


class Killing(Failpoints):
    """Raises where the process would be killed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.reached = False

    def reach(self, name: str) -> None:
        if name == self._name:
            self.reached = True
            raise Killed


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("restore-")])
def test_a_restore_killed_at_any_step_starts_over(
    tmp_path: Path, store: MemoryStore, manifest: Manifest, name: str
) -> None:
    root = Root("files", "/data", tmp_path / "files", persistent=True)
    root.path.mkdir()
    ready = ready_marker(welcome(), "uid", PARENT)
    killing = Killing(name)
    with CheckpointReader(store, KEY, manifest) as reader:
        with pytest.raises(Killed):
            restore_files(reader, [root], ready, killing)
        assert killing.reached
        found = read_marker(root)
        assert found is None or found.state == "restoring", "a root is trusted before all of it is there"
        assert root_actions([root], welcome(), manifest) == {root: RESTORE}
        restore_files(reader, [root], ready, Failpoints())
    assert read_marker(root) == ready
    assert {path.name: path.read_bytes() for path in (root.path / "d").iterdir()} == {
        f"f{number}": bytes([number]) * 3000 for number in range(20)
    }
    assert (root.path / "d").stat().st_mode & 0o777 == 0o750
    assert root_actions([root], welcome(), manifest) == {root: KEEP}


def test_a_damaged_checkpoint_leaves_a_root_to_restore(tmp_path: Path, store: MemoryStore, manifest: Manifest) -> None:
    root = Root("files", "/data", tmp_path / "files")
    root.path.mkdir()
    key = f"packs/{manifest.packs[0].name}"
    store.objects[key] = store.objects[key][:20] + b"\x00\x01\x02" + store.objects[key][23:]
    with CheckpointReader(store, KEY, manifest) as reader, pytest.raises(IntegrityError) as error:
        restore_files(reader, [root], ready_marker(welcome(), "uid", PARENT), Failpoints())
    assert error.value.object_key == key
    assert read_marker(root) is not None and root_actions([root], welcome(), manifest) == {root: RESTORE}


NEEDED = 20 * 3000 + 21 * 4096
"""Space that the checkpoint of ``manifest`` needs: twenty files and a folder."""


def fill(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Pretend that every volume has this many bytes free, a multiple of 4096."""

    class Status:
        f_bavail, f_frsize = free // 4096, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Status)


def snapshot(top: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return everything below a folder: inode, mode, mtime and content."""
    found: dict[str, tuple[int, int, int, bytes]] = {}
    for path in top.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(top))] = (status.st_ino, status.st_mode, status.st_mtime_ns, content)
    return found


def volume(path: Path) -> Root:
    """Return a persistent volume at an older checkpoint of this agent."""
    root = Root("files", "/data", path, persistent=True)
    root.path.mkdir()
    write_marker(root, marker("ready", 30))
    return root


def test_without_space_nothing_is_changed(
    tmp_path: Path, store: MemoryStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, other = volume(tmp_path / "files"), volume(tmp_path / "other")
    other = replace(other, name="other", mount_path="/other")
    for each in (root, other):
        (each.path / "d").mkdir()
        (each.path / "d" / "f1").write_bytes(b"older content")
    before = snapshot(tmp_path)
    assert root_actions([root], welcome(), manifest) == {root: RESTORE}
    fill(monkeypatch, 4096)
    with CheckpointReader(store, KEY, manifest) as reader:
        with pytest.raises(NoSpace, match=rf"needs {NEEDED} bytes below /data; 4096 are free") as error:
            restore_files(reader, [root, other], ready_marker(welcome(), "uid", PARENT), Failpoints())
        assert "nothing was changed; give the volume more space" in str(error.value)
        assert snapshot(tmp_path) == before
        assert read_marker(root) == marker("ready", 30)
        fill(monkeypatch, NEEDED + 4096)
        restore_files(reader, [root], ready_marker(welcome(), "uid", PARENT), Failpoints())
    assert read_marker(root) == ready_marker(welcome(), "uid", PARENT)


LARGE = bytes(NEEDED + 8192)


def _plain(root: Path, outside: Path) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "old").write_bytes(LARGE)


def _both_names(root: Path, outside: Path) -> None:
    (root / "old").write_bytes(LARGE)
    (root / "again").hardlink_to(root / "old")


def _one_name_of_two(root: Path, outside: Path) -> None:
    (root / "old").hardlink_to(outside)


def _half_twice(root: Path, outside: Path) -> None:
    (root / "old").write_bytes(LARGE[: NEEDED // 2])
    (root / "again").hardlink_to(root / "old")


def _link(root: Path, outside: Path) -> None:
    (root / "old").symlink_to(outside)


def _link_to_folder(root: Path, outside: Path) -> None:
    (root / "old").symlink_to(outside.parent)


def _stays(root: Path, outside: Path) -> None:
    (root / "lost+found").mkdir()
    (root / "lost+found" / "old").write_bytes(LARGE)
    (root / ".savepoint" / "old").write_bytes(LARGE)


def _hole(root: Path, outside: Path) -> None:
    with (root / "old").open("wb") as file:
        file.truncate(len(LARGE))


@pytest.mark.parametrize(
    ("left", "enough"),
    [
        (_plain, True), (_both_names, True), (_one_name_of_two, False), (_half_twice, False), (_link, False),
        (_link_to_folder, False), (_stays, False), (_hole, False),
    ],
)  # fmt: skip
def test_space_freed_by_clearing_counts(
    tmp_path: Path,
    store: MemoryStore,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[Path, Path], None],
    enough: bool,
) -> None:
    root = volume(tmp_path / "files")
    outside = tmp_path / "elsewhere" / "file"
    outside.parent.mkdir()
    outside.write_bytes(LARGE)
    left(root.path, outside)
    before = snapshot(tmp_path)
    fill(monkeypatch, 0)
    with CheckpointReader(store, KEY, manifest) as reader:
        if enough:
            restore_files(reader, [root], ready_marker(welcome(), "uid", PARENT), Failpoints())
            assert sorted(path.name for path in root.path.iterdir()) == [".savepoint", "d"]
        else:
            with pytest.raises(NoSpace):
                restore_files(reader, [root], ready_marker(welcome(), "uid", PARENT), Failpoints())
            assert snapshot(tmp_path) == before
    assert outside.read_bytes() == LARGE


def test_a_root_that_is_not_in_the_checkpoint_frees_its_space(
    tmp_path: Path, store: MemoryStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, other = volume(tmp_path / "files"), replace(volume(tmp_path / "other"), name="other")
    (other.path / "old").write_bytes(LARGE)
    fill(monkeypatch, 0)
    with CheckpointReader(store, KEY, manifest) as reader:
        restore_files(reader, [root, other], ready_marker(welcome(), "uid", PARENT), Failpoints())
    assert len(list((root.path / "d").iterdir())) == 20 and not (other.path / "old").exists()


@pytest.mark.parametrize("where", ["write_marker", "clear"])
@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.EACCES, RunAsUserRequired, "runAsUser"), (errno.EPERM, RunAsUserRequired, "fsGroup"),
        (errno.ENOSPC, NoSpace, "give the volume more space"), (errno.EDQUOT, NoSpace, "/data"),
        (errno.EROFS, TargetUnusable, "a writable volume"), (errno.EIO, TargetUnusable, "/data"),
    ],
)  # fmt: skip
def test_an_error_of_a_root_names_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int, kind: type[SavepointError], text: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(file_restore, where, fail)
    root = Root("files", "/data", tmp_path)
    with pytest.raises(kind, match=text):
        restore_files(None, [root], ready_marker(welcome(None), "uid", None), Failpoints())


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    ("owner", "text"),
    [(4321, "/data belongs to uid 4321 and cannot be written as uid 1234"), (1234, "'theirs' in /data cannot be")],
)
def test_files_of_another_uid_are_named(owner: int, text: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other uids
        Path(name).chmod(0o755)
        root = Root("files", "/data", Path(name) / "files")
        folder = root.path / "theirs"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x")
        os.chown(root.path, owner, owner)
        os.chown(folder, 4321, 4321)
        with acting_as(1234), pytest.raises(RunAsUserRequired, match=text):
            restore_files(None, [root], ready_marker(welcome(None), "uid", None), Failpoints())
        assert (folder / "file").read_bytes() == b"x"


@pytest.fixture
def values(store: MemoryStore) -> Iterator[CheckpointReader]:
    """Yield a reader of a checkpoint of two values: a small one goes inline, the other needs a file of the stage."""
    writer = writer_of(store)
    entries = (
        EntryRecord("small", "json", writer.store_bytes(b"[1]", "Memory"), {}),
        EntryRecord("raw", "bytes", writer.store_bytes(bytes(range(256)) * 3000, "Memory"), {}),
    )
    writer.add_stored_entries("documents", "Memory", entries)
    with CheckpointReader(store, KEY, finish(writer)) as reader:
        yield reader


def test_a_full_stage_names_the_field_to_raise(
    tmp_path: Path, values: CheckpointReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def full(path: Path) -> Iterator[BinaryIO]:
        with Path("/dev/full").open("wb") as file:
            yield file

    monkeypatch.setattr(components, "create_small_file", full)
    with pytest.raises(NoSpace, match=r"restored/40/0 .*spec\.stage\.sizeLimit .*spec\.stage\.medium"):
        restore_components(values, tmp_path, "40")
    with pytest.raises(NoSpace, match=r"restored/index\.json .*spec\.stage\.sizeLimit"):
        write_index(tmp_path, 40, ())
    monkeypatch.undo()
    (restored,) = restore_components(values, tmp_path, "40")
    assert [each.path for each in restored.entries] == [None, "restored/40/0"]
    assert (tmp_path / "restored/40/0").read_bytes() == bytes(range(256)) * 3000


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EACCES, TargetUnusable),
        (errno.EROFS, TargetUnusable), (errno.EIO, TargetUnusable),
    ],
)  # fmt: skip
def test_only_a_full_stage_is_reported_as_full(
    tmp_path: Path, values: CheckpointReader, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[SavepointError]
) -> None:
    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(components, "create_small_file", fail)
    with pytest.raises(kind, match="restored/40/0") as error:
        restore_components(values, tmp_path, "40")
    assert os.strerror(number) in str(error.value)
    assert ("sizeLimit" in str(error.value)) is (kind is NoSpace)


def test_a_taken_name_in_the_stage_is_reported(tmp_path: Path, values: CheckpointReader) -> None:
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / "40").write_bytes(b"not a folder")
    with pytest.raises(TargetUnusable, match="restored/40 in the stage"):
        restore_components(values, tmp_path, "40")


def test_a_root_that_is_not_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TargetUnusable, match="/data"):
        root_actions([Root("files", "/data", tmp_path / "file")], welcome(), None)


def test_a_fresh_start_writes_a_ready_marker(tmp_path: Path) -> None:
    root = Root("files", "/data", tmp_path)
    write_marker(root, ready_marker(welcome(None), "uid", None))
    found = read_marker(root)
    assert found is not None and (found.sequence, found.state, found.epoch) == (0, "ready", 3)
    assert [each.name for each in tmp_path.iterdir()] == [".savepoint"]
