"""The operator removes from a real bucket what is not needed: after retention, collection deletes packs and manifests.

The operator is a process with its own rights and decisions; only its waits are shorter: no grace period, no hours.
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

from tests.polling import eventually
from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE
from tests.servers.operator_environment import BUCKET, OperatorEnvironment, install_environment
from tests.servers.s3 import S3Server
from tests.servers.scripted_sidecar import ScriptedSidecar

pytestmark = pytest.mark.timeout(180)

SHORT_WAITS = """
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
def env(
    apiserver: ApiServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorEnvironment]:
    env = install_environment(apiserver, s3_server, tmp_path_factory.mktemp("operator"))
    env.program = ("-c", SHORT_WAITS)
    # The policy names its store, since other tests may leave default stores.
    spec = {"storeName": env.prefix, "retention": {"keepLast": 1}, "triggers": []}
    policy = {"apiVersion": API, "kind": "AgentCheckpointPolicy", "metadata": {"name": "one"}, "spec": spec}
    env.kubectl.create(policy, "-n", env.namespace)
    with env.run_operator():
        yield env
    env.clean_up()


def bucket(env: OperatorEnvironment) -> S3Store:
    """Return the store that the operator uses."""
    s3 = env.s3
    return S3Store(S3Config(s3.endpoint, BUCKET, s3.access_key, s3.secret_key, f"{env.prefix}/", region=s3.region))


def object_names(store: S3Store, env: OperatorEnvironment, folder: str) -> set[str]:
    """Return the names of the objects in this folder of the agent's repository."""
    return {each.key.rpartition("/")[2] for each in store.list(f"{env.namespace}/coder/{folder}/")}


async def checkpoint(
    env: OperatorEnvironment, sidecar: ScriptedSidecar, content: bytes, parent: Parent | None
) -> Committed:
    """Request a checkpoint as a user does, and commit it on top of its parent."""
    body = {"apiVersion": API, "kind": "AgentCheckpoint", "metadata": {"generateName": "coder-"}}
    await asyncio.to_thread(env.kubectl.create, {**body, "spec": {"agent": "coder"}}, "-n", env.namespace)
    return await sidecar.commit(await sidecar.next_order(), content, parent=parent)


async def test_only_what_a_kept_checkpoint_needs_is_left(
    env: OperatorEnvironment, session: aiohttp.ClientSession
) -> None:
    await env.await_store()
    _, sidecar = await env.start(session, "coder")
    content, parent = bytearray(os.urandom(4 * MIB)), None
    packs: list[set[str]] = []
    for _ in range(CHECKPOINTS):
        content[-MIB:] = os.urandom(MIB)
        ref = (await checkpoint(env, sidecar, bytes(content), parent)).checkpoint
        parent = Parent(ref.sequence, ref.manifest.name)
        assert sidecar.manifest is not None
        packs.append({pack.name for pack in sidecar.manifest.packs})
    unneeded = set[str]().union(*packs) - packs[-1]
    assert unneeded, "the checkpoints in between have packs that no other checkpoint needs"
    assert packs[0] <= packs[-1], "the kept checkpoint needs the pack of the first one"

    await eventually(
        "one checkpoint is kept", lambda: [each["metadata"]["name"] for each in env.items("ackpt")] == [ref.name]
    )
    with closing(bucket(env)) as store:
        await eventually(
            "packs that are not needed are deleted", lambda: not object_names(store, env, "packs") & unneeded
        )
        assert object_names(store, env, "packs") == packs[-1]
        await eventually("so are the manifests", lambda: object_names(store, env, "manifests") == {ref.manifest.name})
        assert len(object_names(store, env, "commits")) == CHECKPOINTS + 1, "records are never removed"
        assert await asyncio.to_thread(read_back, env, store, sidecar) == content
    # Without this change the store would be reconciled within a minute.
    change = {"metadata": {"annotations": {"test/reconcile": "now"}}}
    await asyncio.to_thread(env.kubectl.patch, f"agentcheckpointstore/{env.prefix}", change)
    collected = await eventually(
        "the time of the collection is reported",
        lambda: env.get("agentcheckpointstore", env.prefix)["status"].get("lastCollectionTime"),
    )
    assert datetime.fromisoformat(collected) <= datetime.now(UTC)
    freed = [line for line in env.health("/metrics")[1].splitlines() if line.startswith("savepoint_collected_bytes_to")]
    assert float(freed[0].split()[1]) >= (CHECKPOINTS - 2) * MIB
    assert env.reason("agentcheckpoint", ref.name) == "Ready"
    await sidecar.release()

    await asyncio.to_thread(env.delete_pod, env.items("pods")[0]["metadata"]["name"])
    welcome = await env.restore(session, await asyncio.to_thread(env.pod, "coder"))
    assert welcome.parent is not None
    assert welcome.parent.manifest == ref.manifest


def read_back(env: OperatorEnvironment, store: S3Store, sidecar: ScriptedSidecar) -> bytes:
    """Verify the kept checkpoint, and return its content, with only the bucket and the master key."""
    secret: dict[str, Any] = json.loads(
        env.kubectl("get", "secret", "savepoint-master-key", "-n", NAMESPACE, "-o", "json")
    )
    master = MasterKey(base64.b64decode(secret["data"]["master.key"]))
    repository = Repository.open_or_create(store, env.namespace, "coder", master, now=datetime.now(UTC))
    (kept,) = repository.store.list("manifests/")
    manifest = repository.read_manifest(kept.key.rpartition("/")[2], kept.size)
    assert manifest == sidecar.manifest
    pieces: list[bytes] = []
    with CheckpointReader(repository.store, repository.key, manifest) as reader:
        assert verify(reader) == []
        reader.read_blob_into(reader.components[0], lambda piece: pieces.append(bytes(piece)))
    return b"".join(pieces)
