"""The operator as a process: what users see by kubectl when pods start, checkpoint, fail, move and are rolled back."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from savepoint.contract.control_protocol import (
    Ack,
    Checkpoint,
    Committed,
    Hello,
    Refused,
    RequestCheckpoint,
    Result,
    Welcome,
)
from savepoint_operator.rules.takeover import RECONNECT_SECONDS

from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE
from tests.servers.operator_rig import Rig, asked, make_rig, soon, until
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def rig(apiserver: ApiServer, s3_minio: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = make_rig(apiserver, s3_minio, tmp_path_factory.mktemp("operator"))
    with rig.operator():
        yield rig
    rig.leave()


def test_the_default_store_is_made_and_becomes_ready(rig: Rig) -> None:
    until("the store is Ready", lambda: rig.reason("agentcheckpointstore", rig.prefix) == "Ready")
    store = rig.get("agentcheckpointstore", rig.prefix)
    conditions = {each["type"]: each["status"] for each in store["status"]["conditions"]}
    assert conditions == {"Available": "True", "ConditionalWrites": "True", "Ready": "True"}
    assert store["status"]["observedGeneration"] == store["metadata"]["generation"]


async def test_a_user_asks_for_a_checkpoint(rig: Rig, session: aiohttp.ClientSession) -> None:
    await soon("the store is Ready", lambda: rig.reason("agentcheckpointstore", rig.prefix) == "Ready")
    pod, sidecar = await rig.start(session, "writer")
    made = await asyncio.to_thread(rig.kubectl.create, asked("writer"), "-n", rig.namespace)
    name = made["metadata"]["name"]
    order = await sidecar.order()
    assert (order.attempt, order.trigger) == (made["metadata"]["uid"].replace("-", ""), "Manual")
    committed = await sidecar.commit(order, b"x" * 5000)
    assert committed.checkpoint.name == name
    await soon("it is Ready", lambda: rig.reason("agentcheckpoint", name) == "Ready")
    columns = await asyncio.to_thread(rig.kubectl.columns, f"agentcheckpoint/{name}", "-n", rig.namespace)
    wanted = {"NAME": name, "AGENT": "writer", "TRIGGER": "Manual", "STATUS": "Ready", "PROGRESS": "100%"}
    assert columns | wanted == columns
    assert (columns["SIZE"], columns["PAUSE"]) == ("4.9Ki", "38ms")
    agent = await soon(
        "the ProtectedAgent tells it",
        lambda: (
            (found := rig.get("protectedagent", "writer"))["status"].get("latest", {}).get("checkpointName") == name
            and found
        ),
    )
    status = agent["status"]
    assert (status["reason"], status["epoch"], status["podRef"]["name"]) == ("Protected", 1, pod["metadata"]["name"])
    assert status["head"]["sequence"] == 2
    await sidecar.release()


async def test_every_start_of_a_pod_is_a_restore(rig: Rig, session: aiohttp.ClientSession) -> None:
    first, sidecar = await rig.start(session, "mover")
    order_task = asyncio.create_task(sidecar.order())
    await asyncio.to_thread(
        rig.kubectl, "annotate", "pod", first["metadata"]["name"], "-n", rig.namespace, "savepoint.dev/checkpoint-now=1"
    )
    order = await order_task
    await sidecar.commit(order)
    await sidecar.release()
    await asyncio.to_thread(rig.delete_pod, first["metadata"]["name"])
    second = await asyncio.to_thread(rig.pod, "mover")
    welcome = await rig.restore(session, second, message="", config_changed=True)
    assert welcome.epoch == 2
    assert welcome.parent is not None
    restores = await soon(
        "both starts are told",
        lambda: (
            (found := [each for each in rig.items("agentrestores") if each["status"].get("agent") == "mover"])
            and len(found) == 2
            and all(each["status"].get("completionTime") for each in found)
            and found
        ),
    )
    by_epoch = {each["status"]["epoch"]: each["status"] for each in restores}
    assert by_epoch[1]["reason"] == "Fresh"
    assert by_epoch[2]["reason"] == "Restored"
    assert by_epoch[2]["resolved"]["checkpointName"] == welcome.parent.name == "mover-1"
    assert by_epoch[2]["summary"]["took"] == "3.1s"
    (event,) = await soon("the pod's Event", lambda: rig.events("Restored", "Pod"))
    assert event["message"] == "Agent mover resumed at step docs 42 of 90 from mover-1, 3.1s."
    assert event["involvedObject"]["uid"] == second["metadata"]["uid"]
    (own,) = await soon("and the AgentRestore's", lambda: rig.events("Restored", "AgentRestore"))
    assert own["message"] == event["message"]
    (warning,) = await soon("and its Warning", lambda: rig.events("ConfigurationChanged"))
    assert (warning["type"], warning["involvedObject"]["uid"]) == ("Warning", second["metadata"]["uid"])
    assert "another configuration" in by_epoch[2]["conditions"][0]["message"]
    checkpoint = await asyncio.to_thread(rig.get, "agentcheckpoint", "mover-1")
    assert checkpoint["status"]["trigger"] == {
        "type": "Manual",
        "requestedBy": f"pod/{first['metadata']['name']}",
    }


async def test_a_failure_names_what_to_do(rig: Rig, session: aiohttp.ClientSession) -> None:
    _, sidecar = await rig.start(session, "stuck")
    made = await asyncio.to_thread(rig.kubectl.create, asked("stuck"), "-n", rig.namespace)
    order = await sidecar.order()
    text = 'Agent did not reach a safe point within 10s (in tool "crawl" for 94s); it was resumed.'
    await sidecar.socket.request(Result(order.attempt, "Failed", "QuiesceTimeout", text), Ack)
    name = made["metadata"]["name"]
    await soon("it has failed", lambda: rig.reason("agentcheckpoint", name) == "QuiesceTimeout")
    status = (await asyncio.to_thread(rig.get, "agentcheckpoint", name))["status"]
    assert status["conditions"][0]["message"].startswith(text)
    assert "agent.safe_point()" in status["conditions"][0]["message"]
    await soon("the agent is at risk", lambda: rig.reason("protectedagent", "stuck") == "AtRisk")
    assert await soon("an Event tells it", lambda: rig.events("CheckpointFailed"))
    await sidecar.release()


async def test_many_requests_at_once_are_all_answered(rig: Rig, session: aiohttp.ClientSession) -> None:
    _, sidecar = await rig.start(session, "busy")
    names = []
    for _ in range(5):
        made = await asyncio.to_thread(rig.kubectl.create, asked("busy"), "-n", rig.namespace)
        names.append(made["metadata"]["name"])
    attempts = []
    for _ in names:
        order = await asyncio.wait_for(sidecar.order(), 30)
        attempts.append(order.attempt)
        await sidecar.commit(order)
    assert len(set(attempts)) == 5
    for name in names:
        await soon(f"{name} is Ready", lambda name=name: rig.reason("agentcheckpoint", name) == "Ready")
    statuses = [(await asyncio.to_thread(rig.get, "agentcheckpoint", name))["status"] for name in names]
    assert sorted(each["number"] for each in statuses) == [1, 2, 3, 4, 5]
    await sidecar.release()


def test_a_pod_that_was_not_injected_is_unprotected(rig: Rig) -> None:
    rig.pod("bare", injected=False)
    until("it is told", lambda: rig.reason("protectedagent", "bare") == "Unprotected")
    until("an Event tells it", lambda: rig.events("Unprotected"))


async def test_two_pods_of_different_owners_are_ambiguous(rig: Rig, session: aiohttp.ClientSession) -> None:
    await asyncio.to_thread(rig.pod, "twin", owned=False)
    second = await asyncio.to_thread(rig.pod, "twin", owned=False)
    socket = await rig.dial(session, second)
    refused = await socket.request(Hello("restore", 1, "0.1.0", "n1"), Refused)
    assert refused.reason == "AmbiguousAgent"


async def test_a_rollback_goes_back_and_evicts(rig: Rig, session: aiohttp.ClientSession) -> None:
    rig = await asyncio.to_thread(rig.beside)
    pod, sidecar = await rig.start(session, "regret")
    names = []
    for content in (b"good", b"bad"):
        made = await asyncio.to_thread(rig.kubectl.create, asked("regret"), "-n", rig.namespace)
        names.append(made["metadata"]["name"])
        await sidecar.commit(await sidecar.order(), content)
        await soon("Ready", lambda: rig.reason("agentcheckpoint", names[-1]) == "Ready")
    rollback = {
        "apiVersion": "savepoint.dev/v1alpha1",
        "kind": "AgentRestore",
        "metadata": {"generateName": "regret-"},
        "spec": {"mode": "Rollback", "source": {"checkpointName": names[0]}},
    }
    made = await asyncio.to_thread(rig.kubectl.create, rollback, "-n", rig.namespace)
    order = await sidecar.order()
    assert order.trigger == "Rollback"
    await sidecar.commit(order, b"last")
    name = made["metadata"]["name"]
    await soon("it is done", lambda: rig.reason("agentrestore", name) == "Succeeded")
    assert await soon("the pod was evicted", lambda: not rig.get("pod", pod["metadata"]["name"]))
    successor = await asyncio.to_thread(rig.pod, "regret")
    welcome = await rig.restore(session, successor)
    assert welcome.parent is not None
    assert welcome.parent.name == names[0]
    agent = await soon(
        "the agent stands at what was chosen",
        lambda: (
            (found := rig.get("protectedagent", "regret"))["status"]["latest"]["checkpointName"] == names[0] and found
        ),
    )
    assert agent["status"]["epoch"] == 2
    assert rig.waits == []  # nothing of an ended epoch can still come


async def test_a_job_that_exits_with_0_starts_fresh_the_next_time(rig: Rig, session: aiohttp.ClientSession) -> None:
    first, _ = await _once(rig, session, "batch")
    await asyncio.to_thread(rig.phase, first["metadata"]["name"], "Succeeded")
    await soon("the run is completed", lambda: rig.reason("protectedagent", "batch") == "Completed")
    second, welcome = await _once(rig, session, "batch")
    assert (welcome.epoch, welcome.run, welcome.parent) == (2, 2, None)
    await asyncio.to_thread(rig.phase, second["metadata"]["name"], "Failed")
    third, welcome = await _once(rig, session, "batch")  # the Job tries again
    assert (welcome.epoch, welcome.run) == (3, 2)
    assert welcome.parent is not None
    await asyncio.to_thread(rig.phase, third["metadata"]["name"], "Succeeded")
    await asyncio.to_thread(rig.delete_pod, third["metadata"]["name"])  # as of a Job that is not kept
    _, welcome = await _once(rig, session, "batch")
    assert (welcome.epoch, welcome.run, welcome.parent) == (4, 4, None)


async def test_a_pod_that_is_told_to_stop_and_exits_with_0_goes_on(rig: Rig, session: aiohttp.ClientSession) -> None:
    first, _ = await _once(rig, session, "polite")
    name = first["metadata"]["name"]
    await asyncio.to_thread(
        rig.kubectl, "delete", "pod", name, "-n", rig.namespace, "--grace-period=30", "--wait=false"
    )
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    exit_0 = {"name": "agent", "image": "coder:7", "imageID": "", "ready": False, "restartCount": 0}
    exit_0["state"] = {"terminated": {"exitCode": 0, "finishedAt": now, "startedAt": now}}
    await asyncio.to_thread(lambda: rig.phase(name, "Succeeded", containerStatuses=[exit_0]))
    await soon("it is known", lambda: rig.get("pod", name)["status"]["phase"] == "Succeeded")
    second, welcome = await _once(rig, session, "polite")
    assert (welcome.epoch, welcome.run) == (2, 1)
    assert welcome.parent is not None
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": ""}
    await asyncio.to_thread(lambda: rig.phase(second["metadata"]["name"], "Succeeded", conditions=[evicted]))
    _, welcome = await _once(rig, session, "polite")
    assert (welcome.epoch, welcome.run) == (3, 1)
    assert welcome.parent is not None
    assert rig.reason("protectedagent", "polite") != "Completed"


async def _once(rig: Rig, session: aiohttp.ClientSession, agent: str) -> tuple[dict[str, Any], Welcome]:
    """A pod of a Job, from its creation to its sidecar's last word, with a checkpoint on the way; and how it began."""
    pod = await asyncio.to_thread(lambda: rig.pod(agent, restart_policy="Never"))
    welcome = await rig.restore(session, pod)
    sidecar = await rig.sidecar(session, pod)
    order = await sidecar.socket.request(RequestCheckpoint(f"last-{pod['metadata']['name']}", "Shutdown"), Checkpoint)
    await sidecar.commit(order)
    await sidecar.release()
    return pod, welcome


async def test_a_failed_restore_is_told(rig: Rig, session: aiohttp.ClientSession) -> None:
    pod = await asyncio.to_thread(rig.pod, "broken")
    await rig.restore(session, pod, "IntegrityError", message="packs/1-ab is damaged", object_key="packs/1-ab")
    restore = await soon(
        "it is told",
        lambda: next((each for each in rig.items("agentrestores") if each["status"].get("agent") == "broken"), None),
    )
    name = restore["metadata"]["name"]
    await soon("with its reason", lambda: rig.reason("agentrestore", name) == "IntegrityError")
    status = (await asyncio.to_thread(rig.get, "agentrestore", name))["status"]
    assert "packs/1-ab" in status["conditions"][0]["message"]
    assert status["conditions"][0]["status"] == "False"


def test_metrics_and_health(rig: Rig) -> None:
    assert rig.health("/healthz") == (200, "ok\n")
    status, text = rig.health("/metrics")
    assert status == 200
    assert "savepoint_leading 1.0" in text
    assert 'savepoint_store_ready{store="' in text


async def test_a_commit_is_counted(rig: Rig, session: aiohttp.ClientSession) -> None:
    await soon("the store is Ready", lambda: rig.reason("agentcheckpointstore", rig.prefix) == "Ready")
    manual = {"trigger": "Manual"}
    starts = rig.counted("savepoint_restores_total", outcome="Fresh")
    restored_seconds = rig.counted("savepoint_restore_seconds_sum")
    counters = (
        ("savepoint_checkpoints_total", {"result": "Ready", **manual}),
        ("savepoint_checkpoint_seconds_count", manual),
        ("savepoint_checkpoint_seconds_sum", manual),
        ("savepoint_uploaded_bytes_total", {}),
        ("savepoint_logical_bytes_total", {}),
        ("savepoint_pause_seconds_count", {}),
        ("savepoint_pause_seconds_sum", {}),
    )
    _, sidecar = await rig.start(session, "measured")
    assert rig.counted("savepoint_restores_total", outcome="Fresh") == starts + 1
    assert rig.counted("savepoint_restore_seconds_sum") - restored_seconds == pytest.approx(3.1)
    was = [rig.counted(name, **labels) for name, labels in counters]
    await asyncio.to_thread(rig.kubectl.create, asked("measured"), "-n", rig.namespace)
    order = await sidecar.order()
    offer = await sidecar.store(order, os.urandom(5000))
    await sidecar.socket.request(offer, Committed)
    await soon("it is counted", lambda: rig.counted(counters[0][0], **counters[0][1]) > was[0])
    attempts, ordered, seconds, uploaded, logical, pauses, paused = (
        rig.counted(name, **labels) - old for (name, labels), old in zip(counters, was, strict=True)
    )
    assert (attempts, ordered, pauses) == (1, 1, 1)
    assert 0 < seconds < 30
    assert (uploaded, logical) == (offer.uploaded_bytes, 5000)
    assert uploaded >= 5000
    assert paused == pytest.approx(0.038)
    await sidecar.release()


async def test_a_pod_that_releases_is_followed_at_once(rig: Rig, session: aiohttp.ClientSession) -> None:
    rig = await asyncio.to_thread(rig.beside)
    _, sidecar = await rig.start(session)
    await sidecar.release()
    successor = await asyncio.to_thread(rig.pod)
    started = time.monotonic()
    assert (await rig.restore(session, successor)).epoch == 2
    assert time.monotonic() - started < RECONNECT_SECONDS
    assert rig.waits == []


async def test_only_a_pods_own_token_for_our_audience_opens_the_door(rig: Rig, session: aiohttp.ClientSession) -> None:
    pod = await asyncio.to_thread(rig.pod, "guest")
    unbound = ("create", "token", "default", "-n", rig.namespace, "--audience=savepoint.dev")
    for token in (
        await asyncio.to_thread(rig.token, pod, "https://kubernetes.default.svc.cluster.local"),
        (await asyncio.to_thread(rig.kubectl, *unbound)).strip(),
        "nonsense",
    ):
        assert await (await rig.dial(session, pod, token)).closed() == 4401
    good = await asyncio.to_thread(rig.token, pod)
    await asyncio.to_thread(rig.delete_pod, pod["metadata"]["name"])
    assert await (await rig.dial(session, pod, good)).closed() == 4401


def test_the_certificate_is_for_the_services_and_the_webhook_knows_its_ca(rig: Rig) -> None:
    configuration = json.loads(rig.kubectl("get", "mutatingwebhookconfiguration", "savepoint", "-o", "json"))
    secret = json.loads(rig.kubectl("get", "secret", "savepoint-tls", "-n", NAMESPACE, "-o", "json"))
    assert secret["type"] == "kubernetes.io/tls"
    assert configuration["webhooks"][0]["clientConfig"]["caBundle"] == secret["data"]["ca.crt"]


def test_kopf_writes_nothing_into_objects(rig: Rig) -> None:
    assert rig.items("agentrestores")
    assert rig.marks() == []
