"""Entry point of the operator's process; its parts are assembled here and nowhere else.

Startup order: health port, API self-test, Lease, certificates, listing, stores, watches, reconcile, control port. At
shutdown the process serves, and is ready, for as long as a moving agent needs it; then it closes the port and releases
the Lease.
"""

import asyncio
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from savepoint.contract.environment import SettingsError
from savepoint.errors import SavepointError, Unavailable

from savepoint_operator.certificates import CertificateConfig, Certificates
from savepoint_operator.cluster.access import Access, Client
from savepoint_operator.cluster.api import Api
from savepoint_operator.cluster.errors import Denied
from savepoint_operator.cluster.events import Events
from savepoint_operator.cluster.kinds import NAMESPACES, PODS
from savepoint_operator.cluster.reviewer import Reviewer
from savepoint_operator.control.dependencies import ControlPorts
from savepoint_operator.control.server import ControlServer
from savepoint_operator.handlers.watch import KopfWatcher
from savepoint_operator.health import Health
from savepoint_operator.leadership import Leadership, LeaseConfig
from savepoint_operator.metrics import Metrics
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.reconcile.assembly import ReconcileParts, assemble
from savepoint_operator.reconcile.dependencies import ReconcileDependencies
from savepoint_operator.settings import Settings

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
SHUTDOWN_SECONDS = 5.0
"""The part of the pod's grace period reserved for closing connections and watches and releasing the Lease."""
LINGER_SECONDS = 1.5
"""Seconds that the process stays after its shutdown. A Service that still routes here is refused at once, whereas an
address that no longer exists would keep a pod waiting for seconds."""
STORES_SECONDS = 5.0
"""Seconds that stores may take to answer before pods are served: until then sidecars would be told to reconnect."""


class LeadershipLost(Exception):
    """The process must end because another one may lead."""


class Operator:
    """The operator's process."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self._settings, self._access = settings, access
        self._clocks = Clocks(now, time.monotonic)
        self._metrics = Metrics()
        self._missing = "starting"
        self._health = Health(self._metrics, lambda: self._missing)
        self.control_port = 0
        self.health_port = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Lead until ``stop`` is set. Raises LeadershipLost, or Denied when the API server refuses the account."""
        self.health_port = await self._health.start(self._settings.control_host, self._settings.health_port)
        try:
            async with self._access.client() as client:
                await self._compete(client, stop)
        finally:
            await self._health.stop()

    async def _compete(self, client: Client, stop: asyncio.Event) -> None:
        """Acquire the Lease, lead, and release it."""
        api, settings = Api(client), self._settings
        cluster_id = await self._self_test(api, stop)
        lease = LeaseConfig(settings.namespace, settings.lease, settings.identity, settings.lease_seconds)
        leadership = Leadership(api, lease, self._clocks)
        self._missing = "another operator leads"
        if cluster_id is None or not await _run_unless_stopped(stop, leadership.acquire()):
            return
        renewing = asyncio.create_task(leadership.keep())
        try:
            await self._lead(api, cluster_id, renewing, stop)
        finally:
            self._missing = "stopping"
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            if leadership.held:
                await leadership.release()
                await asyncio.sleep(LINGER_SECONDS)

    async def _self_test(self, api: Api, stop: asyncio.Event) -> str | None:
        """Return the cluster's identity, or None if stopped. Denied ends the process: the account lacks permission."""
        while not stop.is_set():
            try:
                system = await api.get(NAMESPACES, "", "kube-system")
                if system is not None:
                    return str(system["metadata"]["uid"])
                self._missing = "namespace kube-system does not exist"
            except Unavailable as error:
                self._missing = str(error)
                log.warning("cannot reach the API server: %s; trying again", error)
            await _run_unless_stopped(stop, asyncio.sleep(RETRY_SECONDS))
        return None

    async def _lead(self, api: Api, cluster_id: str, renewing: "asyncio.Task[None]", stop: asyncio.Event) -> None:
        """Prepare everything that serving pods needs, then serve."""
        settings = self._settings
        self._metrics.leading(True)
        config = CertificateConfig(
            namespace=settings.namespace,
            tls_secret=settings.tls_secret,
            ca_secret=settings.ca_secret,
            services=settings.services,
            webhook_configuration=settings.webhook_configuration,
        )
        certificates = Certificates(api, config, now)
        parts = assemble(
            ReconcileDependencies(
                cluster=api,
                events=Events(api, now, settings.identity),
                metrics=self._metrics,
                clocks=self._clocks,
                random_bytes=os.urandom,
                random_fraction=random.random,
                cluster_id=cluster_id,
                namespace=settings.namespace,
                master_key_secret=settings.master_key_secret,
                not_running_seconds=settings.not_running_seconds,
            )
        )
        self._missing = "listing"
        await _retry_until_done(certificates.ensure, stop)
        if settings.default_store is not None:
            name, spec = settings.default_store.name, dict(settings.default_store.spec)
            await _retry_until_done(lambda: parts.stores.make_default(name, spec), stop)
        await _retry_until_done(parts.reconciler.list_all, stop)
        if stop.is_set() or not await _run_unless_stopped(stop, parts.reconciler.reconcile_stores(STORES_SECONDS)):
            return
        await self._serve(api, parts, certificates, renewing, stop)

    async def _serve(
        self,
        api: Api,
        parts: ReconcileParts,
        certificates: Certificates,
        renewing: "asyncio.Task[None]",
        stop: asyncio.Event,
    ) -> None:
        settings = self._settings
        ports = ControlPorts(Reviewer(api), parts.pod_resolver, parts.stores, parts.recorder)
        control = ControlServer(ports, self._clocks, random_bytes=os.urandom)
        watcher = KopfWatcher(self._access, parts.reconciler.observe)
        await watcher.start()
        reconciling = asyncio.create_task(parts.reconciler.run(control.orders, watcher.restart))
        certifying = asyncio.create_task(certificates.keep_fresh())
        watch_failed = asyncio.create_task(watcher.failed.wait())
        stop_requested = asyncio.create_task(stop.wait())
        tasks = (stop_requested, reconciling, certifying, watch_failed)
        try:
            self.control_port = await control.start(certificates.context, settings.control_host, settings.control_port)
            self._missing = ""
            log.info("serving pods on port %d", self.control_port)
            done, _ = await asyncio.wait((renewing, *tasks), return_when=asyncio.FIRST_COMPLETED)
            if renewing in done:
                raise LeadershipLost("the Lease was lost")
            for task in done & {reconciling, certifying}:
                task.result()
            log.info("stopping: finishing the work in progress")
            await self._drain(api, control, renewing)
            await parts.flush()
        finally:
            self._missing = "stopping"
            await control.stop()
            await watcher.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, api: Api, control: ControlServer, renewing: "asyncio.Task[None]") -> None:
        """Finish the work in progress, unless leadership is lost first."""
        drain = asyncio.create_task(control.drain(await self._drain_seconds(api)))
        await asyncio.wait((drain, renewing), return_when=asyncio.FIRST_COMPLETED)
        drain.cancel()
        with suppress(asyncio.CancelledError):
            await drain

    async def _drain_seconds(self, api: Api) -> float:
        """Return how long draining may take: the pod may have got a shorter grace period than the chart sets.

        A process that is killed before it releases its Lease makes every agent wait until the Lease expires.
        """
        settings = self._settings
        try:
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                pod = await api.get(PODS, settings.namespace, settings.identity)
        except (SavepointError, TimeoutError):
            return settings.drain_seconds
        grace = pod["metadata"].get("deletionGracePeriodSeconds") if pod is not None else None
        return settings.drain_seconds if grace is None else min(settings.drain_seconds, grace - SHUTDOWN_SECONDS)


def now() -> datetime:
    """Return the time of day."""
    return datetime.now(UTC)


async def _run_unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run the work until it is done or ``stop`` is set; return whether it was done."""
    task = asyncio.create_task(work)
    stop_requested = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stop_requested), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        for each in (task, stop_requested):
            each.cancel()
        await asyncio.gather(task, stop_requested, return_exceptions=True)


async def _retry_until_done(work: Callable[[], Awaitable[object]], stop: asyncio.Event) -> None:
    """Retry the work until it succeeds or ``stop`` is set. Raises Denied."""
    while not stop.is_set():
        try:
            await work()
            return
        except Denied:
            raise
        except SavepointError as error:
            log.warning("%s: %s; trying again", error.reason, error)
            await _run_unless_stopped(stop, asyncio.sleep(RETRY_SECONDS))


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    access = await Access.discover(settings.environment)
    await Operator(settings, access).run(stop)


def set_up_logs(level: str) -> None:
    """Set the level of the process's own logs; libraries stay quiet, since urllib3 logs signed URLs, kopf patches."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("kopf", "aiohttp.access", "urllib3", "minio", "kubernetes"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns that it does not handle signals


def main() -> int:
    """Run the operator. Exit code 2: invalid environment; 1: leadership lost or access denied."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        print(f"savepoint-operator: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 2
    set_up_logs(settings.log_level)
    try:
        asyncio.run(_run(settings))
    except (LeadershipLost, SavepointError) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
