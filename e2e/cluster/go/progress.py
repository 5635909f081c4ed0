"""Progress output of the builders.

It is not a log: the compiler's output is stored next to its binaries.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol


class Progress(Protocol):
    """Interface through which a builder reports what it is doing."""

    def update(self, text: str) -> None:
        """Show the current activity; it replaces the previous one."""

    def done(self, text: str) -> None:
        """Show what has finished; the line stays."""


class Screen:
    """Progress on stderr: on a terminal one line that is rewritten, otherwise one line every half minute."""

    def __init__(self, quiet_seconds: float = 30) -> None:
        self._quiet_seconds = quiet_seconds
        self._last_printed = float("-inf")

    def update(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._last_printed >= self._quiet_seconds:
            self._last_printed = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def done(self, text: str) -> None:
        self._last_printed = float("-inf")
        print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
