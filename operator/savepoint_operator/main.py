"""Entry points of the image's two processes; the operator's parts are put together here and nowhere else.

Order: health port, API self-test, Lease, certificates, listing, stores, watches, looks, control port. The other way
round at the end: it serves, and is ready, for as long as an agent on its way needs it; then the port, then the Lease.
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

from savepoint.errors import SavepointError, Unavailable

from savepoint_operator.certificates import Certificates
from savepoint_operator.cluster.access import Access, Client
from savepoint_operator.cluster.api import Api
from savepoint_operator.cluster.errors import Denied
from savepoint_operator.cluster.events import Events
from savepoint_operator.cluster.kinds import NAMESPACES, PODS
from savepoint_operator.cluster.reviewer import Reviewer
from savepoint_operator.control.server import ControlServer
from savepoint_operator.handlers.watch import Watching
from savepoint_operator.health import Health
from savepoint_operator.leadership import Leadership
from savepoint_operator.metrics import Metrics
from savepoint_operator.reconcile.assembly import ReconcileParts, assemble
from savepoint_operator.settings import Settings, SettingsError

log = logging.getLogger(__name__)

SELF_TEST_SECONDS = 2.0
LET_GO_SECONDS = 5.0
"""What closing connections, watches and the Lease take at most of the pod's grace."""
GONE_SECONDS = 1.5
"""How long the process stays after all is let go: a Service that still leads here is refused at once; an address that
is gone would keep a pod waiting for seconds."""
STORES_SECONDS = 5.0
"""How long stores may take to answer before pods are served: until then each sidecar would be told to dial again."""


class LeadershipLost(Exception):
    """The process must end: another one may lead."""


class Operator:
    """The operator's process."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self._settings, self._access = settings, access
        self._metrics = Metrics()
        self._missing = "starting"
        self._health = Health(self._metrics, lambda: self._missing)
        self.control_port = 0
        self.health_port = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Lead until ``stop`` is set. Raises LeadershipLost; raises Denied when the API server refuses the account."""
        self.health_port = await self._health.start(self._settings.control_host, self._settings.health_port)
        try:
            async with self._access.client() as client:
                await self._stand(client, stop)
        finally:
            await self._health.stop()

    async def _stand(self, client: Client, stop: asyncio.Event) -> None:
        api, settings = Api(client), self._settings
        owner = await self._self_test(api, stop)
        leadership = Leadership(
            api,
            settings.namespace,
            settings.lease,
            settings.identity,
            lease_seconds=settings.lease_seconds,
            now=now,
            monotonic=time.monotonic,
        )
        self._missing = "another operator leads"
        if owner is None or not await _unless(stop, leadership.acquire()):
            return
        keeping = asyncio.create_task(leadership.keep())
        try:
            await self._lead(api, owner, keeping, stop)
        finally:
            self._missing = "stopping"
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            if leadership.held:
                await leadership.release()
                await asyncio.sleep(GONE_SECONDS)

    async def _self_test(self, api: Api, stop: asyncio.Event) -> str | None:
        """The cluster's identity. Denied ends the process: it is a client without credentials, or without rights."""
        while not stop.is_set():
            try:
                system = await api.get(NAMESPACES, "", "kube-system")
                if system is not None:
                    return str(system["metadata"]["uid"])
                self._missing = "namespace kube-system does not exist"
            except Unavailable as error:
                self._missing = str(error)
                log.warning("%s", error)
            await _unless(stop, asyncio.sleep(SELF_TEST_SECONDS))
        return None

    async def _lead(self, api: Api, owner: str, keeping: "asyncio.Task[None]", stop: asyncio.Event) -> None:
        settings = self._settings
        self._metrics.leading(True)
        certificates = Certificates(
            api,
            settings.namespace,
            tls_secret=settings.tls_secret,
            ca_secret=settings.ca_secret,
            services=settings.services,
            webhook_configuration=settings.webhook_configuration,
            now=now,
        )
        parts = assemble(
            api,
            Events(api, now, settings.identity),
            self._metrics,
            owner=owner,
            namespace=settings.namespace,
            master_key_secret=settings.master_key_secret,
            not_running_seconds=settings.not_running_seconds,
            now=now,
            monotonic=time.monotonic,
            random_bytes=os.urandom,
            random_part=random.random,
        )
        self._missing = "listing"
        await _until_it_works(certificates.ensure, stop)
        if settings.default_store is not None:
            name, spec = settings.default_store.name, dict(settings.default_store.spec)
            await _until_it_works(lambda: parts.stores.make_default(name, spec), stop)
        await _until_it_works(parts.reconciler.list_all, stop)
        if stop.is_set() or not await _unless(stop, parts.reconciler.look_at_stores(STORES_SECONDS)):
            return
        await self._serve(api, parts, certificates, keeping, stop)

    async def _serve(
        self,
        api: Api,
        parts: ReconcileParts,
        certificates: Certificates,
        keeping: "asyncio.Task[None]",
        stop: asyncio.Event,
    ) -> None:
        settings = self._settings
        control = ControlServer(
            reviewer=Reviewer(api),
            directory=parts.directory,
            stores=parts.stores,
            recorder=parts.recorder,
            now=now,
            monotonic=time.monotonic,
            random_bytes=os.urandom,
        )
        watching = Watching(self._access, parts.reconciler.observe)
        await watching.start()
        looks = asyncio.create_task(parts.reconciler.run(control.orders, watching.restart))
        fresh = asyncio.create_task(certificates.keep_fresh())
        blind = asyncio.create_task(watching.failed.wait())
        asked = asyncio.create_task(stop.wait())
        try:
            self.control_port = await control.start(certificates.context, settings.control_host, settings.control_port)
            self._missing = ""
            log.info("serving pods on port %d", self.control_port)
            done, _ = await asyncio.wait((asked, keeping, looks, fresh, blind), return_when=asyncio.FIRST_COMPLETED)
            if keeping in done:
                raise LeadershipLost("the Lease was lost")
            for task in done & {looks, fresh}:
                task.result()
            log.info("stopping: finishing what is in flight")
            drain = asyncio.create_task(control.drain(await self._patience(api)))
            await asyncio.wait((drain, keeping), return_when=asyncio.FIRST_COMPLETED)
            drain.cancel()
            with suppress(asyncio.CancelledError):
                await drain
            await parts.settle()
        finally:
            self._missing = "stopping"
            await control.stop()
            await watching.stop()
            for task in (looks, fresh, blind, asked):
                task.cancel()
            await asyncio.gather(looks, fresh, blind, asked, return_exceptions=True)

    async def _patience(self, api: Api) -> float:
        """How long what is under way may take: the pod may have been given less time than the chart says.

        A process that is killed first keeps its Lease, and every agent waits until that expires.
        """
        settings = self._settings
        try:
            async with asyncio.timeout(LET_GO_SECONDS):
                pod = await api.get(PODS, settings.namespace, settings.identity)
        except (SavepointError, TimeoutError):
            return settings.drain_seconds
        grace = pod["metadata"].get("deletionGracePeriodSeconds") if pod is not None else None
        return settings.drain_seconds if grace is None else min(settings.drain_seconds, grace - LET_GO_SECONDS)


def now() -> datetime:
    """The time of day."""
    return datetime.now(UTC)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work unless ``stop`` comes first; whether it was done."""
    task = asyncio.create_task(work)
    asked = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        for each in (task, asked):
            each.cancel()
        await asyncio.gather(task, asked, return_exceptions=True)


async def _until_it_works(work: Callable[[], Awaitable[object]], stop: asyncio.Event) -> None:
    """Try again until it works, or ``stop``."""
    while not stop.is_set():
        try:
            await work()
            return
        except Denied:
            raise
        except SavepointError as error:
            log.warning("%s: %s; trying again", error.reason, error)
            await _unless(stop, asyncio.sleep(SELF_TEST_SECONDS))


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    access = await Access.discover(settings.environment)
    await Operator(settings, access).run(stop)


def set_up_logs(level: str) -> None:
    """Ours at this level; libraries stay quiet at every level: urllib3 prints signed URLs, kopf its patches."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("kopf", "aiohttp.access", "urllib3", "minio", "kubernetes"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns that signals are ours


def main() -> int:
    """Exit code 2: the environment is not as it should be; 1: leadership or the API server's trust is lost."""
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
