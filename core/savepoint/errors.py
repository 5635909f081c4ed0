"""Every error that Savepoint raises deliberately, in one tree. Standard library only.

An adapter to an outside system translates that system's errors into these, chains the cause, and states what happened,
to which object, and what to do next. ``reason`` is the CamelCase word that conditions, Events and docs/reasons/ use.

::

    SavepointError
    ├── ObjectExists · ObjectMissing · StoreUnavailable · StoreDenied · StoreMisconfigured
    ├── IntegrityError ── RollbackDetected
    ├── FormatTooNew · KeyMismatch · NotAdopted · Superseded
    ├── NoSpace · StateTooLarge · TargetNotEmpty · TargetUnusable · RunAsUserRequired
    ├── AgentNameTaken · StateLeftBehind · StatePathInvalid
    ├── QuiesceTimeout · StageFull · StateUnstable · DeadlineExceeded
    └── Unavailable · Refused
"""

import errno
from typing import ClassVar, Final

from savepoint.contract.vocabulary import Reason

DISK_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a file system that has no room for what is written: full, over quota, or beyond a size limit."""


class SavepointError(Exception):
    """The root: ``except savepoint.SavepointError`` catches everything that this project raises deliberately."""

    reason: ClassVar[str] = Reason.ERROR

    @property
    def code(self) -> str:
        """The reason of this error; it differs from the class's reason if the operator refused with another one."""
        return self.reason


class ObjectExists(SavepointError):
    """A conditional write found that the key is taken."""

    reason = Reason.OBJECT_EXISTS


class ObjectMissing(SavepointError):
    """The store itself reports that the object does not exist. Never raised for a store that cannot be reached."""

    reason = Reason.OBJECT_MISSING


class StoreUnavailable(SavepointError):
    """The store cannot be reached, or answered with a transient fault."""

    reason = Reason.STORE_UNAVAILABLE


class StoreDenied(SavepointError):
    """The store rejects the credentials or the permission."""

    reason = Reason.STORE_DENIED


class StoreMisconfigured(SavepointError):
    """The store answers but cannot be used: the bucket does not exist, or conditional writes are ignored."""

    reason = Reason.STORE_MISCONFIGURED


class IntegrityError(SavepointError):
    """Stored bytes are not what was written. ``object_key`` names the object."""

    reason = Reason.INTEGRITY_ERROR

    def __init__(self, message: str, object_key: str = "") -> None:
        super().__init__(message)
        self.object_key = object_key


class RollbackDetected(IntegrityError):
    """The chain in the store is older than the pinned record, or differs from it."""

    reason = Reason.ROLLBACK_DETECTED


class FormatTooNew(SavepointError):
    """The data was written by a newer version than this one can read."""

    reason = Reason.SCHEMA_TOO_NEW


class KeyMismatch(SavepointError):
    """The store was written under another master key."""

    reason = Reason.KEY_MISMATCH


class NotAdopted(SavepointError):
    """The store belongs to another cluster."""

    reason = Reason.NOT_ADOPTED


class Superseded(SavepointError):
    """Another incarnation holds a newer epoch, or another writer took the sequence."""

    reason = Reason.FENCED


class NoSpace(SavepointError):
    """The target has less free space than the checkpoint needs."""

    reason = Reason.NO_SPACE


class StateTooLarge(SavepointError):
    """The state exceeds what the format can hold."""

    reason = Reason.STATE_TOO_LARGE


class TargetNotEmpty(SavepointError):
    """A persistent target holds files that no marker of Savepoint accounts for."""

    reason = Reason.TARGET_NOT_EMPTY


class TargetUnusable(SavepointError):
    """The target cannot be written: it is read-only, failing, or on a file system that cannot hold the files."""

    reason = Reason.TARGET_UNUSABLE


class RunAsUserRequired(SavepointError):
    """Files belong to a uid that the sidecar does not run as. ``owner`` is that uid, if it is known."""

    reason = Reason.RUN_AS_USER_REQUIRED

    def __init__(self, message: str, owner: int | None = None) -> None:
        super().__init__(message)
        self.owner = owner


class AgentNameTaken(SavepointError):
    """The agent of this name has an unfinished run of another command."""

    reason = Reason.AGENT_NAME_TAKEN


class StateLeftBehind(SavepointError):
    """The checkpoint holds a state folder that this start neither restores nor drops."""

    reason = Reason.STATE_LEFT_BEHIND


class StatePathInvalid(SavepointError):
    """A path cannot be a state folder."""

    reason = Reason.STATE_PATH_INVALID


class QuiesceTimeout(SavepointError):
    """The agent did not reach a safe point in time; it was resumed."""

    reason = Reason.QUIESCE_TIMEOUT


class StageFull(SavepointError):
    """The stage volume has no room for what must be copied while the agent is paused."""

    reason = Reason.STAGE_FULL


class StateUnstable(SavepointError):
    """The state changed while it was read."""

    reason = Reason.STATE_UNSTABLE


class DeadlineExceeded(SavepointError):
    """The attempt did not finish before its deadline."""

    reason = Reason.DEADLINE_EXCEEDED


class Unavailable(SavepointError):
    """The operator (or the supervisor) cannot be reached now."""

    reason = Reason.UNAVAILABLE


class Refused(SavepointError):
    """The operator refused the request; ``code`` is its reason."""

    reason = Reason.REFUSED

    def __init__(self, message: str, code: str = Reason.REFUSED) -> None:
        super().__init__(message)
        self._code = code

    @property
    def code(self) -> str:
        """The operator's reason."""
        return self._code
