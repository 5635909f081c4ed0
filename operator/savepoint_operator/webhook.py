"""Entry point of the webhook's process: ``savepoint-webhook``.

A small server of our own rather than kopf's: kopf's WebhookServer closes its port to take up a renewed certificate, so
that admissions in flight fail; it has no readiness that waits for an index; and it needs rights to list CRDs and write
Events, where this process needs to read policies and namespaces. What it decides is in ``rules.injection``.
"""

import asyncio
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from savepoint_operator.admission.certificate import ServingCertificate
from savepoint_operator.admission.index import NamespaceIndex, PolicyIndex
from savepoint_operator.admission.server import AdmissionMetrics, health_application, review_application
from savepoint_operator.admission.settings import SettingsError, WebhookSettings
from savepoint_operator.cluster.access import Access, Client
from savepoint_operator.cluster.watch import Watch, namespaces, policies
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.injection import Injected, InjectionConfig, inject

log = logging.getLogger(__name__)


class Webhook:
    """The process's parts, put together."""

    def __init__(self, settings: WebhookSettings, api: Client, jitter: Callable[[], float]) -> None:
        self._settings = settings
        self._policies, self._namespaces = PolicyIndex(), NamespaceIndex()
        self._certificate = ServingCertificate(settings.tls_directory)
        self._watches = [
            Watch("policies", policies(api), self._policies, jitter),
            Watch("namespaces", namespaces(api), self._namespaces, jitter),
        ]
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, and a little longer: see WebhookSettings.drain_seconds."""
        metrics, settings = AdmissionMetrics(), self._settings
        reviews = web.AppRunner(
            review_application(self.decide, self.unready, metrics), access_log=None, handle_signals=False
        )
        health = web.AppRunner(
            health_application(self.unready_or_stopping, metrics), access_log=None, handle_signals=False
        )
        await reviews.setup()
        await health.setup()
        await web.TCPSite(health, port=settings.health_port).start()
        # Listening before there is a certificate would answer handshakes with an alert; so does a closed port, sooner.
        await asyncio.to_thread(self._certificate.reload)
        tasks = [asyncio.create_task(self._certificate.keep_fresh(settings.certificate_poll_seconds))]
        tasks += [asyncio.create_task(watch.run()) for watch in self._watches]
        try:
            await web.TCPSite(reviews, port=settings.port, ssl_context=self._certificate.context).start()
            log.info("serving reviews on port %d", settings.port)
            await _first(asyncio.create_task(stop.wait()), *tasks)
            self._stopping = True
            await asyncio.sleep(settings.drain_seconds)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await reviews.cleanup()
            await health.cleanup()

    def decide(self, pod: Mapping[str, Any], namespace: str) -> Injected | Refusal:
        """From memory alone."""
        terms = InjectionConfig(
            image=self._settings.sidecar_image,
            control_url=self._settings.control_url,
            control_ca_pem=self._certificate.ca_pem,
            pull_policy=self._settings.pull_policy,
        )
        return inject(pod, self._policies.of(namespace), self._namespaces.level(namespace), terms)

    def unready(self) -> str:
        """What is missing before a review can be answered."""
        if not self._certificate.loaded:
            return "no serving certificate yet: the operator writes it into its TLS Secret"
        if not all(watch.synced for watch in self._watches):
            return "policies and namespaces are not indexed yet"
        return ""

    def unready_or_stopping(self) -> str:
        """As ``unready``; also while the process ends, though reviews are still answered then."""
        return "stopping" if self._stopping else self.unready()


async def _first(stop: "asyncio.Task[Any]", *tasks: "asyncio.Task[Any]") -> None:
    """Wait for ``stop``; a task that ends first has failed, and so does the process."""
    done, _ = await asyncio.wait((stop, *tasks), return_when=asyncio.FIRST_COMPLETED)
    for task in done - {stop}:
        stop.cancel()
        task.result()


async def _serve(settings: WebhookSettings) -> None:
    access = await Access.discover(os.environ)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with access.client() as api:
        await Webhook(settings, api, random.random).run(stop)


def main() -> int:
    """Exit code 2: the environment is not as it should be."""
    try:
        settings = WebhookSettings.from_environment(os.environ)
    except SettingsError as error:
        print(f"savepoint-webhook: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
