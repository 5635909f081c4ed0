"""Volumes that several pods write: what the operator says of real claims, and what real containers do then."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from savepoint.contract import names
from savepoint.contract.control_protocol import Ack, Grant, Hello, Outcome, Wait
from savepoint_operator.model.objects import Policy
from savepoint_operator.model.views import ClaimedRoot, NodeState, PodState, PredecessorState
from savepoint_operator.rules.admission.injection import Injected, InjectionConfig, inject

from tests.fakes.operator_ports import incarnation
from tests.fakes.policy import policy
from tests.integration.test_sidecar import AGENT, Pod, Site, site_over
from tests.servers.apiserver import ApiServer
from tests.servers.operator_rig import Rig, make_rig, soon
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.timeout(180)

MANY, ONE = "ReadWriteMany", "ReadWriteOnce"
TEAM = ClaimedRoot("team", "team", "team-files")


@pytest.fixture(scope="module")
def rig(apiserver: ApiServer, s3_minio: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = make_rig(apiserver, s3_minio, tmp_path_factory.mktemp("operator"))
    with rig.operator():
        yield rig
    rig.leave()


@pytest.fixture
async def site(s3_minio: S3Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with site_over(s3_minio, tmp_path_factory.mktemp("site")) as made:
        yield made


def claim(rig: Rig, name: str, mode: str) -> None:
    spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": name}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    rig.kubectl.create(body, "-n", rig.namespace)


def claimed_pod(rig: Rig, agent: str, claims: dict[str, str], *policies: Policy) -> dict[str, Any]:
    """A running pod as the webhook makes it; ``claims``: volume, which is mounted below /, → its claim."""
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
    made = inject(bare, policies, "", InjectionConfig("sidecar:test", "wss://operator", "PEM"))
    assert isinstance(made, Injected), made
    pod = rig.kubectl.create(made.pod, "-n", rig.namespace)
    rig.phase(f"{agent}-1", "Running")
    return pod


async def test_a_pod_is_told_which_of_its_volumes_others_write(rig: Rig, session: aiohttp.ClientSession) -> None:
    await soon("the store is Ready", lambda: rig.reason("agentcheckpointstore", rig.prefix) == "Ready")
    for name, mode in (("team-files", MANY), ("own-files", ONE)):
        await asyncio.to_thread(claim, rig, name, mode)
    claims = {"team": "team-files", "own": "own-files"}
    pod = await asyncio.to_thread(claimed_pod, rig, "teamed", claims)
    welcome = await rig.restore(session, pod)
    assert welcome.shared_roots == ("team",)
    sidecar = await rig.sidecar(session, pod)
    assert sidecar.welcome.shared_roots == ("team",)
    (event,) = await soon("the pod's Event", lambda: rig.events("SharedVolumeLeftOut", "Pod"))
    assert (event["type"], event["involvedObject"]["uid"]) == ("Normal", pod["metadata"]["uid"])
    assert "volume team (claim team-files)" in event["message"] and "own" not in event["message"].partition(". If")[0]
    await sidecar.release()

    named = policy("p", state_volumes=("team",))
    pod = await asyncio.to_thread(claimed_pod, rig, "chooser", claims, named)
    assert (await rig.restore(session, pod)).shared_roots == ()


async def test_a_pod_whose_claim_is_not_there_waits_for_it(rig: Rig, session: aiohttp.ClientSession) -> None:
    await soon("the store is Ready", lambda: rig.reason("agentcheckpointstore", rig.prefix) == "Ready")
    pod = await asyncio.to_thread(claimed_pod, rig, "early", {"late": "late-files"})
    socket = await rig.dial(session, pod)
    await socket.send(Hello("restore", 1, "0.1.0", "n1"))
    wait = await socket.expect(Wait)
    assert wait.reason == "ClaimUnreadable"
    assert "PersistentVolumeClaim late-files of volume late cannot be read: it does not exist" in wait.message
    await soon("its user is told", lambda: rig.events("ClaimUnreadable", "Pod"))
    await asyncio.to_thread(claim, rig, "late-files", MANY)
    grant = await socket.expect(Grant)
    assert grant.welcome.shared_roots == ("late",)
    await socket.request(Outcome("Fresh"), Ack)
    await socket.close()


class TeamPod(Pod):
    """A pod of the agent that also mounts, at /team, the folder of all of them."""

    def environment(self) -> dict[str, str]:
        given = super().environment()
        team = {"name": "team", "mountPath": "/team", "path": str(team_folder(self.site)), "persistent": True}
        return given | {names.ENV_ROOTS: json.dumps([*json.loads(given[names.ENV_ROOTS]), team])}


def team_folder(site: Site) -> Path:
    folder = site.folder / "team"
    folder.mkdir(exist_ok=True)
    return folder


def team_pod(site: Site, uid: str) -> TeamPod:
    who = replace(incarnation(AGENT, uid), shared=(TEAM,))
    site.reviewer.pods[uid], site.pod_resolver.incarnations[uid] = who.pod, who
    pod = TeamPod(site, uid, site.folder / uid)
    site.pods.append(pod)
    return pod


async def test_what_other_pods_write_outlives_a_rollback(site: Site) -> None:
    assert site.server is not None
    team, pod = team_folder(site), team_pod(site, "a")
    (team / "before").write_bytes(b"of another pod")
    assert await pod.restore() == 0, pod.log()
    await pod.sidecar()
    pod.agent()
    await pod.turns(3)
    first = await site.checkpoint()
    (chosen,) = (head.record.sequence for head in site.recorder.calls_of("committed") if head.record.name == first)
    (team / "after").write_bytes(b"of yet another pod")
    await pod.turns(3)
    assert await site.checkpoint() != first
    await site.server.orders.rollback(AGENT, secrets.token_hex(16), chosen, "default")
    pod.kill()
    site.pod_resolver.predecessors["a"] = PredecessorState(PodState.GONE, NodeState.READY)

    successor = team_pod(site, "b")
    assert await successor.restore() == 0, successor.log()
    assert site.recorder.calls_of("restored")[-1].outcome == "Restored"
    assert (successor.folder / "state" / "log").exists()
    assert {path.name: path.read_bytes() for path in team.iterdir()} == {
        "before": b"of another pod",
        "after": b"of yet another pod",
    }
    assert successor.log().count("/team is on a ReadWriteMany claim") == 1
