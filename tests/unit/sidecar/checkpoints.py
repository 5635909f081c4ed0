"""Checkpoints in a memory store, written and committed without a sidecar."""

from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.write.writer import CheckpointWriter

from tests.fakes.store import MemoryStore

KEY = AgentKey(bytes(32))


def writer_of(store: MemoryStore, parent: Manifest | None = None) -> CheckpointWriter:
    """Return a writer for the next checkpoint."""
    return CheckpointWriter(store, store, KEY, 1, parent)


def finish(writer: CheckpointWriter) -> Manifest:
    """Finish and commit the checkpoint; return its manifest."""
    writer.finish(
        namespace="n", agent="a", attempt="0" * 32, created="2026-01-01T00:00:00.000000Z", consistency="Fuzzy",
        parent=None,
    )  # fmt: skip
    writer.commit()
    return writer.manifest
