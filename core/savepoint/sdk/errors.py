"""The errors an agent's developer meets, as leaves of ``savepoint.SavepointError``. Standard library only.

It holds no message: each is raised with what happened, to which object, and what to do next.

::

    SavepointError
    ├── StepChanged · LoopKeyRepeated · NotEncodable · NotAtSafePoint
    ├── EffectUncertain · SessionInUse · RestoreFailed
    └── from savepoint.errors: Unavailable · QuiesceTimeout · StageFull · DeadlineExceeded · Superseded · Refused
"""

from typing import Final

from savepoint import errors
from savepoint.errors import SavepointError


class StepChanged(SavepointError):
    """A recorded step, effect or loop was asked for with other arguments."""

    reason = "StepChanged"


class LoopKeyRepeated(SavepointError):
    """A loop's items gave the same key twice."""

    reason = "LoopKeyRepeated"


class NotEncodable(SavepointError):
    """A value cannot be saved. ``path`` says where it stands, for example ``$.notes[3].owner``."""

    reason = "NotEncodable"

    def __init__(self, message: str, path: str = "$") -> None:
        super().__init__(message)
        self.path = path


class NotAtSafePoint(SavepointError):
    """A checkpoint was asked for where none can be taken: inside ``critical()``."""

    reason = "NotAtSafePoint"


class EffectUncertain(SavepointError):
    """An effect was sent before and never confirmed. ``effect_id`` is the id it was sent under."""

    reason = "EffectUncertain"

    def __init__(self, message: str, effect_id: str = "") -> None:
        super().__init__(message)
        self.effect_id = effect_id


class SessionInUse(SavepointError):
    """Another live session holds this agent, or a forked child used its parent's."""

    reason = "SessionInUse"


class RestoreFailed(SavepointError):
    """The state could not be brought back, or is not what the program asks for."""

    reason = "RestoreFailed"


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
    """The error for a reason that came over the socket; ``Refused`` for one that has no class of its own."""
    cls = _BY_REASON.get(reason)
    return errors.Refused(message or reason, reason) if cls is None else cls(message or reason)
