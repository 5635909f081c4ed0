"""A Kubernetes API server with its etcd, without the rest of a cluster.

Schemas, CEL rules, status subresources, admission (webhooks and policies) and RBAC are real. No pod is scheduled or
run. Controllers run only if they are named: without the namespace controller a deleted namespace stays Terminating,
and without the garbage collector the children of a deleted owner stay.
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
from tests.servers.pki import Authority, KeyPair, signing_key
from tests.servers.process import HOST, Process, free_ports, responds, running, server_folder

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
    """Authenticates as the administrator (system:masters) by a client certificate."""
    token: str = field(repr=False)
    """Bearer token of the same administrator."""
    folder: Path
    process: Process = field(repr=False)
    authority: Authority = field(repr=False)

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Return a kubeconfig that authenticates as this user by a client certificate; its rights come from RBAC."""
        return _write_kubeconfig(
            self.folder, self.url, self.ca, user, _client_certificate(self.authority.issue_client(user, groups))
        )

    def kubeconfig_with_token(self, user: str, token: str) -> Path:
        """Return a kubeconfig that authenticates by a bearer token, such as one from TokenRequest."""
        return _write_kubeconfig(self.folder, self.url, self.ca, user, {"token": token})

    def delete(self, path: str) -> None:
        """Delete an object as the administrator, without a grace period; or a collection, in one request."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        body = b'{"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}'
        with urllib3.PoolManager(ca_certs=str(self.ca), retries=False, timeout=30) as pool:
            status = pool.request("DELETE", self.url + path, headers=headers, body=body).status
        assert status in (200, 202, 404), f"{status} to DELETE {path}"


@contextmanager
def api_server(folder: Path | None = None, *, controllers: Sequence[str] = ()) -> Iterator[ApiServer]:
    """Yield a running API server with its data and logs in the folder. Raises ServerError.

    ``controllers`` are names for kube-controller-manager's --controllers, such as namespace-controller; the manager
    is started only if there are any.
    """
    binaries = build((*PROGRAMS, *(CONTROLLER_PROGRAMS if controllers else ())))
    with server_folder(folder, "apiserver") as folder, ExitStack() as stack:
        client_port, peer_port, secure_port, manager_port = free_ports(4)
        store = f"http://{HOST}:{client_port}"
        etcd = _etcd(binaries["etcd"], folder, store, peer_port)
        stack.enter_context(running("etcd", etcd, folder, responds(f"{store}/readyz")))
        authority, token, url = Authority(), secrets.token_urlsafe(24), f"https://{HOST}:{secure_port}"
        _write_credentials(folder, authority, token)
        command = _apiserver(binaries["kube-apiserver"], folder, store, secure_port)
        ca = folder / "ca.crt"
        process = stack.enter_context(running("kube-apiserver", command, folder, responds(f"{url}/readyz", ca)))
        admin = _client_certificate(authority.issue_client("admin", ["system:masters"]))
        kubeconfig = _write_kubeconfig(folder, url, ca, "admin", admin)
        if controllers:
            manager = _controller_manager(
                binaries["kube-controller-manager"], folder, kubeconfig, manager_port, controllers
            )
            healthy = responds(f"https://{HOST}:{manager_port}/healthz", ca)
            stack.enter_context(running("kube-controller-manager", manager, folder, healthy))
        yield ApiServer(url, ca, kubeconfig, token, folder, process, authority)


def _write_credentials(folder: Path, authority: Authority, token: str) -> None:
    serving = authority.issue_server([HOST, "localhost", "kubernetes", "kubernetes.default.svc", "10.0.0.1"])
    private, public = signing_key()
    (folder / "ca.crt").write_bytes(authority.certificate)
    (folder / "serving.crt").write_bytes(serving.certificate)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    (folder / "service-account.pub").write_bytes(public)
    for name, key in (("serving.key", serving.key), ("service-account.key", private)):
        (folder / name).write_bytes(key)
        (folder / name).chmod(0o600)


def _etcd(binary: Path, folder: Path, store: str, peer_port: int) -> list[str | Path]:
    return [
        binary,
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={store}",
        f"--advertise-client-urls={store}",
        f"--listen-peer-urls=http://{HOST}:{peer_port}",
        "--unsafe-no-fsync",  # the data is not needed after the test run
    ]


def _apiserver(binary: Path, folder: Path, store: str, port: int) -> list[str | Path]:
    return [
        binary,
        f"--etcd-servers={store}",
        f"--bind-address={HOST}",
        f"--secure-port={port}",
        f"--cert-dir={folder}",
        f"--tls-cert-file={folder / 'serving.crt'}",
        f"--tls-private-key-file={folder / 'serving.key'}",
        f"--client-ca-file={folder / 'ca.crt'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={folder / 'service-account.pub'}",
        f"--service-account-signing-key-file={folder / 'service-account.key'}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--endpoint-reconciler-type=none",  # an Endpoints object does not accept a loopback address
        "--authorization-mode=RBAC",
        # The default plugins, except the one that waits for a controller to create each namespace's service account.
        "--disable-admission-plugins=ServiceAccount",
        "--allow-privileged=true",
    ]


def _controller_manager(
    binary: Path, folder: Path, kubeconfig: Path, port: int, controllers: Sequence[str]
) -> list[str | Path]:
    return [
        binary,
        f"--kubeconfig={kubeconfig}",
        f"--bind-address={HOST}",
        f"--secure-port={port}",
        f"--tls-cert-file={folder / 'serving.crt'}",
        f"--tls-private-key-file={folder / 'serving.key'}",
        f"--service-account-private-key-file={folder / 'service-account.key'}",
        f"--controllers={','.join(controllers)}",
        "--leader-elect=false",
        "--use-service-account-credentials=false",
    ]


def _client_certificate(pair: KeyPair) -> dict[str, str]:
    return {
        "client-certificate-data": base64.b64encode(pair.certificate).decode(),
        "client-key-data": base64.b64encode(pair.key).decode(),
    }


def _write_kubeconfig(folder: Path, url: str, ca: Path, user: str, credentials: dict[str, str]) -> Path:
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(ca.read_bytes()).decode()}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": "default"}}],
        "current-context": "test",
    }
    path = folder / f"{user.replace(':', '-').replace('/', '-')}.kubeconfig"
    path.write_text(json.dumps(content, indent=2))  # JSON is YAML
    path.chmod(0o600)
    return path
