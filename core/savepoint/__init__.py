"""Durable recovery points for AI agents. ``import savepoint`` gives an agent its SDK and the errors, nothing else.

Names are loaded when they are first used. They need the standard library and this package alone, so an agent's image
needs no other dependency.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from savepoint.contract.agent_protocol import Restored
    from savepoint.errors import (
        DeadlineExceeded,
        FormatTooNew,
        IntegrityError,
        NoSpace,
        QuiesceTimeout,
        Refused,
        SavepointError,
        StageFull,
        StateUnstable,
        StoreDenied,
        StoreMisconfigured,
        StoreUnavailable,
        Superseded,
        Unavailable,
    )
    from savepoint.sdk.agent import Agent
    from savepoint.sdk.connect import connect
    from savepoint.sdk.effect import Operation, Uncertain
    from savepoint.sdk.encoding import register
    from savepoint.sdk.errors import (
        EffectUncertain,
        LoopKeyRepeated,
        NotAtSafePoint,
        NotEncodable,
        RestoreFailed,
        SessionInUse,
        StepChanged,
    )
    from savepoint.sdk.tensors import Tensor

__all__ = [
    "Agent",
    "DeadlineExceeded",
    "EffectUncertain",
    "FormatTooNew",
    "IntegrityError",
    "LoopKeyRepeated",
    "NoSpace",
    "NotAtSafePoint",
    "NotEncodable",
    "Operation",
    "QuiesceTimeout",
    "Refused",
    "RestoreFailed",
    "Restored",
    "SavepointError",
    "SessionInUse",
    "StageFull",
    "StateUnstable",
    "StepChanged",
    "StoreDenied",
    "StoreMisconfigured",
    "StoreUnavailable",
    "Superseded",
    "Tensor",
    "Unavailable",
    "Uncertain",
    "connect",
    "register",
]

_MODULES: Final = {
    "Agent": "savepoint.sdk.agent",
    "Operation": "savepoint.sdk.effect",
    "Restored": "savepoint.contract.agent_protocol",
    "Tensor": "savepoint.sdk.tensors",
    "Uncertain": "savepoint.sdk.effect",
    "connect": "savepoint.sdk.connect",
    "register": "savepoint.sdk.encoding",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'savepoint' has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "savepoint.sdk.errors")), name, None)
    if value is None:
        value = getattr(import_module("savepoint.errors"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
