"""A control server over fake ports, and pods that speak the protocol to it over a real socket."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
from savepoint.contract.control_protocol import (
    Ack,
    AttemptState,
    Committed,
    FromPod,
    Grant,
    Hello,
    Message,
    ObjectName,
    Offer,
    Timing,
    Wait,
    Welcome,
    decode,
    encode,
)
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.commit import Head
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.manifest import Execution, Manifest, Pack, Parent, Sizes
from savepoint.repository.history.chain import Chain
from savepoint.repository.repository import Repository
from savepoint_operator.control.server import PATH, ControlServer
from savepoint_operator.model.views import AgentRef, NodeStanding, PodStanding, Standing

from tests.fakes.operator_ports import Clock, Directory, GatedStore, Recorder, Reviewer, Stores, incarnation
from tests.fakes.store import MemoryStore

AGENT = AgentRef("demo", "coder")
MASTER = MasterKey(bytes(range(32)))
T = TypeVar("T")


class Pod:
    """One connection of a pod."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, uid: str, patience: float = 10) -> None:
        self.socket, self.uid, self._patience = socket, uid, patience

    async def send(self, message: FromPod) -> None:
        await self.socket.send_str(encode(message))

    async def receive(self) -> Message:
        """The next message; ConnectionError with the close code when there is none."""
        frame = await asyncio.wait_for(self.socket.receive(), self._patience)
        if frame.type is aiohttp.WSMsgType.CLOSE:
            raise ConnectionError(frame.data)
        if frame.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError(self.socket.close_code)
        return decode(frame.data)

    async def expect(self, kind: type[T]) -> T:
        """The next message, which must be of this kind."""
        message = await self.receive()
        assert isinstance(message, kind), message
        return message

    async def ask(self, message: FromPod, kind: type[T]) -> T:
        await self.send(message)
        return await self.expect(kind)

    async def granted(self) -> Welcome:
        """Wait for the grant, however long it is said to wait."""
        while isinstance(message := await self.receive(), Wait):
            pass
        assert isinstance(message, Grant), message
        return message.welcome

    async def closed(self) -> int:
        """The close code, once the connection has ended."""
        while True:
            try:
                await self.receive()
            except ConnectionError as error:
                return int(error.args[0])

    async def close(self) -> None:
        await self.socket.close()


class ControlHarness:
    """The operator's control side with everything around it."""

    def __init__(self) -> None:
        self.clock, self.reviewer, self.directory = Clock(), Reviewer(), Directory()
        self.plain = MemoryStore(self.clock.now)
        self.store = GatedStore(self.plain)
        self.stores = Stores(self.store, MASTER)
        self.recorder = Recorder(self.directory)
        self.random = random.Random(7)
        self.server: ControlServer | None = None
        self._servers: list[ControlServer] = []
        self.port = 0
        self.session = aiohttp.ClientSession()
        self._pods: list[Pod] = []

    async def lead(self, **more: Any) -> ControlServer:
        """A new operator process over the same store; the one before is left as it is."""
        self.server = ControlServer(
            reviewer=self.reviewer,
            directory=self.directory,
            stores=self.stores,
            recorder=self.recorder,
            now=self.clock.now,
            monotonic=self.clock.monotonic,
            random_bytes=self.random.randbytes,
            sleep=self.clock.sleep,
            **{"poll_seconds": 0.01, "linger_seconds": 0.0, **more},
        )
        self._servers.append(self.server)
        self.port = await self.server.start(None, "127.0.0.1", 0)
        return self.server

    async def close(self) -> None:
        self.store.release()
        for pod in self._pods:
            await pod.close()
        for server in self._servers:
            await server.stop()
        await self.session.close()

    def pod(self, uid: str, agent: AgentRef = AGENT, node: str = "n1") -> None:
        """Make a pod of the agent known."""
        who = incarnation(agent, uid, node)
        self.reviewer.pods[uid] = who.pod
        self.directory.incarnations[uid] = who

    def end(self, uid: str, pod: PodStanding = PodStanding.GONE, node: NodeStanding = NodeStanding.READY) -> None:
        """What the cluster says of the pod from now on."""
        self.directory.standings[uid] = Standing(pod, node)

    async def dial(self, uid: str, token: str | None = None, port: int | None = None) -> Pod:
        """Connect without a word."""
        headers = {"Authorization": f"Bearer {token or f'token-of-{uid}'}"}
        url = f"http://127.0.0.1:{port or self.port}{PATH}"
        pod = Pod(await self.session.ws_connect(url, headers=headers), uid)
        self._pods.append(pod)
        return pod

    async def hello(self, uid: str, role: str, *, epoch: int = 0, attempts: tuple[AttemptState, ...] = ()) -> Pod:
        pod = await self.dial(uid)
        await pod.send(Hello(role, 1, "0.1.0", "n1", epoch, attempts))
        return pod

    async def grant(self, uid: str) -> Welcome:
        """Start a pod: ask, be granted, report."""
        if uid not in self.directory.incarnations:
            self.pod(uid)
        pod = await self.hello(uid, "restore")
        welcome = (await pod.expect(Grant)).welcome
        await self.leave(pod)
        return welcome

    async def leave(self, pod: Pod) -> None:
        """Close a connection and wait until the server has seen it."""
        await pod.close()
        assert self.server is not None
        connections = self.server._connections
        await until(lambda: all(uid != pod.uid for uid, _ in connections))

    async def sidecar(self, uid: str, **more: Any) -> tuple[Pod, Welcome]:
        """Connect a sidecar that is welcome."""
        pod = await self.hello(uid, "sidecar", **more)
        return pod, await pod.expect(Welcome)

    def repository(self, agent: AgentRef = AGENT) -> Repository:
        return Repository.open_or_create(
            self.plain, *agent, MASTER, now=self.clock.now(), random_bytes=self.random.randbytes
        )

    def head(self, agent: AgentRef = AGENT) -> Head | None:
        """What the store itself says."""
        return Chain(self.repository(agent).store, *agent).head(None)

    def chain(self) -> list[tuple[str, int, int]]:
        """(kind, sequence, epoch) of every record, oldest first; every link is checked on the way."""
        head = self.head()
        if head is None:
            return []
        heads = Chain(self.repository().store, *AGENT).back(head, 1000)
        return [(str(each.record.kind), each.record.sequence, each.record.epoch) for each in heads][::-1]

    def offer(self, attempt: str, epoch: int, *, parent: Parent | None = None, **more: Any) -> Offer:
        """Store a checkpoint of one pack as a sidecar does, and the offer of it."""
        repository = self.repository()
        content = b"SVPNTPK1" + self.random.randbytes(100)
        pack = Pack(f"{epoch}-{hashlib.sha256(content).hexdigest()[:32]}", len(content))
        repository.store.put_new(f"packs/{pack.name}", content)
        manifest = Manifest(
            namespace=AGENT.namespace,
            agent=AGENT.name,
            attempt=attempt,
            epoch=epoch,
            created=time_text(self.clock.now()),
            consistency="Application",
            components=(),
            packs=(pack,),
            size=Sizes(0, 0, len(content)),
            parent=parent,
            execution=Execution(),
        )
        name, size = repository.write_manifest(manifest, self.random.randbytes)
        terms: dict[str, Any] = {"trigger": "Interval", **more}
        return Offer(
            attempt=attempt,
            manifest=ObjectName(name, size),
            packs=(ObjectName(pack.name, pack.size),),
            consistency="Application",
            logical_bytes=0,
            stored_bytes=0,
            uploaded_bytes=len(content),
            timing=Timing(time_text(self.clock.now())),
            **terms,
        )


def attempt(number: int) -> str:
    """An attempt's id."""
    return f"{number:032x}"


@asynccontextmanager
async def running_cell() -> AsyncIterator[ControlHarness]:
    """A cell with an operator that leads."""
    cell = ControlHarness()
    await cell.lead()
    try:
        yield cell
    finally:
        await cell.close()


async def until(what: Any, seconds: float = 5.0) -> None:
    """Wait for a condition that another task brings about."""
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


__all__ = ["AGENT", "Ack", "Committed", "ControlHarness", "Pod", "attempt", "running_cell", "until"]
