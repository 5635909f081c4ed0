"""Watches the operator's kinds with kopf and passes their objects on. No handler decides or writes anything.

Every handler is an ``on.event`` handler: for those kopf keeps no state, so it writes neither finalizers nor annotations
into any object. kopf runs in a thread and an event loop of its own, since it ends by cancelling every task of its loop.
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

_IDENTITY: Any = "savepoint"
"""kopf's identity among its peers. It has none, but without an identity kopf looks up the name of the process's user,
which a bare uid does not have."""
log = logging.getLogger(__name__)

Observer = Callable[[Kind, bool, dict[str, Any]], None]
"""Called with (kind, deleted, object)."""

REQUEST_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 10.0
SERVER_SECONDS: Final = 240
INACTIVE_SECONDS: Final = 70.0
STOP_SECONDS: Final = 15.0
WORKER_LIMIT: Final = 64


class KopfWatcher:
    """Runs kopf in a thread; ``failed`` is set if it ends on its own."""

    def __init__(self, access: Access, observe: Observer) -> None:
        """``observe`` is called in the event loop that runs ``start``."""
        self._access, self._observe = access, observe
        self._stop, self._ready = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.failed = asyncio.Event()

    async def restart(self) -> None:
        """End the watches and start new ones: a watch that died without an error reports nothing any more."""
        await self.stop()
        self._stop, self._ready = threading.Event(), threading.Event()
        await self.start()

    async def start(self) -> None:
        """Start the watches."""
        loop = asyncio.get_running_loop()
        registry = registry_for(self._access, lambda *seen: loop.call_soon_threadsafe(self._observe, *seen))
        arguments = (registry, loop, self._stop, self._ready)
        self._thread = threading.Thread(target=self._run, args=arguments, name="kopf", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End kopf and wait for its thread, for at most STOP_SECONDS."""
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
                    identity=_IDENTITY,
                    clusterwide=True,
                    stop_flag=stop,
                    ready_flag=ready,
                )
            )
        except Exception:
            log.exception("kopf failed; the operator stops")
        finally:
            if not stop.is_set():
                loop.call_soon_threadsafe(self.failed.set)


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings: it writes nothing, and watches labelled pods and workloads only."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.persistence.finalizer = f"{GROUP}/operator"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"operator.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"operator.{GROUP}")
    settings.networking.request_timeout = REQUEST_SECONDS
    settings.networking.connect_timeout = CONNECT_SECONDS
    settings.watching.connect_timeout = CONNECT_SECONDS
    settings.watching.server_timeout = SERVER_SECONDS  # the API server accepts whole numbers only
    settings.watching.client_timeout = SERVER_SECONDS + INACTIVE_SECONDS
    settings.watching.inactivity_timeout = INACTIVE_SECONDS
    settings.queueing.worker_limit = WORKER_LIMIT
    for kind in (PODS, *WORKLOADS):
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = LABEL_AGENT
    return settings


def registry_for(access: Access, observe: Callable[[Kind, bool, dict[str, Any]], object]) -> kopf.OperatorRegistry:
    """Return the registry with all handlers: the login and one for each kind."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        """Connect as the operator's own client does; called again when the API server rejects the token."""
        connection = await access.connection_parameters()
        return kopf.ConnectionInfo(
            server=connection.server,
            ca_path=connection.ca_path,
            certificate_path=connection.certificate_path,
            private_key_path=connection.key_path,
            scheme="Bearer" if connection.token else None,
            token=connection.token,
        )

    for kind in WATCHED:
        _register(registry, kind, observe)
    return registry


def _register(
    registry: kopf.OperatorRegistry, kind: Kind, observe: Callable[[Kind, bool, dict[str, Any]], object]
) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"observe-{kind.plural}")
    async def observe_event(event: kopf.RawEvent, **_: Any) -> None:
        """Pass the object on."""
        observe(kind, event["type"] == "DELETED", {"kind": kind.kind, **event["object"]})
