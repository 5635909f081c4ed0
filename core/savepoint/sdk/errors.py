"""The errors that the SDK raises to an agent's program. Standard library only.

The classes hold no texts: each error is raised with what happened, to which object, and what to do next.

::

    SavepointError
    ├── StepChanged · LoopKeyRepeated · NotEncodable · NotAtSafePoint
    ├── EffectUncertain · SessionInUse · RestoreFailed
    └── from savepoint.errors: Unavailable · QuiesceTimeout · StageFull · DeadlineExceeded · Superseded · Refused
"""

from typing import Final

from savepoint import errors
from savepoint.contract.vocabulary import Reason
from savepoint.errors import SavepointError


class StepChanged(SavepointError):
    """A recorded step was called with other arguments."""

    reason = Reason.STEP_CHANGED


class LoopKeyRepeated(SavepointError):
    """Two items of a loop have the same key."""

    reason = Reason.LOOP_KEY_REPEATED


class NotEncodable(SavepointError):
    """A value cannot be saved.

    Attributes:
        path: Position of the value, for example ``notes.notes[3].owner``.
    """

    reason = Reason.NOT_ENCODABLE

    def __init__(self, message: str, path: str = "$") -> None:
        super().__init__(message)
        self.path = path


class NotAtSafePoint(SavepointError):
    """``checkpoint()`` or ``finish()`` was called inside ``critical()``, where no checkpoint can be taken."""

    reason = Reason.NOT_AT_SAFE_POINT


class EffectUncertain(SavepointError):
    """An effect was sent before and never confirmed.

    Attributes:
        effect_id: The id under which the effect was sent.
    """

    reason = Reason.EFFECT_UNCERTAIN

    def __init__(self, message: str, effect_id: str = "") -> None:
        super().__init__(message)
        self.effect_id = effect_id


class SessionInUse(SavepointError):
    """Another live process is connected as this agent, or a forked child used its parent's session."""

    reason = Reason.SESSION_IN_USE


class RestoreFailed(SavepointError):
    """The state could not be restored, or its type differs from the one that the program expects."""

    reason = Reason.RESTORE_FAILED


_BY_REASON: Final[dict[str, type[SavepointError]]] = {
    cls.reason: cls
    for cls in (
        NotEncodable,
        SessionInUse,
        RestoreFailed,
        errors.Unavailable,
        errors.QuiesceTimeout,
        errors.StageFull,
        errors.StateUnstable,
        errors.DeadlineExceeded,
        errors.Superseded,
        errors.IntegrityError,
        errors.FormatTooNew,
        errors.NoSpace,
        errors.StoreUnavailable,
        errors.StoreDenied,
        errors.StoreMisconfigured,
    )
}


def from_reason(reason: str, message: str) -> SavepointError:
    """Return the error for a reason received over the socket; ``Refused`` if the reason has no class of its own."""
    cls = _BY_REASON.get(reason)
    return errors.Refused(message or reason, reason) if cls is None else cls(message or reason)
