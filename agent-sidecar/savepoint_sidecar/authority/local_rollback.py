"""The rollback of ``savepoint run --from``: to an older checkpoint that is whole. Blocking.

What it replaces on disk is decided elsewhere; the later checkpoints stay in the store until they are collected.
"""

from collections.abc import Callable, Iterator
from typing import Final

from savepoint.contract.vocabulary import Reason
from savepoint.errors import IntegrityError, ObjectMissing, Refused
from savepoint.repository.format.commit import ChainRecord, CommitRecord
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.format.object_keys import manifest_key
from savepoint.repository.history import lineage
from savepoint.repository.history.chain import Chain
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.verify import verify
from savepoint.repository.repository import Repository

LISTED: Final = 12


def roll_back(
    repository: Repository,
    chain: Chain,
    head: ChainRecord | None,
    checkpoint: str,
    *,
    accept: Callable[[Manifest], object],
    time: str,
) -> ChainRecord:
    """Record that the agent continues from this checkpoint; return the new head.

    Every byte of the checkpoint is read first, so that a run which starts from it cannot fail because of the store.

    Raises:
        Refused: The agent has no checkpoint of this name, or it was deleted; the message lists the others.
        IntegrityError: The checkpoint is damaged. Nothing is recorded.
        SavepointError: What ``accept`` raises. Nothing is recorded.
    """
    records = [] if head is None else list(_checkpoints(chain, head))
    found = next((each for each in records if each.name == checkpoint), None)
    if head is None or found is None or found.manifest is None or not _is_stored(repository, found):
        names = [str(each.name) for each in records if _is_stored(repository, each)][:LISTED]
        raise Refused(
            f"{repository.agent} has no checkpoint {checkpoint!r:.80}; it can start from: {', '.join(names) or 'none'}",
            Reason.CHECKPOINT_NOT_FOUND,
        )
    try:
        manifest = repository.read_manifest(found.manifest.name, found.manifest.size)
        with CheckpointReader(repository.store, repository.key, manifest) as reader:
            problems = verify(reader)
    except ObjectMissing as error:
        raise IntegrityError(f"checkpoint {checkpoint} is not whole either: {error}") from error
    if problems:
        raise IntegrityError(
            f"checkpoint {checkpoint} is not whole either: {problems[0].message}; choose an older one",
            problems[0].object_key,
        )
    accept(manifest)
    return lineage.rollback(chain, head, found.manifest, time)


def _checkpoints(chain: Chain, head: ChainRecord) -> Iterator[CommitRecord]:
    """Yield the checkpoint records, newest first."""
    return (each.record for each in chain.back(head, head.record.sequence) if each.record.kind == "checkpoint")


def _is_stored(repository: Repository, record: CommitRecord) -> bool:
    return record.manifest is not None and repository.store.head(manifest_key(record.manifest.name)) is not None
