"""Bounds the text, numbers and reasons in a pod's messages before they are shown anywhere. Pure.

A pod is not trusted, and its messages end up in status, Events, metrics and logs: a reason must look like one, a phase
must be known, and numbers must not be negative. ``attempt.offer_problem`` checks what an offer claims.
"""

import re
from dataclasses import replace
from typing import Final

from savepoint.contract.control_protocol import FromPod, Heartbeat, Hello, Outcome, Progress, Released, Replaced, Result
from savepoint.contract.vocabulary import CheckpointOutcome, Reason, RestorePhase

from savepoint_operator.rules.status.checkpoint_status import RUNNING

MAX_MESSAGE: Final = 2048
MAX_DETAIL: Final = 256
MAX_VERSION: Final = 64
MAX_ATTEMPTS: Final = 8
MAX_PATH: Final = 256
MAX_REPLACED_FOLDERS: Final = 16
MAX_REPLACED_NAMES: Final = 10
MAX_MILLISECONDS: Final = 10 * 365 * 24 * 3600 * 1000
PHASES: Final = RUNNING | frozenset(RestorePhase)

_REASON: Final = re.compile(r"[A-Z][A-Za-z]{1,63}")


def sanitized(message: FromPod) -> FromPod:  # noqa: PLR0911 - one return per message
    """Return the same message within bounds."""
    match message:
        case Hello():
            return replace(
                message, version=text(message.version, MAX_VERSION), attempts=message.attempts[:MAX_ATTEMPTS]
            )
        case Heartbeat():
            return replace(message, detail=text(message.detail, MAX_DETAIL))
        case Progress():
            return Progress(
                message.attempt,
                message.stage if message.stage in PHASES else "",
                min(max(message.percent, 0), 100),
                max(message.bytes_done, 0),
                max(message.bytes_total, 0),
                _failure(message.reason, Reason.UNAVAILABLE) if message.reason else "",
                text(message.message, MAX_MESSAGE),
            )
        case Result():
            return _result(message)
        case Released():
            return replace(message, message=text(message.message, MAX_MESSAGE))
        case Outcome():
            return Outcome(
                _failure(message.outcome, Reason.RESTORE_FAILED),
                text(message.message, MAX_MESSAGE),
                text(message.object_key, MAX_MESSAGE),
                max(message.bytes_restored, 0),
                min(max(message.milliseconds, 0), MAX_MILLISECONDS),
                message.config_changed,
                tuple(map(_replaced, message.replaced[:MAX_REPLACED_FOLDERS])),
            )
    return message


def _replaced(each: Replaced) -> Replaced:
    names = tuple(text(name, MAX_PATH) for name in each.names[:MAX_REPLACED_NAMES])
    return Replaced(text(each.path, MAX_PATH), max(each.entries, 0), names)


def text(value: str, limit: int) -> str:
    """Return at most ``limit`` characters of the value, without any that UTF-8 cannot encode."""
    return value[:limit].encode("utf-8", "replace").decode()


def _result(result: Result) -> Result:
    pause = result.pause_milliseconds
    unchanged = result.outcome == CheckpointOutcome.UNCHANGED
    return Result(
        result.attempt,
        CheckpointOutcome.UNCHANGED if unchanged else CheckpointOutcome.FAILED,
        _failure(result.reason, CheckpointOutcome.FAILED) if result.reason else "",
        text(result.message, MAX_MESSAGE),
        None if pause is None else min(max(pause, 0), MAX_MILLISECONDS),
        result.agent_uid,
    )


def _failure(reason: str, default: str) -> str:
    """Return the reason, or the default if it does not look like one or denotes progress or success."""
    not_a_failure = reason in PHASES or reason in (CheckpointOutcome.READY, CheckpointOutcome.UNCHANGED)
    return reason if _REASON.fullmatch(reason) and not not_a_failure else default
