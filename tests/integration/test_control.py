"""The control port over TLS with real S3 servers: a pod uploads by presigned URLs, and its successor restores."""

import asyncio
import gc
import json
import os
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, closing
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
from savepoint.errors import StoreDenied
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import open_manifest
from savepoint.repository.format.tree import TreeFile
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.write.source import MemorySource
from savepoint.repository.write.writer import CheckpointWriter, WriterOptions
from savepoint.storage.presigned import PresignedStore
from savepoint.storage.retry import Retry
from savepoint_operator.model.views import AgentRef
from savepoint_sidecar.authority.authority import Blobs
from savepoint_sidecar.authority.control_client import ConnectionClock, ControlClient, SidecarIdentity
from savepoint_sidecar.authority.control_connection import Dialer
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.restore_container import restore
from savepoint_sidecar.settings import Settings

from tests.fakes.control_harness import Pod, attempt
from tests.polling import until
from tests.servers.control import ControlSetup, ControlSide, RequestedUrls, control_setup
from tests.servers.pki import Authority
from tests.servers.s3 import S3Server

BUCKET = "savepoint-control-tests"
CODER, OTHER = AgentRef("demo", "coder"), AgentRef("demo", "mailer")
CONTENT = os.urandom(300_000)
Random = Callable[[int], bytes]


def _now() -> datetime:
    return datetime.now(UTC)


class ConnectedControlSide(ControlSide):
    """A control side, with the clients of its pods."""

    def __init__(self, setup: ControlSetup, session: aiohttp.ClientSession) -> None:
        super().__init__(setup)
        self.session = session

    @property
    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.authority.certificate.decode())

    def client(self, uid: str) -> ControlClient:
        """Return the sidecar's own client, as its container creates it."""
        token = self.folder / f"token-of-{uid}"
        token.write_text(f"token-of-{uid}\n")
        dialer = Dialer(self.url, self.authority.certificate.decode(), token)
        return ControlClient(
            dialer,
            SidecarIdentity(uid, "n1", "0.1.0"),
            ConnectionClock(time.monotonic, os.urandom, lambda: 0.0),
        )

    def pod(self, uid: str, agent: AgentRef = CODER) -> None:
        """Register a pod of the agent."""
        self.register(agent, uid)

    async def hello(self, uid: str, role: str) -> Pod:
        """Connect as one of the pod's containers and send its hello."""
        headers = {"Authorization": f"Bearer token-of-{uid}"}
        pod = Pod(await self.session.ws_connect(self.url, headers=headers, ssl=self.client_context), uid)
        await pod.send(Hello(role, 1, "0.1.0", "n1"))
        return pod


@pytest.fixture
async def control(s3_server: S3Server, tmp_path: Path) -> AsyncIterator[ConnectedControlSide]:
    with control_setup(s3_server, BUCKET, tmp_path) as setup:
        async with aiohttp.ClientSession() as session:
            control = ConnectedControlSide(setup, session)
            await control.start()
            yield control
            await control.stop()


def _upload_blob(store: Blobs, welcome: Welcome, number: int = 1, random_bytes: Random = os.urandom) -> Offer:
    """Upload a checkpoint as a sidecar does, and return its offer. Blocking."""
    writer = _writer(store, welcome, random_bytes)
    writer.add_blob("notes", "Memory", MemorySource(CONTENT))
    return _finish(writer, welcome, number)


def _upload_tree(store: Blobs, welcome: Welcome, random_bytes: Random) -> Offer:
    """Upload a checkpoint of one file in the state folder, and return its offer. Blocking."""
    writer = _writer(store, welcome, random_bytes)
    content = writer.store_bytes(CONTENT, "Files")
    component = Root("workspace", "/workspace", Path()).component
    writer.add_tree(component, "Files", [TreeFile("notes.bin", 0o644, 0, content)])
    return _finish(writer, welcome, 1)


def _writer(store: Blobs, welcome: Welcome, random_bytes: Random) -> CheckpointWriter:
    key = AgentKey(bytes.fromhex(welcome.key))
    return CheckpointWriter(store, store, key, welcome.epoch, None, options=WriterOptions(random_bytes=random_bytes))


def _finish(writer: CheckpointWriter, welcome: Welcome, number: int) -> Offer:
    written = writer.finish(
        namespace=welcome.namespace,
        agent=welcome.agent,
        attempt=attempt(number),
        created=time_text(_now()),
        consistency="Application",
        parent=None,
    )
    writer.commit()
    return Offer(
        attempt=written.attempt,
        manifest=ObjectName(written.name, written.size),
        packs=tuple(ObjectName(pack.name, pack.size) for pack in written.packs),
        trigger="Shutdown",
        consistency="Application",
        logical_bytes=written.logical,
        stored_bytes=written.stored,
        uploaded_bytes=written.uploaded_bytes,
        timing=Timing(time_text(_now())),
    )


async def _close(client: ControlClient) -> None:
    await client.close()
    if isinstance(client.blobs, PresignedStore):
        client.blobs.close()


def _restore(store: PresignedStore, welcome: Welcome) -> bytes:
    """Read the granted checkpoint's content as an init container does. Blocking."""
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


async def test_a_successor_restores_every_byte_that_a_pod_stored(control: ConnectedControlSide) -> None:
    control.pod("a")
    pod = await control.hello("a", "restore")
    assert (await pod.expect(Grant)).welcome.parent is None
    await pod.request(Outcome("Fresh"), Ack)
    await pod.close()
    sidecar = await control.hello("a", "sidecar")
    welcome = await sidecar.expect(Welcome)
    with closing(PresignedStore(RequestedUrls(sidecar))) as store:
        offer = await asyncio.to_thread(_upload_blob, store, welcome)
    committed = await sidecar.request(offer, Committed)
    assert committed.checkpoint.name == "coder-1"
    await sidecar.request(Released(1), Ack)
    await sidecar.close()

    control.pod("b")
    successor = await control.hello("b", "restore")
    granted = (await successor.expect(Grant)).welcome
    assert granted.parent == committed.checkpoint
    with closing(PresignedStore(RequestedUrls(successor))) as store:
        assert await asyncio.to_thread(_restore, store, granted) == CONTENT
    await successor.request(Outcome("Restored", bytes_restored=len(CONTENT)), Ack)
    await successor.close()
    assert [each.outcome for each in control.recorder.calls_of("restore_ended")] == ["Fresh", "Restored"]


async def test_a_url_opens_one_object_of_the_pods_own_repository(control: ConnectedControlSide) -> None:
    welcomes: dict[str, Welcome] = {}
    pods: dict[str, Pod] = {}
    with ExitStack() as stack:
        for uid, agent in (("a", CODER), ("b", OTHER)):
            control.pod(uid, agent)
            init_container = await control.hello(uid, "restore")
            await init_container.expect(Grant)
            await init_container.close()
            pods[uid] = await control.hello(uid, "sidecar")
            welcomes[uid] = await pods[uid].expect(Welcome)
        assert welcomes["a"].key != welcomes["b"].key
        pack = f"packs/1-{'ab' * 16}"
        stores = {
            uid: stack.enter_context(closing(PresignedStore(RequestedUrls(pods[uid]), retry=Retry(attempts=1))))
            for uid in pods
        }
        await asyncio.to_thread(stores["a"].put_new, pack, b"of a")
        assert await asyncio.to_thread(stores["b"].head, pack) is None  # the same key, another repository
        for key in (f"../coder/{pack}", f"..%2fcoder/{pack}", "commits/00000000000000000001", "repository.json"):
            assert (await pods["b"].request(NeedUrls("1", get=(key,)), Refused)).request == "1"
        await pods["a"].send(NeedUrls("1", get=(pack,)))
        url = (await pods["a"].expect(Urls)).get[pack]
        assert "/demo/coder/packs/" in url

        class MisusedUrl:
            """A URL for one object, used for another."""

            def put_url(self, key: str) -> str:
                return url

            def get_url(self, key: str) -> str:
                return url.replace("/demo/coder/", "/demo/mailer/")

            def forget(self, key: str) -> None:
                """Do nothing: there is only one URL."""

        misused = stack.enter_context(closing(PresignedStore(MisusedUrl(), retry=Retry(attempts=1))))
        with pytest.raises(StoreDenied):
            await asyncio.to_thread(misused.head, pack)
        with pytest.raises(StoreDenied):  # it was signed for reading
            await asyncio.to_thread(misused.put_new, pack, b"of a")
        for pod in pods.values():
            await pod.close()


async def test_a_certificate_of_another_authority_is_not_trusted(control: ConnectedControlSide) -> None:
    other_context = ssl.create_default_context(cadata=Authority().certificate.decode())
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await control.session.ws_connect(control.url, ssl=other_context)


async def test_the_sidecars_client_commits_across_a_restart_of_the_operator(control: ConnectedControlSide) -> None:
    control.pod("a")
    init_container = await control.hello("a", "restore")
    await init_container.expect(Grant)
    await init_container.close()
    client = control.client("a")
    try:
        async with asyncio.timeout(60):
            welcome = await client.welcome()
            assert (welcome.agent, welcome.epoch, welcome.run, welcome.parent) == ("coder", 1, 1, None)
            orders = client.orders()
            assert control.server is not None
            await control.server.orders.checkpoint(CODER, attempt(1), "Interval", 60)
            order = await anext(orders)
            assert isinstance(order, Checkpoint)
            offer = await asyncio.to_thread(_upload_blob, client.blobs, welcome, 1, client.random_bytes)
            first = await client.commit(offer)
            assert (first.name, first.sequence) == ("coder-1", 2)

            second = await asyncio.to_thread(_upload_blob, client.blobs, welcome, 2, client.random_bytes)
            await control.stop()
            committing = asyncio.ensure_future(client.commit(second))
            await asyncio.sleep(0.3)
            assert not committing.done()
            await control.start()
            assert (await committing).sequence == 3
            assert isinstance(await anext(orders), Welcome)  # the client has reconnected

            await client.request_checkpoint(RequestCheckpoint("r1", "Shutdown"))
            ordered = await anext(orders)
            assert isinstance(ordered, Checkpoint)
            assert ordered.request == "r1"
            await client.report_result(Result(ordered.attempt, "Unchanged"))
            await until(lambda: control.recorder.calls_of("unchanged"))
            await client.report_release(Released(1))
    finally:
        await _close(client)
    assert control.recorder.calls_of("released") == [("a", False)]


async def test_a_checkpoint_that_the_client_leaves_pending_is_adopted(control: ConnectedControlSide) -> None:
    control.pod("a")
    init_container = await control.hello("a", "restore")
    await init_container.expect(Grant)
    await init_container.close()
    client = control.client("a")
    try:
        async with asyncio.timeout(60):
            welcome = await client.welcome()
            offer = await asyncio.to_thread(_upload_blob, client.blobs, welcome, 1, client.random_bytes)
            manifest = await asyncio.to_thread(
                client.blobs.get, f"manifests/{offer.manifest.name}", max_bytes=offer.manifest.size
            )
            await control.stop()
            await client.leave_pending(offer.attempt, "Shutdown", True, manifest)
    finally:
        await _close(client)
    await control.start()
    second_client = control.client("a")
    with pytest.raises(RefusedError) as caught:  # the run is completed, so that this pod may not write again
        await second_client.welcome()
    await second_client.close()
    assert caught.value.code == "Completed"
    assert [head.record.kind for head in control.recorder.calls_of("committed")] == ["checkpoint", "completed"]


async def test_the_client_of_a_superseded_pod_is_stopped(control: ConnectedControlSide) -> None:
    control.pod("a")
    client = control.client("a")
    with pytest.raises(RefusedError) as caught:
        await asyncio.wait_for(client.welcome(), 30)
    await client.close()
    assert caught.value.code == "Fenced"


async def test_the_init_container_starts_fresh_restores_and_is_fenced(
    control: ConnectedControlSide, tmp_path: Path
) -> None:
    async def start(uid: str) -> tuple[int, dict[str, Any], Path]:
        """Run a pod's init container; return its exit status, its termination message and its state folder."""
        control.pod(uid)
        token, state, stage = tmp_path / f"token-{uid}", tmp_path / f"state-{uid}", tmp_path / f"stage-{uid}"
        token.write_text(f"token-of-{uid}")
        for folder in (state, stage):
            folder.mkdir(exist_ok=True)
        settings = Settings(
            control_url=control.url,
            control_ca=control.authority.certificate.decode(),
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
        message_path = tmp_path / f"termination-{uid}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # a real process would end here, and close its sockets
            status = await asyncio.wait_for(restore(settings, Failpoints(), message_path), 60)
            gc.collect()
        return status, json.loads(message_path.read_text()), state

    status, message, _ = await start("a")
    assert (status, message["outcome"]) == (0, "Fresh")

    client = control.client("a")
    try:
        async with asyncio.timeout(60):
            welcome = await client.welcome()
            offer = await asyncio.to_thread(_upload_tree, client.blobs, welcome, client.random_bytes)
            await client.commit(offer)
            await client.report_release(Released(1))
    finally:
        await _close(client)
    status, message, state = await start("b")
    assert (status, message["outcome"]) == (0, "Restored"), message
    assert (state / "notes.bin").read_bytes() == CONTENT

    status, message, _ = await start("a")  # its sandbox was restarted, long after another pod took over
    assert (status, message["outcome"]) == (1, "Fenced")
    assert [each.outcome for each in control.recorder.calls_of("restore_ended")][:2] == ["Fresh", "Restored"]
