"""Tests of capture: file tables, the spool, databases under write, the pre-copy and the final pass."""

import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from savepoint.errors import RunAsUserRequired, StageFull
from savepoint.repository.format.chunk import ChunkRef
from savepoint.repository.format.content import Content
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.restore import restore_tree
from savepoint_sidecar.capture import database
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.capture.file_table import FileTable, is_racy
from savepoint_sidecar.capture.spool import Spool
from savepoint_sidecar.files.exclude import Excluded
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.files.walk import Signature, walk

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.checkpoints import KEY, finish, writer_of


def root_of(path: Path) -> Root:
    path.mkdir(exist_ok=True)
    return Root("files", "/data", path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch to another uid and back")
def test_an_unreadable_file_is_named_with_its_uid(tmp_path: Path) -> None:
    root = root_of(tmp_path / "files")
    tmp_path.chmod(0o755)
    for parent in [tmp_path, *tmp_path.parents][:4]:  # pytest's own folders; xdist adds one
        parent.chmod(parent.stat().st_mode | 0o055)
    root.path.chmod(0o777)
    (root.path / "theirs").mkdir()
    os.chown(root.path / "theirs", 1234, 1234)
    (root.path / "theirs").chmod(0o700)
    os.seteuid(4321)
    try:
        with pytest.raises(RunAsUserRequired, match=r"uid 1234.*runAsUser: 1234"):
            walk(root, Excluded((), "/data"))
        (root.path / "mine").write_text("x")
        (root.path / "mine").chmod(0)
        (node,) = (each for each in walk(root, Excluded(("theirs",), "/data")).nodes if each.path == "mine")
        capture = Capture([root], ["theirs"], time.time_ns)
        with pytest.raises(RunAsUserRequired, match="mode 000"):
            capture.precopy(writer_of(MemoryStore()))
        assert node.uid == 4321
    finally:
        os.seteuid(0)


def ref(byte: int, length: int = 10) -> ChunkRef:
    return ChunkRef(bytes([byte]) * 32, f"1-{byte:032x}", 8, length + 17, length)


def test_a_table_returns_what_was_put() -> None:
    table = FileTable()
    signature = Signature(20, 1, -2, 2**63)
    content = Content(20, (ref(1), ref(2)), (), frozenset({ref(1).pack, ref(2).pack}))
    table.put("a", signature, content, racy=False)
    large = Content(2000, (), (ref(3),), frozenset({ref(3).pack}), b"x" * 64)
    table.put("large", signature, large, racy=False)
    assert table.contents().find("a") == content and table.contents().find("large") is large
    assert table.matches("a", signature) and not table.matches("a", signature._replace(ctime_ns=5))
    assert not table.matches("b", signature) and table.contents().find("b") is None
    table.put("a", signature, content, racy=True)
    assert not table.matches("a", signature)


def test_a_file_changed_just_before_it_was_read_is_racy() -> None:
    now = 10**18
    assert is_racy(Signature(1, now - 10**6, now - 10**9, 1), now)
    assert is_racy(Signature(1, now - 10**9, now - 10**6, 1), now)
    assert not is_racy(Signature(1, now - 10**9, now - 10**9, 1), now)


def test_the_spool_keeps_ranges_apart(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        ranges = []
        for number, size in enumerate((0, 1, 4096, 3_000_001)):
            path = tmp_path / str(number)
            path.write_bytes(bytes([number + 1]) * size)
            handle = os.open(path, os.O_RDONLY)
            ranges.append((spool.append(handle, size, lambda: None), bytes([number + 1]) * size))
            os.close(handle)
        for where, content in ranges:
            assert os.pread(spool.descriptor, where.length, where.offset) == content
        with pytest.raises(StageFull, match="stage"):
            spool.require_space(1 << 60)
    assert not (tmp_path / "pool").exists()


def test_a_file_that_ends_early_gives_a_shorter_range(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    handle = os.open(tmp_path / "a", os.O_RDONLY)
    with Spool(tmp_path) as spool:
        assert spool.append(handle, 100, lambda: None).length == 5
    os.close(handle)


def restored(store: MemoryStore, manifest: Manifest, target: Path) -> Path:
    target.mkdir()
    with CheckpointReader(store, KEY, manifest) as reader:
        component = manifest.component("files.files")
        assert component is not None
        restore_tree(reader, component, target)
    return target


def fuzzy(capture: Capture, store: MemoryStore, scratch: Path) -> tuple[Manifest, list[Draft]]:
    writer = writer_of(store)
    drafts = capture.read_fuzzy(writer, scratch)
    capture.store(writer, drafts, None)
    return finish(writer), drafts


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_database_under_write_is_copied_consistently(tmp_path: Path, mode: str) -> None:
    root = root_of(tmp_path / "files")
    path = root.path / "notes.db"
    stop, ready = threading.Event(), threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA journal_mode={mode}")
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("CREATE TABLE pair (a INTEGER, b INTEGER, pad BLOB)")
            number = 0
            while not stop.is_set():
                connection.execute("BEGIN")
                connection.execute("INSERT INTO pair VALUES (?, ?, randomblob(2000))", (number, number))
                connection.execute("UPDATE pair SET a = a + 1, b = b + 1")
                connection.execute("COMMIT")
                number += 1
                if number == 20:
                    ready.set()

    writing = threading.Thread(target=write)
    writing.start()
    try:
        assert ready.wait(20)
        capture = Capture([root], (), time.time_ns)
        store = MemoryStore()
        for round_number in range(3):
            manifest, drafts = fuzzy(capture, store, tmp_path)
            target = restored(store, manifest, tmp_path / f"restored{round_number}")
            assert [each.name for each in target.iterdir()] == ["notes.db"], drafts[0].warnings
            with closing(sqlite3.connect(target / "notes.db")) as copy:
                assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                count, torn = copy.execute("SELECT count(*), sum(a != b) FROM pair").fetchone()
                assert count >= 20 and torn == 0
                (spread,) = copy.execute("SELECT max(a) - min(a) FROM pair").fetchone()
                assert spread == 0, "only half of a transaction was copied"
    finally:
        stop.set()
        writing.join()


def test_copying_a_closed_database_creates_no_file_beside_it(tmp_path: Path) -> None:
    root = root_of(tmp_path / "files")
    with closing(sqlite3.connect(root.path / "a.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
    manifest, _ = fuzzy(Capture([root], (), time.time_ns), store := MemoryStore(), tmp_path)
    assert [each.name for each in root.path.iterdir()] == ["a.db"]
    target = restored(store, manifest, tmp_path / "restored")
    assert (target / "a.db").read_bytes() == (root.path / "a.db").read_bytes()


def test_a_file_that_only_looks_like_a_database_is_copied_as_a_file(tmp_path: Path) -> None:
    root = root_of(tmp_path / "files")
    broken = database.MAGIC + bytes(2) + b"\x01\x01" + os.urandom(5000)
    (root.path / "x.db").write_bytes(broken)
    (root.path / "x.db-wal").write_bytes(b"")
    manifest, drafts = fuzzy(Capture([root], (), time.time_ns), store := MemoryStore(), tmp_path)
    assert drafts[0].warnings
    assert (restored(store, manifest, tmp_path / "restored") / "x.db").read_bytes() == broken


def test_pre_copy_and_final_pass_read_every_changed_file(tmp_path: Path) -> None:
    root = root_of(tmp_path / "files")
    for name in ("same", "changed", "removed"):
        (root.path / name).write_bytes(name.encode() * 100)
    old = time.time_ns() - 10**10
    for name in ("same", "changed", "removed"):
        os.utime(root.path / name, ns=(old, old))
    time.sleep(0.05)  # longer than a tick of the clock, within which a change could go unnoticed
    store = MemoryStore()
    capture = Capture([root], (), time.time_ns)
    writer = writer_of(store)
    drafts = capture.precopy(writer)
    assert len(drafts[0].table) == 3
    (root.path / "changed").write_bytes(b"new content")
    os.utime(root.path / "changed", ns=(old, old))
    (root.path / "removed").unlink()
    (root.path / "added").write_bytes(b"a")
    with Spool(tmp_path) as spool:
        finals = capture.final_pass(writer, drafts, spool)
        assert set(finals[0].spooled) == {"changed", "added"}
        (root.path / "changed").write_bytes(b"after the pause")
        capture.store(writer, finals, spool)
    manifest = finish(writer)
    capture.committed(finals)
    target = restored(store, manifest, tmp_path / "restored")
    assert {each.name: each.read_bytes() for each in target.iterdir()} == {
        "same": b"same" * 100,
        "changed": b"new content",
        "added": b"a",
    }
    assert (target / "same").stat().st_mtime_ns == old


def test_content_is_read_again_when_only_the_ctime_differs(tmp_path: Path) -> None:
    root = root_of(tmp_path / "files")
    path = root.path / "a"
    path.write_bytes(b"1111")
    before = path.stat()
    time.sleep(0.05)
    capture = Capture([root], (), time.time_ns)
    writer = writer_of(MemoryStore())
    drafts = capture.precopy(writer)
    path.write_bytes(b"2222")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with Spool(tmp_path) as spool:
        assert set(capture.final_pass(writer, drafts, spool)[0].spooled) == {"a"}
    writer.abort()
