"""Leader election by a Lease, which is acquired and renewed by compare-and-swap on its resourceVersion.

The client library's own election neither releases the Lease nor notices that it was lost while the process was
suspended. Correctness does not depend on the election: of two leaders one loses at the chain's conditional write.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final, Protocol

from savepoint.errors import SavepointError

from savepoint_operator.cluster.errors import Conflict
from savepoint_operator.cluster.kinds import LEASES, Kind
from savepoint_operator.model.clocks import Clocks

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 2.0
POLL_SECONDS: Final = 0.5
"""Seconds between a candidate's checks whether the Lease is free; agents wait for a leader."""

Raw = dict[str, Any]


class Leases(Protocol):
    """The methods of ``cluster.api`` that the election uses."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None: ...
    async def create(self, kind: Kind, body: Raw) -> Raw: ...
    async def replace(self, kind: Kind, body: Raw) -> Raw: ...


@dataclass(frozen=True)
class LeaseConfig:
    """The Lease to compete for, and this process's identity as a candidate."""

    namespace: str
    name: str
    identity: str
    lease_seconds: float
    retry_seconds: float = RETRY_SECONDS


class Leadership:
    """One candidate. Another's Lease counts as expired only once it was seen unchanged for its whole duration."""

    def __init__(self, api: Leases, config: LeaseConfig, clocks: Clocks) -> None:
        self._api, self._config = api, config
        self._now, self._monotonic = clocks.now, clocks.monotonic
        self._seen: tuple[str, float] = ("", 0.0)
        self._renewed_at: float | None = None

    @property
    def held(self) -> bool:
        """True if the Lease is certainly held: renewed within two thirds of its duration."""
        return (
            self._renewed_at is not None and self._monotonic() - self._renewed_at < self._config.lease_seconds * 2 / 3
        )

    async def acquire(self) -> None:
        """Return once this candidate leads."""
        while not await self._try():  # noqa: ASYNC110 - nothing signals that a Lease has expired
            await asyncio.sleep(min(self._config.retry_seconds, POLL_SECONDS))
        log.info("acquired Lease %s/%s: this process leads", self._config.namespace, self._config.name)

    async def keep(self) -> None:
        """Renew the Lease until leadership is lost, then return."""
        while True:
            await asyncio.sleep(self._config.retry_seconds)
            if not self.held and self._renewed_at is not None:
                break  # the process was suspended for too long: another one may lead by now
            if not await self._try() and not self.held:
                break
        log.error("lost Lease %s/%s: this process must stop", self._config.namespace, self._config.name)

    async def release(self) -> None:
        """Release the Lease, so that the next candidate can lead at once. Never raises."""
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            lease = await self._api.get(LEASES, self._config.namespace, self._config.name)
            if lease is not None and lease["spec"].get("holderIdentity") == self._config.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._time()}
                await self._api.replace(LEASES, lease)
        except SavepointError as error:
            log.warning("cannot release the Lease: %s; it expires on its own", error)

    async def _try(self) -> bool:
        """Try once to acquire or renew the Lease; return whether this process holds it now."""
        started = self._monotonic()
        try:
            async with asyncio.timeout(self._config.lease_seconds / 3):
                held = await self._swap()
        except (SavepointError, TimeoutError) as error:
            log.warning("cannot renew the Lease: %s; trying again", error or type(error).__name__)
            return False
        if held:
            self._renewed_at = started
        elif self._renewed_at is not None:
            self._renewed_at = float("-inf")  # another process holds it
        return held

    async def _swap(self) -> bool:
        lease = await self._api.get(LEASES, self._config.namespace, self._config.name)
        spec = {
            "holderIdentity": self._config.identity,
            "leaseDurationSeconds": max(int(self._config.lease_seconds), 1),
            "renewTime": self._time(),
        }
        try:
            if lease is None:
                spec |= {"acquireTime": spec["renewTime"], "leaseTransitions": 0}
                metadata = {"namespace": self._config.namespace, "name": self._config.name}
                await self._api.create(LEASES, {"metadata": metadata, "spec": spec})
                return True
            current = lease.get("spec") or {}
            if current.get("holderIdentity") != self._config.identity:
                if not self._expired(lease, current):
                    return False
                transitions = (current.get("leaseTransitions") or 0) + 1
                spec |= {"acquireTime": spec["renewTime"], "leaseTransitions": transitions}
            await self._api.replace(LEASES, {**lease, "spec": {**current, **spec}})
            return True
        except Conflict:
            return False

    def _expired(self, lease: Raw, spec: Raw) -> bool:
        """Return whether the Lease has expired, by this process's clock since the holder's may be wrong."""
        if not spec.get("holderIdentity"):
            return True
        version = str(lease["metadata"].get("resourceVersion"))
        if self._seen[0] != version:
            self._seen = (version, self._monotonic())
        return self._monotonic() - self._seen[1] > float(spec.get("leaseDurationSeconds") or self._config.lease_seconds)

    def _time(self) -> str:
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
