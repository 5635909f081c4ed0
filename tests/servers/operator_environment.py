"""The operator's own process with the chart's RBAC rights, a real API server, a real S3 server, and scripted pods.

No kubelet runs: pods are objects whose phase a test sets, and the test sends the messages of their containers over the
control channel. The objects that they store are real.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import secrets
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import urllib3
from prometheus_client.parser import text_string_to_metric_families
from savepoint.contract.control_protocol import (
    Ack,
    Grant,
    Hello,
    Outcome,
    Wait,
    Welcome,
    decode,
)
from savepoint.contract.names import CONTAINER_SIDECAR, LABEL_AGENT
from savepoint_operator.control.server import PATH

from tests.fakes.control_harness import Pod
from tests.polling import eventually
from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE
from tests.servers.kubectl import Kubectl
from tests.servers.operator_objects import ACCOUNT, API, core_object, install
from tests.servers.process import HOST, Process, free_ports, running
from tests.servers.s3 import S3Server
from tests.servers.scripted_sidecar import ScriptedSidecar

SECONDS = 30.0
BUCKET = "savepoint-operator-tests"
SERVER_NAME = f"savepoint-operator.{NAMESPACE}.svc"
numbers = itertools.count(1)


@dataclass
class OperatorEnvironment:
    """All that a test of the whole operator needs: servers, a namespace, a store, and the operator's settings."""

    kubectl: Kubectl
    server: ApiServer
    s3: S3Server
    folder: Path
    prefix: str
    namespace: str
    control_port: int
    health_port: int
    settings: dict[str, str] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)
    """Messages that init containers received while they waited."""
    namespaces: list[str] = field(default_factory=list)
    """The test's namespace, and those created by ``in_new_namespace``."""
    program: tuple[str, ...] = ("-m", "savepoint_operator.main")
    """Arguments of python that start the operator."""

    # -- the operator ---------------------------------------------------------------------------------------------

    @contextmanager
    def run_operator(self, name: str = "operator-0", *, leads: bool = True) -> Iterator[Process]:
        """Yield the process once it is ready (or only alive, if another one leads). Kill it at the end."""
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
            "SAVEPOINT_LEASE_SECONDS": "40",  # long enough for a busy machine to renew it in time
            **self.settings,
        }
        command = [sys.executable, "-W", "error", *self.program]
        path = "/readyz" if leads else "/healthz"
        with running(
            name, command, self.folder, lambda: self.health(path)[0] == 200, environment=environment
        ) as process:
            yield process
            process.kill()

    def health(self, path: str) -> tuple[int, str]:
        """Return the status and the body that the health port answers, or (0, "") if it is closed."""
        try:
            answer = urllib3.request("GET", f"http://{HOST}:{self.health_port}{path}", retries=False, timeout=2)
        except urllib3.exceptions.HTTPError:
            return 0, ""
        return answer.status, answer.data.decode()

    def expire_lease(self) -> None:
        """Let the Lease of a holder that was killed expire within a second, instead of the full duration."""
        short = {"spec": {"leaseDurationSeconds": 1}}
        self.kubectl.patch("lease/savepoint-operator", short, "-n", NAMESPACE)

    # -- the cluster ----------------------------------------------------------------------------------------------

    def in_new_namespace(self) -> OperatorEnvironment:
        """Return an environment with the same operator and a new namespace."""
        namespace = f"agents-{secrets.token_hex(3)}"
        items = [core_object("Namespace", namespace), core_object("ServiceAccount", "default", namespace)]
        self.kubectl("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": items})
        self.namespaces.append(namespace)
        return replace(self, namespace=namespace, waits=[])

    def clean_up(self) -> None:
        """Delete the objects that a later operator would reconcile, and the Lease for which it would wait."""
        self.server.delete(f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{ACCOUNT}")
        self.server.delete(f"{API}/agentcheckpointstores/{self.prefix}")
        for namespace in self.namespaces:
            self.server.delete(f"/api/v1/namespaces/{namespace}/pods")
            for kind in ("agentcheckpoints", "agentrestores", "protectedagents", "agentcheckpointpolicies"):
                self.server.delete(f"{API}/namespaces/{namespace}/{kind}")

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the operator's samples with this name and these labels."""
        families = text_string_to_metric_families(self.health("/metrics")[1])
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(each.value for each in samples if each.labels.items() >= labels.items())

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object of the test's namespace, or an empty dict if it does not exist."""
        text = self.kubectl("get", kind, name, "-n", self.namespace, "-o", "json", "--ignore-not-found")
        found: dict[str, Any] = json.loads(text) if text.strip() else {}
        return found

    def items(self, kind: str) -> list[dict[str, Any]]:
        """Return all objects of this kind in the test's namespace."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-n", self.namespace, "-o", "json"))["items"]
        return found

    def reason(self, kind: str, name: str) -> str:
        """Return status.reason of an object."""
        return str((self.get(kind, name).get("status") or {}).get("reason", ""))

    def events(self, reason: str, about: str = "") -> list[dict[str, Any]]:
        """Return the Events of the test's namespace with this reason, about objects of this kind."""
        found = [each for each in self.items("events") if each["reason"] == reason]
        return [each for each in found if about in ("", each["involvedObject"]["kind"])]

    async def await_store(self) -> None:
        """Wait until the default store is Ready."""
        await eventually("the store is Ready", lambda: self.reason("agentcheckpointstore", self.prefix) == "Ready")

    def kopf_traces(self) -> list[str]:
        """Return the finalizers and annotations in which kopf would keep state in the test's objects."""
        found: list[str] = []
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
        """Create a running pod. All pods of an agent have the same owner, unless ``owned`` is false."""
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
        created = self.kubectl.create(body, "-n", self.namespace)
        self.set_phase(name, "Running")
        return created

    def set_phase(self, name: str, phase: str, **status: Any) -> None:
        """Report the phase of a pod as kubelet does."""
        change = {"status": {"phase": phase, **status}}
        self.kubectl.patch(f"pod/{name}", change, "-n", self.namespace, "--subresource=status")

    def delete_pod(self, name: str) -> None:
        """Delete a pod immediately, as if kubelet had ended its containers."""
        self.kubectl("delete", "pod", name, "-n", self.namespace, "--force", "--grace-period=0", "--ignore-not-found")

    def token(self, pod: dict[str, Any], audience: str = "savepoint.dev") -> str:
        """Return the pod's projected token."""
        metadata = pod["metadata"]
        bound = ["--bound-object-kind=Pod", f"--bound-object-name={metadata['name']}"]
        bound.append(f"--bound-object-uid={metadata['uid']}")
        return self.kubectl(
            "create", "token", "default", "-n", self.namespace, f"--audience={audience}", *bound
        ).strip()

    # -- the pod's containers --------------------------------------------------------------------------------------

    def client_context(self) -> ssl.SSLContext:
        """Return a TLS context that trusts the CA that the operator created."""
        secret = json.loads(self.kubectl("get", "secret", "savepoint-tls", "-n", NAMESPACE, "-o", "json"))
        return ssl.create_default_context(cadata=base64.b64decode(secret["data"]["ca.crt"]).decode())

    async def dial(self, session: aiohttp.ClientSession, pod: dict[str, Any], token: str = "") -> Pod:
        """Connect as one of the pod's containers, without sending a message."""
        bearer = token or await asyncio.to_thread(self.token, pod)
        socket = await session.ws_connect(
            f"https://{HOST}:{self.control_port}{PATH}",
            headers={"Authorization": f"Bearer {bearer}"},
            ssl=await asyncio.to_thread(self.client_context),
            server_hostname=SERVER_NAME,
        )
        return Pod(socket, pod["metadata"]["uid"], SECONDS)

    async def restore(
        self, session: aiohttp.ClientSession, pod: dict[str, Any], outcome: str = "", **more: Any
    ) -> Welcome:
        """Play the init container: wait for the grant, report the outcome, and return the welcome."""
        connection = await self.dial(session, pod)
        await connection.send(Hello("restore", 1, "0.1.0", "n1"))
        while isinstance(answer := decode((await connection.socket.receive(60)).data), Wait):
            self.waits.append(answer)
        assert isinstance(answer, Grant), answer
        welcome = answer.welcome
        reported = outcome or ("Restored" if welcome.parent else "Fresh")
        await connection.request(Outcome(reported, milliseconds=3100, **more), Ack)
        await connection.close()
        return welcome

    async def sidecar(self, session: aiohttp.ClientSession, pod: dict[str, Any], **more: Any) -> ScriptedSidecar:
        """Connect a sidecar and wait for its welcome."""
        connection = await self.dial(session, pod)
        await connection.send(Hello("sidecar", 1, "0.1.0", "n1", **more))
        return ScriptedSidecar(connection, await connection.expect(Welcome))

    async def start(
        self, session: aiohttp.ClientSession, agent: str = "coder", **more: Any
    ) -> tuple[dict[str, Any], ScriptedSidecar]:
        """Create a pod, play its init container, and connect its sidecar."""
        pod = await asyncio.to_thread(lambda: self.pod(agent, **more))
        await self.restore(session, pod)
        return pod, await self.sidecar(session, pod)


def install_environment(apiserver: ApiServer, s3: S3Server, folder: Path) -> OperatorEnvironment:
    """Install all that the operator needs, and return a new environment."""
    keys = {"accessKey": s3.access_key, "secretKey": s3.secret_key}
    install(apiserver, core_object("Secret", "s3-keys", NAMESPACE, stringData=keys))
    return new_environment(apiserver, s3, folder)


def new_environment(apiserver: ApiServer, s3: S3Server, folder: Path) -> OperatorEnvironment:
    """Return an environment with its own namespace and store, where the operator's objects are installed already."""
    s3.bucket(BUCKET)
    control, health = free_ports(2)
    prefix = f"store-{secrets.token_hex(3)}"
    kubectl = Kubectl(apiserver.kubeconfig)
    environment = OperatorEnvironment(kubectl, apiserver, s3, folder, prefix, "", control, health)
    return environment.in_new_namespace()
