"""Entry point of the webhook's process: ``savepoint-webhook``.

It has its own small server instead of kopf's: kopf's WebhookServer closes its port to load a renewed certificate, so
that admissions in flight fail; it cannot delay readiness until an index is filled; and it needs permission to list CRDs
and write Events, whereas this process only reads policies, namespaces and agents. ``rules.admission.injection``
decides.
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
from savepoint.contract.environment import SettingsError

from savepoint_operator.admission.certificate import ServingCertificate
from savepoint_operator.admission.index import AgentIndex, NamespaceIndex, PolicyIndex
from savepoint_operator.admission.server import AdmissionMetrics, health_application, review_application
from savepoint_operator.admission.settings import WebhookSettings
from savepoint_operator.cluster.access import Access, Client
from savepoint_operator.cluster.watch import Watch, namespaces, policies, protected_agents
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.injection import Injected, InjectionConfig, inject

log = logging.getLogger(__name__)


class Webhook:
    """The webhook's process."""

    def __init__(self, settings: WebhookSettings, api: Client, jitter: Callable[[], float]) -> None:
        self._settings = settings
        self._policies, self._namespaces, self._agents = PolicyIndex(), NamespaceIndex(), AgentIndex()
        self._certificate = ServingCertificate(settings.tls_directory)
        self._watches = [
            Watch("policies", policies(api), self._policies, jitter),
            Watch("namespaces", namespaces(api), self._namespaces, jitter),
            Watch("agents", protected_agents(api), self._agents, jitter),
        ]
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, and then for WebhookSettings.drain_seconds."""
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
        # Load the certificate before the port opens: without one every handshake fails with an alert.
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
        """Return the injected pod or its refusal, from memory alone."""
        config = InjectionConfig(
            image=self._settings.sidecar_image,
            control_url=self._settings.control_url,
            control_ca_pem=self._certificate.ca_pem,
            pull_policy=self._settings.pull_policy,
        )
        policies, level = self._policies.of(namespace), self._namespaces.level(namespace)
        return inject(pod, policies, level, config, observed_user=self._agents.user_of(namespace, pod))

    def unready(self) -> str:
        """Return what is missing before reviews can be answered; empty if nothing is."""
        if not self._certificate.loaded:
            return "no serving certificate yet; the operator writes it into the TLS Secret"
        if not all(watch.synced for watch in self._watches):
            return "policies, namespaces and agents are not indexed yet"
        return ""

    def unready_or_stopping(self) -> str:
        """Return what is missing, or "stopping" while the process drains, although reviews are still answered then."""
        return "stopping" if self._stopping else self.unready()


async def _first(stop: "asyncio.Task[Any]", *tasks: "asyncio.Task[Any]") -> None:
    """Wait for ``stop``; if another task ends first it has failed, and its error is raised."""
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
    """Run the webhook. Exit code 2: invalid environment."""
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
