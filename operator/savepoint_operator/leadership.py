"""Who leads: a Lease, taken and renewed by compare-and-swap on its resourceVersion.

Written here because the client's own election neither releases nor tells when it was lost while the process stood
still. Correctness does not rest on it: two leaders lose against each other at the chain's conditional write.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from savepoint.errors import SavepointError

from savepoint_operator.cluster.errors import Conflict
from savepoint_operator.cluster.kinds import LEASES, Kind

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.5
"""How often a candidate looks whether the Lease is free: agents wait for it."""

Raw = dict[str, Any]


class Leases(Protocol):
    """The part of the API door that is used."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None: ...
    async def create(self, kind: Kind, body: Raw) -> Raw: ...
    async def replace(self, kind: Kind, body: Raw) -> Raw: ...


class Leadership:
    """One candidate. Another's Lease counts as expired only after it was seen unchanged for its whole duration."""

    def __init__(
        self,
        api: Leases,
        namespace: str,
        name: str,
        identity: str,
        *,
        lease_seconds: float,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._lease_seconds, self._now, self._monotonic, self._retry = lease_seconds, now, monotonic, retry_seconds
        self._seen: tuple[str, float] = ("", 0.0)
        self._renewed_at: float | None = None

    @property
    def held(self) -> bool:
        """Whether the Lease is surely held: renewed within two thirds of its duration."""
        return self._renewed_at is not None and self._monotonic() - self._renewed_at < self._lease_seconds * 2 / 3

    async def acquire(self) -> None:
        """Return once this candidate leads."""
        while not await self._try():  # noqa: ASYNC110 - nobody tells when a Lease expires
            await asyncio.sleep(min(self._retry, LOOK_SECONDS))
        log.info("leading by Lease %s/%s", self._namespace, self._name)

    async def keep(self) -> None:
        """Renew for as long as it works; return when leadership is lost."""
        while True:
            await asyncio.sleep(self._retry)
            if not self.held and self._renewed_at is not None:
                break  # the process stood still for too long: somebody else may lead by now
            if not await self._try() and not self.held:
                break
        log.error("leadership by Lease %s/%s is lost", self._namespace, self._name)

    async def release(self) -> None:
        """Let the next candidate in at once. Never raises."""
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            lease = await self._api.get(LEASES, self._namespace, self._name)
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._time()}
                await self._api.replace(LEASES, lease)
        except SavepointError as error:
            log.warning("the Lease could not be released: %s", error)

    async def _try(self) -> bool:
        """One attempt to take or renew; True when the Lease is ours now."""
        started = self._monotonic()
        try:
            async with asyncio.timeout(self._lease_seconds / 3):
                held = await self._swap()
        except (SavepointError, TimeoutError) as error:
            log.warning("the Lease could not be renewed: %s", error or type(error).__name__)
            return False
        if held:
            self._renewed_at = started
        elif self._renewed_at is not None:
            self._renewed_at = float("-inf")  # another one holds it: nothing is sure any more
        return held

    async def _swap(self) -> bool:
        lease = await self._api.get(LEASES, self._namespace, self._name)
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(int(self._lease_seconds), 1),
            "renewTime": self._time(),
        }
        try:
            if lease is None:
                spec |= {"acquireTime": spec["renewTime"], "leaseTransitions": 0}
                metadata = {"namespace": self._namespace, "name": self._name}
                await self._api.create(LEASES, {"metadata": metadata, "spec": spec})
                return True
            current = lease.get("spec") or {}
            if current.get("holderIdentity") != self._identity:
                if not self._expired(lease, current):
                    return False
                transitions = (current.get("leaseTransitions") or 0) + 1
                spec |= {"acquireTime": spec["renewTime"], "leaseTransitions": transitions}
            await self._api.replace(LEASES, {**lease, "spec": {**current, **spec}})
            return True
        except Conflict:
            return False

    def _expired(self, lease: Raw, spec: Raw) -> bool:
        """By our own clock: the holder's may be wrong."""
        if not spec.get("holderIdentity"):
            return True
        version = str(lease["metadata"].get("resourceVersion"))
        if self._seen[0] != version:
            self._seen = (version, self._monotonic())
        return self._monotonic() - self._seen[1] > float(spec.get("leaseDurationSeconds") or self._lease_seconds)

    def _time(self) -> str:
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
