"""The webhook's own process, called by a real API server, with the rights that the chart gives it and no more."""

from __future__ import annotations

import base64
import itertools
import json
import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
from savepoint.contract import names

from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE, one, render
from tests.servers.injector import injector
from tests.servers.kubectl import Kubectl, Refused
from tests.servers.pki import Authority
from tests.servers.process import HOST, Process, free_ports, running

SECONDS = 20.0
IMPATIENT = """
import dataclasses, sys
from savepoint_operator import webhook
read = webhook.WebhookSettings.from_environment
webhook.WebhookSettings.from_environment = lambda environment: dataclasses.replace(
    read(environment), certificate_poll_seconds=0.5
)
sys.exit(webhook.main())
"""
"""The process as it is, but that it looks for a new certificate more often."""
CONTAINERS = [names.CONTAINER_RESTORE, names.CONTAINER_SIDECAR]


@dataclass
class Webhook:
    """The running process and what it reads."""

    process: Process
    url: str
    health: str
    tls: Path
    authority: Authority

    def get(self, path: str) -> tuple[int, str]:
        answer = urllib3.request("GET", self.health + path, retries=False, timeout=5)
        return answer.status, answer.data.decode()

    def reviews(self) -> float:
        """Pods reviewed so far."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("savepoint_admission_reviews_total{"))

    def renew(self) -> None:
        """A new serving certificate."""
        swap_in(self.authority, self.tls)


def swap_in(authority: Authority, tls: Path) -> None:
    """A serving certificate, put there at once as the kubelet does."""
    pair = authority.server([HOST])
    contents = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate}
    fresh = tls / f".{time.monotonic_ns()}"
    fresh.mkdir(parents=True)
    for name, content in contents.items():
        (fresh / name).write_bytes(content)
        if not (tls / name).is_symlink():
            (tls / name).symlink_to(Path("current") / name)
    (tls / "next").symlink_to(fresh.name)
    (tls / "next").replace(tls / "current")


def until(what: str, holds: Callable[[], Any]) -> Any:
    """Poll until it holds; the process is another one, so there is nothing to wait on."""
    end = time.monotonic() + SECONDS
    while not (found := holds()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def kubectl(apiserver: ApiServer) -> Iterator[Kubectl]:
    admin = Kubectl(apiserver.kubeconfig)
    admin.install_kinds()
    admin.namespace(NAMESPACE)
    admin.namespace("open")
    admin.namespace("strict", {"pod-security.kubernetes.io/enforce": "restricted"})
    yield admin
    admin("delete", "pods", "--all", "-n", "open")
    admin("delete", "pods", "--all", "-n", "strict")


@pytest.fixture(scope="module")
def webhook(apiserver: ApiServer, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    room = tmp_path_factory.mktemp("webhook")
    chart = render()
    ours = [("ServiceAccount", "savepoint-webhook"), ("ClusterRole", "savepoint-webhook")]
    ours.append(("ClusterRoleBinding", "savepoint-webhook"))
    for kind, name in ours:
        kubectl("apply", "-f", "-", given=one(chart, kind, name))
    token = kubectl("create", "token", "savepoint-webhook", "-n", NAMESPACE).strip()
    with ExitStack() as stack:
        result = stack.enter_context(started(apiserver, room, token, "-c", IMPATIENT))
        status, text = result.get("/readyz")
        assert (status, "no serving certificate yet" in text) == (503, True)
        result.renew()
        until("the webhook is ready", lambda: result.get("/readyz")[0] == 200)

        configuration = one(chart, "MutatingWebhookConfiguration", "savepoint")
        bundle = base64.b64encode(apiserver.authority.certificate).decode()
        configuration["webhooks"][0]["clientConfig"] = {"url": result.url, "caBundle": bundle}
        kubectl("apply", "-f", "-", given=configuration)
        stack.callback(kubectl, "delete", "mutatingwebhookconfiguration", "savepoint")
        until(
            "the API server calls the webhook",
            lambda: injected(kubectl.create(pod(), "-n", "open", "--dry-run=server")),
        )
        yield result


@contextmanager
def started(apiserver: ApiServer, room: Path, token: str, *program: str) -> Iterator[Webhook]:
    """The process, alive; without a certificate unless there is one in room/tls already."""
    review_port, health_port = free_ports(2)
    environment = {
        "KUBECONFIG": str(apiserver.kubeconfig_with_token(room.name, token)),
        "SAVEPOINT_SIDECAR_IMAGE": "savepoint-sidecar:test",
        "SAVEPOINT_CONTROL_URL": f"wss://savepoint-operator.{NAMESPACE}.svc:8443/v1/control",
        "SAVEPOINT_TLS_DIRECTORY": str(room / "tls"),
        "SAVEPOINT_WEBHOOK_PORT": str(review_port),
        "SAVEPOINT_HEALTH_PORT": str(health_port),
    }
    health = f"http://{HOST}:{health_port}"
    command = [sys.executable, "-W", "error", *(program or ("-m", "savepoint_operator.webhook"))]
    with running("webhook", command, room, _alive(f"{health}/healthz"), environment=environment) as process:
        url = f"https://{HOST}:{review_port}/mutate-pods"
        yield Webhook(process, url, health, room / "tls", apiserver.authority)


def _alive(url: str) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            return bool(urllib3.request("GET", url, retries=False, timeout=1).status == 200)
        except urllib3.exceptions.HTTPError:
            return False

    return answers


numbers = itertools.count()


def pod(*, agent: str = "coder", annotations: dict[str, str] | None = None, uid: int | None = None) -> dict[str, Any]:
    """An opted-in pod (agent "": not opted in) that satisfies restricted when it has a uid."""
    context: dict[str, Any] = {"seccompProfile": {"type": "RuntimeDefault"}}
    if uid is not None:
        context |= {"runAsNonRoot": True, "runAsUser": uid}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{agent or 'other'}-{next(numbers)}",
            "labels": {"savepoint.dev/agent": agent} if agent else {},
            "annotations": annotations or {},
        },
        "spec": {
            "serviceAccountName": "default",  # this API server runs without the plugin that fills it in
            "securityContext": context,
            "containers": [
                {
                    "name": "agent",
                    "image": "coder:7",
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "work", "mountPath": "/workspace"}],
                }
            ],
            "volumes": [{"name": "work", "emptyDir": {}}],
        },
    }


def injected(made: dict[str, Any]) -> bool:
    return [container["name"] for container in made["spec"].get("initContainers", [])] == CONTAINERS


def roots(made: dict[str, Any]) -> list[str]:
    environment = {item["name"]: item.get("value", "") for item in made["spec"]["initContainers"][-1]["env"]}
    return [root["mountPath"] for root in json.loads(environment[names.ENV_ROOTS])]


def test_an_opted_in_pod_is_injected(kubectl: Kubectl, webhook: Webhook) -> None:
    made = kubectl.create(pod(annotations={names.ANNOTATION_STATE: "/home/node/.agent"}), "-n", "open")
    assert injected(made)
    assert roots(made) == ["/home/node/.agent", "/workspace"]
    sidecar = made["spec"]["initContainers"][1]
    assert sidecar["image"] == "savepoint-sidecar:test"
    environment = {item["name"]: item.get("value") for item in sidecar["env"]}
    assert environment[names.ENV_CONTROL_CA] == webhook.authority.certificate.decode()
    seconds = {item["key"]: item.get("tolerationSeconds") for item in made["spec"]["tolerations"]}
    assert seconds == {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30}


def test_other_pods_never_reach_the_webhook(kubectl: Kubectl, webhook: Webhook) -> None:
    before = webhook.reviews()
    made = kubectl.create(pod(agent=""), "-n", "open")
    assert "initContainers" not in made["spec"]
    assert len(made["spec"]["volumes"]) == 1
    kubectl.create(pod(), "-n", NAMESPACE)  # nor those of the release's namespace
    assert webhook.reviews() == before


def test_a_restricted_namespace_takes_the_injected_pod(kubectl: Kubectl, webhook: Webhook) -> None:
    made = kubectl.create(pod(uid=1000), "-n", "strict")
    assert injected(made)
    assert {container["securityContext"]["runAsUser"] for container in made["spec"]["initContainers"]} == {1000}


def test_a_restricted_namespace_wants_a_uid(kubectl: Kubectl, webhook: Webhook) -> None:
    with pytest.raises(Refused, match=r"savepoint: RunAsUserRequired: the namespace enforces") as refusal:
        kubectl.create(pod(), "-n", "strict")
    assert "annotation savepoint.dev/run-as-user" in str(refusal.value)


def test_the_level_follows_the_namespaces_label(kubectl: Kubectl, webhook: Webhook) -> None:
    kubectl.namespace("tightened")
    try:
        assert injected(kubectl.create(pod(), "-n", "tightened", "--dry-run=server"))
        kubectl("label", "namespace", "tightened", "pod-security.kubernetes.io/enforce=restricted")

        def refused() -> bool:
            try:
                kubectl.create(pod(), "-n", "tightened", "--dry-run=server")
            except Refused as refusal:
                return "RunAsUserRequired" in str(refusal)
            return False

        until("the webhook knows the label", refused)
    finally:
        kubectl("delete", "namespace", "tightened", "--wait=false")


def test_a_policy_counts_from_then_on(kubectl: Kubectl, webhook: Webhook) -> None:
    policy = {
        "apiVersion": "savepoint.dev/v1alpha1",
        "kind": "AgentCheckpointPolicy",
        "metadata": {"name": "coders", "namespace": "open"},
        "spec": {"state": {"paths": [{"mountPath": "/cache"}]}},
    }

    def known() -> bool:
        return "/cache" in roots(kubectl.create(pod(), "-n", "open", "--dry-run=server"))

    assert not known()
    kubectl.create(policy)
    until("the webhook knows the policy", known)
    kubectl("delete", "ackptpol/coders", "-n", "open")
    until("the webhook has forgotten the policy", lambda: not known())


def test_a_refusal_and_a_warning_reach_the_user(kubectl: Kubectl, webhook: Webhook) -> None:
    with pytest.raises(Refused, match=r"savepoint: AgentNameInvalid: label savepoint.dev/agent must name"):
        kubectl.create(
            pod(agent="Coder") | {"metadata": {"name": "x", "labels": {"savepoint.dev/agent": "Coder"}}}, "-n", "open"
        )
    item = pod()
    item["spec"]["volumes"][0] = {"name": "work", "hostPath": {"path": "/srv"}}
    with pytest.raises(Refused, match=r"savepoint: /workspace \(volume 'work'\) is not protected"):
        kubectl.create(item, "-n", "open", "--warnings-as-errors")


def test_two_injections_are_one(kubectl: Kubectl, webhook: Webhook) -> None:
    subject = pod()
    alone = kubectl.create(subject, "-n", "open", "--dry-run=server")["spec"]
    twin = json.loads(kubectl("get", "mutatingwebhookconfiguration", "savepoint", "-o", "json"))
    twin["metadata"] = {"name": "savepoint-twin"}
    twin["webhooks"][0]["name"] = "twin.savepoint.dev"
    kubectl("create", "-f", "-", given=twin)
    try:
        before = webhook.reviews()
        until("the API server knows the twin", lambda: _both(kubectl, webhook))
        assert kubectl.create(subject, "-n", "open", "--dry-run=server")["spec"] == alone
        assert webhook.reviews() > before
    finally:
        kubectl("delete", "mutatingwebhookconfiguration", "savepoint-twin")


def _both(kubectl: Kubectl, webhook: Webhook) -> bool:
    before = webhook.reviews()
    kubectl.create(pod(), "-n", "open", "--dry-run=server")
    return webhook.reviews() >= before + 2


@pytest.mark.parametrize(("name", "reviews"), [("a-mesh", 1), ("z-mesh", 2)])  # they are called by their names' order
def test_another_injector_is_left_alone_and_comes_first(
    apiserver: ApiServer, kubectl: Kubectl, webhook: Webhook, tmp_path: Path, name: str, reviews: int
) -> None:
    subject = pod()
    ours = kubectl.create(subject, "-n", "open", "--dry-run=server")["spec"]
    with _injecting(apiserver, kubectl, tmp_path, name):
        theirs = kubectl.create(pod(agent=""), "-n", "open", "--dry-run=server")["spec"]
        before = webhook.reviews()
        both = kubectl.create(subject, "-n", "open", "--dry-run=server")["spec"]
        assert webhook.reviews() >= before + reviews
    assert [each["name"] for each in both["initContainers"]] == ["mesh-proxy", *CONTAINERS]
    assert both["initContainers"] == [*theirs["initContainers"], *ours["initContainers"]]
    alone = [each for each in theirs["volumes"] if each not in ours["volumes"]]
    assert [each["name"] for each in alone] == ["mesh-data"]
    assert _by_name(both["volumes"]) == _by_name([*ours["volumes"], *alone])
    environment = [spec["containers"][0]["env"] for spec in (ours, theirs)]
    assert _by_name(both["containers"][0]["env"]) == _by_name([*environment[0], *environment[1]])
    assert both["containers"][0]["volumeMounts"] == ours["containers"][0]["volumeMounts"]


@contextmanager
def _injecting(apiserver: ApiServer, kubectl: Kubectl, room: Path, name: str) -> Iterator[None]:
    """Another injector, registered under this name for the namespace "open"; it is called again when needed, too."""

    def called() -> bool:
        return "initContainers" in kubectl.create(pod(agent=""), "-n", "open", "--dry-run=server")["spec"]

    with injector(apiserver.authority, room) as other:
        bundle = base64.b64encode(apiserver.authority.certificate).decode()
        pods = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
        hook = {
            "name": "pods.mesh.example.com",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": other.url, "caBundle": bundle},
            "rules": [pods],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "open"}},
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "None",
        }
        configuration = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [hook],
        }
        kubectl("create", "-f", "-", given=configuration)
        try:
            until("the API server calls the other injector", called)
            yield
        finally:
            kubectl("delete", "mutatingwebhookconfiguration", name)
            until("the API server has forgotten it", lambda: not called())


def _by_name(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(items, key=lambda each: str(each["name"]))


def test_no_admission_fails_while_the_certificate_is_renewed(kubectl: Kubectl, webhook: Webhook) -> None:
    for _ in range(2):
        webhook.renew()
        serving = (webhook.tls / "tls.crt").read_text()

        def taken_up(expected: str = serving) -> bool:
            assert injected(kubectl.create(pod(), "-n", "open", "--dry-run=server"))
            return _served(webhook) == expected

        until("the newest certificate is served", taken_up)


def _served(webhook: Webhook) -> str:
    port = int(webhook.url.rsplit(":", 1)[1].split("/")[0])
    return ssl.get_server_certificate((HOST, port))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff\xfe", b'{"kind":"AdmissionReview"}'])
def test_nonsense_is_a_bad_request(webhook: Webhook, body: bytes) -> None:
    with urllib3.PoolManager(ca_certs=str(webhook.tls / "ca.crt"), retries=False, timeout=5) as pool:
        headers = {"Content-Type": "application/json"}
        assert pool.request("POST", webhook.url, body=body, headers=headers).status == 400
        assert pool.request("GET", webhook.url).status == 405


def test_nothing_is_logged_that_a_pod_holds(kubectl: Kubectl, webhook: Webhook) -> None:
    item = pod()
    item["spec"]["containers"][0]["env"] = [{"name": "KEY", "value": "hunter2"}]
    kubectl.create(item, "-n", "open", "--dry-run=server")
    log = webhook.process.log.read_text()
    assert f"pod open/{item['metadata']['name']} agent 'coder': Injected" in log
    assert "hunter2" not in log
    assert "BEGIN" not in log


def test_it_has_the_rights_it_needs_and_no_more(kubectl: Kubectl, webhook: Webhook) -> None:
    user = f"--as=system:serviceaccount:{NAMESPACE}:savepoint-webhook"

    def may(verb: str, what: str) -> bool:
        try:
            return kubectl("auth", "can-i", verb, what, user, "-n", NAMESPACE).strip() == "yes"
        except Refused:
            return False

    for what in ("agentcheckpointpolicies.savepoint.dev", "namespaces"):
        assert [may(verb, what) for verb in ("get", "list", "watch")] == [True] * 3
        assert not may("update", what)
    for what in ("secrets", "pods", "configmaps", "agentcheckpoints.savepoint.dev", "mutatingwebhookconfigurations"):
        assert not may("get", what)


def test_reviews_are_refused_until_policies_and_namespaces_are_known(apiserver: ApiServer, tmp_path: Path) -> None:
    swap_in(apiserver.authority, tmp_path / "tls")
    with started(apiserver, tmp_path, "no token of this cluster") as blind:
        until("it has its certificate", lambda: "not indexed yet" in blind.get("/readyz")[1])
        with urllib3.PoolManager(ca_certs=str(blind.tls / "ca.crt"), retries=False, timeout=5) as pool:
            assert pool.request("POST", blind.url, body=b"{}").status == 503
        assert blind.get("/readyz")[0] == 503
        until("it says why", lambda: "the API server answered 401" in blind.process.log.read_text())
        blind.process.kill()  # how it ends is another test's


def test_without_it_opted_in_pods_wait_and_others_do_not(kubectl: Kubectl, webhook: Webhook) -> None:
    """The last test: it ends the process, gently first."""
    webhook.process.popen.terminate()
    until("it says that it stops", lambda: webhook.get("/readyz") == (503, "stopping\n"))
    assert injected(kubectl.create(pod(), "-n", "open", "--dry-run=server")), "reviews are answered while it drains"
    assert webhook.process.popen.wait(15) == 0
    with pytest.raises(Refused, match=r'failed calling webhook "pods.savepoint.dev"'):
        kubectl.create(pod(), "-n", "open", "--dry-run=server")
    kubectl.create(pod(agent=""), "-n", "open", "--dry-run=server")
    assert os.access(webhook.process.log, os.R_OK)
    assert "Traceback" not in webhook.process.log.read_text()
