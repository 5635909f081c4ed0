"""Presigned URLs as a sidecar keeps them: for exact keys, each until its time, some kept in reserve.

A book that threads read; whoever fills it asks the operator. It neither dials nor signs, and prints no URL.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from savepoint.contract.control_protocol import URL_KEYS_MAX, Urls

MARGIN_SECONDS: Final = 60.0
"""A URL is not used any more so shortly before it ends."""
RESERVE: Final = 8
EXPECTED_MAX: Final = 4096


@dataclass(frozen=True)
class _Url:
    url: str = field(repr=False)
    taken_at: float
    ends_at: float


class UrlBook:
    """URLs by key; ``monotonic`` judges them."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._put: dict[str, _Url] = {}
        self._get: dict[str, _Url] = {}
        self._reserved: list[str] = []
        self._expected: dict[str, None] = {}

    def add(self, urls: Urls) -> None:
        """Take what the operator signed."""
        now = self._monotonic()
        ends_at = now + urls.expires_seconds
        with self._lock:
            self._forget(now)
            for table, fresh in ((self._put, urls.put), (self._get, urls.get)):
                table.update({key: _Url(url, now, ends_at) for key, url in fresh.items()})

    def add_put(self, key: str, url: str, seconds: float) -> None:
        """Take one URL that came by another way."""
        now = self._monotonic()
        with self._lock:
            self._put[key] = _Url(url, now, now + seconds)

    def put_url(self, key: str) -> str | None:
        """A URL that creates the object, if one is at hand."""
        return self._find(self._put, key)

    def get_url(self, key: str) -> str | None:
        """A URL that reads the object, if one is at hand."""
        return self._find(self._get, key)

    def forget(self, key: str) -> None:
        """The store refuses this key's URLs."""
        with self._lock:
            self._put.pop(key, None)
            self._get.pop(key, None)

    def forget_reads(self) -> None:
        """The store was not reached by these URLs: it may have moved."""
        with self._lock:
            self._get.clear()

    def expect(self, keys: Iterable[str]) -> None:
        """These objects may be read at any time, the operator reachable or not; it replaces what was expected."""
        with self._lock:
            self._expected = dict.fromkeys(list(keys)[:EXPECTED_MAX])

    def wanted_reads(self, first: str = "") -> list[str]:
        """One message's worth of expected keys that lack a URL or whose URL is past half its life, after ``first``."""
        now = self._monotonic()
        with self._lock:
            stale = [key for key in self._expected if key != first and self._is_stale(self._get.get(key), now)]
        return [*([first] if first else []), *stale][:URL_KEYS_MAX]

    def reserve(self, name: str) -> None:
        """The pack of this name may be written later; its URL is in the book."""
        with self._lock:
            self._reserved.append(name)

    def take_reserved(self) -> str | None:
        """A pack's name whose URL is at hand, and which nobody else gets."""
        now = self._monotonic()
        with self._lock:
            while self._reserved:
                name = self._reserved.pop()
                found = self._put.get(f"packs/{name}")
                if found is not None and found.ends_at - MARGIN_SECONDS > now:
                    return name
        return None

    def reserve_missing(self) -> int:
        """How many names the reserve lacks; names past half their life are dropped from it."""
        now = self._monotonic()
        with self._lock:
            self._reserved = [
                name for name in self._reserved if not self._is_stale(self._put.get(f"packs/{name}"), now)
            ]
            return RESERVE - len(self._reserved)

    def _find(self, table: dict[str, _Url], key: str) -> str | None:
        with self._lock:
            found = table.get(key)
        return found.url if found is not None and found.ends_at - MARGIN_SECONDS > self._monotonic() else None

    @staticmethod
    def _is_stale(url: _Url | None, now: float) -> bool:
        return url is None or now > (url.taken_at + url.ends_at) / 2

    def _forget(self, now: float) -> None:
        for table in (self._put, self._get):
            for key in [key for key, url in table.items() if url.ends_at < now]:
                del table[key]
