"""Progress output: the current step, how long it took, and how long it took last time.

A printer that keeps durations in timings.json; it does not schedule anything.
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

    def __init__(self, timings: Path) -> None:
        self._file = timings
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print one line."""
        with self._lock:
            print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce the step, run the body and print its duration. The duration of a failed step is not stored."""
        last = self._timings().get(name)
        self.say(f"{name}… ({'first time' if last is None else f'last time {last:.0f} s'})")
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self.say(f"{name}: done in {seconds:.1f} s")
        self._store(name, seconds)

    def _timings(self) -> dict[str, float]:
        try:
            return {str(name): float(seconds) for name, seconds in json.loads(self._file.read_text()).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}  # without a readable file only "last time" is missing from the output

    def _store(self, name: str, seconds: float) -> None:
        with self._lock:
            partial = self._file.with_suffix(".half")
            partial.write_text(json.dumps({**self._timings(), name: round(seconds, 1)}, indent=1, sort_keys=True))
            partial.replace(self._file)
