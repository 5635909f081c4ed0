"""Failover of the operator: what was Ready stays Ready, and what was in flight ends, after each kind of failure."""

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

from tests.polling import eventually
from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE
from tests.servers.operator_environment import OperatorEnvironment, install_environment, new_environment
from tests.servers.operator_objects import checkpoint_request
from tests.servers.process import free_ports
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def installed(apiserver: ApiServer, s3_minio: S3Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    install_environment(apiserver, s3_minio, tmp_path_factory.mktemp("installed"))


@pytest.fixture
def env(installed: None, apiserver: ApiServer, s3_minio: S3Server, tmp_path: Path) -> Iterator[OperatorEnvironment]:
    env = new_environment(apiserver, s3_minio, tmp_path)
    yield env
    env.clean_up()


async def request_checkpoint(env: OperatorEnvironment, agent: str, **spec: Any) -> str:
    created = await asyncio.to_thread(env.kubectl.create, checkpoint_request(agent, **spec), "-n", env.namespace)
    return str(created["metadata"]["name"])


async def test_the_next_leader_finishes_a_checkpoint_whose_operator_was_killed_after_the_order(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    with env.run_operator("a") as first:
        await env.await_store()
        pod, sidecar = await env.start(session)
        name = await request_checkpoint(env, "coder")
        order = await sidecar.next_order()
        offer = await sidecar.upload(order)
        await asyncio.to_thread(first.kill)
        await sidecar.connection.closed()
    await asyncio.to_thread(env.expire_lease)
    with env.run_operator("b"):
        reconnected = await env.sidecar(session, pod, attempts=(AttemptState(order.attempt, "Uploading"),))
        committed = await reconnected.connection.request(offer, Committed)
        assert committed.checkpoint.name == name
        await eventually("the checkpoint is Ready", lambda: env.reason("agentcheckpoint", name) == "Ready")
        assert len(env.items("agentcheckpoints")) == 1
        await reconnected.release()


async def test_status_is_repaired_from_the_chain_after_a_kill_between_commit_and_report(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    """The pod was deleted, too, so that only the store informs the next leader, which has the same name."""
    with env.run_operator("a") as first:
        await env.await_store()
        pod, sidecar = await env.start(session)
        name = await request_checkpoint(env, "coder")
        order = await sidecar.next_order()
        offer = await sidecar.upload(order)
        await asyncio.to_thread(_deny_status, env, True)
        await sidecar.connection.request(offer, Committed)
        await asyncio.to_thread(first.kill)
        await asyncio.to_thread(_deny_status, env, False)
        assert env.reason("agentcheckpoint", name) != "Ready"
    await asyncio.to_thread(env.delete_pod, pod["metadata"]["name"])
    with env.run_operator("a"):
        await eventually("the checkpoint is Ready", lambda: env.reason("agentcheckpoint", name) == "Ready")
        status = env.get("agentcheckpoint", name)["status"]
        assert status["sequence"] == 2
        assert env.get("protectedagent", "coder")["status"]["latest"]["checkpointName"] == name


def _deny_status(env: OperatorEnvironment, denied: bool) -> None:
    """Revoke the operator's right to write the status of checkpoints, or grant it again."""
    role = json.loads(env.kubectl("get", "clusterrole", "savepoint-operator", "-o", "json"))
    rules = role["rules"]
    for rule in rules:
        resources = rule.get("resources", [])
        for name in ("agentcheckpoints/status", "x-agentcheckpoints/status"):
            if name in resources:
                resources.remove(name)
                resources.append(f"x-{name.removeprefix('x-')}" if denied else name.removeprefix("x-"))
    env.kubectl.patch("clusterrole/savepoint-operator", {"rules": rules})


async def test_the_standby_leads_at_once_after_a_clean_stop(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(env.run_operator("a"))
        await env.await_store()
        pod, sidecar = await env.start(session)
        control, health = env.control_port, env.health_port
        env.control_port, env.health_port = free_ports(2)
        standby = stack.enter_context(env.run_operator("b", leads=False))
        await eventually("the standby waits", lambda: env.health("/readyz") == (503, "another operator leads\n"))
        started = time.monotonic()
        await asyncio.to_thread(first.stop, 30)
        await eventually("the standby leads", lambda: env.health("/readyz")[0] == 200)
        assert time.monotonic() - started < 30  # less than the duration of the Lease
        assert await sidecar.connection.closed() == 4503
        reconnected = await env.sidecar(session, pod)
        assert reconnected.welcome.epoch == sidecar.welcome.epoch
        await reconnected.release()
        assert standby.alive
        assert (control, health) != (env.control_port, env.health_port)


async def test_a_leader_that_was_paused_exits_and_its_successor_continues(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    env.settings["SAVEPOINT_LEASE_SECONDS"] = "9"
    with ExitStack() as stack:
        first = stack.enter_context(env.run_operator("a"))
        await env.await_store()
        pod, sidecar = await env.start(session)
        env.control_port, env.health_port = free_ports(2)
        del env.settings["SAVEPOINT_LEASE_SECONDS"]  # only the Lease of the first must expire soon
        first.popen.send_signal(signal.SIGSTOP)
        try:
            stack.enter_context(env.run_operator("b"))
            reconnected = await env.sidecar(session, pod)
            name = await request_checkpoint(env, "coder")
            order = await reconnected.next_order()
        finally:
            first.popen.send_signal(signal.SIGCONT)
        await reconnected.commit(order)
        await eventually("the checkpoint is Ready", lambda: env.reason("agentcheckpoint", name) == "Ready")
        assert await asyncio.to_thread(first.popen.wait, 30) == 1
        assert env.health("/readyz")[0] == 200
        await sidecar.connection.close()
        await reconnected.release()


async def test_commits_continue_while_the_api_server_is_unreachable(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    env.settings["SAVEPOINT_LEASE_SECONDS"] = "90"
    with env.run_operator("a"):
        await env.await_store()
        _, sidecar = await env.start(session)
        order = await sidecar.connection.request(RequestCheckpoint("r1", "Agent"), Checkpoint)
        offer = await sidecar.upload(order)
        env.server.process.popen.send_signal(signal.SIGSTOP)
        try:
            await sidecar.connection.send(offer)
            answer = decode((await sidecar.connection.socket.receive(40)).data)
        finally:
            env.server.process.popen.send_signal(signal.SIGCONT)
        assert isinstance(answer, Committed)
        assert answer.checkpoint.name == "coder-1"
        await eventually(
            "the checkpoint is reported afterwards", lambda: env.reason("agentcheckpoint", "coder-1") == "Ready", 60
        )
        assert len(env.items("agentcheckpoints")) == 1
        await sidecar.release()


async def test_the_operator_completes_a_final_checkpoint_before_it_exits(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    with env.run_operator("a") as first:
        await env.await_store()
        _, sidecar = await env.start(session)
        order = await sidecar.connection.request(RequestCheckpoint("r1", "Shutdown"), Checkpoint)
        offer = await sidecar.upload(order)
        stopping = asyncio.create_task(asyncio.to_thread(first.stop, 40))
        await eventually("the operator is stopping", lambda: "stopping:" in (env.folder / "a.log").read_text())
        assert (await sidecar.connection.request(offer, Committed)).checkpoint.name == "coder-1"
        await sidecar.connection.request(Released(1), Ack)
        assert env.health("/readyz") == (200, "ok\n"), "a successor can still connect"
        await sidecar.connection.close()
        await eventually("the operator has stopped serving", lambda: env.health("/readyz") == (503, "stopping\n"))
        await stopping
        assert first.popen.returncode == 0
    assert env.reason("agentcheckpoint", "coder-1") == "Ready"


async def test_pods_wait_while_the_store_denies_access(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    wrong, correct = ({"stringData": {"secretKey": key}} for key in ("wrong", env.s3.secret_key))
    await asyncio.to_thread(env.kubectl.patch, "secret/s3-keys", wrong, "-n", NAMESPACE)
    try:
        with env.run_operator("a"):
            await eventually(
                "the store reports StoreDenied", lambda: env.reason("agentcheckpointstore", env.prefix) == "StoreDenied"
            )
            pod = await asyncio.to_thread(env.pod)
            waiting = asyncio.create_task(env.restore(session, pod))
            await eventually("the pod waits", lambda: "StoreDenied" in {wait.reason for wait in env.waits})
            await asyncio.to_thread(env.kubectl.patch, "secret/s3-keys", correct, "-n", NAMESPACE)
            change = {"metadata": {"annotations": {"fixed": "true"}}}  # otherwise it would be reconciled later
            await asyncio.to_thread(env.kubectl.patch, f"agentcheckpointstore/{env.prefix}", change)
            assert (await asyncio.wait_for(waiting, 60)).epoch == 1
            log = (env.folder / "a.log").read_text()
            assert env.s3.secret_key not in log
            assert "wrong" not in log
    finally:
        await asyncio.to_thread(env.kubectl.patch, "secret/s3-keys", correct, "-n", NAMESPACE)


async def test_the_master_key_is_created_once_and_never_logged(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    with env.run_operator("a") as first:
        await env.await_store()
        await asyncio.to_thread(first.stop)
    secret = json.loads(env.kubectl("get", "secret", "savepoint-master-key", "-n", NAMESPACE, "-o", "json"))
    with env.run_operator("b"):
        await env.await_store()
    again = json.loads(env.kubectl("get", "secret", "savepoint-master-key", "-n", NAMESPACE, "-o", "json"))
    assert again["data"] == secret["data"]
    for log in env.folder.glob("*.log"):
        text = log.read_text()
        assert secret["data"]["master.key"] not in text
        assert env.s3.secret_key not in text
