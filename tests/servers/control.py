"""The operator's control side with a store in a real S3 server and TLS on localhost, without Kubernetes.

``tests.fakes.operator_ports`` supplies the pods that may connect and records what the control side reports.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from savepoint.contract.control_protocol import NeedUrls, Refused, Urls
from savepoint.errors import Unavailable
from savepoint.repository.format.keys import MasterKey
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import Presigner
from savepoint_operator.control.dependencies import ControlLimits, ControlPorts
from savepoint_operator.control.server import PATH, ControlServer
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.model.ports import OpenStore
from savepoint_operator.model.views import AgentRef

from tests.fakes.control_harness import Pod
from tests.fakes.operator_ports import Recorder, Reviewer, ScriptedPodResolver, Stores, incarnation
from tests.servers.pki import Authority
from tests.servers.s3 import S3Server


@dataclass(frozen=True)
class ControlSetup:
    """A store and TLS for a control server on loopback."""

    folder: Path
    stores: Stores
    authority: Authority
    server_context: ssl.SSLContext


@contextmanager
def control_setup(server: S3Server, bucket: str, folder: Path) -> Iterator[ControlSetup]:
    """Yield an empty store in the bucket, and TLS with its keys in the folder. Close the store at the end."""
    config, authority, master = server.config(bucket), Authority(), MasterKey(bytes(range(32)))
    with closing(S3Store(config)) as objects:
        stores = Stores(objects, master)
        stores.store = OpenStore("default", objects, Presigner(config, lambda: datetime.now(UTC)), master)
        server_context = authority.server_context(["localhost", "127.0.0.1"], folder)
        yield ControlSetup(folder, stores, authority, server_context)


class ControlSide:
    """A control server that can be stopped and started again at the same address."""

    def __init__(self, setup: ControlSetup) -> None:
        self.folder, self.authority = setup.folder, setup.authority
        self.pod_resolver, self.reviewer = ScriptedPodResolver(), Reviewer()
        self.recorder = Recorder(self.pod_resolver)
        self.server: ControlServer | None = None
        self.port = 0
        self._setup = setup

    @property
    def url(self) -> str:
        return f"wss://localhost:{self.port}{PATH}"

    async def start(self) -> None:
        """Start a new operator process, at the address of the one before."""
        ports = ControlPorts(self.reviewer, self.pod_resolver, self._setup.stores, self.recorder)
        limits = ControlLimits(poll_seconds=0.05, linger_seconds=0.1)
        clocks = Clocks(lambda: datetime.now(UTC), time.monotonic)
        self.server = ControlServer(ports, clocks, random_bytes=os.urandom, limits=limits)
        self.port = await self.server.start(self._setup.server_context, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Stop the operator process, as on SIGTERM."""
        assert self.server is not None
        await self.server.drain(5)
        await self.server.stop()

    def register(self, agent: AgentRef, uid: str, **changes: Any) -> None:
        """Register a pod of the agent. ``changes`` replace fields of its incarnation."""
        registered = replace(incarnation(agent, uid), **changes)
        self.reviewer.pods[uid], self.pod_resolver.incarnations[uid] = registered.pod, registered


class RequestedUrls:
    """Presigned URLs, requested one at a time over the pod's own connection, from the threads that move bytes."""

    def __init__(self, pod: Pod) -> None:
        self._pod, self._loop, self._lock = pod, asyncio.get_running_loop(), asyncio.Lock()

    def put_url(self, key: str) -> str:
        return self._wait(NeedUrls("put", put=(key,)))

    def get_url(self, key: str) -> str:
        return self._wait(NeedUrls("get", get=(key,)))

    def forget(self, key: str) -> None:
        """Do nothing: no URL is cached."""

    def _wait(self, request: NeedUrls) -> str:
        return asyncio.run_coroutine_threadsafe(self._request(request), self._loop).result(30)

    async def _request(self, request: NeedUrls) -> str:
        async with self._lock:
            await self._pod.send(request)
            answer = await self._pod.receive()
        if isinstance(answer, Refused):
            raise Unavailable(answer.message)
        assert isinstance(answer, Urls), answer
        (url,) = {**answer.put, **answer.get}.values()
        return url
