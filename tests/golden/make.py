"""Writes the golden repository of format 1: `python -m tests.golden.make FOLDER`.

Everything in it is fixed: key, salt, nonces, names, time. It was written once, and every later version must read it, so
a new one is made only for a new format, in a new folder.
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
"""Size of a file of zeros that needs segments of its own."""


def first(writer: CheckpointWriter) -> None:
    """Fill the first checkpoint."""
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
    """Fill the second checkpoint: one document is changed, and the files are missing."""
    documents(writer, CHANGED)
    writer.add_blob("weights", "ModelWeights", MemorySource(WEIGHTS), architecture_bound=True)


def documents(writer: CheckpointWriter, values: dict[str, bytes]) -> None:
    """Add the documents."""
    entries = [
        Entry("notes", "json", MemorySource(values["notes"])),
        Entry("empty", "bytes", MemorySource(values["empty"])),
        Entry("blob", "tensor", MemorySource(values["blob"]), {"dtype": "uint8", "shape": [10, 100]}),
    ]
    writer.add_entries("documents", "Memory", entries)


def make(folder: Path) -> RepositoryFixture:
    """Write grant, checkpoint, grant, checkpoint, rollback, grant, completed; and a pending commit."""
    repo = RepositoryFixture(DirectoryStore(folder, create=True))
    repo.checkpoint(first)
    chosen = repo.head.record.manifest
    repo.grant("pod-2")
    repo.checkpoint(second)
    repo.head = lineage.rollback(repo.chain, repo.head, chosen, TIME, attempt="rollback-1")
    repo.grant("pod-3")
    repo.head = lineage.complete(repo.chain, repo.head, repo.epoch, repo.pod, TIME)
    pending = Pending("attempt", 3, "pod-3", "Shutdown", True, b"")
    repo.repository.store.put_new("pending/3-" + "0" * 32, lineage.pending_bytes(pending))
    return repo


if __name__ == "__main__":
    make(Path(sys.argv[1]))
