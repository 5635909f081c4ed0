"""Named points at which a test may kill the process, as kill -9 would. They do nothing unless a test sets one.

``SAVEPOINT_FAILPOINT=name`` kills at the first pass of the point, ``name:3`` at the third.
"""

import os
import signal
from collections.abc import Sequence
from typing import Final

from savepoint.storage import BlobWriter, Buffer

NAMES: Final = (
    "before-quiesce",
    "after-quiesce",
    "while-quiesced",
    "while-storing",
    "between-puts",
    "before-manifest",
    "before-offer",
    "after-commit",
    "after-result",
    "restore-begin",
    "restore-cleared",
    "restore-marked",
    "restore-half",
    "restore-written",
    "restore-before-ready",
)


class Failpoints:
    """The failpoint that is set, if any, and the number of times that it is reached before it kills the process."""

    def __init__(self, setting: str = "") -> None:
        """Parse the value of SAVEPOINT_FAILPOINT. Raise ValueError for an unknown name."""
        name, _, count = setting.partition(":")
        if name and name not in NAMES:
            raise ValueError(f"no failpoint {name!r}; known failpoints: {', '.join(NAMES)}")
        self._name, self._remaining = name, int(count or 1)

    def reach(self, name: str) -> None:
        """Kill this process if ``name`` is set and its count is used up."""
        if name != self._name:
            return
        self._remaining -= 1
        if self._remaining <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class FailpointWriter:
    """A blob writer that reaches the failpoint ``between-puts`` before each object."""

    def __init__(self, writer: BlobWriter, failpoints: Failpoints) -> None:
        self._writer, self._failpoints = writer, failpoints

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object."""
        self._failpoints.reach("between-puts")
        self._writer.put_new(key, data)
