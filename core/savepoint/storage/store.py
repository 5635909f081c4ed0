"""The interface of an object store: its protocols, and the key rules that every implementation shares.

There is no base class: an implementation conforms if it passes the suite in tests/contracts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias, runtime_checkable

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """The metadata of one object."""

    key: str
    size: int
    """Bytes."""
    modified: datetime | None = None
    """The time by the store's own clock; None where the store does not report it."""


class BlobReader(Protocol):
    """Reads objects by key. Methods block and may be called from several threads.

    Every method raises ValueError for an invalid key, and StoreUnavailable, StoreDenied or StoreMisconfigured if the
    store gave no usable response. An object counts as missing only if the store itself reports it.
    """

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read the whole object.

        Args:
            key: The object's key.
            max_bytes: The largest size to accept, in bytes.

        Returns:
            The object's content.

        Raises:
            ObjectMissing: The store reports that the object does not exist.
            IntegrityError: The object is larger than ``max_bytes``.
        """
        ...

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Read a range of the object into a buffer.

        Args:
            key: The object's key.
            offset: The first byte to read.
            target: A writable buffer; as many bytes are read as it holds.

        Raises:
            ObjectMissing: The store reports that the object does not exist.
            IntegrityError: The object ends before the buffer is full.
        """
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Look up an object's size and modification time.

        Args:
            key: The object's key.

        Returns:
            The metadata, or None only if the store reports that the object does not exist.
        """
        ...


class BlobWriter(Protocol):
    """Creates objects and never replaces one. Methods block and may be called from several threads."""

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object, durably and atomically.

        Args:
            key: The object's key.
            data: The content, or parts that are written one after the other.

        Raises:
            ObjectExists: The key is taken; its object is unchanged.
            NoSpace: The store is full.
            StoreUnavailable: The object may or may not have been created; read it back to find out.
            StoreDenied: The store rejects the credentials or the permission.
            StoreMisconfigured: The store cannot be used as configured.
            ValueError: The key is invalid.
        """
        ...


class ObjectStore(BlobReader, BlobWriter, Protocol):
    """A store whose objects can also be listed and deleted. Its methods raise the same store errors."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List objects. A listing may be stale, so nothing may depend on it for correctness.

        Args:
            prefix: What a key must start with; it may be empty or end within an element.

        Returns:
            The metadata of every object found, in no particular order.

        Raises:
            ValueError: The prefix is invalid.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete the object. Succeeds if it does not exist.

        Args:
            key: The object's key.
        """
        ...


class FolderStore(ObjectStore, Protocol):
    """A store that can also list the folders directly below a prefix, for people who browse it."""

    def folders(self, prefix: str) -> Sequence[str]:
        """List the folders directly below a prefix. As with ``list``, nothing may depend on it for correctness.

        Args:
            prefix: Empty, or a key prefix that ends in ``/``.

        Returns:
            The folders' names, sorted, without the slash. Names that cannot occur in a key are left out.

        Raises:
            ValueError: The prefix is invalid.
        """
        ...


@runtime_checkable
class ExpiringStore(Protocol):
    """A store that may delete or archive objects on its own, by rules that its owner has set."""

    def expiring_rules(self) -> Sequence[str]:
        """Describe the rules that will make objects of this store unreadable; empty if there are none.

        Raises:
            SavepointError: The store did not answer, or does not let the rules be read.
        """
        ...


def check_key(key: str) -> str:
    """Return the key if it is a valid object key; raise ValueError otherwise.

    A key is relative, plain ASCII and at most 1,024 bytes long. Savepoint makes all keys; users never choose one.
    """
    if not is_key(key):
        raise ValueError(f"not an object key: {key!r}")
    return key


def is_key(text: str) -> bool:
    """Return whether the text is a valid object key."""
    elements = text.split("/")
    return len(text.encode()) <= MAX_KEY_BYTES and all(e not in {"", ".", ".."} and _is_plain(e) for e in elements)


def check_prefix(prefix: str) -> str:
    """Return the prefix if it is empty, or a valid key that may end in ``/``; raise ValueError otherwise."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def parts(data: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """Return the parts of a put as flat byte views, without copying."""
    several = [data] if isinstance(data, (bytes, bytearray, memoryview)) else data
    return [memoryview(part).cast("B") for part in several]


def _is_plain(element: str) -> bool:
    return all(c.isascii() and (c.isalnum() or c in "-_.~") for c in element)
