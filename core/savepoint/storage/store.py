"""What a store must do: the protocols, and the rules that every implementation shares.

Not an implementation, and no base class: tests/contracts holds the suite that each of them passes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as its store describes it."""

    key: str
    size: int
    """Bytes."""
    modified: datetime | None = None
    """By the store's own clock; None where the store does not say."""


class BlobReader(Protocol):
    """Reads objects by key.

    Every method raises StoreUnavailable, StoreDenied or StoreMisconfigured when the store could not be asked;
    ObjectMissing (or None) means that the store itself said so.
    """

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object. ObjectMissing if absent, IntegrityError if it is larger than ``max_bytes``."""
        ...

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fill ``target`` from ``offset``. IntegrityError if the object ends before it is full."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time of the object; None only when the store says that it is not there."""
        ...


class BlobWriter(Protocol):
    """Creates objects, and never replaces one."""

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object durably and whole, or raise ObjectExists; parts are written one after the other.

        After StoreUnavailable the object may or may not exist: whoever needs to know reads it back.
        """
        ...


class ObjectStore(BlobReader, BlobWriter, Protocol):
    """A store that can also be listed and emptied."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with ``prefix``, in no promised order. Nothing may rest on its freshness."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; absent is fine."""
        ...


class FolderStore(ObjectStore, Protocol):
    """A store that can also say what lies directly below a place, for people who look into it."""

    def folders(self, prefix: str) -> Sequence[str]:
        """The names that go on with ``/`` directly below ``prefix``, which ends in ``/`` or is empty; sorted.

        Names that no key of ours can have are left out. As with ``list``, nothing may rest on its freshness.
        """
        ...


def check_key(key: str) -> str:
    """The key itself, if it is relative, plain and short; ValueError otherwise. Keys are made by us, never by users."""
    if not is_key(key):
        raise ValueError(f"not an object key: {key!r}")
    return key


def is_key(text: str) -> bool:
    """Whether this may be the key of an object."""
    elements = text.split("/")
    return len(text.encode()) <= MAX_KEY_BYTES and all(e not in {"", ".", ".."} and _plain(e) for e in elements)


def check_prefix(prefix: str) -> str:
    """As check_key, for the prefix of a listing: empty, or a key that may end in ``/`` or within an element."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def parts(data: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """The parts of a put as flat byte views, without copying."""
    several = [data] if isinstance(data, (bytes, bytearray, memoryview)) else data
    return [memoryview(part).cast("B") for part in several]


def _plain(element: str) -> bool:
    return all(c.isascii() and (c.isalnum() or c in "-_.~") for c in element)
