"""Opening stores, and saying in their status whether they can be used. Implements ``Stores``.

A store is open only after a probe has shown that it honours conditional writes, and after ``savepoint.json`` has been
claimed for this cluster under this master key. One opened store object lasts until its spec or its Secrets change.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, cast

from savepoint.errors import (
    KeyMismatch,
    NotAdopted,
    SavepointError,
    StoreMisconfigured,
    StoreUnavailable,
)
from savepoint.repository.repository import STORE_KEY, open_store
from savepoint.storage import ObjectStore
from savepoint.storage.probe import probe
from savepoint.storage.retry import Retry
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import Presigner, S3Config
from savepoint.storage.wrapper import Retrying

from savepoint_operator.cluster.errors import Conflict, Missing
from savepoint_operator.cluster.events import Events, EventTarget
from savepoint_operator.cluster.kinds import STORES
from savepoint_operator.cluster.parse import store_of
from savepoint_operator.model.objects import ObjectKey, Store
from savepoint_operator.model.ports import OpenStore
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.reconcile.keyring import Keyring
from savepoint_operator.rules.status.conditions import Condition, changed, merged, stamp
from savepoint_operator.rules.status.texts import size_text

log = logging.getLogger(__name__)

PROBE_SECONDS: Final = 15 * 60.0
"""How long a good probe counts while spec and Secrets stay the same."""
LOOK_SECONDS: Final = 60.0
"""How often Secrets are read again."""
RETRY_SECONDS: Final = 15.0
RETRY: Final = Retry(attempts=4, total_seconds=12.0)
DEFAULT_LABEL: Final = {"savepoint.dev/from": "installation"}
NEXT_STEP: Final = {
    "StoreDenied": "Check the Secret named in spec.s3.credentialsSecretName and the rights of its user below the "
    "prefix; both are looked at again by themselves.",
    "StoreUnavailable": "Earlier checkpoints are safe, and it is tried again every 15 s. If it lasts, check "
    "spec.s3.endpoint and whether the operator's pod reaches it.",
}
"""Of the reasons whose messages do not say what to do."""

Builder = Callable[[S3Config], ObjectStore]


@dataclass
class _Kept:
    """What is kept of one store between looks."""

    fingerprint: str
    opened: OpenStore
    plain: ObjectStore
    probed_at: float | None = None
    probed: datetime | None = None
    error: SavepointError | None = field(default=None)


class StoreRegistry:
    """All stores by name."""

    def __init__(
        self,
        cluster: ClusterClient,
        cache: ClusterCache,
        keyring: Keyring,
        owner: str,
        events: Events,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        build: Builder = S3Store,
    ) -> None:
        """``owner``: the cluster's identity, the UID of namespace kube-system."""
        self._cluster, self._cache, self._keyring, self._owner = cluster, cache, keyring, owner
        self._events, self._now, self._monotonic = events, now, monotonic
        self._random_bytes, self._build = random_bytes, build
        self._kept: dict[str, _Kept] = {}
        self._failed: dict[str, SavepointError] = {}
        """How the last look ended, of stores that could not be used."""
        self._collected: dict[str, datetime] = {}

    # -- Stores ---------------------------------------------------------------------------------------------------

    async def open(self, name: str) -> OpenStore:
        """See ``Stores``."""
        if self._cache.stores.get(ObjectKey("", name)) is None:
            raise StoreMisconfigured(f"AgentCheckpointStore {name} does not exist: create it")
        kept = self._kept.get(name)
        if kept is not None and kept.error is None and kept.probed_at is not None:
            return kept.opened
        error = (kept.error if kept is not None else None) or self._failed.get(name)
        if error is not None:
            raise type(error)(f"AgentCheckpointStore {name}: {error}") from error
        raise StoreUnavailable(f"AgentCheckpointStore {name} is being looked at; it was not ready yet")

    def ready(self, name: str) -> bool:
        """Whether ``open`` would succeed."""
        kept = self._kept.get(name)
        return kept is not None and kept.error is None and kept.probed_at is not None

    def collected(self, name: str) -> None:
        """Something of the store was collected just now."""
        self._collected[name] = self._now()

    # -- reconcile ------------------------------------------------------------------------------------------------

    async def reconcile(self, name: str) -> float:
        """Look at one store and write its status; seconds until the next look."""
        store = self._cache.stores.get(ObjectKey("", name))
        if store is None:
            self._kept.pop(name, None)
            self._failed.pop(name, None)
            return LOOK_SECONDS
        error: SavepointError | None = None
        try:
            kept = await self._prepare(store)
            await self._check(name, kept)
        except SavepointError as failure:
            error = failure
            kept_before = self._kept.get(name)
            if kept_before is not None and not isinstance(failure, StoreUnavailable):
                kept_before.error = failure
            self._failed[name] = failure
            log.warning("store %s cannot be used: %s: %s", name, failure.reason, failure)
        else:
            self._failed.pop(name, None)
        await self._tell(store, error)
        return RETRY_SECONDS if error is not None else LOOK_SECONDS

    async def make_default(self, name: str, spec: dict[str, Any]) -> None:
        """The store of the installation's values. Whoever removes its label takes it over: it is then left alone."""
        raw = await self._cluster.get(STORES, "", name)
        if raw is None:
            body = {"metadata": {"name": name, "labels": DEFAULT_LABEL}, "spec": spec}
            try:
                await self._cluster.create(STORES, body)
            except Conflict:
                log.info("store %s exists already", name)
            return
        existing = store_of(raw)
        difference = changed(existing.spec, spec)
        if difference and existing.meta.labels.items() >= DEFAULT_LABEL.items():
            await self._cluster.patch(STORES, "", name, {"spec": difference})

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _prepare(self, store: Store) -> _Kept:
        s3 = store.s3
        if not s3.credentials_secret:
            raise StoreMisconfigured(
                f"AgentCheckpointStore {store.meta.name} names no spec.s3.credentialsSecretName: create a Secret with "
                "accessKey and secretKey in the operator's namespace and name it there"
            )
        access, secret = await self._keyring.credentials(s3.credentials_secret)
        ca = await self._keyring.ca(s3.ca_secret) if s3.ca_secret else None
        master = await self._keyring.master()
        fingerprint = hashlib.sha256(repr((store.meta.uid, s3, access, secret, ca, master.check)).encode()).hexdigest()
        kept = self._kept.get(store.meta.name)
        if kept is not None and kept.fingerprint == fingerprint:
            return kept
        addressing = cast(Literal["path", "virtual"], s3.addressing.lower())
        prefix = f"{s3.prefix.strip('/')}/" if s3.prefix.strip("/") else ""

        def config(endpoint: str) -> S3Config:
            try:
                return S3Config(
                    endpoint=endpoint,
                    bucket=s3.bucket,
                    access_key=access,
                    secret_key=secret,
                    prefix=prefix,
                    region=s3.region,
                    addressing=addressing,
                    ca_pem=ca,
                )
            except ValueError as error:
                raise StoreMisconfigured(f"AgentCheckpointStore {store.meta.name}: {error}") from error

        plain = self._build(config(s3.endpoint))
        opened = OpenStore(
            name=store.meta.name,
            objects=Retrying(plain, RETRY),
            signer=Presigner(config(s3.pod_endpoint or s3.endpoint), self._now),
            master=master,
            pod_ca_pem=ca or "",
        )
        fresh = _Kept(fingerprint, opened, plain)
        self._kept[store.meta.name] = fresh
        return fresh

    async def _check(self, name: str, kept: _Kept) -> None:
        """Probe and claim, where the last good look is too long ago or went wrong; else only see that it answers."""
        now = self._monotonic()
        recent = kept.error is None and kept.probed_at is not None and now - kept.probed_at < PROBE_SECONDS
        if recent and await asyncio.to_thread(kept.plain.head, STORE_KEY) is not None:
            return
        random_hex = self._random_bytes(16).hex()
        try:
            await asyncio.to_thread(probe, kept.plain, random_hex)
        except SavepointError as error:  # the same fault has the same words each time: what is new becomes an Event
            raise type(error)(str(error).replace(random_hex, "…")) from error
        await asyncio.to_thread(open_store, kept.opened.objects, self._owner, kept.opened.master)
        kept.probed_at, kept.probed, kept.error = now, self._now(), None
        log.info("store %s is ready", name)

    async def _tell(self, store: Store, error: SavepointError | None) -> None:
        now = self._now()
        wanted = conditions(error)
        agents = [item for item in self._cache.agents if item.status.get("storeName") == store.meta.name]
        stored = sum(int(item.status.get("storedSize") or 0) for item in agents)
        kept = self._kept.get(store.meta.name)
        patch: dict[str, Any] = {
            "observedGeneration": store.meta.generation,
            "reason": wanted[-1].reason,
            "repositories": len(agents),
            "conditions": merged(store.status.get("conditions") or (), wanted, store.meta.generation, now),
        }
        if stored:
            patch |= {"storedSize": stored, "summary": {"size": size_text(stored)}}
        if error is None and kept is not None and kept.probed is not None:
            patch["lastProbeTime"] = stamp(kept.probed)
        if store.meta.name in self._collected:
            patch["lastCollectionTime"] = stamp(self._collected[store.meta.name])
        difference = changed(store.status, patch)
        if not difference:
            return
        try:
            raw = await self._cluster.patch(STORES, "", store.meta.name, {"status": difference}, subresource="status")
        except Missing:
            return
        self._cache.stores.put(raw)
        await self._say(store, wanted[-1])

    async def _say(self, store: Store, ready: Condition) -> None:
        """What is new since the status that was there before."""
        before: dict[str, Any] = next(
            (each for each in store.status.get("conditions") or () if each.get("type") == "Ready"), {}
        )
        if (before.get("status"), before.get("reason")) == (ready.status, ready.reason):
            return
        about = EventTarget.of(STORES, store.meta)
        if ready.status == "True":
            await self._events.normal(about, "StoreReady", ready.message)
        else:
            await self._events.warning(about, ready.reason, ready.message)


def conditions(error: SavepointError | None) -> tuple[Condition, ...]:
    """Available, ConditionalWrites and Ready, the last one in every case."""
    if error is None:
        return (
            Condition.of("Available", True, "Reachable", "The store answers."),
            Condition.of("ConditionalWrites", True, "Supported", "Of concurrent creations of one object one wins."),
            Condition.of("Ready", True, "Ready", "Checkpoints can be stored."),
        )
    message = _with_step(error)
    ready = Condition.of("Ready", False, error.reason, message)
    if isinstance(error, KeyMismatch | NotAdopted):
        return Condition.of("Available", True, "Reachable", "The store answers."), ready
    if isinstance(error, StoreMisconfigured) and "If-None-Match" in message:
        return (
            Condition.of("Available", True, "Reachable", "The store answers."),
            Condition.of("ConditionalWrites", False, "Ignored", message),
            ready,
        )
    return (
        Condition.of("Available", False, error.reason, message),
        Condition.of("ConditionalWrites", None, "NotProbed", "The store could not be probed."),
        ready,
    )


def _with_step(error: SavepointError) -> str:
    message, step = str(error), NEXT_STEP.get(error.reason)
    return f"{message}. {step}" if step else message
