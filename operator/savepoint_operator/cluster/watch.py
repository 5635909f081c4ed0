"""Lists and then watches one kind for as long as the process runs; the webhook's index is built from this.

It never gives up: an index that is some seconds old is better than a refused pod. It does not interpret the objects.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Protocol

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException
from savepoint.contract.names import GROUP, VERSION

from savepoint_operator.cluster.access import Client

log = logging.getLogger(__name__)

LIST_SECONDS: Final = 30.0
WATCH_SECONDS: Final = 120
"""Each watch ends after this time, so that a connection that died without an error is replaced."""
WATCH_SLACK_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 0.2
RETRY_MIN_SECONDS: Final = 0.5
RETRY_MAX_SECONDS: Final = 30.0

_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1,application/json"

Lister = Callable[..., Awaitable[Any]]
"""A list method of the client (…_without_preload_content) for one kind."""


class Sink(Protocol):
    """Receives the objects."""

    def replace(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Replace all objects by those of a listing."""
        ...

    def put(self, item: Mapping[str, Any]) -> None:
        """Add or update an object."""
        ...

    def remove(self, item: Mapping[str, Any]) -> None:
        """Remove a deleted object."""
        ...


class Expired(Exception):
    """The API server no longer has the version to watch from, so the objects must be listed again."""


class Watch:
    """Keeps a sink up to date; ``synced`` is True once the first list has arrived."""

    def __init__(self, kind: str, lister: Lister, sink: Sink, jitter: Callable[[], float]) -> None:
        """``kind`` names the objects in the log; ``jitter`` returns numbers from 0 to 1."""
        self._kind, self._lister, self._sink, self._jitter = kind, lister, sink, jitter
        self.synced = False

    async def run(self) -> None:
        """Run until cancelled."""
        delay = RETRY_MIN_SECONDS
        while True:
            try:
                version = await self._list()
                while True:
                    version = await self._watch(version)
                    delay = RETRY_MIN_SECONDS
                    await asyncio.sleep(PAUSE_SECONDS)
            except Expired:
                log.info("%s: watch expired; listing again", self._kind)
            except (ApiException, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                pause = delay * (0.5 + self._jitter())
                log.warning("%s: watch failed: %s; retrying in %.1f s", self._kind, _described(error), pause)
                await asyncio.sleep(pause)
                delay = min(delay * 2, RETRY_MAX_SECONDS)

    async def _list(self) -> str:
        response = await self._lister(_request_timeout=LIST_SECONDS)
        body = await _body(response)
        self._sink.replace(body["items"])
        self.synced = True
        version: str = body["metadata"]["resourceVersion"]
        return version

    async def _watch(self, version: str) -> str:
        """Watch from ``version`` until the server ends the watch; return the last version."""
        response = await self._lister(
            watch=True,
            resource_version=version,
            allow_watch_bookmarks=True,
            timeout_seconds=WATCH_SECONDS,
            _request_timeout=WATCH_SECONDS + WATCH_SLACK_SECONDS,
        )
        if response.status != 200:
            await _body(response)
        try:
            while line := await response.content.readline():
                event = json.loads(line)
                self._take(event["type"], event["object"])
                version = event["object"]["metadata"]["resourceVersion"]
        finally:
            response.close()
        return version

    def _take(self, kind: str, item: Mapping[str, Any]) -> None:
        if kind == "ERROR":
            raise Expired if item.get("code") == 410 else ValueError(str(item.get("message")))
        if kind in ("ADDED", "MODIFIED"):
            self._sink.put(item)
        elif kind == "DELETED":
            self._sink.remove(item)


def policies(api: Client) -> Lister:
    """Return a lister of the AgentCheckpointPolicies of every namespace."""
    return _custom(api, "agentcheckpointpolicies")


def protected_agents(api: Client) -> Lister:
    """Return a lister of the ProtectedAgents of every namespace."""
    return _custom(api, "protectedagents")


def _custom(api: Client, plural: str) -> Lister:
    method = client.CustomObjectsApi(api).list_custom_object_for_all_namespaces_without_preload_content
    return partial(method, GROUP, VERSION, plural)


def namespaces(api: Client) -> Lister:
    """Return a lister of the namespaces' metadata.

    The API server names the metadata-only format differently for a list and for the objects of a watch.
    """
    method = client.CoreV1Api(api).list_namespace_without_preload_content

    def lister(*, watch: bool = False, **arguments: Any) -> Any:
        return method(watch=watch, _headers={"Accept": _METADATA_ONLY.format("" if watch else "List")}, **arguments)

    return lister


async def _body(response: Any) -> dict[str, Any]:
    """Return the JSON of an answer. Raises Expired or ValueError if its status is not 200."""
    text = await response.read()
    if response.status == 410:
        raise Expired
    if response.status != 200:
        raise ValueError(f"the API server answered {response.status}: {text[:200].decode(errors='replace')}")
    body: dict[str, Any] = json.loads(text)
    return body


def _described(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()[:300]
