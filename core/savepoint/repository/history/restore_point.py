"""The checkpoint that a chain would restore. Shared by every authority: the operator and ``savepoint run``.

A damaged or missing commit record is always an error here, never an empty answer: an agent that started from nothing
because of one would lose its state.
"""

from dataclasses import replace

from savepoint.contract.control_protocol import CheckpointRef, ObjectName
from savepoint.errors import IntegrityError
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.format.object_keys import commit_key
from savepoint.repository.history.chain import Chain


def restore_point(chain: Chain, head: ChainRecord) -> CheckpointRef | None:
    """Return the checkpoint that the head restores, which is also the parent of the next checkpoint. Blocking.

    The reference carries the sequence of the record that made it the restore point: the checkpoint's own, or that of a
    later rollback to it. Usually the walk ends after a few records; after a rollback it reaches back to the chosen
    checkpoint, however old.

    Args:
        chain: The agent's chain.
        head: The record to start from, normally the newest.

    Returns:
        The checkpoint, or None if the head names no manifest: the agent starts from nothing.

    Raises:
        IntegrityError: A record on the way is missing, damaged or not linked to the next, or no record of the chain
            committed the manifest that the head names.
        StoreUnavailable, StoreDenied, StoreMisconfigured: The store cannot be read.
    """
    target = head.record.manifest
    if target is None:
        return None
    chosen_at: int | None = None
    for each in chain.back(head, head.record.sequence):
        if chosen_at is None and each.record.kind in ("checkpoint", "rollback"):
            chosen_at = each.record.sequence
        if each.record.kind == "checkpoint" and each.record.manifest == target:
            return replace(checkpoint_ref(each, sequence=chosen_at), rolled_back=chosen_at != each.record.sequence)
    key = commit_key(head.record.sequence)
    raise IntegrityError(
        f"{key} of {chain.namespace}/{chain.agent} names manifest {target.name}, which no checkpoint record of its "
        "chain committed: the store was changed or is damaged",
        key,
    )


def checkpoint_ref(head: ChainRecord, *, sequence: int | None = None) -> CheckpointRef:
    """Return the checkpoint that this record committed, as protocol messages name it.

    Args:
        head: A checkpoint record.
        sequence: The sequence to report instead of the record's own.

    Raises:
        IntegrityError: The record names no manifest or no checkpoint.
    """
    record = head.record
    if record.manifest is None or record.name is None:
        key = commit_key(record.sequence)
        raise IntegrityError(f"{key} of {record.namespace}/{record.agent} names no checkpoint", key)
    manifest = ObjectName(record.manifest.name, record.manifest.size)
    at = record.sequence if sequence is None else sequence
    return CheckpointRef(record.name, record.number, at, record.time, manifest)
