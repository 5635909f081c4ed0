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
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.manifest import Execution, Manifest, Pack, Parent, Sizes
from savepoint.repository.history.chain import Chain
from savepoint.repository.repository import Repository
from savepoint_operator.control.dependencies import ControlLimits, ControlPorts
from savepoint_operator.control.server import PATH, ControlServer
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.model.views import AgentRef, NodeState, PodState, PredecessorState

from tests.fakes.operator_ports import (
    GatedStore,
    ManualClock,
    Recorder,
    Reviewer,
    ScriptedPodResolver,
    Stores,
    incarnation,
)
from tests.fakes.store import MemoryStore
from tests.polling import until

AGENT = AgentRef("demo", "coder")
MASTER = MasterKey(bytes(range(32)))
T = TypeVar("T")


class Pod:
    """One connection of a pod, seen from the pod."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, uid: str, timeout_seconds: float = 10) -> None:
        self.socket, self.uid, self._timeout_seconds = socket, uid, timeout_seconds

    async def send(self, message: FromPod) -> None:
        await self.socket.send_str(encode(message))

    async def receive(self) -> Message:
        """Return the next message. Raises ConnectionError with the close code if the connection has ended."""
        frame = await asyncio.wait_for(self.socket.receive(), self._timeout_seconds)
        if frame.type is aiohttp.WSMsgType.CLOSE:
            raise ConnectionError(frame.data)
        if frame.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError(self.socket.close_code)
        return decode(frame.data)

    async def expect(self, kind: type[T]) -> T:
        """Return the next message, which must be of this kind."""
        message = await self.receive()
        assert isinstance(message, kind), message
        return message

    async def request(self, message: FromPod, kind: type[T]) -> T:
        """Send the message and return the answer, which must be of this kind."""
        await self.send(message)
        return await self.expect(kind)

    async def granted(self) -> Welcome:
        """Return the welcome of the grant, skipping waits."""
        while isinstance(message := await self.receive(), Wait):
            pass
        assert isinstance(message, Grant), message
        return message.welcome

    async def closed(self) -> int:
        """Return the close code, once the connection has ended."""
        while True:
            try:
                await self.receive()
            except ConnectionError as error:
                return int(error.args[0])

    async def close(self) -> None:
        await self.socket.close()


class ControlHarness:
    """The operator's control side over fake ports."""

    def __init__(self) -> None:
        self.clock, self.reviewer, self.pod_resolver = ManualClock(), Reviewer(), ScriptedPodResolver()
        self.plain = MemoryStore(self.clock.now)
        self.store = GatedStore(self.plain)
        self.stores = Stores(self.store, MASTER)
        self.recorder = Recorder(self.pod_resolver)
        self.random = random.Random(7)
        self.server: ControlServer | None = None
        self._servers: list[ControlServer] = []
        self.port = 0
        self.session = aiohttp.ClientSession()
        self._pods: list[Pod] = []

    async def lead(self, **limits: Any) -> ControlServer:
        """Start a new operator process over the same store; an earlier one keeps running."""
        self.server = ControlServer(
            ControlPorts(self.reviewer, self.pod_resolver, self.stores, self.recorder),
            Clocks(self.clock.now, self.clock.monotonic),
            random_bytes=self.random.randbytes,
            sleep=self.clock.sleep,
            limits=ControlLimits(**{"poll_seconds": 0.01, "linger_seconds": 0.0, **limits}),
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
        """Register a pod of the agent."""
        registered = incarnation(agent, uid, node)
        self.reviewer.pods[uid] = registered.pod
        self.pod_resolver.incarnations[uid] = registered

    def end(self, uid: str, pod: PodState = PodState.GONE, node: NodeState = NodeState.READY) -> None:
        """Set the state of the pod and its node that the cluster reports from now on."""
        self.pod_resolver.predecessors[uid] = PredecessorState(pod, node)

    async def dial(self, uid: str, token: str | None = None, port: int | None = None) -> Pod:
        """Connect without sending a message."""
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
        """Start a pod: connect its init container, get the grant, disconnect."""
        if uid not in self.pod_resolver.incarnations:
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
        """Connect a sidecar and return its welcome."""
        pod = await self.hello(uid, "sidecar", **more)
        return pod, await pod.expect(Welcome)

    def repository(self, agent: AgentRef = AGENT) -> Repository:
        return Repository.open_or_create(
            self.plain, *agent, MASTER, now=self.clock.now(), random_bytes=self.random.randbytes
        )

    def head(self, agent: AgentRef = AGENT) -> ChainRecord | None:
        """Return the newest record in the store."""
        return Chain(self.repository(agent).store, *agent).head(None)

    def chain(self) -> list[tuple[str, int, int]]:
        """Return (kind, sequence, epoch) of every record, oldest first, having checked every link."""
        head = self.head()
        if head is None:
            return []
        heads = Chain(self.repository().store, *AGENT).back(head, 1000)
        return [(str(each.record.kind), each.record.sequence, each.record.epoch) for each in heads][::-1]

    def offer(self, attempt: str, epoch: int, *, parent: Parent | None = None, **more: Any) -> Offer:
        """Store a checkpoint of one pack as a sidecar does, and return its offer."""
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
        fields: dict[str, Any] = {"trigger": "Interval", **more}
        return Offer(
            attempt=attempt,
            manifest=ObjectName(name, size),
            packs=(ObjectName(pack.name, pack.size),),
            consistency="Application",
            logical_bytes=0,
            stored_bytes=0,
            uploaded_bytes=len(content),
            timing=Timing(time_text(self.clock.now())),
            **fields,
        )


def attempt(number: int) -> str:
    """Return the id of an attempt."""
    return f"{number:032x}"


@asynccontextmanager
async def running_harness() -> AsyncIterator[ControlHarness]:
    """Yield a harness with an operator that leads."""
    harness = ControlHarness()
    await harness.lead()
    try:
        yield harness
    finally:
        await harness.close()


__all__ = ["AGENT", "Ack", "Committed", "ControlHarness", "Pod", "attempt", "running_harness", "until"]
