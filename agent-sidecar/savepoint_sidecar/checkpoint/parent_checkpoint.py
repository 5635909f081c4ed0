"""A cut: the last committed checkpoint, as this process knows it. A value, and how to read from it."""

from dataclasses import dataclass, field

from savepoint.contract.control_protocol import CheckpointRef
from savepoint.errors import IntegrityError
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import MAX_MANIFEST_BYTES, Manifest, Parent, open_manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.repository import manifest_key, pack_key
from savepoint.storage import BlobReader


@dataclass(frozen=True)
class ParentCheckpoint:
    """A committed checkpoint with its manifest."""

    ref: CheckpointRef
    manifest: Manifest = field(repr=False)

    @property
    def parent(self) -> Parent:
        """This cut as the parent of the next."""
        return Parent(self.ref.sequence, self.ref.manifest.name)

    def keys(self) -> tuple[str, ...]:
        """The objects that reading all of it takes."""
        return tuple(pack_key(pack.name) for pack in self.manifest.packs)

    def reader(self, blobs: BlobReader, key: AgentKey) -> CheckpointReader:
        """A reader of its content; the caller closes it."""
        return CheckpointReader(blobs, key, self.manifest)


def load(blobs: BlobReader, key: AgentKey, namespace: str, agent: str, ref: CheckpointRef) -> ParentCheckpoint:
    """Read and check the manifest. Blocking. IntegrityError names it if it is not what was committed."""
    where = manifest_key(ref.manifest.name)
    content = blobs.get(where, max_bytes=MAX_MANIFEST_BYTES)
    if len(content) != ref.manifest.size:
        raise IntegrityError(f"{where} has {len(content)} bytes, its record says {ref.manifest.size}", where)
    return ParentCheckpoint(ref, open_manifest(content, key, namespace, agent, ref.manifest.name))
