"""What the operator removes from a real bucket: retention deletes objects, collection then what only they needed.

The operator is a process with its rights and its own decisions; only its patience is shorter: no grace, no hours.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from savepoint.contract.control_protocol import Committed
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.manifest import Parent
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.verify import verify
from savepoint.repository.repository import Repository
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import S3Config

from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE
from tests.servers.operator_rig import BUCKET, Rig, Sidecar, make_rig, soon
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.timeout(180)

IMPATIENT = """
import sys
from savepoint_operator import main
from savepoint_operator.lineage import service
from savepoint_operator.reconcile.agent import retention

service.COLLECT_GRACE_SECONDS = 0
retention.COLLECT_SECONDS = retention.RETRY_SECONDS = 1.0
sys.exit(main.main())
"""
API = "savepoint.dev/v1alpha1"
MIB = 1 << 20
CHECKPOINTS = 4


@pytest.fixture
def rig(apiserver: ApiServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = make_rig(apiserver, s3_server, tmp_path_factory.mktemp("operator"))
    rig.program = ("-c", IMPATIENT)
    spec = {"storeName": rig.prefix, "retention": {"keepLast": 1}, "triggers": []}  # other rigs leave default stores
    policy = {"apiVersion": API, "kind": "AgentCheckpointPolicy", "metadata": {"name": "one"}, "spec": spec}
    rig.kubectl.create(policy, "-n", rig.namespace)
    with rig.operator():
        yield rig
    rig.leave()


def bucket(rig: Rig) -> S3Store:
    """As the operator reaches it."""
    s3 = rig.s3
    return S3Store(S3Config(s3.endpoint, BUCKET, s3.access_key, s3.secret_key, f"{rig.prefix}/", region=s3.region))


def names(store: S3Store, rig: Rig, folder: str) -> set[str]:
    """Of the agent's objects in this folder of its repository."""
    return {each.key.rpartition("/")[2] for each in store.list(f"{rig.namespace}/coder/{folder}/")}


async def checkpoint(rig: Rig, sidecar: Sidecar, content: bytes, parent: Parent | None) -> Committed:
    """One that a user asks for, made on the one before it."""
    body = {"apiVersion": API, "kind": "AgentCheckpoint", "metadata": {"generateName": "coder-"}}
    await asyncio.to_thread(rig.kubectl.create, {**body, "spec": {"agent": "coder"}}, "-n", rig.namespace)
    return await sidecar.commit(await sidecar.order(), content, parent=parent)


async def test_what_no_kept_checkpoint_needs_goes_and_the_kept_one_stays_whole(
    rig: Rig, session: aiohttp.ClientSession
) -> None:
    await soon("the store is Ready", lambda: rig.reason("agentcheckpointstore", rig.prefix) == "Ready")
    _, sidecar = await rig.start(session, "coder")
    content, parent = bytearray(os.urandom(4 * MIB)), None
    packs: list[set[str]] = []
    for _ in range(CHECKPOINTS):
        content[-MIB:] = os.urandom(MIB)
        ref = (await checkpoint(rig, sidecar, bytes(content), parent)).checkpoint
        parent = Parent(ref.sequence, ref.manifest.name)
        assert sidecar.manifest is not None
        packs.append({pack.name for pack in sidecar.manifest.packs})
    unneeded = set[str]().union(*packs) - packs[-1]
    assert unneeded, "the ones in between left packs that nothing else needs"
    assert packs[0] <= packs[-1], "the kept one stands on the first one's pack"

    await soon("one is kept", lambda: [each["metadata"]["name"] for each in rig.items("ackpt")] == [ref.name])
    with closing(bucket(rig)) as store:
        await soon("what is not needed is gone", lambda: not names(store, rig, "packs") & unneeded)
        assert names(store, rig, "packs") == packs[-1]
        await soon("and so are the manifests", lambda: names(store, rig, "manifests") == {ref.manifest.name})
        assert len(names(store, rig, "commits")) == CHECKPOINTS + 1, "records are never removed"
        assert await asyncio.to_thread(read_back, rig, store, sidecar) == content
    look = {"metadata": {"annotations": {"test/look": "again"}}}  # it comes by itself within a minute
    await asyncio.to_thread(rig.kubectl.patch, f"agentcheckpointstore/{rig.prefix}", look)
    told = await soon(
        "it is told", lambda: rig.get("agentcheckpointstore", rig.prefix)["status"].get("lastCollectionTime")
    )
    assert datetime.fromisoformat(told) <= datetime.now(UTC)
    freed = [line for line in rig.health("/metrics")[1].splitlines() if line.startswith("savepoint_collected_bytes_to")]
    assert float(freed[0].split()[1]) >= (CHECKPOINTS - 2) * MIB
    assert rig.reason("agentcheckpoint", ref.name) == "Ready"
    await sidecar.release()

    await asyncio.to_thread(rig.delete_pod, rig.items("pods")[0]["metadata"]["name"])
    welcome = await rig.restore(session, await asyncio.to_thread(rig.pod, "coder"))
    assert welcome.parent is not None
    assert welcome.parent.manifest == ref.manifest


def read_back(rig: Rig, store: S3Store, sidecar: Sidecar) -> bytes:
    """The kept checkpoint's content, every byte of it verified, by nothing but the bucket and the master key."""
    secret: dict[str, Any] = json.loads(
        rig.kubectl("get", "secret", "savepoint-master-key", "-n", NAMESPACE, "-o", "json")
    )
    master = MasterKey(base64.b64decode(secret["data"]["master.key"]))
    repository = Repository.open_or_create(store, rig.namespace, "coder", master, now=datetime.now(UTC))
    (kept,) = repository.store.list("manifests/")
    manifest = repository.read_manifest(kept.key.rpartition("/")[2], kept.size)
    assert manifest == sidecar.manifest
    pieces: list[bytes] = []
    with CheckpointReader(repository.store, repository.key, manifest) as reader:
        assert verify(reader) == []
        reader.read_blob_into(reader.components[0], lambda piece: pieces.append(bytes(piece)))
    return b"".join(pieces)
