"""Durable recovery points for AI agents. ``import savepoint`` gives an agent its SDK and the errors, nothing else.

Names are loaded when they are first used, and what they load is the standard library and this package: an agent's image
needs no dependency of ours.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from savepoint.agent.agent import Agent
    from savepoint.agent.connect import connect
    from savepoint.agent.effect import Operation, Uncertain
    from savepoint.agent.encoding import register
    from savepoint.agent.errors import (
        EffectUncertain,
        LoopKeyRepeated,
        NotAtSafePoint,
        NotEncodable,
        RestoreFailed,
        SessionInUse,
        StepChanged,
    )
    from savepoint.agent.tensors import Tensor
    from savepoint.contract.agent import Restored
    from savepoint.errors import (
        DeadlineExceeded,
        QuiesceTimeout,
        Refused,
        SavepointError,
        StageFull,
        StateUnstable,
        Superseded,
        Unavailable,
    )

__all__ = [
    "Agent",
    "DeadlineExceeded",
    "EffectUncertain",
    "LoopKeyRepeated",
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
    "Superseded",
    "Tensor",
    "Unavailable",
    "Uncertain",
    "connect",
    "register",
]

_MODULES: Final = {
    "Agent": "savepoint.agent.agent",
    "Operation": "savepoint.agent.effect",
    "Restored": "savepoint.contract.agent",
    "Tensor": "savepoint.agent.tensors",
    "Uncertain": "savepoint.agent.effect",
    "connect": "savepoint.agent.connect",
    "register": "savepoint.agent.encoding",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'savepoint' has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "savepoint.agent.errors")), name, None)
    if value is None:
        value = getattr(import_module("savepoint.errors"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
