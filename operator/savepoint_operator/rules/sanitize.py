"""What a pod says, brought within the bounds of what is shown of it: words, lengths, numbers. Pure.

A pod is not trusted: what it writes here goes into status, Events, metrics and logs, so a word stays a word, a stage
one that is known, and a number no less than nothing. What an offer claims is judged by ``attempt.offer_problem``.
"""

import re
from dataclasses import replace
from typing import Final

from savepoint.contract.control_protocol import FromPod, Heartbeat, Hello, Outcome, Progress, Released, Result

from savepoint_operator.rules.status.checkpoint_status import RUNNING

MESSAGE_MOST: Final = 2048
DETAIL_MOST: Final = 256
VERSION_MOST: Final = 64
ATTEMPTS_MOST: Final = 8
MILLISECONDS_MOST: Final = 10 * 365 * 24 * 3600 * 1000
STAGES: Final = RUNNING | {"Restoring", "Fetching"}

_WORD: Final = re.compile(r"[A-Z][A-Za-z]{1,63}")


def heard(message: FromPod) -> FromPod:  # noqa: PLR0911 - one return per message
    """The same message within bounds."""
    match message:
        case Hello():
            return replace(
                message, version=text(message.version, VERSION_MOST), attempts=message.attempts[:ATTEMPTS_MOST]
            )
        case Heartbeat():
            return replace(message, detail=text(message.detail, DETAIL_MOST))
        case Progress():
            return Progress(
                message.attempt,
                message.stage if message.stage in STAGES else "",
                min(max(message.percent, 0), 100),
                max(message.bytes_done, 0),
                max(message.bytes_total, 0),
                _failure(message.reason, "Unavailable") if message.reason else "",
                text(message.message, MESSAGE_MOST),
            )
        case Result():
            return _result(message)
        case Released():
            return replace(message, message=text(message.message, MESSAGE_MOST))
        case Outcome():
            return Outcome(
                _failure(message.outcome, "RestoreFailed"),
                text(message.message, MESSAGE_MOST),
                text(message.object_key, MESSAGE_MOST),
                max(message.bytes_restored, 0),
                min(max(message.milliseconds, 0), MILLISECONDS_MOST),
                message.config_changed,
            )
    return message


def text(value: str, most: int) -> str:
    """At most so many characters, all of which can be written."""
    return value[:most].encode("utf-8", "replace").decode()


def _result(result: Result) -> Result:
    pause = result.pause_milliseconds
    return Result(
        result.attempt,
        "Unchanged" if result.outcome == "Unchanged" else "Failed",
        _failure(result.reason, "Failed") if result.reason else "",
        text(result.message, MESSAGE_MOST),
        None if pause is None else min(max(pause, 0), MILLISECONDS_MOST),
    )


def _failure(word: str, otherwise: str) -> str:
    """The word, unless it is none, or says that something goes on or is ready."""
    said_by_others = word in STAGES or word in ("Ready", "Unchanged")
    return word if _WORD.fullmatch(word) and not said_by_others else otherwise
