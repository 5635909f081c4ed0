"""kopf, and nothing but kopf: watches of the kinds, whose objects are handed on. No handler decides or writes.

Every handler is an ``on.event``: kopf then keeps no state, so it writes neither finalizers nor annotations into any
object. It runs in a thread and an event loop of its own, since kopf ends by cancelling every task of its loop.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import kopf
from savepoint.contract.names import GROUP, LABEL_AGENT

from savepoint_operator.cluster.access import Access
from savepoint_operator.cluster.kinds import PODS, WATCHED, WORKLOADS, Kind

_NOBODY: Any = "savepoint"
"""kopf's identity among peers: there are none, but without it kopf asks for a user's name, which a bare uid lacks."""
log = logging.getLogger(__name__)

Seen = Callable[[Kind, bool, dict[str, Any]], None]
"""(kind, deleted, object)."""

REQUEST_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 10.0
SERVER_SECONDS: Final = 240
INACTIVE_SECONDS: Final = 70.0
STOP_SECONDS: Final = 15.0


class Watching:
    """Runs kopf; ``failed`` is set when it ends by itself."""

    def __init__(self, access: Access, seen: Seen) -> None:
        """``seen`` is called in the event loop in which ``start`` was awaited."""
        self._access, self._seen = access, seen
        self._stop, self._ready = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.failed = asyncio.Event()

    async def restart(self) -> None:
        """End the watches and begin them anew: one that died in silence would leave the operator blind."""
        await self.stop()
        self._stop, self._ready = threading.Event(), threading.Event()
        await self.start()

    async def start(self) -> None:
        """Begin to watch."""
        loop = asyncio.get_running_loop()
        registry = registry_for(self._access, lambda *told: loop.call_soon_threadsafe(self._seen, *told))
        arguments = (registry, loop, self._stop, self._ready)
        self._thread = threading.Thread(target=self._run, args=arguments, name="kopf", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End kopf and wait for it, within a bound."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def _run(
        self,
        registry: kopf.OperatorRegistry,
        loop: asyncio.AbstractEventLoop,
        stop: threading.Event,
        ready: threading.Event,
    ) -> None:
        try:
            asyncio.run(
                kopf.operator(
                    registry=registry,
                    settings=settings(),
                    standalone=True,
                    identity=_NOBODY,
                    clusterwide=True,
                    stop_flag=stop,
                    ready_flag=ready,
                )
            )
        except Exception:
            log.exception("watching has failed")
        finally:
            if not stop.is_set():
                loop.call_soon_threadsafe(self.failed.set)


def settings() -> kopf.OperatorSettings:
    """kopf's, as this operator wants them."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.persistence.finalizer = f"{GROUP}/operator"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"operator.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"operator.{GROUP}")
    settings.networking.request_timeout = REQUEST_SECONDS
    settings.networking.connect_timeout = CONNECT_SECONDS
    settings.watching.connect_timeout = CONNECT_SECONDS
    settings.watching.server_timeout = SERVER_SECONDS  # the API server takes whole numbers only
    settings.watching.client_timeout = SERVER_SECONDS + INACTIVE_SECONDS
    settings.watching.inactivity_timeout = INACTIVE_SECONDS
    settings.queueing.worker_limit = 64
    for kind in (PODS, *WORKLOADS):
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = LABEL_AGENT
    return settings


def registry_for(access: Access, seen: Callable[[Kind, bool, dict[str, Any]], object]) -> kopf.OperatorRegistry:
    """All handlers: one per kind, and the login."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        """As the operator's own client connects; asked again when the API server no longer takes the token."""
        told = await access.connection()
        return kopf.ConnectionInfo(
            server=told.server,
            ca_path=told.ca_path,
            certificate_path=told.certificate_path,
            private_key_path=told.key_path,
            scheme="Bearer" if told.token else None,
            token=told.token,
        )

    for kind in WATCHED:
        _register(registry, kind, seen)
    return registry


def _register(
    registry: kopf.OperatorRegistry, kind: Kind, seen: Callable[[Kind, bool, dict[str, Any]], object]
) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"see-{kind.plural}")
    async def see(event: kopf.RawEvent, **_: Any) -> None:
        """Hand the object on."""
        seen(kind, event["type"] == "DELETED", {"kind": kind.kind, **event["object"]})
