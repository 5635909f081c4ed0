"""Where a builder says what it is doing.

What it is: a protocol and its screen. What it is not: a log; the compiler's own words lie beside its binaries.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol


class Progress(Protocol):
    """Where the builder says what it is doing."""

    def update(self, text: str) -> None:
        """What is under way now; each replaces the last."""

    def done(self, text: str) -> None:
        """What has finished; stays."""


class Screen:
    """Progress on stderr: one line that rewrites itself on a terminal, else a line every half minute."""

    def __init__(self, quiet_seconds: float = 30) -> None:
        self._quiet_seconds = quiet_seconds
        self._spoke = float("-inf")

    def update(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._spoke >= self._quiet_seconds:
            self._spoke = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def done(self, text: str) -> None:
        self._spoke = float("-inf")
        print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
