"""What becomes of a root before an agent starts, and a restore that is killed at every step."""

from dataclasses import replace
from pathlib import Path

import pytest
from savepoint.contract.control import CheckpointRef, ObjectName, PolicyTerms, Welcome
from savepoint.errors import IntegrityError, NoSpace, TargetNotEmpty, TargetUnusable
from savepoint.repository.entry import EntryRecord
from savepoint.repository.manifest import Manifest
from savepoint.repository.reader import CheckpointReader
from savepoint.repository.tree import TreeDirectory, TreeFile
from savepoint_sidecar import restore
from savepoint_sidecar.components import restore_components
from savepoint_sidecar.failpoint import NAMES, Failpoints
from savepoint_sidecar.init import planned_bytes
from savepoint_sidecar.restore import config_changed, decide, marker_of, plan, restore_files
from savepoint_sidecar.roots import Marker, Root, read_marker, write_marker

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.test_files import KEY, finish, writer_of

PARENT = CheckpointRef("coder-4", 4, 40, "2026-01-01T00:00:00.000000Z", ObjectName("0" * 64, 1))


def welcome(parent: CheckpointRef | None = PARENT) -> Welcome:
    return Welcome("coder", "demo", 3, 1, "00" * 32, "", PolicyTerms(), parent)


def marker(state: str = "ready", sequence: int = 40, agent: str = "coder") -> Marker:
    return Marker("demo", agent, "uid", 2, sequence, "ready" if state == "ready" else "restoring")


KEPT, LOST = "keep", "restore"


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize(
    ("found", "empty", "parent", "held", "action"),
    [
        (None, True, None, False, KEPT),
        (None, False, None, False, KEPT),
        (marker("restoring"), False, None, False, LOST),
        (marker("ready"), False, None, False, KEPT),
        (None, True, PARENT, True, LOST),
        (None, False, PARENT, False, KEPT),
        (marker("ready", 40), False, PARENT, True, KEPT),
        (marker("ready", 41), False, PARENT, True, KEPT),
        (marker("ready", 39), False, PARENT, True, LOST),
        (marker("restoring", 40), False, PARENT, True, LOST),
        (marker("ready", 40, agent="other"), True, PARENT, True, LOST),
    ],
)
def test_what_becomes_of_a_root(
    found: Marker | None, empty: bool, parent: CheckpointRef | None, held: bool, action: str, persistent: bool
) -> None:
    root = Root("files", "/data", Path("/nowhere"), persistent)
    assert decide(root, found, welcome(parent), empty=empty, held=held) == action


@pytest.mark.parametrize("found", [None, marker("ready", 99, agent="other")])
def test_files_that_nothing_explains(found: Marker | None) -> None:
    volume, folder = Root("a", "/data", Path("/x"), True), Root("a", "/data", Path("/x"), False)
    with pytest.raises(TargetNotEmpty, match="/data"):
        decide(volume, found, welcome(), empty=False, held=True)
    assert decide(folder, found, welcome(), empty=False, held=True) == LOST


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
def test_the_configuration_is_compared_where_both_are_known(
    manifest: Manifest, pod: str, checkpoint: str, changed: bool
) -> None:
    assert config_changed(replace(welcome(), config_hash=pod), replace(manifest, config_hash=checkpoint)) is changed


def test_how_far_it_is_is_told_of_all_roots_together(tmp_path: Path, store: MemoryStore) -> None:
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
    told: list[int] = []
    with CheckpointReader(store, KEY, manifest) as reader:
        written = restore_files(reader, roots, marker_of(welcome(), "uid", PARENT), Failpoints(), told.append)
        assert told == sorted(told) and told[-1] == written == planned_bytes(manifest, roots, values=False) == 1_000_000
        told.clear()
        restore_components(reader, tmp_path / "stage", "40", progress=told.append)
    assert told == sorted(told)
    assert written + told[-1] == planned_bytes(manifest, roots, values=True)
    assert planned_bytes(manifest, [Root("c", "/c", tmp_path / "c")], values=False) == 0


class Killed(BaseException):
    """In place of SIGKILL."""


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
def test_a_restore_killed_at_any_step_begins_again(
    tmp_path: Path, store: MemoryStore, manifest: Manifest, name: str
) -> None:
    root = Root("files", "/data", tmp_path / "files", persistent=True)
    root.path.mkdir()
    ready = marker_of(welcome(), "uid", PARENT)
    killing = Killing(name)
    with CheckpointReader(store, KEY, manifest) as reader:
        with pytest.raises(Killed):
            restore_files(reader, [root], ready, killing)
        assert killing.reached
        found = read_marker(root)
        assert found is None or found.state == "restoring", "a root is believed before all of it is there"
        assert plan([root], welcome(), manifest) == {root: LOST}
        restore_files(reader, [root], ready, Failpoints())
    assert read_marker(root) == ready
    assert {path.name: path.read_bytes() for path in (root.path / "d").iterdir()} == {
        f"f{number}": bytes([number]) * 3000 for number in range(20)
    }
    assert (root.path / "d").stat().st_mode & 0o777 == 0o750
    assert plan([root], welcome(), manifest) == {root: KEPT}


def test_a_damaged_checkpoint_leaves_a_root_that_nobody_believes(
    tmp_path: Path, store: MemoryStore, manifest: Manifest
) -> None:
    root = Root("files", "/data", tmp_path / "files")
    root.path.mkdir()
    key = f"packs/{manifest.packs[0].name}"
    store.objects[key] = store.objects[key][:20] + b"\x00\x01\x02" + store.objects[key][23:]
    with CheckpointReader(store, KEY, manifest) as reader, pytest.raises(IntegrityError) as error:
        restore_files(reader, [root], marker_of(welcome(), "uid", PARENT), Failpoints())
    assert error.value.object_key == key
    assert read_marker(root) is not None and plan([root], welcome(), manifest) == {root: LOST}


def test_space_is_looked_at_first(
    tmp_path: Path, store: MemoryStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root("files", "/data", tmp_path / "files")
    root.path.mkdir()

    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(restore.os, "statvfs", lambda path: Full)
    with CheckpointReader(store, KEY, manifest) as reader, pytest.raises(NoSpace, match="/data"):
        restore_files(reader, [root], marker_of(welcome(), "uid", PARENT), Failpoints())
    assert list((root.path).iterdir()) == [root.path / ".savepoint"]


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TargetUnusable, match="/data"):
        plan([Root("files", "/data", tmp_path / "file")], welcome(), None)


def test_the_marker_of_a_fresh_start(tmp_path: Path) -> None:
    root = Root("files", "/data", tmp_path)
    write_marker(root, marker_of(welcome(None), "uid", None))
    found = read_marker(root)
    assert found is not None and (found.sequence, found.state, found.epoch) == (0, "ready", 3)
    assert [each.name for each in tmp_path.iterdir()] == [".savepoint"]
