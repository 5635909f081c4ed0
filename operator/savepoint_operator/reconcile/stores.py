"""Opens stores and writes in their status whether they can be used: implements ``Stores``.

A store can be opened once a probe has shown that it supports conditional writes and once ``savepoint.json`` is claimed
for this cluster under this master key. An open store is kept until its spec or its Secrets change.
"""

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, cast

from savepoint.contract.vocabulary import Reason
from savepoint.errors import SavepointError, StoreMisconfigured, StoreUnavailable
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.repository import STORE_KEY, open_store
from savepoint.storage import ObjectStore
from savepoint.storage.probe import probe
from savepoint.storage.retry import Retry
from savepoint.storage.signature import Presigner, S3Config
from savepoint.storage.store import ExpiringStore
from savepoint.storage.wrapper import Retrying

from savepoint_operator.cluster.errors import Conflict, Denied, Invalid
from savepoint_operator.cluster.events import EventTarget
from savepoint_operator.cluster.kinds import STORES
from savepoint_operator.cluster.parse import store_of
from savepoint_operator.model.objects import ObjectKey, Store
from savepoint_operator.model.ports import OpenStore
from savepoint_operator.reconcile.dependencies import StepDependencies, StoreBuilder
from savepoint_operator.reconcile.keyring import Keyring
from savepoint_operator.rules.status.conditions import Condition, changed, stamp
from savepoint_operator.rules.status.store_status import conditions, retained, stable_text
from savepoint_operator.rules.status.texts import size_text
from savepoint_operator.rules.store_conflicts import conflict

log = logging.getLogger(__name__)

PROBE_SECONDS: Final = 15 * 60.0
"""Time that a successful probe is valid while spec and Secrets stay the same."""
RESYNC_SECONDS: Final = 60.0
"""Interval at which the Secrets are read again."""
RETRY_SECONDS: Final = 15.0
RETRY: Final = Retry(attempts=4, total_seconds=12.0)
DEFAULT_LABEL: Final = {"savepoint.dev/from": "installation"}


@dataclass
class _KnownStore:
    """A store as it is kept between two reconciles."""

    fingerprint: str
    """Hash of the spec and the Secrets that the store was opened with."""
    opened: OpenStore
    without_retries: ObjectStore
    """The same store, whose calls are not retried."""
    probed_at: float | None = None
    """Monotonic seconds of the last successful probe."""
    last_probe: datetime | None = None
    """Time of the same probe, for the status."""
    error: SavepointError | None = None
    retained: Condition | None = None
    """Condition Retained as of the last probe; None for a store that has no rules."""


class StoreRegistry:
    """All stores, by name."""

    def __init__(
        self, dependencies: StepDependencies, keyring: Keyring, cluster_id: str, build_store: StoreBuilder
    ) -> None:
        """``cluster_id``: UID of namespace kube-system, the owner that is recorded in each store."""
        self._cluster, self._cache, self._events = dependencies.cluster, dependencies.cache, dependencies.events
        self._status_writer, self._random_bytes = dependencies.status_writer, dependencies.random_bytes
        self._now, self._monotonic = dependencies.clocks.now, dependencies.clocks.monotonic
        self._keyring, self._cluster_id, self._build_store = keyring, cluster_id, build_store
        self._known: dict[str, _KnownStore] = {}
        self._failed: dict[str, SavepointError] = {}
        """The error of the last reconcile, of stores that cannot be used."""
        self._collected: dict[str, datetime] = {}

    # -- Stores ---------------------------------------------------------------------------------------------------

    async def open(self, name: str) -> OpenStore:
        """See ``Stores``."""
        if self._cache.stores.get(ObjectKey("", name)) is None:
            raise StoreMisconfigured(f"AgentCheckpointStore {name} does not exist: create it")
        known = self._known.get(name)
        if known is not None and known.error is None and known.probed_at is not None:
            return known.opened
        error = (known.error if known is not None else None) or self._failed.get(name)
        if error is not None:
            raise type(error)(f"AgentCheckpointStore {name}: {error}") from error
        raise StoreUnavailable(f"AgentCheckpointStore {name} has not been probed yet; the operator is checking it")

    def ready(self, name: str) -> bool:
        """Return whether ``open`` would succeed."""
        known = self._known.get(name)
        return known is not None and known.error is None and known.probed_at is not None

    def record_collection(self, name: str) -> None:
        """Remember that objects of the store were collected just now."""
        self._collected[name] = self._now()

    # -- reconcile ------------------------------------------------------------------------------------------------

    async def reconcile(self, name: str) -> float:
        """Check one store and write its status; return the seconds until the next check."""
        store = self._cache.stores.get(ObjectKey("", name))
        if store is None:
            self._known.pop(name, None)
            self._failed.pop(name, None)
            return RESYNC_SECONDS
        error: SavepointError | None = None
        try:
            known = await self._prepare(store)
            await self._check(name, known)
        except SavepointError as failure:
            error = failure
            known_before = self._known.get(name)
            if known_before is not None and not isinstance(failure, StoreUnavailable):
                known_before.error = failure
            self._failed[name] = failure
            log.warning(
                "store %s: cannot be used: %s: %s; retrying in %.0f s", name, failure.reason, failure, RETRY_SECONDS
            )
        else:
            self._failed.pop(name, None)
        await self._write_status(store, error)
        return RETRY_SECONDS if error is not None else RESYNC_SECONDS

    async def make_default(self, name: str, spec: dict[str, Any]) -> None:
        """Create or update the store of the chart's values; a user takes it over by removing its label.

        Values that the API server refuses are reported: the operator still serves the other stores.
        """
        try:
            await self._apply_default(name, spec)
        except (Invalid, Denied) as error:
            log.error("store %s: the chart's values are refused: %s; correct store.s3 in the values", name, error)
            raw = await self._cluster.get(STORES, "", name)
            if raw is not None:
                message = (
                    f"The chart's values for this store are refused: {error}. The store stays as it is; correct "
                    "store.s3 in the values, or create another store."
                )
                target = EventTarget.of(STORES, store_of(raw).meta)
                await self._events.warning(target, Reason.STORE_MISCONFIGURED, message)

    async def _apply_default(self, name: str, spec: dict[str, Any]) -> None:
        raw = await self._cluster.get(STORES, "", name)
        if raw is None:
            body = {"metadata": {"name": name, "labels": DEFAULT_LABEL}, "spec": spec}
            try:
                await self._cluster.create(STORES, body)
            except Conflict:
                log.info("store %s: already exists; leaving it unchanged", name)
            return
        existing = store_of(raw)
        difference = changed(existing.spec, spec)
        if difference and existing.meta.labels.items() >= DEFAULT_LABEL.items():
            await self._cluster.patch(STORES, "", name, {"spec": difference})

    # -- opening --------------------------------------------------------------------------------------------------

    async def _prepare(self, store: Store) -> _KnownStore:
        """Return the store as it was opened with its present spec and Secrets; open it if they have changed."""
        s3 = store.s3
        if not s3.credentials_secret:
            raise StoreMisconfigured(
                f"AgentCheckpointStore {store.meta.name} does not name a spec.s3.credentialsSecretName: create a "
                "Secret with accessKey and secretKey in the operator's namespace and name it there"
            )
        credentials = await self._keyring.credentials(s3.credentials_secret)
        ca = await self._keyring.ca(s3.ca_secret) if s3.ca_secret else None
        master = await self._keyring.master()
        identity = (store.meta.uid, s3, *credentials, ca, master.check)
        fingerprint = hashlib.sha256(repr(identity).encode()).hexdigest()
        known = self._known.get(store.meta.name)
        if known is not None and known.fingerprint == fingerprint:
            return known
        known = self._open(store, credentials, ca, master, fingerprint)
        self._known[store.meta.name] = known
        return known

    def _open(
        self, store: Store, credentials: tuple[str, str], ca: str | None, master: MasterKey, fingerprint: str
    ) -> _KnownStore:
        s3 = store.s3
        prefix = f"{s3.prefix.strip('/')}/" if s3.prefix.strip("/") else ""

        def config(endpoint: str) -> S3Config:
            try:
                return S3Config(
                    endpoint=endpoint,
                    bucket=s3.bucket,
                    access_key=credentials[0],
                    secret_key=credentials[1],
                    prefix=prefix,
                    region=s3.region,
                    addressing=cast(Literal["path", "virtual"], s3.addressing.lower()),
                    ca_pem=ca,
                )
            except ValueError as error:
                raise StoreMisconfigured(f"AgentCheckpointStore {store.meta.name}: {error}") from error

        try:
            plain = self._build_store(config(s3.endpoint))
            opened = OpenStore(
                name=store.meta.name,
                objects=Retrying(plain, RETRY),
                signer=Presigner(config(s3.pod_endpoint or s3.endpoint), self._now),
                master=master,
                pod_ca_pem=ca or "",
            )
        except SavepointError:
            raise
        except Exception as error:
            log.debug("store %s: cannot be opened", store.meta.name, exc_info=True)
            raise StoreMisconfigured(
                f"AgentCheckpointStore {store.meta.name} cannot be opened ({stable_text(error)}): correct spec.s3, or "
                "the Secrets that it names"
            ) from error
        return _KnownStore(fingerprint, opened, plain)

    async def _check(self, name: str, known: _KnownStore) -> None:
        """Probe and claim the store; if that succeeded recently, only check that the store answers.

        Raises SavepointError; an error of any other kind is reported as StoreUnavailable, so that it is retried.
        """
        try:
            await self._check_contents(name, known)
        except SavepointError:
            raise
        except Exception as error:
            log.debug("store %s: cannot be checked", name, exc_info=True)
            raise StoreUnavailable(f"the store cannot be checked ({stable_text(error)})") from error

    async def _check_contents(self, name: str, known: _KnownStore) -> None:
        now = self._monotonic()
        recent = known.error is None and known.probed_at is not None and now - known.probed_at < PROBE_SECONDS
        if recent and await asyncio.to_thread(known.without_retries.head, STORE_KEY) is not None:
            return
        random_hex = self._random_bytes(16).hex()
        try:
            await asyncio.to_thread(probe, known.without_retries, random_hex)
        except SavepointError as error:
            # The same fault must have the same text each time: every new text becomes an Event.
            raise type(error)(str(error).replace(random_hex, "…")) from error
        is_new = await asyncio.to_thread(known.opened.objects.head, STORE_KEY) is None
        await asyncio.to_thread(open_store, known.opened.objects, self._cluster_id, known.opened.master)
        if is_new:
            await self._report_missing_contents(name)
        known.retained = await self._retained(known.without_retries)
        known.probed_at, known.last_probe, known.error = now, self._now(), None
        log.info("store %s: ready", name)

    async def _retained(self, store: ObjectStore) -> Condition | None:
        """Return whether the store keeps its objects; a store that does not report it can still be used."""
        if not isinstance(store, ExpiringStore):
            return None
        try:
            return retained(await asyncio.to_thread(store.expiring_rules))
        except SavepointError as error:
            return retained(error)

    async def _report_missing_contents(self, name: str) -> None:
        """Write an Event if the bucket was new to this cluster although agents have checkpoints in the store."""
        agents = [each for each in self._cache.agents if each.status.get("storeName") == name and each.pin is not None]
        store = self._cache.stores.get(ObjectKey("", name))
        if store is None or not agents:
            return
        message = (
            f"Bucket {store.s3.bucket} at {store.s3.endpoint} was empty, but {len(agents)} agents have checkpoints in "
            f"this store, among them {agents[0].meta.key}; they do not start without them. Point spec.s3 back at the "
            "place of the checkpoints, or restore the bucket's contents."
        )
        await self._events.warning(EventTarget.of(STORES, store.meta), Reason.ROLLBACK_DETECTED, message)

    # -- status ---------------------------------------------------------------------------------------------------

    async def _write_status(self, store: Store, error: SavepointError | None) -> None:
        wanted = conditions(error)
        conflicting = conflict(store, self._cache.stores)
        if conflicting is not None:
            wanted = (conflicting, *wanted)
        agents = [item for item in self._cache.agents if item.status.get("storeName") == store.meta.name]
        stored = sum(int(item.status.get("storedSize") or 0) for item in agents)
        known = self._known.get(store.meta.name)
        kept = known.retained if known is not None else None
        if kept is not None:
            wanted = (kept, *wanted)
        patch: dict[str, Any] = {"reason": wanted[-1].reason, "repositories": len(agents)}
        if stored:
            patch |= {"storedSize": stored, "summary": {"size": size_text(stored)}}
        if error is None and known is not None and known.last_probe is not None:
            patch["lastProbeTime"] = stamp(known.last_probe)
        if store.meta.name in self._collected:
            patch["lastCollectionTime"] = stamp(self._collected[store.meta.name])
        if await self._status_writer.write(STORES, store, patch, *wanted) is not None:
            await self._report(store, wanted[-1])
            if kept is not None and kept.status == "False" and _has_changed(store, kept):
                await self._events.warning(EventTarget.of(STORES, store.meta), kept.reason, kept.message)
            if conflicting is not None and _has_changed(store, conflicting) and conflicting.status == "True":
                await self._events.warning(EventTarget.of(STORES, store.meta), conflicting.reason, conflicting.message)

    async def _report(self, store: Store, ready: Condition) -> None:
        """Write an Event if condition Ready has changed since the previous status."""
        if not _has_changed(store, ready):
            return
        target = EventTarget.of(STORES, store.meta)
        if ready.status == "True":
            await self._events.normal(target, Reason.STORE_READY, ready.message)
        else:
            await self._events.warning(target, ready.reason, ready.message)


def _has_changed(store: Store, condition: Condition) -> bool:
    """Return whether the condition differs from the one in the store's previous status."""
    found = (each for each in store.status.get("conditions") or () if each.get("type") == condition.type)
    before: dict[str, Any] = next(found, {})
    return (before.get("status"), before.get("reason")) != (condition.status, condition.reason)
