"""Steps on the screen: what is under way, how long it has taken and how long it took last time.

What it is: a printer with a small memory (timings.json). What it is not: a scheduler.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Steps:
    """Prints to stderr, from any thread; every line starts with the seconds since the command began."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        with self._lock:
            print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce name, run the body, say how long it took. A failed step is not remembered."""
        last = self._timings().get(name)
        self.say(f"{name} ... ({'first time' if last is None else f'last time {last:.0f} s'})")
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self.say(f"{name}: done in {seconds:.1f} s")
        self._remember(name, seconds)

    def _timings(self) -> dict[str, float]:
        try:
            return {str(name): float(seconds) for name, seconds in json.loads(self._memory.read_text()).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}  # a memory that cannot be read is only a screen without "last time"

    def _remember(self, name: str, seconds: float) -> None:
        with self._lock:
            half = self._memory.with_suffix(".half")
            half.write_text(json.dumps({**self._timings(), name: round(seconds, 1)}, indent=1, sort_keys=True))
            half.replace(self._memory)
