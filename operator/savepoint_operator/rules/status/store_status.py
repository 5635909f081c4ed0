"""Conditions of a store, and the text of unexpected errors. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from savepoint.contract.vocabulary import Reason
from savepoint.errors import KeyMismatch, NotAdopted, SavepointError, StoreMisconfigured

from savepoint_operator.rules.status.conditions import Condition

RETAINED: Final = "Retained"

NEXT_STEP: Final[Mapping[str, str]] = {
    Reason.STORE_DENIED: "Check the Secret named in spec.s3.credentialsSecretName and its user's permissions below the "
    "prefix; the operator checks both again automatically.",
    Reason.STORE_UNAVAILABLE: "Earlier checkpoints are safe, and the operator retries every 15 s. If this lasts, check "
    "spec.s3.endpoint and whether the operator's pod can reach it.",
}
"""The remedy for reasons whose messages do not include one."""


def conditions(error: SavepointError | None) -> tuple[Condition, ...]:
    """Return Available, ConditionalWrites if it is known, and Ready, which is always the last one."""
    available = Condition.of("Available", True, Reason.REACHABLE, "The store answers.")
    if error is None:
        supported = "Conditional writes (If-None-Match) are supported."
        return (
            available,
            Condition.of("ConditionalWrites", True, Reason.SUPPORTED, supported),
            Condition.of("Ready", True, Reason.READY, "The store accepts checkpoints."),
        )
    message = _with_next_step(error)
    ready = Condition.of("Ready", False, error.reason, message)
    if isinstance(error, KeyMismatch | NotAdopted):
        return available, ready
    if isinstance(error, StoreMisconfigured) and "If-None-Match" in message:
        return available, Condition.of("ConditionalWrites", False, Reason.IGNORED, message), ready
    not_probed = "The store could not be probed. See condition Ready."
    return (
        Condition.of("Available", False, error.reason, message),
        Condition.of("ConditionalWrites", None, Reason.NOT_PROBED, not_probed),
        ready,
    )


def retained(rules: Sequence[str] | SavepointError) -> Condition:
    """Return condition Retained, from the rules that make objects unreadable or why they cannot be read."""
    if isinstance(rules, SavepointError):
        message = (
            f"The bucket's lifecycle rules cannot be read ({rules.reason}), so it is unknown whether objects expire. "
            "Allow s3:GetLifecycleConfiguration on the bucket, or check its rules yourself."
        )
        return Condition.of(RETAINED, None, Reason.LIFECYCLE_UNKNOWN, message)
    if not rules:
        message = "No lifecycle rule of the bucket deletes or archives the store's objects."
        return Condition.of(RETAINED, True, Reason.NOTHING_EXPIRES, message)
    message = (
        f"Objects that checkpoints need will be lost, whatever their age: {'; '.join(rules)}. Remove the lifecycle "
        "rule, or limit it to another prefix; retention is set by spec.retention of the policy."
    )
    return Condition.of(RETAINED, False, Reason.OBJECTS_EXPIRE, message)


def _with_next_step(error: SavepointError) -> str:
    message, step = str(error), NEXT_STEP.get(error.reason)
    return f"{message}. {step}" if step else message


def stable_text(error: Exception) -> str:
    """Return an unexpected error as one line that is the same each time, without addresses and signed queries."""
    text = re.sub(r"0x[0-9a-f]+", "0x…", re.sub(r"\?\S+", "?…", " ".join(str(error).split())))
    return f"{type(error).__name__}: {text:.300}" if text else type(error).__name__
