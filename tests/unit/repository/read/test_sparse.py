"""Tests of restoring files with long runs of zeros: they need no room for them, and are restored byte by byte."""

from pathlib import Path

import pytest
from savepoint.repository.format.tree import TreeFile
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.restore import restore_tree, survey

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.checkpoints import KEY, finish, writer_of

MEBIBYTE = 1 << 20
CONTENTS = {
    "empty": b"",
    "one zero": b"\0",
    "a zero page": bytes(4096),
    "a zero block": bytes(MEBIBYTE),
    "zeros at the end": b"x" + bytes(3 * MEBIBYTE),
    "zeros at the beginning": bytes(3 * MEBIBYTE) + b"x",
    "zeros in between": b"x" * 5000 + bytes(9000) + b"x" * 4000 + bytes(2 * MEBIBYTE) + b"y",
    "less than a page of zeros": b"x" * 100 + bytes(4000) + b"x",
    "all but one zero": bytes(MEBIBYTE - 1) + b"x" + bytes(MEBIBYTE + 1),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_zeros_are_restored_without_room(tmp_path: Path, name: str) -> None:
    store, content = MemoryStore(), CONTENTS[name]
    writer = writer_of(store)
    writer.add_tree("files.a", "Files", [TreeFile("f", 0o644, 0, writer.store_bytes(content, "Files"))])
    manifest = finish(writer)
    done: list[int] = []
    with CheckpointReader(store, KEY, manifest) as reader:
        (component,) = manifest.components
        report = survey(reader, component)
        restore_tree(reader, component, tmp_path, progress=done.append)
    assert (tmp_path / "f").read_bytes() == content
    assert report.bytes == len(content) and max(done, default=0) == len(content)
    pages = sum(1 for at in range(0, len(content), 4096) if content[at : at + 4096].strip(b"\0"))
    assert (tmp_path / "f").stat().st_blocks * 512 <= (pages + 1) * 4096
    blocks = [content[at : at + MEBIBYTE] for at in range(0, len(content), MEBIBYTE)]
    assert report.allocated == sum(len(each) for each in blocks if each != bytes(MEBIBYTE))
