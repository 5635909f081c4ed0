"""Volumes that several pods write: the operator recognises them by real claims, and real containers leave them out."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from savepoint.contract import names
from savepoint.contract.control_protocol import Ack, Grant, Hello, Outcome, Wait
from savepoint_operator.model.objects import Policy
from savepoint_operator.model.views import ClaimedRoot, NodeState, PodState, PredecessorState
from savepoint_operator.rules.admission.injection import Injected, InjectionConfig, inject

from tests.fakes.policy import policy
from tests.polling import eventually
from tests.servers.apiserver import ApiServer
from tests.servers.operator_environment import OperatorEnvironment, install_environment
from tests.servers.s3 import S3Server
from tests.servers.sidecar_pod import AGENT, LocalControlSide, LocalPod, local_control_side

pytestmark = pytest.mark.timeout(180)

MANY, ONE = "ReadWriteMany", "ReadWriteOnce"
TEAM = ClaimedRoot("team", "team", "team-files")


@pytest.fixture(scope="module")
def env(
    apiserver: ApiServer, s3_minio: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorEnvironment]:
    env = install_environment(apiserver, s3_minio, tmp_path_factory.mktemp("operator"))
    with env.run_operator():
        yield env
    env.clean_up()


@pytest.fixture
async def control(s3_minio: S3Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalControlSide]:
    async with local_control_side(s3_minio, tmp_path_factory.mktemp("control")) as control:
        yield control


def claim(env: OperatorEnvironment, name: str, mode: str) -> None:
    spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": name}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    env.kubectl.create(body, "-n", env.namespace)


def claimed_pod(env: OperatorEnvironment, agent: str, claims: dict[str, str], *policies: Policy) -> dict[str, Any]:
    """Create a running pod as the webhook injects it. ``claims`` maps a volume, mounted at /NAME, to its claim."""
    container = {
        "name": "agent",
        "image": "coder:7",
        "volumeMounts": [{"name": volume, "mountPath": f"/{volume}"} for volume in claims],
    }
    volumes = [{"name": name, "persistentVolumeClaim": {"claimName": of}} for name, of in claims.items()]
    bare = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{agent}-1", "labels": {names.LABEL_AGENT: agent}},
        "spec": {
            "serviceAccountName": "default",
            "nodeName": "n1",
            "containers": [container],
            "volumes": volumes,
            "terminationGracePeriodSeconds": 0,
        },
    }
    result = inject(bare, policies, "", InjectionConfig("sidecar:test", "wss://operator", "PEM"))
    assert isinstance(result, Injected), result
    pod = env.kubectl.create(result.pod, "-n", env.namespace)
    env.set_phase(f"{agent}-1", "Running")
    return pod


async def test_a_pod_learns_which_of_its_volumes_are_shared(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    await env.await_store()
    for name, mode in (("team-files", MANY), ("own-files", ONE)):
        await asyncio.to_thread(claim, env, name, mode)
    claims = {"team": "team-files", "own": "own-files"}
    pod = await asyncio.to_thread(claimed_pod, env, "teamed", claims)
    welcome = await env.restore(session, pod)
    assert welcome.shared_roots == ("team",)
    sidecar = await env.sidecar(session, pod)
    assert sidecar.welcome.shared_roots == ("team",)
    (event,) = await eventually("there is an Event for the pod", lambda: env.events("SharedVolumeLeftOut", "Pod"))
    assert (event["type"], event["involvedObject"]["uid"]) == ("Normal", pod["metadata"]["uid"])
    assert "volume team (claim team-files)" in event["message"] and "own" not in event["message"].partition(". If")[0]
    await sidecar.release()

    named = policy("p", state_volumes=("team",))
    pod = await asyncio.to_thread(claimed_pod, env, "chooser", claims, named)
    assert (await env.restore(session, pod)).shared_roots == ()


async def test_a_pod_whose_claim_does_not_exist_waits_for_it(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    await env.await_store()
    pod = await asyncio.to_thread(claimed_pod, env, "early", {"late": "late-files"})
    connection = await env.dial(session, pod)
    await connection.send(Hello("restore", 1, "0.1.0", "n1"))
    wait = await connection.expect(Wait)
    assert wait.reason == "ClaimUnreadable"
    assert "PersistentVolumeClaim late-files of volume late cannot be read: it does not exist" in wait.message
    await eventually("there is an Event for the pod", lambda: env.events("ClaimUnreadable", "Pod"))
    await asyncio.to_thread(claim, env, "late-files", MANY)
    grant = await connection.expect(Grant)
    assert grant.welcome.shared_roots == ("late",)
    await connection.request(Outcome("Fresh"), Ack)
    await connection.close()


class TeamPod(LocalPod):
    """A pod of the agent that also mounts the shared folder at /team."""

    def environment(self) -> dict[str, str]:
        environment = super().environment()
        team = {"name": "team", "mountPath": "/team", "path": str(team_folder(self.control)), "persistent": True}
        return environment | {names.ENV_ROOTS: json.dumps([*json.loads(environment[names.ENV_ROOTS]), team])}


def team_folder(control: LocalControlSide) -> Path:
    folder = control.folder / "team"
    folder.mkdir(exist_ok=True)
    return folder


def team_pod(control: LocalControlSide, uid: str) -> TeamPod:
    control.register(AGENT, uid, shared=(TEAM,))
    pod = TeamPod(control, uid, control.folder / uid)
    control.pods.append(pod)
    return pod


async def test_files_of_other_pods_survive_a_rollback(control: LocalControlSide) -> None:
    assert control.server is not None
    team, pod = team_folder(control), team_pod(control, "a")
    (team / "before").write_bytes(b"of another pod")
    assert await pod.restore() == 0, pod.log()
    await pod.sidecar()
    pod.agent()
    await pod.await_iterations(3)
    first = await control.checkpoint()
    (target,) = (head.record.sequence for head in control.recorder.calls_of("committed") if head.record.name == first)
    (team / "after").write_bytes(b"of yet another pod")
    await pod.await_iterations(3)
    assert await control.checkpoint() != first
    await control.server.orders.rollback(AGENT, secrets.token_hex(16), target, "default")
    pod.kill()
    control.pod_resolver.predecessors["a"] = PredecessorState(PodState.GONE, NodeState.READY)

    successor = team_pod(control, "b")
    assert await successor.restore() == 0, successor.log()
    assert control.recorder.calls_of("restore_ended")[-1].outcome == "Restored"
    assert (successor.folder / "state" / "log").exists()
    assert {path.name: path.read_bytes() for path in team.iterdir()} == {
        "before": b"of another pod",
        "after": b"of yet another pod",
    }
    assert successor.log().count("/team is on a ReadWriteMany claim") == 1
