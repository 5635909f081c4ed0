"""Rules whose waits are long and real: for a lost node, a closed connection, a refused store, an interval.

They wait together: one operator, each test in a namespace of its own, all begun before the first is waited for.
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

from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE
from tests.servers.operator_rig import BUCKET, Rig, asked, make_rig, node_is, soon, thing
from tests.servers.s3 import S3Server

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

API = "savepoint.dev/v1alpha1"
Test = Callable[[Rig, aiohttp.ClientSession], Awaitable[None]]
_tests: dict[str, Test] = {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def begun(
    request: pytest.FixtureRequest, apiserver: ApiServer, s3_minio: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """The tests that were chosen, under way."""
    rig = make_rig(apiserver, s3_minio, tmp_path_factory.mktemp("waits"))
    rig.settings["SAVEPOINT_NOT_RUNNING_SECONDS"] = "4"
    chosen = {item.name for item in request.session.items if item.path == request.path}
    with rig.operator():
        await soon("the store is Ready", lambda: rig.reason("agentcheckpointstore", rig.prefix) == "Ready")
        async with aiohttp.ClientSession() as session:
            tasks = {
                name: asyncio.create_task(_alone(test, await asyncio.to_thread(rig.beside), session))
                for name, test in _tests.items()
                if name in chosen
            }
            yield tasks
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
    rig.leave()


async def _alone(test: Test, rig: Rig, session: aiohttp.ClientSession) -> None:
    """The test, and what holds after each of them."""
    await test(rig, session)
    assert await asyncio.to_thread(rig.marks) == []


def together(test: Test) -> Callable[[dict[str, asyncio.Task[None]]], Awaitable[None]]:
    """A test that is begun with the others."""
    name = test.__name__  # type: ignore[attr-defined]

    async def waited_for(begun: dict[str, asyncio.Task[None]]) -> None:
        await begun[name]

    waited_for.__name__ = name
    _tests[name] = test
    return waited_for


@together
async def test_a_request_that_nobody_can_answer_ends(rig: Rig, session: aiohttp.ClientSession) -> None:
    made = await asyncio.to_thread(rig.kubectl.create, asked("nobody"), "-n", rig.namespace)
    name = made["metadata"]["name"]
    await soon("it has ended", lambda: rig.reason("agentcheckpoint", name) == "AgentNotRunning")


@together
async def test_the_age_of_a_recovery_point_is_told(rig: Rig, session: aiohttp.ClientSession) -> None:
    _, sidecar = await rig.start(session, "measured")
    await asyncio.to_thread(rig.kubectl.create, asked("measured"), "-n", rig.namespace)
    await sidecar.commit(await sidecar.order())
    agent = {"namespace": rig.namespace, "agent": "measured"}
    age = await soon("its age is told", lambda: rig.counted("savepoint_recovery_point_age_seconds", **agent))
    assert 0 < age < 60
    assert rig.counted("savepoint_agents", state="Protected") >= 1
    await sidecar.release()


@together
async def test_a_pod_that_went_without_a_word_is_followed_once_its_last_one_cannot_come(
    rig: Rig, session: aiohttp.ClientSession
) -> None:
    pod, sidecar = await rig.start(session)
    closing = time.monotonic()
    await sidecar.socket.close()
    await asyncio.to_thread(rig.delete_pod, pod["metadata"]["name"])
    assert (await rig.restore(session, await asyncio.to_thread(rig.pod))).epoch == 2
    assert time.monotonic() - closing >= RECONNECT_SECONDS
    assert {wait.reason for wait in rig.waits} == {"PredecessorRunning"}


@together
async def test_checkpoints_by_time_are_kept_to_the_policys_number(rig: Rig, session: aiohttp.ClientSession) -> None:
    spec = {"triggers": [{"interval": {"periodSeconds": 10, "jitterSeconds": 0}}], "retention": {"keepLast": 2}}
    await _policy(rig, "quick", spec)
    _, sidecar = await rig.start(session)
    for _ in range(4):
        order = decode((await sidecar.socket.socket.receive(40)).data)
        assert isinstance(order, Checkpoint), order
        assert order.trigger == "Interval"
        await sidecar.commit(order)
    await soon(
        "two are left",
        lambda: {each["metadata"]["name"] for each in rig.items("agentcheckpoints")} == {"coder-3", "coder-4"},
    )
    status = (await asyncio.to_thread(rig.get, "agentcheckpointpolicy", "quick"))["status"]
    assert (status["matchedPods"], status["protectedAgents"], status["reason"]) == (1, 1, "Ready")
    await sidecar.release()


@together
async def test_a_store_that_is_refused_is_asked_again_by_itself(rig: Rig, session: aiohttp.ClientSession) -> None:
    name, wrong = f"refused-{secrets.token_hex(3)}", f"wrong-{secrets.token_hex(8)}"
    keys = {"accessKey": rig.s3.access_key, "secretKey": wrong}
    secret = thing("Secret", name, NAMESPACE, stringData=keys)
    s3 = {"endpoint": rig.s3.endpoint, "bucket": BUCKET, "prefix": name, "region": rig.s3.region}
    spec = {"s3": {**s3, "credentialsSecretName": name}}
    store = {"apiVersion": API, "kind": "AgentCheckpointStore", "metadata": {"name": name}, "spec": spec}
    try:
        for item in (secret, store):
            await asyncio.to_thread(rig.kubectl.create, item)
        await _policy(rig, "elsewhere", {"storeName": name})
        await soon("it says so", lambda: rig.reason("agentcheckpointstore", name) == "StoreDenied")
        waiting = asyncio.create_task(rig.restore(session, await asyncio.to_thread(rig.pod)))
        await soon("the pod waits", lambda: "StoreDenied" in {wait.reason for wait in rig.waits})
        right = {"stringData": {"secretKey": rig.s3.secret_key}}
        await asyncio.to_thread(rig.kubectl.patch, f"secret/{name}", right, "-n", NAMESPACE)
        assert (await asyncio.wait_for(waiting, 60)).epoch == 1
    finally:
        await asyncio.to_thread(rig.kubectl, "delete", "agentcheckpointstore", name, "--ignore-not-found")
    log = (rig.room / "operator-0.log").read_text()
    assert name in log
    assert rig.s3.secret_key not in log
    assert wrong not in log


@together
async def test_a_lost_node_gives_its_agent_to_a_successor_and_the_old_one_commits_nothing(
    rig: Rig, session: aiohttp.ClientSession
) -> None:
    old, sidecar = await rig.start(session, node="n2")
    try:
        await asyncio.to_thread(node_is, rig.kubectl, "n2", ready=False)
        closing = time.monotonic()
        await sidecar.socket.close()  # the node is silent
        successor = await asyncio.to_thread(rig.pod)
        welcome = await rig.restore(session, successor)
        assert time.monotonic() - closing >= TAKEOVER_SECONDS
        assert welcome.epoch == 2
        assert {wait.reason for wait in rig.waits} == {"PredecessorRunning"}
        stale = await rig.dial(session, old)
        stop = await stale.request(Hello("sidecar", 1, "0.1.0", "n2", 1), Stop)
        assert stop.reason == "Fenced"
    finally:
        await asyncio.to_thread(node_is, rig.kubectl, "n2", ready=True)


async def _policy(rig: Rig, name: str, spec: dict[str, Any]) -> None:
    body = {"apiVersion": API, "kind": "AgentCheckpointPolicy", "metadata": {"name": name}, "spec": spec}
    await asyncio.to_thread(rig.kubectl.create, body, "-n", rig.namespace)
