"""The key of each object within an agent's part of the store. Names only, no I/O."""


def commit_key(sequence: int) -> str:
    """Return the key of the commit record with this sequence."""
    return f"commits/{sequence:020d}"


def manifest_key(name: str) -> str:
    """Return the key of the manifest with this name."""
    return f"manifests/{name}"


def pack_key(name: str) -> str:
    """Return the key of the pack with this name."""
    return f"packs/{name}"
