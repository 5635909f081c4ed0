"""The control port over TLS with real S3 servers: what a pod stores by presigned URLs is committed and restored."""

import asyncio
import gc
import json
import os
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from savepoint.contract.control_protocol import (
    Ack,
    Checkpoint,
    Committed,
    Grant,
    Hello,
    NeedUrls,
    ObjectName,
    Offer,
    Outcome,
    Refused,
    Released,
    RequestCheckpoint,
    Result,
    Timing,
    Urls,
    Welcome,
)
from savepoint.errors import Refused as RefusedError
from savepoint.errors import StoreDenied, Unavailable
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import open_manifest
from savepoint.repository.format.tree import TreeFile
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.write.source import MemorySource
from savepoint.repository.write.writer import CheckpointWriter, WriterOptions
from savepoint.storage.presigned import PresignedStore
from savepoint.storage.retry import Retry
from savepoint_operator.control.dependencies import ControlLimits, ControlPorts
from savepoint_operator.control.server import PATH, ControlServer
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.model.views import AgentRef
from savepoint_sidecar.authority.authority import Blobs
from savepoint_sidecar.authority.channel import Dialer
from savepoint_sidecar.authority.control_client import ConnectionClock, ControlClient, SidecarIdentity
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.restore_container import restore
from savepoint_sidecar.settings import Settings

from tests.fakes.control_harness import Pod, attempt, until
from tests.fakes.operator_ports import Recorder, Reviewer, ScriptedPodResolver, Stores, incarnation
from tests.servers.control import ground
from tests.servers.pki import Authority
from tests.servers.s3 import S3Server

BUCKET = "savepoint-control-tests"
CODER, OTHER = AgentRef("demo", "coder"), AgentRef("demo", "mailer")
CONTENT = os.urandom(300_000)
Random = Callable[[int], bytes]


def _now() -> datetime:
    return datetime.now(UTC)


class AskedUrls:
    """URLs asked for over the pod's own connection, one at a time, from the threads that move bytes."""

    def __init__(self, pod: Pod) -> None:
        self._pod, self._loop, self._lock = pod, asyncio.get_running_loop(), asyncio.Lock()

    def put_url(self, key: str) -> str:
        return self._wait(NeedUrls("put", put=(key,)))

    def get_url(self, key: str) -> str:
        return self._wait(NeedUrls("get", get=(key,)))

    def forget(self, key: str) -> None:
        """Nothing is remembered."""

    def _wait(self, ask: NeedUrls) -> str:
        return asyncio.run_coroutine_threadsafe(self._ask(ask), self._loop).result(30)

    async def _ask(self, ask: NeedUrls) -> str:
        async with self._lock:
            await self._pod.send(ask)
            answer = await self._pod.receive()
        if isinstance(answer, Refused):
            raise Unavailable(answer.message)
        assert isinstance(answer, Urls)
        (url,) = {**answer.put, **answer.get}.values()
        return url


@dataclass
class Site:
    """A control server over TLS, and the way to it."""

    recorder: Recorder
    reviewer: Reviewer
    pod_resolver: ScriptedPodResolver
    stores: Stores
    authority: Authority
    served: ssl.SSLContext
    session: aiohttp.ClientSession
    tokens: Path
    server: ControlServer | None = None
    port: int = 0

    async def start(self) -> None:
        """An operator process takes the lead, at the address of the one before."""
        ports = ControlPorts(self.reviewer, self.pod_resolver, self.stores, self.recorder)
        limits = ControlLimits(poll_seconds=0.05, linger_seconds=0.1)
        clocks = Clocks(_now, time.monotonic)
        self.server = ControlServer(ports, clocks, random_bytes=os.urandom, limits=limits)
        self.port = await self.server.start(self.served, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """It ends, as on SIGTERM."""
        assert self.server is not None
        await self.server.drain(5)
        await self.server.stop()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}{PATH}"

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.authority.certificate.decode())

    def client(self, uid: str) -> ControlClient:
        """The sidecar's own client, as its container starts it."""
        token = self.tokens / uid
        token.write_text(f"token-of-{uid}\n")
        dialer = Dialer(self.url.replace("https:", "wss:"), self.authority.certificate.decode(), token)
        return ControlClient(
            dialer,
            SidecarIdentity(uid, "n1", "0.1.0"),
            ConnectionClock(time.monotonic, os.urandom, lambda: 0.0),
        )

    def pod(self, uid: str, agent: AgentRef = CODER) -> None:
        who = incarnation(agent, uid)
        self.reviewer.pods[uid], self.pod_resolver.incarnations[uid] = who.pod, who

    async def hello(self, uid: str, role: str) -> Pod:
        headers = {"Authorization": f"Bearer token-of-{uid}"}
        pod = Pod(await self.session.ws_connect(self.url, headers=headers, ssl=self.tls), uid)
        await pod.send(Hello(role, 1, "0.1.0", "n1"))
        return pod


@pytest.fixture
async def site(s3_server: S3Server, tmp_path: Path) -> AsyncIterator[Site]:
    with ground(s3_server, BUCKET, tmp_path) as on:
        directory = ScriptedPodResolver()
        recorder, reviewer = Recorder(directory), Reviewer()
        async with aiohttp.ClientSession() as session:
            site = Site(recorder, reviewer, directory, on.stores, on.authority, on.served, session, tmp_path)
            await site.start()
            yield site
            await site.stop()


def _checkpoint(store: Blobs, welcome: Welcome, number: int = 1, random_bytes: Random = os.urandom) -> Offer:
    """What a sidecar does between the order and the offer. Blocking."""
    writer = _writer(store, welcome, random_bytes)
    writer.add_blob("notes", "Memory", MemorySource(CONTENT))
    return _finish(writer, welcome, number)


def _tree(store: Blobs, welcome: Welcome, random_bytes: Random) -> Offer:
    """The same, of one file in the state folder."""
    writer = _writer(store, welcome, random_bytes)
    content = writer.store_bytes(CONTENT, "Files")
    component = Root("workspace", "/workspace", Path()).component
    writer.add_tree(component, "Files", [TreeFile("notes.bin", 0o644, 0, content)])
    return _finish(writer, welcome, 1)


def _writer(store: Blobs, welcome: Welcome, random_bytes: Random) -> CheckpointWriter:
    key = AgentKey(bytes.fromhex(welcome.key))
    return CheckpointWriter(store, store, key, welcome.epoch, None, options=WriterOptions(random_bytes=random_bytes))


def _finish(writer: CheckpointWriter, welcome: Welcome, number: int) -> Offer:
    made = writer.finish(
        namespace=welcome.namespace,
        agent=welcome.agent,
        attempt=attempt(number),
        created=time_text(_now()),
        consistency="Application",
        parent=None,
    )
    writer.commit()
    return Offer(
        attempt=made.attempt,
        manifest=ObjectName(made.name, made.size),
        packs=tuple(ObjectName(pack.name, pack.size) for pack in made.packs),
        trigger="Shutdown",
        consistency="Application",
        logical_bytes=made.logical,
        stored_bytes=made.stored,
        uploaded_bytes=made.uploaded_bytes,
        timing=Timing(time_text(_now())),
    )


async def _close(client: ControlClient) -> None:
    await client.close()
    if isinstance(client.blobs, PresignedStore):
        client.blobs.close()


def _restore(store: PresignedStore, welcome: Welcome) -> bytes:
    """What an init container does between the grant and its outcome. Blocking."""
    assert welcome.parent is not None
    name = welcome.parent.manifest.name
    key = AgentKey(bytes.fromhex(welcome.key))
    content = store.get(f"manifests/{name}", max_bytes=welcome.parent.manifest.size)
    manifest = open_manifest(content, key, welcome.namespace, welcome.agent, name)
    pieces: list[bytes] = []
    with CheckpointReader(store, key, manifest) as reader:
        (component,) = reader.components
        reader.read_blob_into(component, lambda piece: pieces.append(bytes(piece)))
    return b"".join(pieces)


async def test_a_pod_stores_and_its_successor_restores_byte_for_byte(site: Site) -> None:
    site.pod("a")
    pod = await site.hello("a", "restore")
    assert (await pod.expect(Grant)).welcome.parent is None
    await pod.request(Outcome("Fresh"), Ack)
    await pod.close()
    sidecar = await site.hello("a", "sidecar")
    welcome = await sidecar.expect(Welcome)
    with closing(PresignedStore(AskedUrls(sidecar))) as store:
        offer = await asyncio.to_thread(_checkpoint, store, welcome)
    committed = await sidecar.request(offer, Committed)
    assert committed.checkpoint.name == "coder-1"
    await sidecar.request(Released(1), Ack)
    await sidecar.close()

    site.pod("b")
    successor = await site.hello("b", "restore")
    granted = (await successor.expect(Grant)).welcome
    assert granted.parent == committed.checkpoint
    with closing(PresignedStore(AskedUrls(successor))) as store:
        assert await asyncio.to_thread(_restore, store, granted) == CONTENT
    await successor.request(Outcome("Restored", bytes_restored=len(CONTENT)), Ack)
    await successor.close()
    assert [each.outcome for each in site.recorder.calls_of("restored")] == ["Fresh", "Restored"]


async def test_a_url_opens_one_object_of_the_own_repository(site: Site) -> None:
    welcomes: dict[str, Welcome] = {}
    pods: dict[str, Pod] = {}
    with ExitStack() as stack:
        for uid, agent in (("a", CODER), ("b", OTHER)):
            site.pod(uid, agent)
            asks = await site.hello(uid, "restore")
            await asks.expect(Grant)
            await asks.close()
            pods[uid] = await site.hello(uid, "sidecar")
            welcomes[uid] = await pods[uid].expect(Welcome)
        assert welcomes["a"].key != welcomes["b"].key
        pack = f"packs/1-{'ab' * 16}"
        stores = {
            uid: stack.enter_context(closing(PresignedStore(AskedUrls(pods[uid]), retry=Retry(attempts=1))))
            for uid in pods
        }
        await asyncio.to_thread(stores["a"].put_new, pack, b"of a")
        assert await asyncio.to_thread(stores["b"].head, pack) is None  # the same key, another repository
        for key in (f"../coder/{pack}", f"..%2fcoder/{pack}", "commits/00000000000000000001", "repository.json"):
            assert (await pods["b"].request(NeedUrls("1", get=(key,)), Refused)).request == "1"
        await pods["a"].send(NeedUrls("1", get=(pack,)))
        url = (await pods["a"].expect(Urls)).get[pack]
        assert "/demo/coder/packs/" in url

        class Moved:
            """A URL of one object, used for another."""

            def put_url(self, key: str) -> str:
                return url

            def get_url(self, key: str) -> str:
                return url.replace("/demo/coder/", "/demo/mailer/")

            def forget(self, key: str) -> None:
                """It stays the same."""

        moved = stack.enter_context(closing(PresignedStore(Moved(), retry=Retry(attempts=1))))
        with pytest.raises(StoreDenied):
            await asyncio.to_thread(moved.head, pack)
        with pytest.raises(StoreDenied):  # it was signed for reading
            await asyncio.to_thread(moved.put_new, pack, b"of nobody")
        for pod in pods.values():
            await pod.close()


async def test_a_certificate_of_another_authority_is_not_trusted(site: Site) -> None:
    stranger = ssl.create_default_context(cadata=Authority().certificate.decode())
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await site.session.ws_connect(site.url, ssl=stranger)


async def test_the_sidecars_own_client_commits_through_a_restart_of_the_operator(site: Site) -> None:
    site.pod("a")
    asks = await site.hello("a", "restore")
    await asks.expect(Grant)
    await asks.close()
    client = site.client("a")
    try:
        async with asyncio.timeout(60):
            welcome = await client.welcome()
            assert (welcome.agent, welcome.epoch, welcome.run, welcome.parent) == ("coder", 1, 1, None)
            orders = client.orders()
            assert site.server is not None
            await site.server.orders.checkpoint(CODER, attempt(1), "Interval", 60)
            order = await anext(orders)
            assert isinstance(order, Checkpoint)
            offer = await asyncio.to_thread(_checkpoint, client.blobs, welcome, 1, client.random_bytes)
            first = await client.commit(offer)
            assert (first.name, first.sequence) == ("coder-1", 2)

            second = await asyncio.to_thread(_checkpoint, client.blobs, welcome, 2, client.random_bytes)
            await site.stop()
            committing = asyncio.ensure_future(client.commit(second))
            await asyncio.sleep(0.3)
            assert not committing.done()
            await site.start()
            assert (await committing).sequence == 3
            assert isinstance(await anext(orders), Welcome)  # it was welcomed again

            await client.request_checkpoint(RequestCheckpoint("r1", "Shutdown"))
            asked = await anext(orders)
            assert isinstance(asked, Checkpoint)
            assert asked.request == "r1"
            await client.report_result(Result(asked.attempt, "Unchanged"))
            await until(lambda: site.recorder.calls_of("unchanged"))
            await client.report_release(Released(1))
    finally:
        await _close(client)
    assert site.recorder.calls_of("released") == [("a", False)]


async def test_what_the_client_leaves_behind_is_adopted(site: Site) -> None:
    site.pod("a")
    asks = await site.hello("a", "restore")
    await asks.expect(Grant)
    await asks.close()
    client = site.client("a")
    try:
        async with asyncio.timeout(60):
            welcome = await client.welcome()
            offer = await asyncio.to_thread(_checkpoint, client.blobs, welcome, 1, client.random_bytes)
            manifest = await asyncio.to_thread(
                client.blobs.get, f"manifests/{offer.manifest.name}", max_bytes=offer.manifest.size
            )
            await site.stop()
            await client.leave_pending(offer.attempt, "Shutdown", True, manifest)
    finally:
        await _close(client)
    await site.start()
    again = site.client("a")
    with pytest.raises(RefusedError) as caught:  # the run is completed: nothing follows in this pod
        await again.welcome()
    await again.close()
    assert caught.value.code == "Completed"
    assert [head.record.kind for head in site.recorder.calls_of("committed")] == ["checkpoint", "completed"]


async def test_the_client_of_a_superseded_pod_is_stopped(site: Site) -> None:
    site.pod("a")
    client = site.client("a")
    with pytest.raises(RefusedError) as caught:
        await asyncio.wait_for(client.welcome(), 30)
    await client.close()
    assert caught.value.code == "Fenced"


async def test_the_init_container_itself_starts_fresh_restores_and_is_refused(site: Site, tmp_path: Path) -> None:
    async def start(uid: str) -> tuple[int, dict[str, Any], Path]:
        """Run the init container of a pod; its exit status, termination message and state folder."""
        site.pod(uid)
        token, state, stage = tmp_path / f"token-{uid}", tmp_path / f"state-{uid}", tmp_path / f"stage-{uid}"
        token.write_text(f"token-of-{uid}")
        for folder in (state, stage):
            folder.mkdir(exist_ok=True)
        settings = Settings(
            control_url=site.url.replace("https:", "wss:"),
            control_ca=site.authority.certificate.decode(),
            pod_name=f"coder-{uid}",
            pod_namespace="demo",
            pod_uid=uid,
            node="n1",
            grace_seconds=30,
            roots=(Root("workspace", "/workspace", state),),
            token_path=token,
            stage=stage,
            version="0.1.0",
        )
        told = tmp_path / f"termination-{uid}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # its process would end here, and its sockets with it
            status = await asyncio.wait_for(restore(settings, Failpoints(), told), 60)
            gc.collect()
        return status, json.loads(told.read_text()), state

    status, told, _ = await start("a")
    assert (status, told["outcome"]) == (0, "Fresh")

    client = site.client("a")
    try:
        async with asyncio.timeout(60):
            welcome = await client.welcome()
            offer = await asyncio.to_thread(_tree, client.blobs, welcome, client.random_bytes)
            await client.commit(offer)
            await client.report_release(Released(1))
    finally:
        await _close(client)
    status, told, state = await start("b")
    assert (status, told["outcome"]) == (0, "Restored"), told
    assert (state / "notes.bin").read_bytes() == CONTENT

    status, told, _ = await start("a")  # its sandbox was restarted, long after another pod has taken over
    assert (status, told["outcome"]) == (1, "Fenced")
    assert [each.outcome for each in site.recorder.calls_of("restored")][:2] == ["Fresh", "Restored"]
