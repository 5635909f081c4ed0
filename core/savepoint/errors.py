"""Every error Savepoint raises on purpose, in one tree. Standard library only.

It is not the place of messages for one door: a door translates what it met into one of these, chains the cause, and
says what happened, to which object, and what to do next. ``reason`` is the CamelCase word that conditions, Events and
docs/reasons/ use.

::

    SavepointError
    ├── ObjectExists · ObjectMissing · StoreUnavailable · StoreDenied · StoreMisconfigured
    ├── IntegrityError ── RollbackDetected
    ├── FormatTooNew · KeyMismatch · NotAdopted · Superseded
    ├── NoSpace · StateTooLarge · TargetNotEmpty · TargetUnusable · RunAsUserRequired
    ├── QuiesceTimeout · StageFull · StateUnstable · DeadlineExceeded
    └── Unavailable · Refused
"""

from typing import ClassVar


class SavepointError(Exception):
    """The root: ``except savepoint.SavepointError`` catches everything this project raises on purpose."""

    reason: ClassVar[str] = "Error"


class ObjectExists(SavepointError):
    """A conditional write found the key taken."""

    reason = "ObjectExists"


class ObjectMissing(SavepointError):
    """The store said, itself, that the object is not there. Never raised for a store that could not be asked."""

    reason = "ObjectMissing"


class StoreUnavailable(SavepointError):
    """The store could not be reached, or answered with a fault that may pass."""

    reason = "StoreUnavailable"


class StoreDenied(SavepointError):
    """The store refused the credentials or the permission."""

    reason = "StoreDenied"


class StoreMisconfigured(SavepointError):
    """The store answers but cannot be used: no such bucket, or conditional writes are ignored."""

    reason = "StoreMisconfigured"


class IntegrityError(SavepointError):
    """Stored bytes are not what was written. ``object_key`` names the object."""

    reason = "IntegrityError"

    def __init__(self, message: str, object_key: str = "") -> None:
        super().__init__(message)
        self.object_key = object_key


class RollbackDetected(IntegrityError):
    """The chain in the store is older than, or differs from, the record that was pinned."""

    reason = "RollbackDetected"


class FormatTooNew(SavepointError):
    """Written by a newer version than this one can read."""

    reason = "SchemaTooNew"


class KeyMismatch(SavepointError):
    """The store was written under another master key."""

    reason = "KeyMismatch"


class NotAdopted(SavepointError):
    """The store belongs to another cluster."""

    reason = "NotAdopted"


class Superseded(SavepointError):
    """Another incarnation holds a newer epoch, or another writer took the sequence."""

    reason = "Fenced"


class NoSpace(SavepointError):
    """The target has less free space than the checkpoint needs."""

    reason = "NoSpace"


class StateTooLarge(SavepointError):
    """The state needs more than the format can hold."""

    reason = "StateTooLarge"


class TargetNotEmpty(SavepointError):
    """A persistent target holds files that no marker of ours explains."""

    reason = "TargetNotEmpty"


class TargetUnusable(SavepointError):
    """The target cannot be written: read-only, failing, or of a file system that cannot hold the files."""

    reason = "TargetUnusable"


class RunAsUserRequired(SavepointError):
    """Files belong to a uid that the sidecar does not run as."""

    reason = "RunAsUserRequired"


class QuiesceTimeout(SavepointError):
    """The agent did not reach a safe point in time; it was resumed."""

    reason = "QuiesceTimeout"


class StageFull(SavepointError):
    """The stage volume has no room for what must be copied during the pause."""

    reason = "StageFull"


class StateUnstable(SavepointError):
    """What was read changed while it was read."""

    reason = "StateUnstable"


class DeadlineExceeded(SavepointError):
    """The attempt did not end within its bound."""

    reason = "DeadlineExceeded"


class Unavailable(SavepointError):
    """The operator (or the supervisor) cannot be reached now."""

    reason = "Unavailable"


class Refused(SavepointError):
    """The operator refused, with a reason of its own (``code``)."""

    reason = "Refused"

    def __init__(self, message: str, code: str = "Refused") -> None:
        super().__init__(message)
        self.code = code
