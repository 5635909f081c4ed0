"""The webhook's two ports: HTTPS for the API server's reviews, HTTP for liveness, readiness and metrics.

It trusts nothing in a body, keeps nothing of it, and answers from memory alone.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from savepoint.contract.names import LABEL_AGENT

from savepoint_operator.admission.review import Decide, ReviewError, answer
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.injection import Injected

log = logging.getLogger(__name__)

PATH: Final = "/mutate-pods"
BODY_MAX_BYTES: Final = 8 << 20
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)


class AdmissionMetrics:
    """The metrics that /metrics exposes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reviews = Counter(
            "savepoint_admission_reviews", "Pods reviewed, by outcome.", ["outcome"], registry=self.registry
        )
        self.seconds = Histogram(
            "savepoint_admission_seconds", "Time taken by a review.", registry=self.registry, buckets=_BUCKETS
        )


def review_application(decide: Decide, unready: Callable[[], str], metrics: AdmissionMetrics) -> web.Application:
    """Return the application that answers reviews. ``unready`` returns what is missing before it can, or nothing."""

    def decide_and_record(pod: Mapping[str, Any], namespace: str) -> Injected | Refusal:
        result = decide(pod, namespace)
        outcome = result.reason if isinstance(result, Refusal) else "Injected"
        metrics.reviews.labels(outcome).inc()
        metadata = pod["metadata"]
        name = metadata.get("name") or f"{metadata.get('generateName', '')}…"
        agent = (metadata.get("labels") or {}).get(LABEL_AGENT, "")
        log.info("reviewed pod %s/%s: %s (agent=%r)", namespace, name, outcome, agent[:80])
        return result

    async def mutate(request: web.Request) -> web.Response:
        missing = unready()
        if missing:
            return web.Response(status=503, text=f"{missing}\n")
        started = time.perf_counter()
        try:
            review = await request.json()
            response = answer(review, decide_and_record)
        except (ValueError, RecursionError) as error:  # ReviewError, or a body that is malformed or nested too deeply
            return web.Response(status=400, text=f"{error if isinstance(error, ReviewError) else 'not JSON'}\n")
        metrics.seconds.observe(time.perf_counter() - started)
        return web.json_response(response)

    application = web.Application(client_max_size=BODY_MAX_BYTES)
    application.router.add_post(PATH, mutate)
    return application


def health_application(unready: Callable[[], str], metrics: AdmissionMetrics) -> web.Application:
    """Return the application that serves /healthz, /readyz and /metrics."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        missing = unready()
        return web.Response(status=503 if missing else 200, text=f"{missing or 'ok'}\n")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), content_type="text/plain", charset="utf-8")

    application = web.Application()
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", exposition)
    return application
