"""Finds packs that the store no longer holds as a manifest names them. It asks for sizes only and reads no content."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from savepoint.repository.format.manifest import Pack
from savepoint.repository.format.object_keys import pack_key
from savepoint.storage.store import BlobReader

THREADS = 4
BATCH = 32


@dataclass(frozen=True, slots=True)
class LostPack:
    """A pack that is missing, or whose object has another size than the manifest says."""

    name: str
    size: int
    """The size that the manifest names, in bytes."""
    found: int | None
    """The size in the store, in bytes; None if the store reports that the object does not exist."""

    def __str__(self) -> str:
        what = "is missing" if self.found is None else f"has {self.found} bytes"
        return f"{pack_key(self.name)} {what}, {self.size} bytes are expected"


def lost_packs(reader: BlobReader, packs: Iterable[Pack], check: Callable[[], None] = lambda: None) -> list[LostPack]:
    """Look up the size of every pack and return those that are lost.

    Args:
        reader: Reads the agent's part of the store.
        packs: The packs, as a manifest names them.
        check: Called between batches; what it raises ends the search.

    Raises:
        StoreUnavailable, StoreDenied, StoreMisconfigured, Unavailable: The store gave no answer, so nothing is known.
    """
    return list(_search(reader, packs, check))


def _search(reader: BlobReader, packs: Iterable[Pack], check: Callable[[], None]) -> Iterator[LostPack]:
    def size_of(pack: Pack) -> int | None:
        info = reader.head(pack_key(pack.name))
        return None if info is None else info.size

    with ThreadPoolExecutor(THREADS, thread_name_prefix="savepoint-packs") as threads:
        remaining = iter(packs)
        while batch := list(islice(remaining, BATCH)):
            check()
            for pack, found in zip(batch, threads.map(size_of, batch), strict=True):
                if found != pack.size:
                    yield LostPack(pack.name, pack.size, found)
