"""The operator's own process with the rights the chart gives it, a real API server and S3 server, and scripted pods.

No kubelet runs: pods are objects whose phase a test sets, and what their containers would say over the control channel
is said by the test. What they store is real.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import secrets
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import urllib3
from prometheus_client.parser import text_string_to_metric_families
from savepoint.contract.control_protocol import (
    Ack,
    Checkpoint,
    Committed,
    ComponentSummary,
    Grant,
    Hello,
    NeedUrls,
    ObjectName,
    Offer,
    Outcome,
    Progress,
    Refused,
    Released,
    Timing,
    Urls,
    Wait,
    Welcome,
    decode,
)
from savepoint.contract.names import CONTAINER_SIDECAR, LABEL_AGENT
from savepoint.errors import Unavailable
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.keys import AgentKey as RepositoryKey
from savepoint.repository.format.manifest import Manifest, Parent
from savepoint.repository.write.source import MemorySource
from savepoint.repository.write.writer import CheckpointWriter, WriterOptions
from savepoint.storage.presigned import PresignedStore
from savepoint_operator.control.server import PATH

from tests.fakes.control_harness import Pod
from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE, one, render
from tests.servers.kubectl import Kubectl
from tests.servers.process import HOST, Process, free_ports, running
from tests.servers.s3 import S3Server

SECONDS = 30.0
BUCKET = "savepoint-operator-tests"
SERVER_NAME = f"savepoint-operator.{NAMESPACE}.svc"
ACCOUNT = "savepoint-operator"
API = "/apis/savepoint.dev/v1alpha1"
T = TypeVar("T")
numbers = itertools.count(1)


def until(what: str, holds: Callable[[], T], seconds: float = SECONDS) -> T:
    """Poll until it holds; the operator is another process, so there is nothing to wait on."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


async def soon(what: str, holds: Callable[[], T], seconds: float = SECONDS) -> T:
    """The same without holding up the test's own pods."""
    end = time.monotonic() + seconds
    while not (found := await asyncio.to_thread(holds)):
        assert time.monotonic() < end, what
        await asyncio.sleep(0.1)
    return found


class AskedUrls:
    """URLs asked for over the pod's own connection, from the threads that move bytes."""

    def __init__(self, pod: Pod) -> None:
        self._pod, self._loop, self._one = pod, asyncio.get_running_loop(), threading.Lock()

    def put_url(self, key: str) -> str:
        return self._wait(NeedUrls("put", put=(key,)))

    def get_url(self, key: str) -> str:
        return self._wait(NeedUrls("get", get=(key,)))

    def forget(self, key: str) -> None:
        """Nothing is remembered."""

    def _wait(self, ask: NeedUrls) -> str:
        with self._one:
            return asyncio.run_coroutine_threadsafe(self._ask(ask), self._loop).result(30)

    async def _ask(self, ask: NeedUrls) -> str:
        await self._pod.send(ask)
        answer = await self._pod.receive()
        if isinstance(answer, Refused):
            raise Unavailable(answer.message)
        assert isinstance(answer, Urls), answer
        (url,) = {**answer.put, **answer.get}.values()
        return url


@dataclass
class Sidecar:
    """A connected sidecar."""

    socket: Pod
    welcome: Welcome
    manifest: Manifest | None = None
    """Of what was stored last."""

    async def order(self) -> Checkpoint:
        """The next order."""
        return await self.socket.expect(Checkpoint)

    async def store(self, order: Checkpoint, content: bytes = b"state", **more: Any) -> Offer:
        """What a sidecar does between the order and the offer."""
        with closing(PresignedStore(AskedUrls(self.socket))) as store:
            return await asyncio.to_thread(self._store, store, order, content, more)

    def _store(self, store: PresignedStore, order: Checkpoint, content: bytes, more: dict[str, Any]) -> Offer:
        welcome = self.welcome
        key = RepositoryKey(bytes.fromhex(welcome.key))
        parent: Parent | None = more.pop("parent", None)
        base = self.manifest if parent is not None else None
        writer = CheckpointWriter(store, store, key, welcome.epoch, base, options=WriterOptions(random_bytes=os.urandom))
        writer.add_blob("notes", "Memory", MemorySource(content))
        made = writer.finish(
            namespace=welcome.namespace,
            agent=welcome.agent,
            attempt=order.attempt,
            created=time_text(datetime.now(UTC)),
            consistency="Application",
            parent=parent,
        )
        writer.commit()
        self.manifest = writer.manifest
        told: dict[str, Any] = {"trigger": order.trigger, "step": "docs 42 of 90", **more}
        return Offer(
            attempt=made.attempt,
            manifest=ObjectName(made.name, made.size),
            packs=tuple(ObjectName(pack.name, pack.size) for pack in made.packs),
            consistency="Application",
            logical_bytes=made.logical,
            stored_bytes=made.stored,
            uploaded_bytes=made.uploaded_bytes,
            timing=Timing(time_text(datetime.now(UTC)), time_text(datetime.now(UTC)), None, 38),
            components=(ComponentSummary("notes", "Memory", "ab" * 32, len(content)),),
            **told,
        )

    async def commit(self, order: Checkpoint, content: bytes = b"state", **more: Any) -> Committed:
        """Answer an order as a sidecar does: stages, upload, offer."""
        for stage, percent in (("Quiescing", 0), ("Capturing", 10), ("Uploading", 63)):
            await self.socket.send(Progress(order.attempt, stage, percent, percent, 100))
        offer = await self.store(order, content, **more)
        return await self.socket.ask(offer, Committed)

    async def release(self, completed: bool = False) -> None:
        """The last word."""
        await self.socket.ask(Released(self.welcome.epoch, completed), Ack)
        await self.socket.close()


@dataclass
class Rig:
    """Everything a test of the whole operator needs."""

    kubectl: Kubectl
    server: ApiServer
    s3: S3Server
    room: Path
    prefix: str
    namespace: str
    control_port: int
    health_port: int
    process: Process | None = None
    settings: dict[str, str] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)
    """What init containers were told while they waited."""
    namespaces: list[str] = field(default_factory=list)
    """This one's, and those of all that stand beside it."""
    program: tuple[str, ...] = ("-m", "savepoint_operator.main")
    """What python runs."""

    # -- the operator ---------------------------------------------------------------------------------------------

    @contextmanager
    def operator(self, name: str = "operator-0", *, leads: bool = True) -> Iterator[Process]:
        """The process, ready (or, if another one leads, alive), and killed at the end."""
        token = self.kubectl("create", "token", ACCOUNT, "-n", NAMESPACE).strip()
        spec = {
            "default": True,
            "s3": {
                "endpoint": self.s3.endpoint,
                "bucket": BUCKET,
                "prefix": self.prefix,
                "region": self.s3.region,
                "credentialsSecretName": "s3-keys",
            },
        }
        environment = {
            "KUBECONFIG": str(self.server.kubeconfig_with_token(ACCOUNT, token)),
            "SAVEPOINT_NAMESPACE": NAMESPACE,
            "SAVEPOINT_POD_NAME": name,
            "SAVEPOINT_DEFAULT_STORE": json.dumps({"name": self.prefix, "spec": spec}),
            "SAVEPOINT_WEBHOOK_CONFIGURATION": "savepoint",
            "SAVEPOINT_CONTROL_PORT": str(self.control_port),
            "SAVEPOINT_HEALTH_PORT": str(self.health_port),
            "SAVEPOINT_LEASE_SECONDS": "40",  # a busy machine cannot lose it
            **self.settings,
        }
        command = [sys.executable, "-W", "error", *self.program]
        path = "/readyz" if leads else "/healthz"
        with running(name, command, self.room, lambda: self.health(path)[0] == 200, environment=environment) as it:
            self.process = it
            yield it
            it.kill()

    def health(self, path: str) -> tuple[int, str]:
        """What the health port answers; (0, "") when it is closed."""
        try:
            answer = urllib3.request("GET", f"http://{HOST}:{self.health_port}{path}", retries=False, timeout=2)
        except urllib3.exceptions.HTTPError:
            return 0, ""
        return answer.status, answer.data.decode()

    def let_lapse(self) -> None:
        """The holder of the Lease is dead, and has been for nearly as long as it lasts."""
        short = {"spec": {"leaseDurationSeconds": 1}}
        self.kubectl.patch("lease/savepoint-operator", short, "-n", NAMESPACE)

    # -- the cluster ----------------------------------------------------------------------------------------------

    def beside(self) -> Rig:
        """The same operator seen from another namespace."""
        namespace = f"agents-{secrets.token_hex(3)}"
        items = [thing("Namespace", namespace), thing("ServiceAccount", "default", namespace)]
        self.kubectl("apply", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": items})
        self.namespaces.append(namespace)
        return replace(self, namespace=namespace, waits=[])

    def leave(self) -> None:
        """Take away what a later operator would look after, and the Lease that it would wait for."""
        self.server.delete(f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{ACCOUNT}")
        self.server.delete(f"{API}/agentcheckpointstores/{self.prefix}")
        for namespace in self.namespaces:
            self.server.delete(f"/api/v1/namespaces/{namespace}/pods")
            for kind in ("agentcheckpoints", "agentrestores", "protectedagents", "agentcheckpointpolicies"):
                self.server.delete(f"{API}/namespaces/{namespace}/{kind}")

    def counted(self, name: str, **labels: str) -> float:
        """The sum of the operator's samples of this name and these labels."""
        families = text_string_to_metric_families(self.health("/metrics")[1])
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(each.value for each in samples if each.labels.items() >= labels.items())

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object of the test's namespace; empty when there is none."""
        text = self.kubectl("get", kind, name, "-n", self.namespace, "-o", "json", "--ignore-not-found")
        found: dict[str, Any] = json.loads(text) if text.strip() else {}
        return found

    def items(self, kind: str) -> list[dict[str, Any]]:
        """Every object of the test's namespace."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-n", self.namespace, "-o", "json"))["items"]
        return found

    def reason(self, kind: str, name: str) -> str:
        """status.reason."""
        return str((self.get(kind, name).get("status") or {}).get("reason", ""))

    def events(self, reason: str, about: str = "") -> list[dict[str, Any]]:
        """Events of the test's namespace with this reason, about objects of this kind."""
        found = [each for each in self.items("events") if each["reason"] == reason]
        return [each for each in found if about in ("", each["involvedObject"]["kind"])]

    def marks(self) -> list[str]:
        """What kopf would leave in the test's objects if it kept state there: finalizers and annotations."""
        found = []
        for kind in ("agentcheckpoints", "protectedagents", "agentrestores", "pods"):
            for metadata in (item["metadata"] for item in self.items(kind)):
                found += metadata.get("finalizers") or []
                names = metadata.get("annotations") or {}
                found += [name for name in names if "operator.savepoint.dev" in name or "kopf" in name]
        return found

    def pod(
        self,
        agent: str = "coder",
        *,
        node: str = "n1",
        injected: bool = True,
        owned: bool = True,
        restart_policy: str = "Always",
        **metadata: Any,
    ) -> dict[str, Any]:
        """A running pod; pods of one agent have one owner, unless it is bare."""
        if owned:
            owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{agent}-7f", "uid": f"uid-of-{agent}"}
            metadata["ownerReferences"] = [{**owner, "controller": True}]
        labels = {LABEL_AGENT: agent, **metadata.pop("labels", {})}
        name = f"{agent}-{next(numbers)}"
        sidecar = {"name": CONTAINER_SIDECAR, "image": "sidecar:test", "restartPolicy": "Always"}
        spec: dict[str, Any] = {
            "serviceAccountName": "default",
            "nodeName": node,
            "containers": [{"name": "agent", "image": "coder:7"}],
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": restart_policy,
        }
        if injected:
            spec["initContainers"] = [sidecar]
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels, **metadata},
            "spec": spec,
        }
        made = self.kubectl.create(body, "-n", self.namespace)
        self.phase(name, "Running")
        return made

    def phase(self, name: str, phase: str, **status: Any) -> None:
        """As the kubelet reports it."""
        told = {"status": {"phase": phase, **status}}
        self.kubectl.patch(f"pod/{name}", told, "-n", self.namespace, "--subresource=status")

    def delete_pod(self, name: str) -> None:
        """Gone, as after its kubelet has let go of it."""
        self.kubectl("delete", "pod", name, "-n", self.namespace, "--force", "--grace-period=0", "--ignore-not-found")

    def token(self, pod: dict[str, Any], audience: str = "savepoint.dev") -> str:
        """The pod's projected token."""
        metadata = pod["metadata"]
        bound = ["--bound-object-kind=Pod", f"--bound-object-name={metadata['name']}"]
        bound.append(f"--bound-object-uid={metadata['uid']}")
        return self.kubectl(
            "create", "token", "default", "-n", self.namespace, f"--audience={audience}", *bound
        ).strip()

    # -- what the pod's containers do -----------------------------------------------------------------------------

    def trust(self) -> ssl.SSLContext:
        """The CA that the operator made."""
        secret = json.loads(self.kubectl("get", "secret", "savepoint-tls", "-n", NAMESPACE, "-o", "json"))
        return ssl.create_default_context(cadata=base64.b64decode(secret["data"]["ca.crt"]).decode())

    async def dial(self, session: aiohttp.ClientSession, pod: dict[str, Any], token: str = "") -> Pod:
        """A connection of one of the pod's containers."""
        bearer = token or await asyncio.to_thread(self.token, pod)
        socket = await session.ws_connect(
            f"https://{HOST}:{self.control_port}{PATH}",
            headers={"Authorization": f"Bearer {bearer}"},
            ssl=await asyncio.to_thread(self.trust),
            server_hostname=SERVER_NAME,
        )
        return Pod(socket, pod["metadata"]["uid"], SECONDS)

    async def restore(
        self, session: aiohttp.ClientSession, pod: dict[str, Any], outcome: str = "", **more: Any
    ) -> Welcome:
        """The init container: asks, is granted, reports."""
        socket = await self.dial(session, pod)
        await socket.send(Hello("restore", 1, "0.1.0", "n1"))
        while isinstance(answer := decode((await socket.socket.receive(60)).data), Wait):
            self.waits.append(answer)
        assert isinstance(answer, Grant), answer
        welcome = answer.welcome
        told = outcome or ("Restored" if welcome.parent else "Fresh")
        await socket.ask(Outcome(told, milliseconds=3100, **more), Ack)
        await socket.close()
        return welcome

    async def sidecar(self, session: aiohttp.ClientSession, pod: dict[str, Any], **more: Any) -> Sidecar:
        """The sidecar: connects and is welcome."""
        socket = await self.dial(session, pod)
        await socket.send(Hello("sidecar", 1, "0.1.0", "n1", **more))
        return Sidecar(socket, await socket.expect(Welcome))

    async def start(
        self, session: aiohttp.ClientSession, agent: str = "coder", **more: Any
    ) -> tuple[dict[str, Any], Sidecar]:
        """A pod from its creation to its sidecar's welcome."""
        pod = await asyncio.to_thread(lambda: self.pod(agent, **more))
        await self.restore(session, pod)
        return pod, await self.sidecar(session, pod)


def install(server: ApiServer, *more: dict[str, Any]) -> None:
    """Kinds, rights and what the operator's namespace holds, from the chart; and more, by one call.

    Stores that other tests have left go: the oldest of those that say so would be the default one.
    """
    kubectl = Kubectl(server.kubeconfig)
    kubectl.install_kinds()
    server.delete(f"{API}/agentcheckpointstores")
    chart = render()
    items = [thing("Namespace", NAMESPACE)]
    items += [
        one(chart, kind, ACCOUNT)
        for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    ]
    # Which pods it is called for does not matter here: nothing serves it, and no pod of these tests opts in by it.
    configuration = one(chart, "MutatingWebhookConfiguration", "savepoint")
    configuration["webhooks"][0]["namespaceSelector"] = {"matchLabels": {"webhook": "served"}}
    nodes = ("n1", "n2")
    items += [configuration, *(thing("Node", name) for name in nodes), *more]
    kubectl("apply", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": items})
    for name in nodes:
        node_is(kubectl, name, ready=True)


def thing(kind: str, name: str, namespace: str = "", **more: Any) -> dict[str, Any]:
    """An object of the core group."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **more}


def asked(agent: str, **spec: Any) -> dict[str, Any]:
    """A user's wish for a checkpoint."""
    return {
        "apiVersion": "savepoint.dev/v1alpha1",
        "kind": "AgentCheckpoint",
        "metadata": {"generateName": f"{agent}-"},
        "spec": {"agent": agent, **spec},
    }


def node_is(kubectl: Kubectl, name: str, *, ready: bool) -> None:
    """As its kubelet, or the node lifecycle controller, reports it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": "Ready",
        "status": "True" if ready else "Unknown",
        "reason": "Test",
        "message": "",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    kubectl.patch(f"node/{name}", {"status": {"conditions": [condition]}}, "--subresource=status")


def make_rig(apiserver: ApiServer, s3: S3Server, room: Path) -> Rig:
    """With all that the operator needs, a namespace and a part of the bucket of its own."""
    keys = {"accessKey": s3.access_key, "secretKey": s3.secret_key}
    install(apiserver, thing("Secret", "s3-keys", NAMESPACE, stringData=keys))
    return another_rig(apiserver, s3, room)


def another_rig(apiserver: ApiServer, s3: S3Server, room: Path) -> Rig:
    """The same where everything is installed."""
    s3.bucket(BUCKET)
    control, health = free_ports(2)
    prefix = f"store-{secrets.token_hex(3)}"
    return Rig(Kubectl(apiserver.kubeconfig), apiserver, s3, room, prefix, "", control, health).beside()
