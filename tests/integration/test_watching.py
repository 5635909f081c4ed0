"""kopf's watches report objects and deletions, also after a restart, and write nothing."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest
from savepoint_operator.cluster.access import Access
from savepoint_operator.cluster.kinds import AGENTS, PODS, Kind
from savepoint_operator.handlers.watch import KopfWatcher

from tests.servers.apiserver import ApiServer
from tests.servers.kubectl import Kubectl


class Observed:
    """The objects that the watches have reported."""

    def __init__(self) -> None:
        self.names: set[tuple[str, str, bool]] = set()
        self.changed = asyncio.Event()

    def __call__(self, kind: Kind, deleted: bool, raw: dict[str, Any]) -> None:
        self.names.add((kind.kind, raw["metadata"]["name"], deleted))
        self.changed.set()

    async def wait_for(self, kind: Kind, name: str, deleted: bool = False) -> None:
        async with asyncio.timeout(30):
            while (kind.kind, name, deleted) not in self.names:
                self.changed.clear()
                await self.changed.wait()


@pytest.mark.timeout(120)
async def test_watches_report_changes_and_write_nothing(apiserver: ApiServer) -> None:
    kubectl = Kubectl(apiserver.kubeconfig)
    await asyncio.to_thread(kubectl.install_crds)
    namespace = f"watched-{secrets.token_hex(3)}"
    await asyncio.to_thread(kubectl.create_namespace, namespace)

    async def create(name: str) -> dict[str, Any]:
        body = {"apiVersion": "savepoint.dev/v1alpha1", "kind": "ProtectedAgent", "metadata": {"name": name}}
        return await asyncio.to_thread(kubectl.create, body, "-n", namespace)

    async def pod(name: str, labels: dict[str, str]) -> None:
        spec = {"serviceAccountName": "default", "containers": [{"name": "a", "image": "a"}]}
        metadata = {"name": name, "labels": labels}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        await asyncio.to_thread(kubectl.create, body, "-n", namespace)

    await create("before")
    observed = Observed()
    watcher = KopfWatcher(await Access.by_kubeconfig(apiserver.kubeconfig), observed)
    await watcher.start()
    try:
        await observed.wait_for(AGENTS, "before")
        created = await create("during")
        await observed.wait_for(AGENTS, "during")
        await pod("plain", {})
        await pod("agent", {"savepoint.dev/agent": "agent"})
        await observed.wait_for(PODS, "agent")
        assert ("Pod", "plain", False) not in observed.names
        await asyncio.to_thread(kubectl, "delete", "protectedagent", "before", "-n", namespace)
        await observed.wait_for(AGENTS, "before", deleted=True)
        await watcher.restart()
        await create("after")
        await observed.wait_for(AGENTS, "after")
        current = await asyncio.to_thread(kubectl, "get", "protectedagent", "during", "-n", namespace, "-o", "json")
        assert created["metadata"]["resourceVersion"] in current
        assert not watcher.failed.is_set()
    finally:
        await watcher.stop()
