import os
import socket
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from savepoint.errors import (
    IntegrityError,
    NoSpace,
    ObjectMissing,
    RunAsUserRequired,
    StoreUnavailable,
    TargetNotEmpty,
    TargetUnusable,
)
from savepoint.repository.format import canonical
from savepoint.repository.format.manifest import component_digest
from savepoint.repository.format.object_keys import pack_key
from savepoint.repository.format.tree import TreeDirectory, TreeEntry, TreeFile, TreeSymlink, path_bytes
from savepoint.repository.read import restore as restore_module
from savepoint.repository.read.restore import RestoreReport, restore_tree, survey
from savepoint.repository.read.target import Target, _translate, sync_file_system, translate_errors, write_at
from savepoint.repository.write.writer import CheckpointWriter

from tests.fakes.repository_fixture import RepositoryFixture, content, finish
from tests.fakes.store import Fault, FaultyStore, MemoryStore, always

MIB = 1 << 20
TIME_NS = 1_700_000_000_123_456_789


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def repo(store: FaultyStore) -> RepositoryFixture:
    return RepositoryFixture(store)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def capture(writer: CheckpointWriter, root: Path, kind: str = "Files") -> None:
    """Capture a tree in the simplest way."""
    entries: list[TreeEntry] = []
    for path in sorted(root.rglob("*"), key=lambda each: path_bytes(str(each.relative_to(root)))):
        name, status = str(path.relative_to(root)), path.lstat()
        if path.is_symlink():
            entries.append(TreeSymlink(name, os.readlink(path), status.st_mtime_ns))  # noqa: PTH115
        elif path.is_dir():
            entries.append(TreeDirectory(name, stat.S_IMODE(status.st_mode), status.st_mtime_ns))
        else:
            stored = writer.store_bytes(path.read_bytes(), kind)
            entries.append(TreeFile(name, stat.S_IMODE(status.st_mode), status.st_mtime_ns, stored))
    writer.add_tree("workspace", kind, entries)


def snapshot(root: Path) -> dict[str, Any]:
    """Return everything that a restore must reproduce."""
    found: dict[str, Any] = {}
    for path in root.rglob("*"):
        name, status = str(path.relative_to(root)), path.lstat()
        if path.is_symlink():
            found[name] = ("link", os.readlink(path), status.st_mtime_ns)  # noqa: PTH115
        elif path.is_dir():
            found[name] = ("dir", stat.S_IMODE(status.st_mode) & 0o777, status.st_mtime_ns)
        else:
            found[name] = ("file", stat.S_IMODE(status.st_mode) & 0o777, status.st_mtime_ns, path.read_bytes())
    return found


def restored(repo: RepositoryFixture, target: Path | int, **options: Any) -> RestoreReport:
    with repo.reader() as reader:
        return restore_tree(reader, reader.components[0], target, durable=False, **options)


def fill_everything(root: Path) -> None:
    (root / "deep/er").mkdir(parents=True)
    (root / "a").mkdir(mode=0o700)
    (root / "a.b").write_bytes(b"sorts between a and a/")
    (root / "a/file").write_bytes(content("a", 100))
    (root / "deep/er/large").write_bytes(content("large", 3 * MIB + 7))
    (root / "deep/er/twin").write_bytes(content("large", 3 * MIB + 7))
    (root / "empty").write_bytes(b"")
    (root / "script").write_bytes(b"#!/bin/sh\n")
    (root / "script").chmod(0o4755)
    (root / "secret").write_bytes(b"s")
    (root / "secret").chmod(0o400)
    (root / "locked").mkdir()
    (root / "locked/inside").write_bytes(b"i")
    (root / "back\\slash\nline").write_bytes(b"odd")
    (root / "ümläut").write_bytes(b"nfc")
    Path(os.fsdecode(os.fsencode(root) + b"/latin\xe9")).write_bytes(b"not utf-8")
    (root / "link").symlink_to("a/file")
    (root / "dangling").symlink_to("/etc/../nowhere")
    (root / "loop").symlink_to("loop")
    for number in range(300):
        (root / f"many{number}").write_bytes(b"%d" % number * (number % 5))
    for path in root.rglob("*"):
        os.utime(path, ns=(TIME_NS, TIME_NS + len(str(path))), follow_symlinks=False)
    (root / "locked").chmod(0o500)


def test_a_tree_is_restored_completely(repo: RepositoryFixture, tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    fill_everything(source)
    repo.checkpoint(lambda writer: capture(writer, source), 2)
    reported: list[int] = []
    report = restored(repo, target, progress=reported.append)
    assert snapshot(target) == snapshot(source)
    assert not (target / "script").stat().st_mode & 0o7000, "setuid is never restored"
    size = sum(len(each[3]) for each in snapshot(source).values() if each[0] == "file")
    assert report == RestoreReport(files=311, directories=4, symlinks=3, bytes=size)
    assert max(reported) == size
    with repo.reader() as reader:
        assert survey(reader, reader.components[0]) == report


def test_a_tree_is_restored_into_an_open_directory_and_synced(
    repo: RepositoryFixture, tmp_path: Path, target: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"x")
    repo.checkpoint(lambda writer: capture(writer, source))
    handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with repo.reader() as reader:
            restore_tree(reader, reader.components[0], handle)
    finally:
        os.close(handle)
    assert snapshot(target) == snapshot(source)


def test_a_tree_too_large_to_keep_is_read_twice(
    repo: RepositoryFixture, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, small in (("KEPT_ENTRIES", 3), ("BATCH_CHUNKS", 7), ("OPEN_FILES", 2)):
        monkeypatch.setattr(restore_module, name, small)
    source = tmp_path / "source"
    source.mkdir()
    fill_everything(source)
    for number in range(4):
        (source / f"big{number}").write_bytes(content(f"big{number}", 2 * MIB))
    repo.checkpoint(lambda writer: capture(writer, source), 2)
    restored(repo, target)
    assert snapshot(target) == snapshot(source)


def test_a_file_with_segments_of_its_own_is_restored(repo: RepositoryFixture, target: Path) -> None:
    data = content("x", 256 << 10) * 300 + b"end"

    def fill(writer: CheckpointWriter) -> None:
        stored = writer.store_bytes(data, "ModelWeights")
        writer.add_tree("models", "ModelWeights", [TreeFile("model", 0o600, 1, stored)])

    repo.checkpoint(fill, 2)
    restored(repo, target)
    assert (target / "model").read_bytes() == data


def test_deep_folders_are_restored(repo: RepositoryFixture, target: Path) -> None:
    """Deeper than the interpreter's recursion limit, and than the number of open descriptors."""
    paths = ["/".join(["d"] * depth) for depth in range(1, 1200)]
    repo.checkpoint(
        lambda writer: writer.add_tree("workspace", "Files", [TreeDirectory(path, 0o755, 1) for path in paths])
    )
    try:
        assert restored(repo, target).directories == 1199
    finally:
        subprocess.run(["rm", "-rf", target], check=True)  # pytest's own cleanup would recurse


class Forger:
    """Writes trees that the writer would refuse."""

    def __init__(self, repo: RepositoryFixture) -> None:
        self.repo = repo

    def tree(self, lines: Iterable[dict[str, Any]], size: int | None = None) -> None:
        """Write a checkpoint whose only segment has these lines."""
        listed = list(lines)
        raw = b"".join(canonical.encode(line) + b"\n" for line in listed)
        total = sum(line.get("size", 0) for line in listed) if size is None else size
        self.segment(raw, total)

    def segment(self, raw: bytes, size: int = 0, layout: str = "tree") -> None:
        writer = self.repo.writer()
        writer.add_entries("padding", "Custom", [])
        content = writer.store_bytes(raw, "Custom")
        writer._mark_content(content)
        segments = content.chunks
        writer._components = [
            replace(
                writer._components[0],
                name="workspace",
                kind="Files",
                layout=layout,  # type: ignore[arg-type]
                segments=segments,
                digest=component_digest(segments),
                size=size,
            )
        ]
        finish(writer, 1)
        writer.commit()
        self.repo.manifest = writer.manifest


def file_line(path: str, **change: Any) -> dict[str, Any]:
    return {"path": path, "type": "file", "mode": 0o644, "mtimeNs": 1, "size": 0, "chunks": []} | change


def dir_line(path: str) -> dict[str, Any]:
    return {"path": path, "type": "dir", "mode": 0o755, "mtimeNs": 1}


def link_line(path: str, target: str) -> dict[str, Any]:
    return {"path": path, "type": "symlink", "target": target, "mtimeNs": 1}


REF = ["ab" * 32, "1-" + "0" * 32, 8, 100, 90]

MALICIOUS: dict[str, list[dict[str, Any]]] = {
    "up": [file_line("../out")],
    "up within": [dir_line("a"), file_line("a/../../out")],
    "absolute": [file_line("/etc/passwd")],
    "empty": [file_line("")],
    "dot": [file_line(".")],
    "dot element": [dir_line("a"), file_line("a/./b")],
    "empty element": [dir_line("a"), file_line("a//b")],
    "trailing slash": [dir_line("a/")],
    "NUL": [file_line("a\0b")],
    "long element": [file_line("x" * 256)],
    "long path": [file_line("/".join(["x" * 200] * 21))],
    "a high surrogate": [file_line("\ud800")],
    "bytes that are text after all": [file_line(b"\xc3\xa9".decode("ascii", "surrogateescape"))],
    "below a link": [link_line("a", "/etc"), file_line("a/passwd")],
    "below a file": [file_line("a"), file_line("a/b")],
    "no parent": [file_line("a/b")],
    "twice": [file_line("a"), file_line("a")],
    "file and link": [file_line("a"), link_line("a", "/etc")],
    "unsorted": [file_line("b"), file_line("a")],
    "hard link": [{"path": "a", "type": "hardlink", "target": "/etc/passwd", "mtimeNs": 1}],
    "device": [{"path": "a", "type": "device", "major": 1, "mtimeNs": 1}],
    "fifo": [{"path": "a", "type": "fifo", "mode": 0o644, "mtimeNs": 1}],
    "setuid": [file_line("a", mode=0o4755)],
    "negative mode": [file_line("a", mode=-1)],
    "owner": [file_line("a", uid=0)],
    "capabilities": [file_line("a", xattr={"security.capability": "x"})],
    "target with NUL": [link_line("a", "x\0y")],
    "empty target": [link_line("a", "")],
    "long target": [link_line("a", "x" * 4096)],
    "target that is not text": [link_line("a", "\udfff\ud800")],
    "size without chunks": [file_line("a", size=5)],
    "chunks without size": [file_line("a", chunks=[REF])],
    "chunks of another size": [file_line("a", size=91, chunks=[REF])],
    "chunk in no pack": [file_line("a", size=90, chunks=[REF])],
    "more in no pack": [file_line("a", size=90, more=[REF])],
    "chunks and more": [file_line("a", size=90, chunks=[REF], more=[REF])],
    "too many chunks": [file_line("a", size=90 * 257, chunks=[REF] * 257)],
    "mtime": [file_line("a", mtimeNs=2**70)],
    "no type": [{"path": "a", "mtimeNs": 1}],
    "pickle": [{"path": "a", "type": "file", "mode": 0, "mtimeNs": 1, "size": 0, "chunks": [], "__reduce__": "x"}],
}


@pytest.mark.parametrize("what", MALICIOUS)
def test_malicious_trees_are_refused_before_any_write(repo: RepositoryFixture, target: Path, what: str) -> None:
    good = [dir_line("!first"), file_line("!first/file")]
    Forger(repo).tree([*good, *MALICIOUS[what]])
    with pytest.raises(IntegrityError):
        restored(repo, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("raw", [b"{}", b"[]\n", b"\n", b'{"path":"a"}\n\n', b"null\n", b"\xff\n", b"[" * 9999 + b"\n"])
def test_invalid_segments_are_refused(repo: RepositoryFixture, target: Path, raw: bytes) -> None:
    Forger(repo).segment(raw)
    with pytest.raises(IntegrityError):
        restored(repo, target)


def test_a_tree_with_the_wrong_size_is_refused(repo: RepositoryFixture, target: Path) -> None:
    Forger(repo).tree([file_line("a")], size=1)
    with pytest.raises(IntegrityError, match="the manifest says 1"):
        restored(repo, target)
    assert list(target.iterdir()) == []


def test_a_component_with_another_layout_is_refused(repo: RepositoryFixture, target: Path) -> None:
    Forger(repo).segment(b"[]\n", layout="blob")
    with pytest.raises(ValueError, match="layout blob"):
        restored(repo, target)


class TestTarget:
    def one_file(self, repo: RepositoryFixture, path: str = "a/file") -> None:
        def fill(writer: CheckpointWriter) -> None:
            stored = writer.store_bytes(b"ours", "Files")
            entries: list[TreeEntry] = [TreeDirectory("a", 0o755, 1), TreeFile(path, 0o644, 1, stored)]
            writer.add_tree("workspace", "Files", [*entries, TreeSymlink("z", "target", 1)])

        repo.checkpoint(fill)

    def test_a_link_in_the_target_is_not_followed(self, repo: RepositoryFixture, target: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (target / "a").symlink_to(outside)
        self.one_file(repo)
        with pytest.raises(TargetNotEmpty):
            restored(repo, target)
        assert list(outside.iterdir()) == []

    def test_a_link_in_place_of_a_file_is_not_followed(
        self, repo: RepositoryFixture, target: Path, tmp_path: Path
    ) -> None:
        (target / "a").mkdir()
        (target / "a/file").symlink_to(tmp_path / "outside")
        self.one_file(repo)
        with pytest.raises(TargetNotEmpty, match="a/file"):
            restored(repo, target)
        assert not (tmp_path / "outside").exists()

    def test_existing_files_are_not_replaced(self, repo: RepositoryFixture, target: Path) -> None:
        (target / "a").mkdir()
        (target / "a/file").write_bytes(b"theirs")
        self.one_file(repo)
        with pytest.raises(TargetNotEmpty):
            restored(repo, target)
        assert (target / "a/file").read_bytes() == b"theirs"

    @pytest.mark.parametrize("name", ["a", "z"])
    def test_a_name_taken_by_another_file_is_refused(self, repo: RepositoryFixture, target: Path, name: str) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(target / name))
            self.one_file(repo)
            with pytest.raises(TargetNotEmpty):
                restored(repo, target)

    def test_existing_folders_are_accepted(self, repo: RepositoryFixture, target: Path) -> None:
        (target / "a").mkdir()
        (target / "lost+found").mkdir()
        self.one_file(repo)
        restored(repo, target)
        assert (target / "a/file").read_bytes() == b"ours"

    def test_a_missing_target_is_refused(self, repo: RepositoryFixture, target: Path) -> None:
        self.one_file(repo)
        with pytest.raises(TargetUnusable):
            restored(repo, target / "nowhere")

    @pytest.mark.parametrize(
        ("number", "kind"),
        [(28, NoSpace), (122, NoSpace), (13, RunAsUserRequired), (1, RunAsUserRequired), (17, TargetNotEmpty),
         (40, TargetNotEmpty), (30, TargetUnusable), (5, TargetUnusable), (36, TargetUnusable)],
    )  # fmt: skip
    def test_errors_of_the_file_system_are_translated(self, number: int, kind: type[Exception]) -> None:
        error = _translate(OSError(number, os.strerror(number)), "some/file")
        assert isinstance(error, kind)
        assert "some/file" in str(error)

    def test_a_full_disk_is_reported_as_no_space(self) -> None:
        """Every write to /dev/full fails with a real ENOSPC."""
        full = os.open("/dev/full", os.O_WRONLY)
        try:
            with pytest.raises(NoSpace), translate_errors("file"):
                write_at(full, 0, memoryview(b"x"))
        finally:
            os.close(full)

    def test_a_file_system_that_cannot_be_synced_is_reported(self, target: Path) -> None:
        handle = os.open(target, os.O_RDONLY)
        sync_file_system(handle)
        os.close(handle)
        with pytest.raises(TargetUnusable):
            sync_file_system(handle)

    def test_few_descriptors_stay_open(self, target: Path) -> None:
        root = os.open(target, os.O_RDONLY)
        with Target(root) as kept:
            for number in range(200):
                kept.make_directory(f"d{number}")
                kept.directory(f"d{number}")
            assert len(kept._directories) <= 32
        os.close(root)


class TestDamage:
    def repo_with_files(self, repo: RepositoryFixture) -> list[str]:
        def fill(writer: CheckpointWriter) -> None:
            entries = []
            for number in range(40):
                stored = writer.store_bytes(content(str(number), 5000 + (number == 20) * MIB), "Files")
                entries.append(TreeFile(f"f{number:02}", 0o644, 1, stored))
            writer.add_tree("workspace", "Files", entries)

        offer = repo.checkpoint(fill, 2)
        return ["default/coder/" + pack_key(pack.name) for pack in offer.packs]

    def test_every_damaged_pack_is_named(self, repo: RepositoryFixture, store: Any, tmp_path: Path) -> None:
        memory = store._store
        for key in self.repo_with_files(repo):
            whole = memory.objects[key]
            for position in range(8, len(whole), len(whole) // 13):
                damaged = bytearray(whole)
                damaged[position] ^= 1
                memory.objects[key] = bytes(damaged)
                folder = tmp_path / f"{key[-8:]}{position}"
                folder.mkdir()
                with pytest.raises(IntegrityError) as caught:
                    restored(repo, folder)
                assert caught.value.object_key in key
                for path in folder.iterdir():
                    data = path.read_bytes()
                    assert data in (b"", content(str(int(path.name[1:])), len(data))) or len(data) > MIB
            memory.objects[key] = whole

    def test_a_missing_or_truncated_pack_is_found(
        self, repo: RepositoryFixture, store: Any, tmp_path: Path, target: Path
    ) -> None:
        memory = store._store
        [key, *_] = self.repo_with_files(repo)
        whole = memory.objects.pop(key)
        with pytest.raises(ObjectMissing):
            restored(repo, target)
        memory.objects[key] = whole[:-20]
        (tmp_path / "again").mkdir()
        with pytest.raises(IntegrityError):
            restored(repo, tmp_path / "again")

    def test_swapped_packs_are_refused(self, repo: RepositoryFixture, store: Any, target: Path) -> None:
        memory = store._store
        for seed in "ab":
            repo.checkpoint(partial(self.add_file, seed=seed))
        one, two = [key for key in memory.objects if "/packs/" in key]
        memory.objects[one], memory.objects[two] = memory.objects[two], memory.objects[one]
        with pytest.raises(IntegrityError):
            restored(repo, target)

    def add_file(self, writer: CheckpointWriter, seed: str) -> None:
        writer.add_tree("w", "Files", [self.file(writer, seed)])

    def file(self, writer: CheckpointWriter, seed: str) -> TreeFile:
        return TreeFile("f", 0o644, 1, writer.store_bytes(content(seed, 5000), "Files"))

    def test_an_unavailable_store_is_not_reported_as_damage(
        self, repo: RepositoryFixture, store: FaultyStore, target: Path
    ) -> None:
        self.repo_with_files(repo)
        store.script = always("get_into", Fault(StoreUnavailable("down")))
        with pytest.raises(StoreUnavailable):
            restored(repo, target)
