"""The operator as a process: what kubectl shows when pods start, checkpoint, fail, move and are rolled back."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
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
from savepoint.contract.names import ANNOTATION_MOVED_FROM
from savepoint_operator.rules.takeover import RECONNECT_SECONDS

from tests.polling import eventually, wait_until
from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE
from tests.servers.operator_environment import OperatorEnvironment, install_environment
from tests.servers.operator_objects import checkpoint_request
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def env(
    apiserver: ApiServer, s3_minio: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorEnvironment]:
    env = install_environment(apiserver, s3_minio, tmp_path_factory.mktemp("operator"))
    with env.run_operator():
        yield env
    env.clean_up()


def test_the_default_store_is_created_and_becomes_ready(env: OperatorEnvironment) -> None:
    wait_until("the store is Ready", lambda: env.reason("agentcheckpointstore", env.prefix) == "Ready")
    store = env.get("agentcheckpointstore", env.prefix)
    conditions = {each["type"]: each["status"] for each in store["status"]["conditions"]}
    assert conditions == {"Available": "True", "ConditionalWrites": "True", "Ready": "True", "Retained": "True"}
    assert store["status"]["observedGeneration"] == store["metadata"]["generation"]


async def test_a_user_requests_a_checkpoint(env: OperatorEnvironment, session: aiohttp.ClientSession) -> None:
    await env.await_store()
    pod, sidecar = await env.start(session, "writer")
    created = await asyncio.to_thread(env.kubectl.create, checkpoint_request("writer"), "-n", env.namespace)
    name = created["metadata"]["name"]
    order = await sidecar.next_order()
    assert (order.attempt, order.trigger) == (created["metadata"]["uid"].replace("-", ""), "Manual")
    committed = await sidecar.commit(order, b"x" * 5000)
    assert committed.checkpoint.name == name
    await eventually("the checkpoint is Ready", lambda: env.reason("agentcheckpoint", name) == "Ready")
    columns = await asyncio.to_thread(env.kubectl.columns, f"agentcheckpoint/{name}", "-n", env.namespace)
    expected = {"NAME": name, "AGENT": "writer", "TRIGGER": "Manual", "STATUS": "Ready", "PROGRESS": "100%"}
    assert columns | expected == columns
    assert (columns["SIZE"], columns["PAUSE"]) == ("4.9Ki", "38ms")
    agent = await eventually(
        "the ProtectedAgent shows the checkpoint",
        lambda: (
            (found := env.get("protectedagent", "writer"))["status"].get("latest", {}).get("checkpointName") == name
            and found
        ),
    )
    status = agent["status"]
    assert (status["reason"], status["epoch"], status["podRef"]["name"]) == ("Protected", 1, pod["metadata"]["name"])
    assert status["head"]["sequence"] == 2
    await sidecar.release()


async def test_every_start_of_a_pod_is_a_restore(env: OperatorEnvironment, session: aiohttp.ClientSession) -> None:
    first, sidecar = await env.start(session, "mover")
    order_task = asyncio.create_task(sidecar.next_order())
    await asyncio.to_thread(
        env.kubectl, "annotate", "pod", first["metadata"]["name"], "-n", env.namespace, "savepoint.dev/checkpoint-now=1"
    )
    order = await order_task
    await sidecar.commit(order)
    await sidecar.release()
    await asyncio.to_thread(env.delete_pod, first["metadata"]["name"])
    second = await asyncio.to_thread(env.pod, "mover")
    welcome = await env.restore(session, second, message="", config_changed=True)
    assert welcome.epoch == 2
    assert welcome.parent is not None
    restores = await eventually(
        "both starts are reported",
        lambda: (
            (found := [each for each in env.items("agentrestores") if each["status"].get("agent") == "mover"])
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
    (event,) = await eventually("there is an Event for the pod", lambda: env.events("Restored", "Pod"))
    assert event["message"] == "Agent mover resumed at step docs 42 of 90 from mover-1, 3.1s."
    assert event["involvedObject"]["uid"] == second["metadata"]["uid"]
    (own,) = await eventually("there is an Event for the AgentRestore", lambda: env.events("Restored", "AgentRestore"))
    assert own["message"] == event["message"]
    (warning,) = await eventually("there is a Warning", lambda: env.events("ConfigurationChanged"))
    assert (warning["type"], warning["involvedObject"]["uid"]) == ("Warning", second["metadata"]["uid"])
    assert "another configuration" in by_epoch[2]["conditions"][0]["message"]
    checkpoint = await asyncio.to_thread(env.get, "agentcheckpoint", "mover-1")
    assert checkpoint["status"]["trigger"] == {
        "type": "Manual",
        "requestedBy": f"pod/{first['metadata']['name']}",
    }


async def test_a_failure_names_its_remedy(env: OperatorEnvironment, session: aiohttp.ClientSession) -> None:
    _, sidecar = await env.start(session, "stuck")
    created = await asyncio.to_thread(env.kubectl.create, checkpoint_request("stuck"), "-n", env.namespace)
    order = await sidecar.next_order()
    text = 'Agent did not reach a safe point within 10s (in tool "crawl" for 94s); it was resumed.'
    await sidecar.connection.request(Result(order.attempt, "Failed", "QuiesceTimeout", text), Ack)
    name = created["metadata"]["name"]
    await eventually("the checkpoint has failed", lambda: env.reason("agentcheckpoint", name) == "QuiesceTimeout")
    status = (await asyncio.to_thread(env.get, "agentcheckpoint", name))["status"]
    assert status["conditions"][0]["message"].startswith(text)
    assert "agent.safe_point()" in status["conditions"][0]["message"]
    await eventually("the agent is at risk", lambda: env.reason("protectedagent", "stuck") == "AtRisk")
    assert await eventually("there is an Event", lambda: env.events("CheckpointFailed"))
    await sidecar.release()


async def test_concurrent_requests_are_all_answered(env: OperatorEnvironment, session: aiohttp.ClientSession) -> None:
    _, sidecar = await env.start(session, "busy")
    names = []
    for _ in range(5):
        created = await asyncio.to_thread(env.kubectl.create, checkpoint_request("busy"), "-n", env.namespace)
        names.append(created["metadata"]["name"])
    attempts = []
    for _ in names:
        order = await asyncio.wait_for(sidecar.next_order(), 30)
        attempts.append(order.attempt)
        await sidecar.commit(order)
    assert len(set(attempts)) == 5
    for name in names:
        await eventually(f"{name} is Ready", partial(_is_ready, env, name))
    statuses = [(await asyncio.to_thread(env.get, "agentcheckpoint", name))["status"] for name in names]
    assert sorted(each["number"] for each in statuses) == [1, 2, 3, 4, 5]
    await sidecar.release()


def _is_ready(env: OperatorEnvironment, checkpoint: str) -> bool:
    return env.reason("agentcheckpoint", checkpoint) == "Ready"


def test_a_pod_that_was_not_injected_is_unprotected(env: OperatorEnvironment) -> None:
    env.pod("bare", injected=False)
    wait_until("the agent is Unprotected", lambda: env.reason("protectedagent", "bare") == "Unprotected")
    wait_until("there is an Event", lambda: env.events("Unprotected"))


async def test_two_pods_of_different_owners_are_ambiguous(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    await asyncio.to_thread(env.pod, "twin", owned=False)
    second = await asyncio.to_thread(env.pod, "twin", owned=False)
    connection = await env.dial(session, second)
    refused = await connection.request(Hello("restore", 1, "0.1.0", "n1"), Refused)
    assert refused.reason == "AmbiguousAgent"


async def test_another_workload_that_claims_an_agents_name_later_is_refused(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    def owned_by(kind: str, name: str) -> list[dict[str, Any]]:
        return [{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": f"uid-of-{name}", "controller": True}]

    def recorded() -> bool:
        return bool(env.get("protectedagent", "shard-0")["status"].get("workload") == "StatefulSet/shards")

    owners, labels = owned_by("StatefulSet", "shards"), {"apps.kubernetes.io/pod-index": "0"}
    first, sidecar = await env.start(session, "shard", owned=False, ownerReferences=owners, labels=labels)
    await eventually("the workload is recorded", recorded)
    await sidecar.release()
    await asyncio.to_thread(env.delete_pod, first["metadata"]["name"])
    others = owned_by("Rollout", "other")
    second = await asyncio.to_thread(partial(env.pod, "shard-0", owned=False, ownerReferences=others))
    connection = await env.dial(session, second)
    refused = await connection.request(Hello("restore", 1, "0.1.0", "n1"), Refused)
    assert refused.reason == "AmbiguousAgent" and "StatefulSet/shards ran before" in refused.message
    assert await eventually("there is an Event", lambda: env.events("AmbiguousAgent"))
    await asyncio.to_thread(env.delete_pod, second["metadata"]["name"])
    annotations = {ANNOTATION_MOVED_FROM: "StatefulSet/shards"}
    _, sidecar = await env.start(session, "shard-0", owned=False, ownerReferences=others, annotations=annotations)
    await sidecar.release()


async def test_a_rollback_restores_an_earlier_checkpoint_and_evicts(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    env = await asyncio.to_thread(env.in_new_namespace)
    pod, sidecar = await env.start(session, "regret")
    names = []
    for content in (b"good", b"bad"):
        created = await asyncio.to_thread(env.kubectl.create, checkpoint_request("regret"), "-n", env.namespace)
        names.append(created["metadata"]["name"])
        await sidecar.commit(await sidecar.next_order(), content)
        await eventually("the checkpoint is Ready", lambda: env.reason("agentcheckpoint", names[-1]) == "Ready")
    rollback = {
        "apiVersion": "savepoint.dev/v1alpha1",
        "kind": "AgentRestore",
        "metadata": {"generateName": "regret-"},
        "spec": {"mode": "Rollback", "source": {"checkpointName": names[0]}},
    }
    created = await asyncio.to_thread(env.kubectl.create, rollback, "-n", env.namespace)
    order = await sidecar.next_order()
    assert order.trigger == "Rollback"
    await sidecar.commit(order, b"last")
    name = created["metadata"]["name"]
    await eventually("the rollback has succeeded", lambda: env.reason("agentrestore", name) == "Succeeded")
    assert await eventually("the pod was evicted", lambda: not env.get("pod", pod["metadata"]["name"]))
    successor = await asyncio.to_thread(env.pod, "regret")
    welcome = await env.restore(session, successor)
    assert welcome.parent is not None
    assert welcome.parent.name == names[0]
    agent = await eventually(
        "the agent is at the requested checkpoint",
        lambda: (
            (found := env.get("protectedagent", "regret"))["status"]["latest"]["checkpointName"] == names[0] and found
        ),
    )
    assert agent["status"]["epoch"] == 2
    assert env.waits == []  # no message of an ended epoch can still arrive


async def test_a_job_that_exits_with_0_starts_fresh_next_time(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    first, _ = await _run_job_pod(env, session, "batch")
    await asyncio.to_thread(env.set_phase, first["metadata"]["name"], "Succeeded")
    await eventually("the run is completed", lambda: env.reason("protectedagent", "batch") == "Completed")
    second, welcome = await _run_job_pod(env, session, "batch")
    assert (welcome.epoch, welcome.run, welcome.parent) == (2, 2, None)
    await asyncio.to_thread(env.set_phase, second["metadata"]["name"], "Failed")
    third, welcome = await _run_job_pod(env, session, "batch")  # the Job retries
    assert (welcome.epoch, welcome.run) == (3, 2)
    assert welcome.parent is not None
    await asyncio.to_thread(env.set_phase, third["metadata"]["name"], "Succeeded")
    await asyncio.to_thread(env.delete_pod, third["metadata"]["name"])  # like the pod of a Job that is deleted
    _, welcome = await _run_job_pod(env, session, "batch")
    assert (welcome.epoch, welcome.run, welcome.parent) == (4, 4, None)


async def test_a_run_continues_after_a_pod_is_stopped_and_exits_with_0(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    first, _ = await _run_job_pod(env, session, "polite")
    name = first["metadata"]["name"]
    await asyncio.to_thread(
        env.kubectl, "delete", "pod", name, "-n", env.namespace, "--grace-period=30", "--wait=false"
    )
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    exit_0 = {"name": "agent", "image": "coder:7", "imageID": "", "ready": False, "restartCount": 0}
    exit_0["state"] = {"terminated": {"exitCode": 0, "finishedAt": now, "startedAt": now}}
    await asyncio.to_thread(lambda: env.set_phase(name, "Succeeded", containerStatuses=[exit_0]))
    await eventually("the phase is set", lambda: env.get("pod", name)["status"]["phase"] == "Succeeded")
    second, welcome = await _run_job_pod(env, session, "polite")
    assert (welcome.epoch, welcome.run) == (2, 1)
    assert welcome.parent is not None
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": ""}
    await asyncio.to_thread(lambda: env.set_phase(second["metadata"]["name"], "Succeeded", conditions=[evicted]))
    _, welcome = await _run_job_pod(env, session, "polite")
    assert (welcome.epoch, welcome.run) == (3, 1)
    assert welcome.parent is not None
    assert env.reason("protectedagent", "polite") != "Completed"


async def _run_job_pod(
    env: OperatorEnvironment, session: aiohttp.ClientSession, agent: str
) -> tuple[dict[str, Any], Welcome]:
    """Play a pod of a Job from its creation to its release, with one checkpoint; return the pod and its welcome."""
    pod = await asyncio.to_thread(lambda: env.pod(agent, restart_policy="Never"))
    welcome = await env.restore(session, pod)
    sidecar = await env.sidecar(session, pod)
    order = await sidecar.connection.request(
        RequestCheckpoint(f"last-{pod['metadata']['name']}", "Shutdown"), Checkpoint
    )
    await sidecar.commit(order)
    await sidecar.release()
    return pod, welcome


async def test_a_failed_restore_is_reported(env: OperatorEnvironment, session: aiohttp.ClientSession) -> None:
    pod = await asyncio.to_thread(env.pod, "broken")
    await env.restore(session, pod, "IntegrityError", message="packs/1-ab is damaged", object_key="packs/1-ab")
    restore = await eventually(
        "there is an AgentRestore",
        lambda: next((each for each in env.items("agentrestores") if each["status"].get("agent") == "broken"), None),
    )
    name = restore["metadata"]["name"]
    await eventually("the AgentRestore has its reason", lambda: env.reason("agentrestore", name) == "IntegrityError")
    status = (await asyncio.to_thread(env.get, "agentrestore", name))["status"]
    assert "packs/1-ab" in status["conditions"][0]["message"]
    assert status["conditions"][0]["status"] == "False"


def test_metrics_and_health(env: OperatorEnvironment) -> None:
    assert env.health("/healthz") == (200, "ok\n")
    status, text = env.health("/metrics")
    assert status == 200
    assert "savepoint_leading 1.0" in text
    assert 'savepoint_store_ready{store="' in text


async def test_a_commit_updates_the_metrics(env: OperatorEnvironment, session: aiohttp.ClientSession) -> None:
    await env.await_store()
    manual = {"trigger": "Manual"}
    starts = env.metric("savepoint_restores_total", outcome="Fresh")
    restored_seconds = env.metric("savepoint_restore_seconds_sum")
    counters: tuple[tuple[str, dict[str, str]], ...] = (
        ("savepoint_checkpoints_total", {"result": "Ready", **manual}),
        ("savepoint_checkpoint_seconds_count", manual),
        ("savepoint_checkpoint_seconds_sum", manual),
        ("savepoint_uploaded_bytes_total", {}),
        ("savepoint_logical_bytes_total", {}),
        ("savepoint_pause_seconds_count", {}),
        ("savepoint_pause_seconds_sum", {}),
    )
    _, sidecar = await env.start(session, "measured")
    assert env.metric("savepoint_restores_total", outcome="Fresh") == starts + 1
    assert env.metric("savepoint_restore_seconds_sum") - restored_seconds == pytest.approx(3.1)
    before = [env.metric(name, **labels) for name, labels in counters]
    await asyncio.to_thread(env.kubectl.create, checkpoint_request("measured"), "-n", env.namespace)
    order = await sidecar.next_order()
    offer = await sidecar.upload(order, os.urandom(5000))
    await sidecar.connection.request(offer, Committed)
    await eventually("the checkpoint is counted", lambda: env.metric(counters[0][0], **counters[0][1]) > before[0])
    attempts, timed, seconds, uploaded, logical, pauses, paused = (
        env.metric(name, **labels) - old for (name, labels), old in zip(counters, before, strict=True)
    )
    assert (attempts, timed, pauses) == (1, 1, 1)
    assert 0 < seconds < 30
    assert (uploaded, logical) == (offer.uploaded_bytes, 5000)
    assert uploaded >= 5000
    assert paused == pytest.approx(0.038)
    await sidecar.release()


async def test_a_successor_starts_at_once_after_a_release(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    env = await asyncio.to_thread(env.in_new_namespace)
    _, sidecar = await env.start(session)
    await sidecar.release()
    successor = await asyncio.to_thread(env.pod)
    started = time.monotonic()
    assert (await env.restore(session, successor)).epoch == 2
    assert time.monotonic() - started < RECONNECT_SECONDS
    assert env.waits == []


async def test_only_a_pods_own_token_for_our_audience_is_accepted(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    pod = await asyncio.to_thread(env.pod, "guest")
    unbound = ("create", "token", "default", "-n", env.namespace, "--audience=savepoint.dev")
    for token in (
        await asyncio.to_thread(env.token, pod, "https://kubernetes.default.svc.cluster.local"),
        (await asyncio.to_thread(env.kubectl, *unbound)).strip(),
        "not-a-token",
    ):
        assert await (await env.dial(session, pod, token)).closed() == 4401
    valid = await asyncio.to_thread(env.token, pod)
    await asyncio.to_thread(env.delete_pod, pod["metadata"]["name"])
    assert await (await env.dial(session, pod, valid)).closed() == 4401


def test_the_webhook_configuration_has_the_ca_of_the_serving_certificate(env: OperatorEnvironment) -> None:
    configuration = json.loads(env.kubectl("get", "mutatingwebhookconfiguration", "savepoint", "-o", "json"))
    secret = json.loads(env.kubectl("get", "secret", "savepoint-tls", "-n", NAMESPACE, "-o", "json"))
    assert secret["type"] == "kubernetes.io/tls"
    assert configuration["webhooks"][0]["clientConfig"]["caBundle"] == secret["data"]["ca.crt"]


def test_kopf_writes_nothing_into_objects(env: OperatorEnvironment) -> None:
    assert env.items("agentrestores")
    assert env.kopf_traces() == []
