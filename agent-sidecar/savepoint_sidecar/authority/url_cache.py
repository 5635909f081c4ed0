"""Presigned URLs that a sidecar holds: for exact keys, each until it expires, and a reserve for new packs.

Threads read the cache; another module fills it from the operator's answers. It opens no connection, signs nothing, and
never prints a URL.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from savepoint.contract.control_protocol import URL_KEYS_MAX, Urls

MARGIN_SECONDS: Final = 60.0
"""A URL that expires within this time is not used any more."""
RESERVE_SIZE: Final = 8
EXPECTED_KEYS_MAX: Final = 4096


@dataclass(frozen=True)
class _Url:
    url: str = field(repr=False)
    received_at: float
    expires_at: float


class UrlCache:
    """Presigned URLs by key. ``monotonic`` is the clock of their expiry."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._put: dict[str, _Url] = {}
        self._get: dict[str, _Url] = {}
        self._reserved: list[str] = []
        self._expected: dict[str, None] = {}

    def add(self, urls: Urls) -> None:
        """Add the URLs of one answer of the operator."""
        now = self._monotonic()
        expires_at = now + urls.expires_seconds
        with self._lock:
            self._remove_expired(now)
            for table, fresh in ((self._put, urls.put), (self._get, urls.get)):
                table.update({key: _Url(url, now, expires_at) for key, url in fresh.items()})

    def add_put(self, key: str, url: str, seconds: float) -> None:
        """Add one PUT URL that came in another message and is valid for ``seconds``."""
        now = self._monotonic()
        with self._lock:
            self._put[key] = _Url(url, now, now + seconds)

    def put_url(self, key: str) -> str | None:
        """Return a valid URL that creates the object, or None."""
        return self._find(self._put, key)

    def get_url(self, key: str) -> str | None:
        """Return a valid URL that reads the object, or None."""
        return self._find(self._get, key)

    def forget(self, key: str) -> None:
        """Remove this key's URLs, because the store refuses them."""
        with self._lock:
            self._put.pop(key, None)
            self._get.pop(key, None)

    def forget_reads(self) -> None:
        """Remove all GET URLs, because the store cannot be reached by them and may have moved."""
        with self._lock:
            self._get.clear()

    def expect(self, keys: Iterable[str]) -> None:
        """Replace the set of objects that may be read at any time, also while the operator is unreachable."""
        with self._lock:
            self._expected = dict.fromkeys(list(keys)[:EXPECTED_KEYS_MAX])

    def wanted_reads(self, first: str = "") -> list[str]:
        """Return keys to request in one message: ``first``, then expected keys whose URL is missing or half expired."""
        now = self._monotonic()
        with self._lock:
            stale = [key for key in self._expected if key != first and self._is_stale(self._get.get(key), now)]
        return [*([first] if first else []), *stale][:URL_KEYS_MAX]

    def reserve(self, name: str) -> None:
        """Add a pack name to the reserve; its PUT URL is already in the cache."""
        with self._lock:
            self._reserved.append(name)

    def take_reserved(self) -> str | None:
        """Remove and return a reserved pack name with a valid PUT URL, or None."""
        now = self._monotonic()
        with self._lock:
            while self._reserved:
                name = self._reserved.pop()
                found = self._put.get(f"packs/{name}")
                if found is not None and found.expires_at - MARGIN_SECONDS > now:
                    return name
        return None

    def reserve_missing(self) -> int:
        """Remove half-expired names from the reserve, and return how many names it then lacks."""
        now = self._monotonic()
        with self._lock:
            self._reserved = [
                name for name in self._reserved if not self._is_stale(self._put.get(f"packs/{name}"), now)
            ]
            return RESERVE_SIZE - len(self._reserved)

    def _find(self, table: dict[str, _Url], key: str) -> str | None:
        with self._lock:
            found = table.get(key)
        return found.url if found is not None and found.expires_at - MARGIN_SECONDS > self._monotonic() else None

    @staticmethod
    def _is_stale(url: _Url | None, now: float) -> bool:
        return url is None or now > (url.received_at + url.expires_at) / 2

    def _remove_expired(self, now: float) -> None:
        for table in (self._put, self._get):
            for key in [key for key, url in table.items() if url.expires_at < now]:
                del table[key]
