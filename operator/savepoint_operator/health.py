"""Liveness, readiness and metrics over plain HTTP; started before the rest of the process."""

from collections.abc import Callable

from aiohttp import web

from savepoint_operator.metrics import Metrics

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health:
    """The health server. ``unready`` returns what is missing, empty if ready; liveness only needs a live event loop."""

    def __init__(self, metrics: Metrics, unready: Callable[[], str]) -> None:
        self._metrics, self._unready = metrics, unready
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Open the port and return its number (for ``port`` 0)."""
        application = web.Application()
        application.router.add_get("/healthz", self._alive)
        application.router.add_get("/readyz", self._ready)
        application.router.add_get("/metrics", self._exposition)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _alive(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.Response:
        missing = self._unready()
        return web.Response(status=503 if missing else 200, text=f"{missing or 'ok'}\n")

    async def _exposition(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": METRICS_TYPE})
