"""Writes the golden repository of format 1: `python -m tests.golden.make FOLDER`.

Everything in it is fixed: key, salt, nonces, names, time. It was written once; a later version must read it for ever,
so it is made again only under a new folder, for a new format.
"""

import sys
from pathlib import Path

from savepoint.repository.format.tree import TreeDirectory, TreeFile, TreeSymlink
from savepoint.repository.history import lineage
from savepoint.repository.history.lineage import Pending
from savepoint.repository.write.source import Entry, MemorySource
from savepoint.repository.write.writer import CheckpointWriter
from savepoint.storage.directory import DirectoryStore

from tests.fakes.repository_fixture import TIME, RepositoryFixture, content

TIME_NS = 1_700_000_000_123_456_789

DOCUMENTS = {"notes": b'{"turn":1}', "empty": b"", "blob": content("blob", 1000)}
CHANGED = DOCUMENTS | {"notes": b'{"turn":2}'}
WEIGHTS = content("weights", 20_000) + bytes(580_000)
FILES = {
    "a.txt": b"text, text, text\n" * 100,
    "dir/script": b"#!/bin/sh\n",
    "empty": b"",
    "latin\udce9": b"a name that is not UTF-8",
    "ümläut": b"0123456789abcdef" * (1 << 16) + content("file", 5000),
}
LARGE_BYTES = 257 * (256 << 10) + 7
"""Zeros of a file that needs segments of its own."""


def first(writer: CheckpointWriter) -> None:
    """The first checkpoint."""
    documents(writer, DOCUMENTS)
    writer.add_blob("weights", "ModelWeights", MemorySource(WEIGHTS), architecture_bound=True)
    stored = {path: writer.store_bytes(data, "Files") for path, data in FILES.items()}
    writer.add_tree(
        "workspace",
        "Files",
        [
            TreeFile("a.txt", 0o644, TIME_NS, stored["a.txt"]),
            TreeDirectory("dir", 0o750, TIME_NS),
            TreeFile("dir/script", 0o755, TIME_NS, stored["dir/script"]),
            TreeFile("empty", 0o600, TIME_NS, stored["empty"]),
            TreeFile("latin\udce9", 0o600, TIME_NS, stored["latin\udce9"]),
            TreeSymlink("link", "dir/script", TIME_NS),
            TreeFile("ümläut", 0o644, -1, stored["ümläut"]),
        ],
    )
    zeros = writer.store_bytes(bytes(LARGE_BYTES), "ModelWeights")
    writer.add_tree("models", "ModelWeights", [TreeFile("zeros", 0o400, 0, zeros)])


def second(writer: CheckpointWriter) -> None:
    """The second: one document changed, the files gone."""
    documents(writer, CHANGED)
    writer.add_blob("weights", "ModelWeights", MemorySource(WEIGHTS), architecture_bound=True)


def documents(writer: CheckpointWriter, values: dict[str, bytes]) -> None:
    """The documents of either."""
    entries = [
        Entry("notes", "json", MemorySource(values["notes"])),
        Entry("empty", "bytes", MemorySource(values["empty"])),
        Entry("blob", "tensor", MemorySource(values["blob"]), {"dtype": "uint8", "shape": [10, 100]}),
    ]
    writer.add_entries("documents", "Memory", entries)


def make(folder: Path) -> RepositoryFixture:
    """Grant, checkpoint, grant, checkpoint, rollback, grant, completed; and a pending commit."""
    world = RepositoryFixture(DirectoryStore(folder, create=True))
    world.checkpoint(first)
    chosen = world.head.record.manifest
    world.grant("pod-2")
    world.checkpoint(second)
    world.head = lineage.rollback(world.chain, world.head, chosen, TIME, attempt="rollback-1")
    world.grant("pod-3")
    world.head = lineage.complete(world.chain, world.head, world.epoch, world.pod, TIME)
    pending = Pending("attempt", 3, "pod-3", "Shutdown", True, b"")
    world.repository.store.put_new("pending/3-" + "0" * 32, lineage.pending_bytes(pending))
    return world


if __name__ == "__main__":
    make(Path(sys.argv[1]))
