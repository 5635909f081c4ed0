"""The errors with which an attempt fails, from what its steps raise. Pure."""

import asyncio
from contextlib import suppress

from savepoint.errors import SavepointError, Unavailable

from savepoint_sidecar.agent_api.quiesce import Transaction
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt


def resumed_early(transaction: Transaction) -> SavepointError:
    """Return the error for an agent that resumed, or ended, before the capture was complete."""
    with suppress(asyncio.InvalidStateError):
        error = transaction.flushed.exception()
        if isinstance(error, SavepointError):
            return error
    return Unavailable("the agent resumed or ended before the capture was complete; this attempt is discarded")


def to_savepoint_error(cause: Exception, attempt: CaptureAttempt) -> SavepointError:
    """Return the error that explains ``cause``: itself, what ended the attempt, or Unavailable for the unexpected."""
    if isinstance(cause, SavepointError):
        return cause
    if isinstance(cause, TimeoutError):
        try:
            attempt.check()
        except SavepointError as error:
            return error
        if cause.errno is None:  # not of a file system
            return Unavailable("the store or the operator did not answer in time; this attempt is discarded")
    if isinstance(cause, OSError):
        return Unavailable(f"cannot read the agent's state: {cause.strerror or cause}")
    return Unavailable(
        f"the attempt failed unexpectedly: {type(cause).__name__}: {cause}; the agent continues. Report it as a bug, "
        "with the sidecar's log"
    )
