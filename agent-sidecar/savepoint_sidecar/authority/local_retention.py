"""Choice of the checkpoints that a laptop's store keeps, from its chain and manifests. Blocking; it deletes nothing.

Only checkpoints whose manifest is still in the store count, so a long chain need not be read as a whole.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from savepoint.errors import IntegrityError, ObjectMissing
from savepoint.repository.format.canonical import time_of
from savepoint.repository.format.commit import ChainRecord, CommitRecord
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.retention import Candidate, RetentionRules, kept
from savepoint.repository.repository import Repository

MANIFESTS: Final = "manifests/"
NEAR: Final = 64
"""Number of records after its parent's among which a checkpoint's own is looked for before all are read."""


class LocalRetention:
    """Retention of one agent. Between calls it remembers what it has read."""

    def __init__(self, repository: Repository, chain: Chain, rules: RetentionRules) -> None:
        self._repository, self._chain, self._rules = repository, chain, rules
        self._known: dict[str, Candidate] = {}
        """Committed checkpoints by the name of their manifest."""

    def kept_sequences(self, head: ChainRecord, now: datetime) -> set[int]:
        """Return the sequences of the checkpoints to keep. Raises the store's errors."""
        prefix = len(MANIFESTS)
        stored = {info.key[prefix:]: info.size for info in self._repository.store.list(MANIFESTS)}
        self._known = {name: each for name, each in self._known.items() if name in stored}
        self._find({name: size for name, size in stored.items() if name not in self._known}, head)
        stay = kept(self._known.values(), self._rules, now)
        return {each.sequence for each in self._known.values() if each.name in stay}

    def _find(self, unknown: Mapping[str, int], head: ChainRecord) -> None:
        """Find the records of these manifests. One that has none was never committed."""
        manifests = {name: self._manifest(name, size) for name, size in unknown.items()}
        for name, manifest in manifests.items():
            first = manifest.parent.sequence + 1 if manifest is not None and manifest.parent else 1
            last = min(first + NEAR, head.record.sequence + 1)
            near = (self._chain.record(sequence) for sequence in range(first, last))
            found = next((each for each in near if _commits(each, name)), None)
            if found is not None:
                self._known[name] = _candidate(found, manifest)
        missing = unknown.keys() - self._known.keys()
        for each in self._chain.back(head, head.record.sequence) if missing else ():
            record = each.record
            if record.kind == "checkpoint" and record.manifest is not None and record.manifest.name in missing:
                self._known[record.manifest.name] = _candidate(record, manifests[record.manifest.name])
                missing -= {record.manifest.name}
            if not missing:
                break

    def _manifest(self, name: str, size: int) -> Manifest | None:
        """Return the manifest; None if it is damaged, or no longer there."""
        try:
            return self._repository.read_manifest(name, size)
        except (IntegrityError, ObjectMissing):
            return None


def _commits(record: CommitRecord, manifest: str) -> bool:
    return record.kind == "checkpoint" and record.manifest is not None and record.manifest.name == manifest


def _candidate(record: CommitRecord, manifest: Manifest | None) -> Candidate:
    name, time = str(record.sequence), time_of(record.time)
    if manifest is None:
        return Candidate(name, record.sequence, time)
    losses = tuple(each.sequence for each in manifest.shrinkages)
    return Candidate(name, record.sequence, time, manifest.size.stored, manifest.size.uploaded, losses)
