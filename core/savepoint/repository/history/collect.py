"""Removes what no kept checkpoint needs: manifests first, then packs, never a commit record.

The caller ensures that the agent has no checkpoint in flight. A listing only supplies candidates; what is needed
follows from the manifests of the kept records alone.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta

from savepoint.errors import IntegrityError, StoreMisconfigured, Superseded
from savepoint.repository.format.commit import ChainRecord, CommitRecord
from savepoint.repository.format.object_keys import manifest_key, pack_key
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.lineage import PENDING_PREFIX
from savepoint.repository.repository import Repository
from savepoint.storage.store import ObjectInfo

MAX_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class CollectReport:
    """The result of a collection."""

    manifests: int = 0
    packs: int = 0
    bytes: int = 0
    """The size of everything removed."""
    kept_packs: int = 0
    kept_bytes: int = 0
    """The size of the packs that kept manifests name."""
    young: int = 0
    """Unneeded objects that were kept: younger than the grace period, or without a modification time."""
    lost: tuple[str, ...] = ()
    """A text for each pack that a kept manifest names and that the store does not hold with that size."""
    affected: tuple[int, ...] = ()
    """Sequences of the kept records that need a lost pack."""


def collect(
    repository: Repository, chain: Chain, head: ChainRecord, *, keep: Set[int], grace_seconds: float, now: datetime
) -> CollectReport:
    """Remove objects that neither a record in ``keep`` nor the head needs and that are older than the grace period.

    Raises:
        Superseded: The chain has grown beyond ``head``.
        ObjectMissing, IntegrityError: A kept manifest is missing or damaged; nothing was removed.
        StoreMisconfigured: The store's clock is more than five minutes ahead of ``now``; nothing was removed.
    """
    if chain.head(head) != head:
        raise Superseded(f"{chain.namespace}/{chain.agent} has a newer record: collect again")
    manifests = _kept_manifests(chain, head, keep)
    packs: dict[str, int] = {}
    by_manifest: dict[str, frozenset[str]] = {}
    for name, size in manifests.items():
        named = {pack_key(pack.name): pack.size for pack in repository.read_manifest(name, size).packs}
        packs.update(named)
        by_manifest[name] = frozenset(named)
    needed = {manifest_key(name) for name in manifests} | packs.keys()
    stale_pending = [info for info in repository.store.list(PENDING_PREFIX) if _epoch_of(info.key) < head.record.epoch]
    found = [*repository.store.list("manifests/"), *stale_pending, *repository.store.list("packs/")]
    _check_clock(found, now)
    if chain.head(head) != head:
        raise Superseded(f"{chain.namespace}/{chain.agent} has a newer record: collect again")
    limit = now - timedelta(seconds=grace_seconds)
    unneeded = [info for info in found if info.key not in needed]
    removed = [info for info in unneeded if info.modified is not None and info.modified < limit]
    for info in removed:
        repository.store.delete(info.key)
    lost = _lost(repository, packs, found)
    return CollectReport(
        manifests=_count(removed, "manifests/"),
        packs=_count(removed, "packs/"),
        bytes=sum(info.size for info in removed),
        kept_packs=len(packs),
        kept_bytes=sum(packs.values()),
        young=len(unneeded) - len(removed),
        lost=tuple(lost.values()),
        affected=tuple(
            record.sequence
            for record in _kept_records(chain, head, keep)
            if lost and record.manifest is not None and not by_manifest[record.manifest.name].isdisjoint(lost)
        ),
    )


def _lost(repository: Repository, packs: Mapping[str, int], found: Iterable[ObjectInfo]) -> dict[str, str]:
    """Return a text for each lost pack. A listing may be stale, so it only supplies candidates, which are looked up."""
    listed = {info.key: info.size for info in found}
    lost = {}
    for key in sorted(key for key, size in packs.items() if listed.get(key) != size):
        info = repository.store.head(key)
        if info is None or info.size != packs[key]:
            what = "is missing" if info is None else f"has {info.size} bytes"
            lost[key] = f"{key} {what}, {packs[key]} bytes are expected"
    return lost


def _kept_records(chain: Chain, head: ChainRecord, keep: Set[int]) -> list[CommitRecord]:
    return [head.record, *(chain.record(sequence) for sequence in sorted(keep - {head.record.sequence}))]


def _kept_manifests(chain: Chain, head: ChainRecord, keep: Set[int]) -> dict[str, int]:
    records = _kept_records(chain, head, keep)
    if any(record.sequence > head.record.sequence for record in records):
        raise IntegrityError(f"{chain.namespace}/{chain.agent}: a kept sequence lies beyond the head")
    return {record.manifest.name: record.manifest.size for record in records if record.manifest is not None}


def _check_clock(found: Iterable[ObjectInfo], now: datetime) -> None:
    newest = max((info.modified for info in found if info.modified is not None), default=None)
    if newest is not None and newest > now + MAX_SKEW:
        raise StoreMisconfigured(
            f"the store has an object of {newest.isoformat()}, but this clock says {now.isoformat()}: nothing is "
            "collected while the clocks differ by more than 5 minutes; synchronize them"
        )


def _epoch_of(key: str) -> int:
    digits = key.removeprefix(PENDING_PREFIX).partition("-")[0]
    return int(digits) if digits.isdecimal() else 1 << 63


def _count(removed: Iterable[ObjectInfo], prefix: str) -> int:
    return sum(info.key.startswith(prefix) for info in removed)
