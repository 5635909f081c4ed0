"""The webhook's own process, called by a real API server, with only the rights that the chart grants."""

from __future__ import annotations

import base64
import itertools
import json
import os
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
from savepoint.contract import names

from tests.polling import wait_until
from tests.servers.apiserver import ApiServer
from tests.servers.helm import NAMESPACE, find, render
from tests.servers.injector import injector
from tests.servers.kubectl import Kubectl, KubectlFailed
from tests.servers.pki import Authority
from tests.servers.process import HOST, Process, free_ports, responds, running

SHORT_POLL = """
import dataclasses, sys
from savepoint_operator import webhook
read = webhook.WebhookSettings.from_environment
webhook.WebhookSettings.from_environment = lambda environment: dataclasses.replace(
    read(environment), certificate_poll_seconds=0.5
)
sys.exit(webhook.main())
"""
"""Program that runs the webhook, but polls for a new certificate more often."""
CONTAINERS = [names.CONTAINER_RESTORE, names.CONTAINER_SIDECAR]


@dataclass
class Webhook:
    """The running process, its URLs and its certificates."""

    process: Process
    url: str
    health: str
    tls: Path
    authority: Authority

    def get(self, path: str) -> tuple[int, str]:
        answer = urllib3.request("GET", self.health + path, retries=False, timeout=5)
        return answer.status, answer.data.decode()

    def reviews(self) -> float:
        """Return the number of reviews so far."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("savepoint_admission_reviews_total{"))

    def renew(self) -> None:
        """Replace the serving certificate."""
        replace_certificate(self.authority, self.tls)


def replace_certificate(authority: Authority, tls: Path) -> None:
    """Issue a serving certificate and switch to it atomically, as kubelet does."""
    pair = authority.issue_server([HOST])
    contents = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate}
    fresh = tls / f".{time.monotonic_ns()}"
    fresh.mkdir(parents=True)
    for name, content in contents.items():
        (fresh / name).write_bytes(content)
        if not (tls / name).is_symlink():
            (tls / name).symlink_to(Path("current") / name)
    (tls / "next").symlink_to(fresh.name)
    (tls / "next").replace(tls / "current")


@pytest.fixture(scope="module")
def kubectl(apiserver: ApiServer) -> Iterator[Kubectl]:
    admin = Kubectl(apiserver.kubeconfig)
    admin.install_crds()
    admin.create_namespace(NAMESPACE)
    admin.create_namespace("open")
    admin.create_namespace("strict", {"pod-security.kubernetes.io/enforce": "restricted"})
    yield admin
    admin("delete", "pods", "--all", "-n", "open")
    admin("delete", "pods", "--all", "-n", "strict")


@pytest.fixture(scope="module")
def webhook(apiserver: ApiServer, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    folder = tmp_path_factory.mktemp("webhook")
    chart = render()
    for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding"):
        kubectl("apply", "-f", "-", stdin=find(chart, kind, "savepoint-webhook"))
    token = kubectl("create", "token", "savepoint-webhook", "-n", NAMESPACE).strip()
    with ExitStack() as stack:
        webhook = stack.enter_context(started(apiserver, folder, token, "-c", SHORT_POLL))
        status, text = webhook.get("/readyz")
        assert (status, "no serving certificate yet" in text) == (503, True)
        webhook.renew()
        wait_until("the webhook is ready", lambda: webhook.get("/readyz")[0] == 200)

        configuration = find(chart, "MutatingWebhookConfiguration", "savepoint")
        bundle = base64.b64encode(apiserver.authority.certificate).decode()
        configuration["webhooks"][0]["clientConfig"] = {"url": webhook.url, "caBundle": bundle}
        kubectl("apply", "-f", "-", stdin=configuration)
        stack.callback(kubectl, "delete", "mutatingwebhookconfiguration", "savepoint")
        wait_until(
            "the API server calls the webhook",
            lambda: injected(kubectl.create(pod(), "-n", "open", "--dry-run=server")),
        )
        yield webhook


@contextmanager
def started(apiserver: ApiServer, folder: Path, token: str, *program: str) -> Iterator[Webhook]:
    """Run the process; it has no certificate unless folder/tls contains one."""
    review_port, health_port = free_ports(2)
    environment = {
        "KUBECONFIG": str(apiserver.kubeconfig_with_token(folder.name, token)),
        "SAVEPOINT_SIDECAR_IMAGE": "savepoint-sidecar:test",
        "SAVEPOINT_CONTROL_URL": f"wss://savepoint-operator.{NAMESPACE}.svc:8443/v1/control",
        "SAVEPOINT_TLS_DIRECTORY": str(folder / "tls"),
        "SAVEPOINT_WEBHOOK_PORT": str(review_port),
        "SAVEPOINT_HEALTH_PORT": str(health_port),
    }
    health = f"http://{HOST}:{health_port}"
    command = [sys.executable, "-W", "error", *(program or ("-m", "savepoint_operator.webhook"))]
    with running("webhook", command, folder, responds(f"{health}/healthz"), environment=environment) as process:
        url = f"https://{HOST}:{review_port}/mutate-pods"
        yield Webhook(process, url, health, folder / "tls", apiserver.authority)


numbers = itertools.count()


def pod(*, agent: str = "coder", annotations: dict[str, str] | None = None, uid: int | None = None) -> dict[str, Any]:
    """Return a pod that opts in unless agent is "", and that satisfies ``restricted`` if it has a uid."""
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
            "serviceAccountName": "default",  # this API server runs without the plugin that sets it
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


def injected(created: dict[str, Any]) -> bool:
    return [container["name"] for container in created["spec"].get("initContainers", [])] == CONTAINERS


def roots(created: dict[str, Any]) -> list[str]:
    environment = {item["name"]: item.get("value", "") for item in created["spec"]["initContainers"][-1]["env"]}
    return [root["mountPath"] for root in json.loads(environment[names.ENV_ROOTS])]


def test_an_opted_in_pod_is_injected(kubectl: Kubectl, webhook: Webhook) -> None:
    created = kubectl.create(pod(annotations={names.ANNOTATION_STATE: "/home/node/.agent"}), "-n", "open")
    assert injected(created)
    assert roots(created) == ["/home/node/.agent", "/workspace"]
    sidecar = created["spec"]["initContainers"][1]
    assert sidecar["image"] == "savepoint-sidecar:test"
    environment = {item["name"]: item.get("value") for item in sidecar["env"]}
    assert environment[names.ENV_CONTROL_CA] == webhook.authority.certificate.decode()
    seconds = {item["key"]: item.get("tolerationSeconds") for item in created["spec"]["tolerations"]}
    assert seconds == {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30}


def test_other_pods_never_reach_the_webhook(kubectl: Kubectl, webhook: Webhook) -> None:
    before = webhook.reviews()
    created = kubectl.create(pod(agent=""), "-n", "open")
    assert "initContainers" not in created["spec"]
    assert len(created["spec"]["volumes"]) == 1
    kubectl.create(pod(), "-n", NAMESPACE)  # nor do pods of the release's namespace
    assert webhook.reviews() == before


def test_a_restricted_namespace_accepts_an_injected_pod_with_a_uid(kubectl: Kubectl, webhook: Webhook) -> None:
    created = kubectl.create(pod(uid=1000), "-n", "strict")
    assert injected(created)
    assert {container["securityContext"]["runAsUser"] for container in created["spec"]["initContainers"]} == {1000}


def test_a_restricted_namespace_requires_a_uid(kubectl: Kubectl, webhook: Webhook) -> None:
    with pytest.raises(KubectlFailed, match=r"savepoint: RunAsUserRequired: the namespace enforces") as refusal:
        kubectl.create(pod(), "-n", "strict")
    assert "annotation savepoint.dev/run-as-user" in str(refusal.value)


def test_the_enforced_level_follows_the_namespaces_label(kubectl: Kubectl, webhook: Webhook) -> None:
    kubectl.create_namespace("tightened")
    try:
        assert injected(kubectl.create(pod(), "-n", "tightened", "--dry-run=server"))
        kubectl("label", "namespace", "tightened", "pod-security.kubernetes.io/enforce=restricted")

        def refused() -> bool:
            try:
                kubectl.create(pod(), "-n", "tightened", "--dry-run=server")
            except KubectlFailed as refusal:
                return "RunAsUserRequired" in str(refusal)
            return False

        wait_until("the webhook applies the label", refused)
    finally:
        kubectl("delete", "namespace", "tightened", "--wait=false")


def test_a_policy_takes_effect_once_it_is_created(kubectl: Kubectl, webhook: Webhook) -> None:
    policy = {
        "apiVersion": "savepoint.dev/v1alpha1",
        "kind": "AgentCheckpointPolicy",
        "metadata": {"name": "coders", "namespace": "open"},
        "spec": {"state": {"paths": [{"mountPath": "/cache"}]}},
    }

    def applied() -> bool:
        return "/cache" in roots(kubectl.create(pod(), "-n", "open", "--dry-run=server"))

    assert not applied()
    kubectl.create(policy)
    wait_until("the webhook applies the policy", applied)
    kubectl("delete", "ackptpol/coders", "-n", "open")
    wait_until("the webhook no longer applies the policy", lambda: not applied())


def test_a_refusal_and_a_warning_reach_the_user(kubectl: Kubectl, webhook: Webhook) -> None:
    with pytest.raises(
        KubectlFailed, match=r"savepoint: AgentNameInvalid: label savepoint.dev/agent must be a DNS label"
    ):
        kubectl.create(
            pod(agent="Coder") | {"metadata": {"name": "x", "labels": {"savepoint.dev/agent": "Coder"}}}, "-n", "open"
        )
    item = pod()
    item["spec"]["volumes"][0] = {"name": "work", "hostPath": {"path": "/srv"}}
    with pytest.raises(KubectlFailed, match=r"savepoint: /workspace \(volume 'work'\) is not protected"):
        kubectl.create(item, "-n", "open", "--warnings-as-errors")


def test_two_injections_have_the_result_of_one(kubectl: Kubectl, webhook: Webhook) -> None:
    subject = pod()
    injected_once = kubectl.create(subject, "-n", "open", "--dry-run=server")["spec"]
    twin = json.loads(kubectl("get", "mutatingwebhookconfiguration", "savepoint", "-o", "json"))
    twin["metadata"] = {"name": "savepoint-twin"}
    twin["webhooks"][0]["name"] = "twin.savepoint.dev"
    kubectl("create", "-f", "-", stdin=twin)
    try:
        before = webhook.reviews()
        wait_until("the API server calls the twin", lambda: _both_are_called(kubectl, webhook))
        assert kubectl.create(subject, "-n", "open", "--dry-run=server")["spec"] == injected_once
        assert webhook.reviews() > before
    finally:
        kubectl("delete", "mutatingwebhookconfiguration", "savepoint-twin")


def _both_are_called(kubectl: Kubectl, webhook: Webhook) -> bool:
    before = webhook.reviews()
    kubectl.create(pod(), "-n", "open", "--dry-run=server")
    return webhook.reviews() >= before + 2


@pytest.mark.parametrize(
    ("name", "reviews"), [("a-mesh", 1), ("z-mesh", 2)]
)  # webhooks are called in the order of their names
def test_another_injectors_changes_are_kept_and_its_sidecar_comes_first(
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
    only_theirs = [each for each in theirs["volumes"] if each not in ours["volumes"]]
    assert [each["name"] for each in only_theirs] == ["mesh-data"]
    assert _by_name(both["volumes"]) == _by_name([*ours["volumes"], *only_theirs])
    environment = [spec["containers"][0]["env"] for spec in (ours, theirs)]
    assert _by_name(both["containers"][0]["env"]) == _by_name([*environment[0], *environment[1]])
    assert both["containers"][0]["volumeMounts"] == ours["containers"][0]["volumeMounts"]


@contextmanager
def _injecting(apiserver: ApiServer, kubectl: Kubectl, folder: Path, name: str) -> Iterator[None]:
    """Register another injector under this name for the namespace "open", with reinvocation."""

    def called() -> bool:
        return "initContainers" in kubectl.create(pod(agent=""), "-n", "open", "--dry-run=server")["spec"]

    with injector(apiserver.authority, folder) as url:
        bundle = base64.b64encode(apiserver.authority.certificate).decode()
        pods = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
        hook = {
            "name": "pods.mesh.example.com",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": url, "caBundle": bundle},
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
        kubectl("create", "-f", "-", stdin=configuration)
        try:
            wait_until("the API server calls the other injector", called)
            yield
        finally:
            kubectl("delete", "mutatingwebhookconfiguration", name)
            wait_until("the API server no longer calls the other injector", lambda: not called())


def _by_name(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(items, key=lambda each: str(each["name"]))


def test_no_admission_fails_while_the_certificate_is_renewed(kubectl: Kubectl, webhook: Webhook) -> None:
    for _ in range(2):
        webhook.renew()
        serving = (webhook.tls / "tls.crt").read_text()

        def served(expected: str = serving) -> bool:
            assert injected(kubectl.create(pod(), "-n", "open", "--dry-run=server"))
            return _served_certificate(webhook) == expected

        wait_until("the newest certificate is served", served)


def _served_certificate(webhook: Webhook) -> str:
    port = int(webhook.url.rsplit(":", 1)[1].split("/")[0])
    return ssl.get_server_certificate((HOST, port))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff\xfe", b'{"kind":"AdmissionReview"}'])
def test_an_invalid_review_is_a_bad_request(webhook: Webhook, body: bytes) -> None:
    with urllib3.PoolManager(ca_certs=str(webhook.tls / "ca.crt"), retries=False, timeout=5) as pool:
        headers = {"Content-Type": "application/json"}
        assert pool.request("POST", webhook.url, body=body, headers=headers).status == 400
        assert pool.request("GET", webhook.url).status == 405


def test_no_content_of_a_pod_is_logged(kubectl: Kubectl, webhook: Webhook) -> None:
    item = pod()
    item["spec"]["containers"][0]["env"] = [{"name": "KEY", "value": "hunter2"}]
    kubectl.create(item, "-n", "open", "--dry-run=server")
    log = webhook.process.log.read_text()
    assert f"reviewed pod open/{item['metadata']['name']}: Injected (agent='coder')" in log
    assert "hunter2" not in log
    assert "BEGIN" not in log


def test_the_webhook_has_only_the_rights_that_it_needs(kubectl: Kubectl, webhook: Webhook) -> None:
    user = f"--as=system:serviceaccount:{NAMESPACE}:savepoint-webhook"

    def can(verb: str, resource: str) -> bool:
        try:
            return kubectl("auth", "can-i", verb, resource, user, "-n", NAMESPACE).strip() == "yes"
        except KubectlFailed:
            return False

    for resource in ("agentcheckpointpolicies.savepoint.dev", "namespaces"):
        assert [can(verb, resource) for verb in ("get", "list", "watch")] == [True] * 3
        assert not can("update", resource)
    for resource in (
        "secrets",
        "pods",
        "configmaps",
        "agentcheckpoints.savepoint.dev",
        "mutatingwebhookconfigurations",
    ):
        assert not can("get", resource)


def test_reviews_are_refused_until_policies_and_namespaces_are_known(apiserver: ApiServer, tmp_path: Path) -> None:
    replace_certificate(apiserver.authority, tmp_path / "tls")
    with started(apiserver, tmp_path, "not-a-token") as webhook:
        wait_until("the certificate is loaded", lambda: "not indexed yet" in webhook.get("/readyz")[1])
        with urllib3.PoolManager(ca_certs=str(webhook.tls / "ca.crt"), retries=False, timeout=5) as pool:
            assert pool.request("POST", webhook.url, body=b"{}").status == 503
        assert webhook.get("/readyz")[0] == 503
        wait_until("the log names the cause", lambda: "the API server answered 401" in webhook.process.log.read_text())
        webhook.process.kill()  # another test covers its termination


def test_without_the_webhook_only_opted_in_pods_are_refused(kubectl: Kubectl, webhook: Webhook) -> None:
    """The last test, since it stops the process."""
    webhook.process.popen.terminate()
    wait_until("the webhook reports that it is stopping", lambda: webhook.get("/readyz") == (503, "stopping\n"))
    assert injected(kubectl.create(pod(), "-n", "open", "--dry-run=server")), "reviews are answered while it drains"
    assert webhook.process.popen.wait(15) == 0
    with pytest.raises(KubectlFailed, match=r'failed calling webhook "pods.savepoint.dev"'):
        kubectl.create(pod(), "-n", "open", "--dry-run=server")
    kubectl.create(pod(agent=""), "-n", "open", "--dry-run=server")
    assert os.access(webhook.process.log, os.R_OK)
    assert "Traceback" not in webhook.process.log.read_text()
