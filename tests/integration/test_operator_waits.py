"""The operator's rules with long, real waits: for a lost node, a closed connection, a refused store, an interval.

The tests run concurrently with one operator, each in its own namespace: all are started before the first is awaited.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from savepoint.contract.control_protocol import Checkpoint, Hello, Stop, decode
from savepoint_operator.rules.takeover import RECONNECT_SECONDS, TAKEOVER_SECONDS

from tests.polling import eventually
from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE
from tests.servers.operator_environment import BUCKET, OperatorEnvironment, install_environment
from tests.servers.operator_objects import checkpoint_request, core_object, set_node_ready
from tests.servers.s3 import S3Server

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

API = "savepoint.dev/v1alpha1"
Test = Callable[[OperatorEnvironment, aiohttp.ClientSession], Awaitable[None]]
_tests: dict[str, Test] = {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(
    request: pytest.FixtureRequest, apiserver: ApiServer, s3_minio: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """The tests that were selected, as running tasks."""
    env = install_environment(apiserver, s3_minio, tmp_path_factory.mktemp("waits"))
    env.settings["SAVEPOINT_NOT_RUNNING_SECONDS"] = "4"
    selected = {item.name for item in request.session.items if item.path == request.path}
    with env.run_operator():
        await env.await_store()
        async with aiohttp.ClientSession() as session:
            tasks = {
                name: asyncio.create_task(_isolated(test, await asyncio.to_thread(env.in_new_namespace), session))
                for name, test in _tests.items()
                if name in selected
            }
            yield tasks
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
    env.clean_up()


async def _isolated(test: Test, env: OperatorEnvironment, session: aiohttp.ClientSession) -> None:
    """Run the test, then check what must be true after every test."""
    await test(env, session)
    assert await asyncio.to_thread(env.kopf_traces) == []


def concurrent(test: Test) -> Callable[[dict[str, asyncio.Task[None]]], Awaitable[None]]:
    """Run the test concurrently with the others of this module."""
    name = test.__name__

    async def await_result(started: dict[str, asyncio.Task[None]]) -> None:
        await started[name]

    await_result.__name__ = name
    _tests[name] = test
    return await_result


@concurrent
async def test_a_request_for_an_agent_that_does_not_run_fails(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    created = await asyncio.to_thread(env.kubectl.create, checkpoint_request("absent"), "-n", env.namespace)
    name = created["metadata"]["name"]
    await eventually("the request has failed", lambda: env.reason("agentcheckpoint", name) == "AgentNotRunning")


@concurrent
async def test_the_age_of_a_recovery_point_is_a_metric(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    _, sidecar = await env.start(session, "measured")
    await asyncio.to_thread(env.kubectl.create, checkpoint_request("measured"), "-n", env.namespace)
    await sidecar.commit(await sidecar.next_order())
    agent = {"namespace": env.namespace, "agent": "measured"}
    age = await eventually("the age is reported", lambda: env.metric("savepoint_recovery_point_age_seconds", **agent))
    assert 0 < age < 60
    assert env.metric("savepoint_agents", state="Protected") >= 1
    await sidecar.release()


@concurrent
async def test_a_successor_waits_until_a_vanished_pod_can_no_longer_reconnect(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    pod, sidecar = await env.start(session)
    closing = time.monotonic()
    await sidecar.connection.close()
    await asyncio.to_thread(env.delete_pod, pod["metadata"]["name"])
    assert (await env.restore(session, await asyncio.to_thread(env.pod))).epoch == 2
    assert time.monotonic() - closing >= RECONNECT_SECONDS
    assert {wait.reason for wait in env.waits} == {"PredecessorRunning"}


@concurrent
async def test_retention_keeps_the_policys_number_of_scheduled_checkpoints(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    spec = {"triggers": [{"interval": {"periodSeconds": 10, "jitterSeconds": 0}}], "retention": {"keepLast": 2}}
    await _create_policy(env, "quick", spec)
    _, sidecar = await env.start(session)
    for _ in range(4):
        order = decode((await sidecar.connection.socket.receive(40)).data)
        assert isinstance(order, Checkpoint), order
        assert order.trigger == "Interval"
        await sidecar.commit(order)
    await eventually(
        "two checkpoints are left",
        lambda: {each["metadata"]["name"] for each in env.items("agentcheckpoints")} == {"coder-3", "coder-4"},
    )
    status = (await asyncio.to_thread(env.get, "agentcheckpointpolicy", "quick"))["status"]
    assert (status["matchedPods"], status["protectedAgents"], status["reason"]) == (1, 1, "Ready")
    await sidecar.release()


@concurrent
async def test_a_store_that_denies_access_is_probed_again(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    name, wrong = f"refused-{secrets.token_hex(3)}", f"wrong-{secrets.token_hex(8)}"
    keys = {"accessKey": env.s3.access_key, "secretKey": wrong}
    secret = core_object("Secret", name, NAMESPACE, stringData=keys)
    s3 = {"endpoint": env.s3.endpoint, "bucket": BUCKET, "prefix": name, "region": env.s3.region}
    spec = {"s3": {**s3, "credentialsSecretName": name}}
    store = {"apiVersion": API, "kind": "AgentCheckpointStore", "metadata": {"name": name}, "spec": spec}
    try:
        for item in (secret, store):
            await asyncio.to_thread(env.kubectl.create, item)
        await _create_policy(env, "other-store", {"storeName": name})
        await eventually(
            "the store reports StoreDenied", lambda: env.reason("agentcheckpointstore", name) == "StoreDenied"
        )
        waiting = asyncio.create_task(env.restore(session, await asyncio.to_thread(env.pod)))
        await eventually("the pod waits for the store", lambda: "StoreDenied" in {wait.reason for wait in env.waits})
        correct = {"stringData": {"secretKey": env.s3.secret_key}}
        await asyncio.to_thread(env.kubectl.patch, f"secret/{name}", correct, "-n", NAMESPACE)
        assert (await asyncio.wait_for(waiting, 60)).epoch == 1
    finally:
        await asyncio.to_thread(env.kubectl, "delete", "agentcheckpointstore", name, "--ignore-not-found")
    log = (env.folder / "operator-0.log").read_text()
    assert name in log
    assert env.s3.secret_key not in log
    assert wrong not in log


@concurrent
async def test_an_agent_of_a_lost_node_moves_to_a_successor_and_the_old_pod_is_fenced(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    old, sidecar = await env.start(session, node="n2")
    try:
        await asyncio.to_thread(set_node_ready, env.kubectl, "n2", ready=False)
        closing = time.monotonic()
        await sidecar.connection.close()  # the node has no connection
        successor = await asyncio.to_thread(env.pod)
        welcome = await env.restore(session, successor)
        assert time.monotonic() - closing >= TAKEOVER_SECONDS
        assert welcome.epoch == 2
        assert {wait.reason for wait in env.waits} == {"PredecessorRunning"}
        stale = await env.dial(session, old)
        stop = await stale.request(Hello("sidecar", 1, "0.1.0", "n2", 1), Stop)
        assert stop.reason == "Fenced"
    finally:
        await asyncio.to_thread(set_node_ready, env.kubectl, "n2", ready=True)


async def _create_policy(env: OperatorEnvironment, name: str, spec: dict[str, Any]) -> None:
    body = {"apiVersion": API, "kind": "AgentCheckpointPolicy", "metadata": {"name": name}, "spec": spec}
    await asyncio.to_thread(env.kubectl.create, body, "-n", env.namespace)
