"""A Kubernetes API server with its etcd, and nothing else of a cluster.

What it is: schemas, CEL rules, status subresources, admission (webhooks and policies) and RBAC, for real. What it is
not: a cluster. Nothing schedules or runs a pod. Controllers run only when named: without the namespace controller a
deleted namespace stays Terminating, without the garbage collector an owner's children stay.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import urllib3

from e2e.cluster.programs import build
from tests.servers.pki import Authority, Pair, signing_key
from tests.servers.process import HOST, Process, answers, free_ports, running, server_room

PROGRAMS = ("etcd", "kube-apiserver")
CONTROLLER_PROGRAMS = ("kube-controller-manager",)
ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True, slots=True)
class ApiServer:
    """A running API server."""

    url: str
    ca: Path
    """The authority's certificate, PEM."""
    kubeconfig: Path
    """Of the administrator (system:masters), by client certificate."""
    token: str = field(repr=False)
    """Bearer token of the same administrator."""
    room: Path
    process: Process = field(repr=False)
    authority: Authority = field(repr=False)

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig that authenticates as this user by a client certificate; RBAC decides what it may do."""
        return _write_kubeconfig(self.room, self.url, self.ca, user, _certified(self.authority.user(user, groups)))

    def kubeconfig_with_token(self, user: str, token: str) -> Path:
        """A kubeconfig that authenticates by a bearer token, as the one that TokenRequest answers with."""
        return _write_kubeconfig(self.room, self.url, self.ca, user, {"token": token})

    def delete(self, path: str) -> None:
        """As the administrator and at once: one object, or a collection in one request, which kubectl takes apart."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        body = b'{"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}'
        with urllib3.PoolManager(ca_certs=str(self.ca), retries=False, timeout=30) as pool:
            status = pool.request("DELETE", self.url + path, headers=headers, body=body).status
        assert status in (200, 202, 404), f"{status} to DELETE {path}"


@contextmanager
def api_server(room: Path | None = None, *, controllers: Sequence[str] = ()) -> Iterator[ApiServer]:
    """A running API server, its data and logs in room. Raises ServerError.

    controllers: names for kube-controller-manager's --controllers, such as namespace-controller; none, no manager.
    """
    binaries = build((*PROGRAMS, *(CONTROLLER_PROGRAMS if controllers else ())))
    with server_room(room, "apiserver") as place, ExitStack() as stack:
        client_port, peer_port, secure_port, manager_port = free_ports(4)
        store = f"http://{HOST}:{client_port}"
        etcd = _etcd(binaries["etcd"], place, store, peer_port)
        stack.enter_context(running("etcd", etcd, place, answers(f"{store}/readyz")))
        authority, token, url = Authority(), secrets.token_urlsafe(24), f"https://{HOST}:{secure_port}"
        _write_credentials(place, authority, token)
        command = _apiserver(binaries["kube-apiserver"], place, store, secure_port)
        ca = place / "ca.crt"
        process = stack.enter_context(running("kube-apiserver", command, place, answers(f"{url}/readyz", ca)))
        admin = _certified(authority.user("admin", ["system:masters"]))
        kubeconfig = _write_kubeconfig(place, url, ca, "admin", admin)
        if controllers:
            manager = _manager(binaries["kube-controller-manager"], place, kubeconfig, manager_port, controllers)
            healthy = answers(f"https://{HOST}:{manager_port}/healthz", ca)
            stack.enter_context(running("kube-controller-manager", manager, place, healthy))
        yield ApiServer(url, ca, kubeconfig, token, place, process, authority)


def _write_credentials(place: Path, authority: Authority, token: str) -> None:
    serving = authority.server([HOST, "localhost", "kubernetes", "kubernetes.default.svc", "10.0.0.1"])
    private, public = signing_key()
    (place / "ca.crt").write_bytes(authority.certificate)
    (place / "serving.crt").write_bytes(serving.certificate)
    (place / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    (place / "service-account.pub").write_bytes(public)
    for name, key in (("serving.key", serving.key), ("service-account.key", private)):
        (place / name).write_bytes(key)
        (place / name).chmod(0o600)


def _etcd(binary: Path, place: Path, store: str, peer_port: int) -> list[str | Path]:
    return [
        binary,
        f"--data-dir={place / 'etcd'}",
        f"--listen-client-urls={store}",
        f"--advertise-client-urls={store}",
        f"--listen-peer-urls=http://{HOST}:{peer_port}",
        "--unsafe-no-fsync",  # the data lives as long as the test run
    ]


def _apiserver(binary: Path, place: Path, store: str, port: int) -> list[str | Path]:
    return [
        binary,
        f"--etcd-servers={store}",
        f"--bind-address={HOST}",
        f"--secure-port={port}",
        f"--cert-dir={place}",
        f"--tls-cert-file={place / 'serving.crt'}",
        f"--tls-private-key-file={place / 'serving.key'}",
        f"--client-ca-file={place / 'ca.crt'}",
        f"--token-auth-file={place / 'tokens.csv'}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={place / 'service-account.pub'}",
        f"--service-account-signing-key-file={place / 'service-account.key'}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--endpoint-reconciler-type=none",  # loopback is no address that an Endpoints object accepts
        "--authorization-mode=RBAC",
        # The default admission plugins, except the one that waits for a controller to create each namespace's account.
        "--disable-admission-plugins=ServiceAccount",
        "--allow-privileged=true",
    ]


def _manager(binary: Path, place: Path, kubeconfig: Path, port: int, controllers: Sequence[str]) -> list[str | Path]:
    return [
        binary,
        f"--kubeconfig={kubeconfig}",
        f"--bind-address={HOST}",
        f"--secure-port={port}",
        f"--tls-cert-file={place / 'serving.crt'}",
        f"--tls-private-key-file={place / 'serving.key'}",
        f"--service-account-private-key-file={place / 'service-account.key'}",
        f"--controllers={','.join(controllers)}",
        "--leader-elect=false",
        "--use-service-account-credentials=false",
    ]


def _certified(pair: Pair) -> dict[str, str]:
    return {
        "client-certificate-data": base64.b64encode(pair.certificate).decode(),
        "client-key-data": base64.b64encode(pair.key).decode(),
    }


def _write_kubeconfig(room: Path, url: str, ca: Path, user: str, credentials: dict[str, str]) -> Path:
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(ca.read_bytes()).decode()}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": "default"}}],
        "current-context": "test",
    }
    path = room / f"{user.replace(':', '-').replace('/', '-')}.kubeconfig"
    path.write_text(json.dumps(content, indent=2))  # JSON is YAML
    path.chmod(0o600)
    return path
