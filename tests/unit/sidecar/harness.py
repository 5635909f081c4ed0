"""An incarnation with a fake authority, and an agent that speaks the socket protocol to it step by step."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from types import UnionType
from typing import Any

import aiohttp
from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import PolicyTerms
from savepoint.storage import ObjectStore
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.lifecycle.config import Clock, IncarnationConfig
from savepoint_sidecar.lifecycle.incarnation import Incarnation

from tests.fakes.authority import FakeAuthority
from tests.fakes.store import MemoryStore

QUICK = PolicyTerms(quiesce_timeout_seconds=1, hold_seconds=1)
"""A policy with short timeouts."""


class Agent:
    """One process of an agent, as seen from the socket."""

    def __init__(self, socket: Path, instance: str) -> None:
        self._http = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)), base_url="http://agent")
        self.instance = instance
        self.session = ""
        self.connected: wire.Connected | None = None
        self.orders: asyncio.Queue[wire.Order] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self.documents: dict[str, Any] = {}
        self.journal = 1

    async def connect(self, *, reattach: bool = False, listen: bool = True) -> wire.Connected:
        """Connect. Raise AssertionError with the answer if the connection is refused."""
        connect = wire.Connect(1, self.instance, "test", dependencies={"dep": "1"}, reattach=reattach)
        self.connected = wire.Connected.from_wire(await self.post(wire.PATH_CONNECT, connect.to_wire()))
        self.session = self.connected.session
        for component in self.connected.components:
            if component.name == wire.COMPONENT_DOCUMENTS:
                self.documents = {each.name: json.loads(each.inline or "null") for each in component.entries}
        if listen:
            response = await self._http.get(f"{wire.PATH_ORDERS}?session={self.session}")
            self._reading = asyncio.ensure_future(self._read(response))
        return self.connected

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        async for line in response.content:
            order = wire.order_from_wire(json.loads(line))
            if order is not None:
                self.orders.put_nowait(order)

    async def post(self, path: str, body: Mapping[str, Any], status: int = 200) -> Any:
        async with self._http.post(path, json=body) as response:
            text = await response.text()
            assert response.status == status, f"{response.status}: {text}"
            return json.loads(text)

    async def get(self, path: str) -> Any:
        async with self._http.get(path) as response:
            return await response.json()

    async def next(self, kind: type[Any] | UnionType, seconds: float = 10) -> Any:
        """Return the next order of this kind; skip others."""
        async with asyncio.timeout(seconds):
            while True:
                order = await self.orders.get()
                if isinstance(order, kind):
                    return order

    def components(self, **more: wire.Component) -> tuple[wire.Component, ...]:
        """Return the current documents and execution state."""
        entries = tuple(
            wire.Entry(name, "json", len(json.dumps(value)), inline=json.dumps(value))
            for name, value in sorted(self.documents.items())
        )
        execution = json.dumps({"journal": self.journal})
        return (
            wire.Component(wire.COMPONENT_DOCUMENTS, "Memory", entries),
            wire.Component(
                wire.COMPONENT_EXECUTION,
                "Execution",
                (wire.Entry("position", "json", len(execution), inline=execution),),
            ),
            *more.values(),
        )

    def flush_of(self, transaction: str, *extra: wire.Component) -> dict[str, Any]:
        execution = wire.Execution("items 3 of 9", uncertain=("e1",), detail="in step work")
        return wire.Flush(self.session, transaction, (*self.components(), *extra), execution).to_wire()

    async def flush(self, *extra: wire.Component, status: int = 200) -> str:
        """Wait for a quiesce, answer it, and return the transaction."""
        order = await self.next(wire.Quiesce | wire.Stopping)
        await self.post(wire.PATH_FLUSH, self.flush_of(order.transaction, *extra), status)
        return str(order.transaction)

    async def result(self) -> wire.Result:
        result: wire.Result = await self.next(wire.Result)
        return result

    async def die(self) -> None:
        """End as a killed process does: close every connection."""
        if self._reading is not None:
            self._reading.cancel()
        await self._http.close()


class Harness:
    """One incarnation with its folders."""

    def __init__(self, folder: Path, store: ObjectStore, authority: FakeAuthority, **config: Any) -> None:
        self.folder, self.store, self.authority = folder, store, authority
        self.files = folder / "files"
        self.files.mkdir(exist_ok=True)
        self.root = Root("files", "/data", self.files, persistent=True)
        self.stage = folder / "stage"
        self.random = Random(5)
        self.agents: list[Agent] = []
        defaults: dict[str, Any] = {
            "roots": (self.root,),
            "stage": self.stage,
            "socket_path": folder / "agent.sock",
            "pod_uid": authority.pod_uid,
            "grace_seconds": 5.0,
        }
        clock = Clock(lambda: datetime.now(UTC), time.monotonic, time.time_ns, lambda: self.random.randbytes(16).hex())
        self.failpoints = Failpoints()
        self.incarnation = Incarnation(authority, IncarnationConfig(**{**defaults, **config}), clock, self.failpoints)

    def agent(self, instance: str = "one") -> Agent:
        agent = Agent(self.folder / "agent.sock", instance)
        self.agents.append(agent)
        return agent

    async def connected(self, instance: str = "one") -> Agent:
        """Return an agent that is connected."""
        agent = self.agent(instance)
        await agent.connect()
        return agent

    async def idle(self) -> None:
        """Wait until no checkpoint or restore is running."""
        async with asyncio.timeout(10):
            async with self.incarnation.state_lock.lock:
                pass

    async def close(self) -> None:
        for agent in self.agents:
            await agent.die()
        await self.incarnation.close()

    def tree(self) -> dict[str, bytes]:
        """Return the root's files and their content, without the restore marker."""
        found = {}
        for path in sorted(self.files.rglob("*")):
            name = str(path.relative_to(self.files))
            if path.is_file() and not path.is_symlink() and not name.startswith(".savepoint"):
                found[name] = path.read_bytes()
        return found


@asynccontextmanager
async def running(
    folder: Path,
    store: ObjectStore | None = None,
    *,
    policy: PolicyTerms | None = None,
    pod_uid: str = "pod-1",
    shared_roots: tuple[str, ...] = (),
    **config: Any,
) -> AsyncIterator[Harness]:
    """Yield a started incarnation, and close it."""
    objects = store if store is not None else MemoryStore(lambda: datetime.now(UTC))
    authority = FakeAuthority(objects, policy=policy, pod_uid=pod_uid)
    authority.shared_roots = shared_roots
    harness = Harness(folder, objects, authority, **config)
    await harness.incarnation.start()
    try:
        yield harness
    finally:
        await harness.close()


async def checkpoint(harness: Harness, agent_flushes: bool = True) -> wire.Result | None:
    """Order a checkpoint and wait for its end. Return the agent's result, or None if no agent flushes."""
    harness.authority.order()
    if not agent_flushes:
        await harness.authority.await_attempts(len(harness.authority.offers) + len(harness.authority.results) + 1)
        return None
    agent = harness.agents[-1]
    await agent.flush()
    result = await agent.result()
    await harness.idle()
    return result
