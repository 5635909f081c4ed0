"""Waiting for a condition that another task, thread or process brings about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")


async def until(condition: Callable[[], object], seconds: float = 30, message: Callable[[], str] | str = "") -> None:
    """Wait on the event loop until the condition holds. The message explains a timeout."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message() if callable(message) else message
        await asyncio.sleep(0.01)


def wait_until(expectation: str, condition: Callable[[], T | Literal[False] | None], seconds: float = 30) -> T:
    """Block until the condition returns something true, and return it. ``expectation`` is the message of a timeout."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {expectation}"
        time.sleep(0.05)
    return found


async def eventually(expectation: str, condition: Callable[[], T | Literal[False] | None], seconds: float = 30) -> T:
    """Like ``wait_until``, but call the blocking condition in a thread, so that the event loop keeps running."""
    end = time.monotonic() + seconds
    while not (found := await asyncio.to_thread(condition)):
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {expectation}"
        await asyncio.sleep(0.05)
    return found
