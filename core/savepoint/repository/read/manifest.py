"""Loads one manifest from the store and checks it against the commit record that names it."""

from savepoint.errors import IntegrityError
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import MAX_MANIFEST_BYTES, Manifest, open_manifest
from savepoint.repository.format.object_keys import manifest_key
from savepoint.storage.store import BlobReader


def load_manifest(reader: BlobReader, key: AgentKey, namespace: str, agent: str, *, name: str, size: int) -> Manifest:
    """Read and verify the manifest that a commit record names. Blocking; reads at most 1 MiB.

    Args:
        reader: The agent's own part of the store.
        key: The agent's key.
        namespace: The agent's namespace.
        agent: The agent's name.
        name: The manifest's name, as the commit record gives it.
        size: The size of the manifest object in bytes, as the commit record gives it.

    Returns:
        The verified manifest.

    Raises:
        ObjectMissing: The store does not have the manifest.
        IntegrityError: The object has another size, is damaged, or belongs to another agent; it names the object.
        FormatTooNew: A newer version of Savepoint wrote the manifest.
    """
    where = manifest_key(name)
    content = reader.get(where, max_bytes=MAX_MANIFEST_BYTES)
    if len(content) != size:
        raise IntegrityError(f"{where} has {len(content)} bytes, its record says {size}", where)
    return open_manifest(content, key, namespace, agent, name)
