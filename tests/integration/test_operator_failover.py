"""The operator killed, stopped, doubled and misinformed: what was Ready stays Ready, and all comes to an end."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from savepoint.contract.control_protocol import (
    Ack,
    AttemptState,
    Checkpoint,
    Committed,
    Released,
    RequestCheckpoint,
    decode,
)

from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE
from tests.servers.operator_rig import Rig, another_rig, asked, make_rig, soon
from tests.servers.process import free_ports
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def installed(apiserver: ApiServer, s3_minio: S3Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    make_rig(apiserver, s3_minio, tmp_path_factory.mktemp("installed"))


@pytest.fixture
def rig(installed: None, apiserver: ApiServer, s3_minio: S3Server, tmp_path: Path) -> Iterator[Rig]:
    rig = another_rig(apiserver, s3_minio, tmp_path)
    yield rig
    rig.leave()


async def ask(rig: Rig, agent: str, **spec: Any) -> str:
    made = await asyncio.to_thread(rig.kubectl.create, asked(agent, **spec), "-n", rig.namespace)
    return str(made["metadata"]["name"])


async def ready(rig: Rig) -> None:
    await soon("the store is Ready", lambda: rig.reason("agentcheckpointstore", rig.prefix) == "Ready")


async def test_killed_after_the_order_it_is_finished_by_the_next_leader(
    rig: Rig, session: aiohttp.ClientSession
) -> None:
    with rig.operator("a") as first:
        await ready(rig)
        pod, sidecar = await rig.start(session)
        name = await ask(rig, "coder")
        order = await sidecar.order()
        offer = await sidecar.store(order)
        await asyncio.to_thread(first.kill)
        await sidecar.socket.closed()
    await asyncio.to_thread(rig.let_lapse)
    with rig.operator("b"):
        again = await rig.sidecar(session, pod, attempts=(AttemptState(order.attempt, "Uploading"),))
        committed = await again.socket.request(offer, Committed)
        assert committed.checkpoint.name == name
        await soon("it is Ready", lambda: rig.reason("agentcheckpoint", name) == "Ready")
        assert len(rig.items("agentcheckpoints")) == 1
        await again.release()


async def test_killed_after_the_commit_status_is_repaired_from_the_chain(
    rig: Rig, session: aiohttp.ClientSession
) -> None:
    """The pod is gone too, so nobody tells the next leader but the store. It begins in place, by the same name."""
    with rig.operator("a") as first:
        await ready(rig)
        pod, sidecar = await rig.start(session)
        name = await ask(rig, "coder")
        order = await sidecar.order()
        offer = await sidecar.store(order)
        await asyncio.to_thread(_silence, rig, True)
        await sidecar.socket.request(offer, Committed)
        await asyncio.to_thread(first.kill)
        await asyncio.to_thread(_silence, rig, False)
        assert rig.reason("agentcheckpoint", name) != "Ready"
    await asyncio.to_thread(rig.delete_pod, pod["metadata"]["name"])
    with rig.operator("a"):
        await soon("it is Ready", lambda: rig.reason("agentcheckpoint", name) == "Ready")
        status = rig.get("agentcheckpoint", name)["status"]
        assert status["sequence"] == 2
        assert rig.get("protectedagent", "coder")["status"]["latest"]["checkpointName"] == name


def _silence(rig: Rig, on: bool) -> None:
    """Take the operator's right to write status of checkpoints, or give it back."""
    role = json.loads(rig.kubectl("get", "clusterrole", "savepoint-operator", "-o", "json"))
    rules = role["rules"]
    for rule in rules:
        resources = rule.get("resources", [])
        for name in ("agentcheckpoints/status", "x-agentcheckpoints/status"):
            if name in resources:
                resources.remove(name)
                resources.append(f"x-{name.removeprefix('x-')}" if on else name.removeprefix("x-"))
    rig.kubectl.patch("clusterrole/savepoint-operator", {"rules": rules})


async def test_stopped_in_good_order_it_hands_over_at_once(rig: Rig, session: aiohttp.ClientSession) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(rig.operator("a"))
        await ready(rig)
        pod, sidecar = await rig.start(session)
        control, health = rig.control_port, rig.health_port
        rig.control_port, rig.health_port = free_ports(2)
        standby = stack.enter_context(rig.operator("b", leads=False))
        await soon("it waits", lambda: rig.health("/readyz") == (503, "another operator leads\n"))
        started = time.monotonic()
        await asyncio.to_thread(first.stop, 30)
        await soon("the standby leads", lambda: rig.health("/readyz")[0] == 200)
        assert time.monotonic() - started < 30  # not the whole duration of the Lease
        assert await sidecar.socket.closed() == 4503
        again = await rig.sidecar(session, pod)
        assert again.welcome.epoch == sidecar.welcome.epoch
        await again.release()
        assert standby.alive
        assert (control, health) != (rig.control_port, rig.health_port)


async def test_a_leader_that_stood_still_ends_and_the_other_goes_on(rig: Rig, session: aiohttp.ClientSession) -> None:
    rig.settings["SAVEPOINT_LEASE_SECONDS"] = "9"
    with ExitStack() as stack:
        first = stack.enter_context(rig.operator("a"))
        await ready(rig)
        pod, sidecar = await rig.start(session)
        rig.control_port, rig.health_port = free_ports(2)
        del rig.settings["SAVEPOINT_LEASE_SECONDS"]  # only the first one's is waited for
        first.popen.send_signal(signal.SIGSTOP)
        try:
            stack.enter_context(rig.operator("b"))
            again = await rig.sidecar(session, pod)
            name = await ask(rig, "coder")
            order = await again.order()
        finally:
            first.popen.send_signal(signal.SIGCONT)
        await again.commit(order)
        await soon("it is Ready", lambda: rig.reason("agentcheckpoint", name) == "Ready")
        assert await asyncio.to_thread(first.popen.wait, 30) == 1
        assert rig.health("/readyz")[0] == 200
        await sidecar.socket.close()
        await again.release()


async def test_while_the_api_server_is_away_commits_go_on(rig: Rig, session: aiohttp.ClientSession) -> None:
    rig.settings["SAVEPOINT_LEASE_SECONDS"] = "90"
    with rig.operator("a"):
        await ready(rig)
        _, sidecar = await rig.start(session)
        order = await sidecar.socket.request(RequestCheckpoint("r1", "Agent"), Checkpoint)
        offer = await sidecar.store(order)
        rig.server.process.popen.send_signal(signal.SIGSTOP)
        try:
            await sidecar.socket.send(offer)
            answer = decode((await sidecar.socket.socket.receive(40)).data)
        finally:
            rig.server.process.popen.send_signal(signal.SIGCONT)
        assert isinstance(answer, Committed)
        assert answer.checkpoint.name == "coder-1"
        await soon("it is told afterwards", lambda: rig.reason("agentcheckpoint", "coder-1") == "Ready", 60)
        assert len(rig.items("agentcheckpoints")) == 1
        await sidecar.release()


async def test_a_shutdown_in_flight_is_finished_before_it_goes(rig: Rig, session: aiohttp.ClientSession) -> None:
    with rig.operator("a") as first:
        await ready(rig)
        _, sidecar = await rig.start(session)
        order = await sidecar.socket.request(RequestCheckpoint("r1", "Shutdown"), Checkpoint)
        offer = await sidecar.store(order)
        stopping = asyncio.create_task(asyncio.to_thread(first.stop, 40))
        await soon("it stops", lambda: "stopping:" in (rig.room / "a.log").read_text())
        assert (await sidecar.socket.request(offer, Committed)).checkpoint.name == "coder-1"
        await sidecar.socket.request(Released(1), Ack)
        assert rig.health("/readyz") == (200, "ok\n"), "a successor may dial"
        await sidecar.socket.close()
        await soon("it has let go", lambda: rig.health("/readyz") == (503, "stopping\n"))
        await stopping
        assert first.popen.returncode == 0
    assert rig.reason("agentcheckpoint", "coder-1") == "Ready"


async def test_with_a_store_that_cannot_be_used_it_says_so_and_pods_wait(
    rig: Rig, session: aiohttp.ClientSession
) -> None:
    wrong, right = ({"stringData": {"secretKey": key}} for key in ("wrong", rig.s3.secret_key))
    await asyncio.to_thread(rig.kubectl.patch, "secret/s3-keys", wrong, "-n", NAMESPACE)
    try:
        with rig.operator("a"):
            await soon("it says so", lambda: rig.reason("agentcheckpointstore", rig.prefix) == "StoreDenied")
            pod = await asyncio.to_thread(rig.pod)
            waiting = asyncio.create_task(rig.restore(session, pod))
            await soon("it waits", lambda: "StoreDenied" in {wait.reason for wait in rig.waits})
            await asyncio.to_thread(rig.kubectl.patch, "secret/s3-keys", right, "-n", NAMESPACE)
            change = {"metadata": {"annotations": {"mended": "true"}}}  # it would be looked at again without
            await asyncio.to_thread(rig.kubectl.patch, f"agentcheckpointstore/{rig.prefix}", change)
            assert (await asyncio.wait_for(waiting, 60)).epoch == 1
            log = (rig.room / "a.log").read_text()
            assert rig.s3.secret_key not in log
            assert "wrong" not in log
    finally:
        await asyncio.to_thread(rig.kubectl.patch, "secret/s3-keys", right, "-n", NAMESPACE)


async def test_the_master_key_is_made_once_and_never_shown(rig: Rig, session: aiohttp.ClientSession) -> None:
    with rig.operator("a") as first:
        await ready(rig)
        await asyncio.to_thread(first.stop)
    secret = json.loads(rig.kubectl("get", "secret", "savepoint-master-key", "-n", NAMESPACE, "-o", "json"))
    with rig.operator("b"):
        await ready(rig)
    again = json.loads(rig.kubectl("get", "secret", "savepoint-master-key", "-n", NAMESPACE, "-o", "json"))
    assert again["data"] == secret["data"]
    for log in rig.room.glob("*.log"):
        text = log.read_text()
        assert secret["data"]["master.key"] not in text
        assert rig.s3.secret_key not in text
