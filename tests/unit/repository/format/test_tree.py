import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from savepoint.errors import IntegrityError
from savepoint.repository.format import canonical
from savepoint.repository.format import entry as entry_format
from savepoint.repository.format import tree as tree_format
from savepoint.repository.format.segment import blob_refs, lines_of
from savepoint.repository.format.tree import (
    TreeDirectory,
    TreeEntry,
    TreeFile,
    TreeSymlink,
    checked_order,
    path_bytes,
    path_problem,
)
from savepoint.repository.read.restore import restore_tree
from savepoint.repository.write.writer import CheckpointWriter

from tests.fakes.repository_fixture import RepositoryFixture
from tests.fakes.store import MemoryStore

NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda raw: b"/" not in raw and b"\0" not in raw and raw not in {b".", b".."}
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: b"/".join(names).decode("utf-8", "surrogateescape"))
NODES = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=40), st.integers(0, 0o777)),
    st.tuples(st.just("link"), NAMES, st.just(0)),
    st.tuples(st.just("dir"), st.just(b""), st.integers(0o700, 0o777)),
)
TIMES = st.integers(0, 2**60)


@given(PATHS)
def test_paths_that_a_file_system_allows_are_accepted(path: str) -> None:
    assert path_problem(path) == ""
    assert path_bytes(path) == os.fsencode(path)


@given(st.text(max_size=30))
def test_arbitrary_text_is_a_path_or_has_a_problem(path: str) -> None:
    if path_problem(path) == "":
        raw = path_bytes(path)
        assert raw.decode("utf-8", "surrogateescape") == path
        assert not set(raw.split(b"/")) & {b"", b".", b".."}
        assert b"\0" not in raw


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("a\0", "NUL"), ("é" * 2049, "4,096"), ("a//b", "empty"), ("a/", "empty"), ("/a", "empty"), ("..", "'..'"),
        ("a/..", "'..'"), ("a/./b", "'.'"), ("é/..", "'..'"), ("x" * 256, "255"), ("é" * 128, "255"),
        ("\ud800", "Unicode"),
        (b"\xc3\xa9".decode("ascii", "surrogateescape"), "two ways"), ("", "empty"),
    ],
)  # fmt: skip
def test_problems_of_paths_are_reported(path: str, problem: str) -> None:
    assert problem in path_problem(path)


@pytest.mark.parametrize("path", ["...", "..a", "a..", ".a/b", "a/...", "a\nb", "a\\b", "-rf", " ", "é", "x" * 255])
def test_unusual_paths_are_accepted(path: str) -> None:
    assert path_problem(path) == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["path", "type", "mode", "mtimeNs", "size", "chunks", "more", "target", "name", "encoding", "meta"]
    ),
    JSON | st.sampled_from(["file", "dir", "symlink", "json", "a"]),
    max_size=8,
)


@given(JSON | FIELDS)
@settings(max_examples=300)
def test_arbitrary_values_are_entries_or_refused(value: Any) -> None:
    for parse in (tree_format.entry_of, entry_format.entry_of):
        with contextlib.suppress(IntegrityError):
            assert canonical.decode(line(parse(value, "x")), "x") == value


def line(found: Any) -> bytes:
    return entry_format.line_of(found) if isinstance(found, entry_format.EntryRecord) else tree_format.line_of(found)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_lines_or_refused(content: bytes) -> None:
    for parse in (lines_of, blob_refs):
        with contextlib.suppress(IntegrityError):
            list(parse(content + b"\n", "x"))


def entries_of(writer: CheckpointWriter, nodes: dict[str, Any], time_ns: int) -> list[TreeEntry]:
    """The nodes that can be in one tree, with the folders they need."""
    folders = {path.rsplit("/", depth)[0] for path in nodes for depth in range(1, path.count("/") + 1)}
    found: dict[str, TreeEntry] = {path: TreeDirectory(path, 0o755, time_ns) for path in folders}
    for path, (kind, data, mode) in nodes.items():
        if path in folders:
            continue
        if kind == "file":
            found[path] = TreeFile(path, mode, time_ns, writer.store_bytes(data, "Files"))
        elif kind == "link":
            found[path] = TreeSymlink(path, data.decode("utf-8", "surrogateescape"), time_ns)
        else:
            found[path] = TreeDirectory(path, mode, time_ns)
    return sorted(found.values(), key=lambda entry: path_bytes(entry.path))


@given(st.dictionaries(PATHS, NODES, max_size=12), TIMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_arbitrary_trees_are_restored(nodes: dict[str, Any], time_ns: int) -> None:
    repo = RepositoryFixture(MemoryStore())
    entries: list[TreeEntry] = []

    def fill(writer: CheckpointWriter) -> None:
        entries.extend(entries_of(writer, nodes, time_ns))
        writer.add_tree("files", "Files", entries)

    repo.checkpoint(fill)
    with tempfile.TemporaryDirectory() as folder, repo.reader() as reader:
        found = list(reader.tree_entries(reader.components[0]))
        assert found == entries
        assert list(checked_order(found, "x")) == found
        restore_tree(reader, reader.components[0], folder, durable=False)
        for entry in entries:
            path = Path(os.fsdecode(os.fsencode(folder) + b"/" + path_bytes(entry.path)))
            if isinstance(entry, TreeFile):
                assert path.read_bytes() == nodes[entry.path][1]
                assert path.stat().st_mode & 0o7777 == entry.mode
            elif isinstance(entry, TreeSymlink):
                assert os.readlink(os.fsencode(path)) == path_bytes(entry.target)  # noqa: PTH115
            else:
                assert path.is_dir()
            assert path.lstat().st_mtime_ns == time_ns
