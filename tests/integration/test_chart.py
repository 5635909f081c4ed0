"""The chart, rendered and installed by the real helm on a real API server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.polling import wait_until
from tests.servers.apiserver import ApiServer
from tests.servers.helm import CHART, NAMESPACE, STORE_VALUES, HelmFailed, find, helm, render, set_flags
from tests.servers.kubectl import CRDS, Kubectl, KubectlFailed
from tests.servers.process import HOST, Process, free_ports, responds, running
from tests.servers.s3 import S3Server

OPERATOR = f"system:serviceaccount:{NAMESPACE}:savepoint-operator"


@pytest.fixture(scope="module")
def rendered() -> list[dict[str, Any]]:
    return render(STORE_VALUES)


def environment(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item.get("value") for item in container["env"]}


# -- rendering ----------------------------------------------------------------------------------------------------


def test_the_chart_passes_helm_lint() -> None:
    assert "[ERROR]" not in helm("lint", str(CHART), "--strict", *set_flags(STORE_VALUES))


def test_the_chart_contains_the_kinds_of_crds(rendered: list[dict[str, Any]]) -> None:
    source = {path.name: yaml.safe_load(path.read_text()) for path in CRDS.glob("*.yaml")}
    rendered_kinds = {item["metadata"]["name"]: item for item in rendered if item["kind"] == "CustomResourceDefinition"}
    assert rendered_kinds == {item["metadata"]["name"]: item for item in source.values()}


def test_the_operator_gets_the_default_store(rendered: list[dict[str, Any]]) -> None:
    variables = environment(find(rendered, "Deployment", "savepoint-operator"))
    assert json.loads(variables["SAVEPOINT_DEFAULT_STORE"]) == {
        "name": "default",
        "spec": {
            "default": True,
            "s3": {
                "endpoint": "https://s3.example.com",
                "bucket": "agents",
                "region": "us-east-1",
                "addressing": "Path",
                "credentialsSecretName": "s3-keys",
            },
        },
    }
    assert environment(find(render(), "Deployment", "savepoint-operator"))["SAVEPOINT_DEFAULT_STORE"] == ""


def test_every_field_of_the_store_can_be_set() -> None:
    values = STORE_VALUES | {
        "store.name": "main",
        "store.s3.podEndpoint": "http://s3.world.svc:7070",
        "store.s3.prefix": "a/b",
        "store.s3.addressing": "Virtual",
        "store.s3.caSecret": "s3-ca",
        "store.allowedNamespaces": {"names": ["agents"]},
    }
    store = json.loads(environment(find(render(values), "Deployment", "savepoint-operator"))["SAVEPOINT_DEFAULT_STORE"])
    assert store["name"] == "main"
    assert store["spec"]["allowedNamespaces"] == {"names": ["agents"]}
    kind = yaml.safe_load((CRDS / "agentcheckpointstores.yaml").read_text())
    schema = kind["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert set(store["spec"]) == set(schema)
    assert set(store["spec"]["s3"]) == set(schema["s3"]["properties"])


@pytest.mark.parametrize(
    "values",
    [
        {"store.s3.endpoint": "https://[fd00::1]:9000"},
        {"store.s3.endpoint": "http://10.0.0.1:65535/"},
        {"store.s3.endpoint": "https://[::1]", "store.s3.caSecret": "ca"},
        {"store.s3.endpoint": "http://h", "store.s3.podEndpoint": "https://p", "store.s3.caSecret": "ca"},
    ],
)
def test_valid_endpoints_are_rendered(values: dict[str, Any]) -> None:
    variables = environment(find(render(STORE_VALUES | values), "Deployment", "savepoint-operator"))
    assert json.loads(variables["SAVEPOINT_DEFAULT_STORE"])["spec"]["s3"]["endpoint"] == values["store.s3.endpoint"]


def test_image_values_are_complete_references() -> None:
    digest = "registry.local/savepoint-operator@sha256:" + "0" * 64
    items = render({"image.operator": digest, "image.sidecar": "savepoint-sidecar:9", "image.pullPolicy": "Never"})
    for name in ("savepoint-operator", "savepoint-webhook"):
        (container,) = find(items, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        assert (container["image"], container["imagePullPolicy"]) == (digest, "Never")
    variables = environment(find(items, "Deployment", "savepoint-webhook"))
    assert variables["SAVEPOINT_SIDECAR_IMAGE"] == "savepoint-sidecar:9"
    assert variables["SAVEPOINT_CONTROL_URL"] == f"wss://savepoint-operator.{NAMESPACE}.svc:8443/v1/control"


def test_there_is_one_operator_and_there_are_two_webhooks(rendered: list[dict[str, Any]]) -> None:
    operator = find(rendered, "Deployment", "savepoint-operator")["spec"]
    assert (operator["replicas"], operator["strategy"]) == (1, {"type": "Recreate"})
    assert {item["tolerationSeconds"] for item in operator["template"]["spec"]["tolerations"]} == {10}
    assert find(rendered, "Deployment", "savepoint-webhook")["spec"]["replicas"] == 2
    assert find(rendered, "PodDisruptionBudget", "savepoint-webhook")["spec"]["maxUnavailable"] == 1


def test_services_select_their_deployments(rendered: list[dict[str, Any]]) -> None:
    for name in ("savepoint-operator", "savepoint-webhook"):
        template = find(rendered, "Deployment", name)["spec"]["template"]
        service = find(rendered, "Service", name)["spec"]
        assert service["selector"].items() <= template["metadata"]["labels"].items()
        ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= ports


def test_the_webhook_configuration(rendered: list[dict[str, Any]]) -> None:
    (webhook,) = find(rendered, "MutatingWebhookConfiguration", "savepoint")["webhooks"]
    assert "caBundle" not in webhook["clientConfig"]
    assert webhook["clientConfig"]["service"] == {
        "name": "savepoint-webhook",
        "namespace": NAMESPACE,
        "path": "/mutate-pods",
        "port": 443,
    }
    assert (webhook["failurePolicy"], webhook["reinvocationPolicy"]) == ("Fail", "IfNeeded")
    assert (webhook["sideEffects"], webhook["timeoutSeconds"]) == ("None", 10)


def test_options_add_and_remove_objects() -> None:
    items = render(
        {"networkPolicy.enabled": True, "webhook.podDisruptionBudget.enabled": False, "userRoles.enabled": False}
    )
    names = {(item["kind"], item["metadata"]["name"]) for item in items}
    assert ("NetworkPolicy", "savepoint-operator") in names
    assert ("PodDisruptionBudget", "savepoint-webhook") not in names
    assert ("ClusterRole", "savepoint-edit") not in names


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"store.s3.bucket": "agents"}, "endpoint"),
        ({"store.s3.endpoint": "https://s3"}, "endpoint"),
        (STORE_VALUES | {"store.s3.endpoint": "s3.example.com"}, "endpoint"),
        (STORE_VALUES | {"store.s3.endpoint": "https://u:p@s3"}, "endpoint"),
        *(
            (STORE_VALUES | {"store.s3.endpoint": url}, "endpoint")
            for url in ("https://h:99999", "https://h:0", "https://[::::]", "https://[:]", "https://...", "https://-h")
        ),
        (STORE_VALUES | {"store.s3.podEndpoint": "https://h:65536"}, "podEndpoint"),
        *(
            (STORE_VALUES | {"store.s3.bucket": name}, "bucket")
            for name in ("a..b", "192.168.1.1", "a-s3alias", "Agents", "xn--a", "a")
        ),
        (STORE_VALUES | {"store.s3.endpoint": "http://h", "store.s3.caSecret": "ca"}, "endpoint"),
        (
            STORE_VALUES
            | {"store.s3.endpoint": "http://h", "store.s3.podEndpoint": "http://p", "store.s3.caSecret": "ca"},
            "podEndpoint",
        ),
        (STORE_VALUES | {"store.s3.prefix": "a/../b"}, "prefix"),
        (STORE_VALUES | {"store.s3.region": "eu 1"}, "region"),
        (STORE_VALUES | {"store.s3.credentialsSecret": "a/b"}, "credentialsSecret"),
        (STORE_VALUES | {"store.allowedNamespaces": {"names": ["*"]}}, "allowedNamespaces"),
        (STORE_VALUES | {"store.allowedNamespaces": {"names": ["Foo_Bar"]}}, "allowedNamespaces"),
        (STORE_VALUES | {"store.s3.prefix": "/a"}, "prefix"),
        (STORE_VALUES | {"store.s3.addressing": "Auto"}, "addressing"),
        ({"store.s3.accessKey": "x"}, "accessKey"),
        ({"webhook.replicas": 0}, "replicas"),
        ({"replicas": 2}, "replicas"),
        ({"image.pullPolicy": "Sometimes"}, "pullPolicy"),
    ],
)
def test_an_invalid_value_is_refused_by_name(values: dict[str, Any], name: str) -> None:
    with pytest.raises(HelmFailed, match=name):
        render(values)


# -- a release ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kubectl(apiserver: ApiServer) -> Iterator[Kubectl]:
    """Install the chart by ``helm install`` and yield kubectl as the administrator."""
    admin = Kubectl(apiserver.kubeconfig)
    # helm does not adopt kinds that other tests applied without a release.
    admin(
        "delete",
        "crd",
        "--ignore-not-found",
        *(yaml.safe_load(path.read_text())["metadata"]["name"] for path in CRDS.glob("*.yaml")),
    )
    admin("delete", "clusterrole,clusterrolebinding", "savepoint-webhook", "--ignore-not-found")
    admin.create_namespace(NAMESPACE)
    admin("delete", "serviceaccount", "savepoint-webhook", "-n", NAMESPACE, "--ignore-not-found")
    notes = helm(
        "install", "savepoint", str(CHART), "-n", NAMESPACE, *set_flags(STORE_VALUES), kubeconfig=apiserver.kubeconfig
    )
    assert "get secret savepoint-master-key" in notes
    yield admin
    helm("uninstall", "savepoint", "-n", NAMESPACE, "--ignore-not-found", kubeconfig=apiserver.kubeconfig)


def test_savepoints_own_pods_satisfy_restricted(kubectl: Kubectl) -> None:
    kubectl("create", "namespace", "strict-system")
    try:
        kubectl("label", "namespace", "strict-system", "pod-security.kubernetes.io/enforce=restricted")
        for name in ("savepoint-operator", "savepoint-webhook"):
            deployment = json.loads(kubectl("get", "deployment", name, "-n", NAMESPACE, "-o", "json"))
            template = deployment["spec"]["template"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}
            kubectl.create(pod, "-n", "strict-system", "--dry-run=server")
    finally:
        kubectl("delete", "namespace", "strict-system", "--wait=false")


def restore(mode: str, **source: str) -> dict[str, Any]:
    metadata = {"generateName": "r-", "namespace": "default"}
    spec = {"mode": mode, "source": source}
    return {"apiVersion": "savepoint.dev/v1alpha1", "kind": "AgentRestore", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def requester(apiserver: ApiServer, kubectl: Kubectl) -> Kubectl:
    """A user who may create restores, and may restore from one checkpoint."""
    rules = [
        {"apiGroups": ["savepoint.dev"], "resources": ["agentrestores"], "verbs": ["create"]},
        {
            "apiGroups": ["savepoint.dev"],
            "resources": ["agentcheckpoints"],
            "resourceNames": ["coder-1"],
            "verbs": ["restore"],
        },
    ]
    metadata = {"name": "requester", "namespace": "default"}
    kubectl(
        "apply",
        "-f",
        "-",
        stdin={"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules},
    )
    kubectl("create", "rolebinding", "requester", "--role=requester", "--user=requester", "-n", "default")
    user = Kubectl(apiserver.kubeconfig_for("requester"))

    def policy_is_enforced() -> bool:
        try:
            user.create(restore("Rollback", checkpointName="coder-2"), "--dry-run=server")
        except KubectlFailed:
            return True
        return False

    wait_until("the admission policy is in force", policy_is_enforced)
    return user


def test_a_restore_needs_the_verb_on_its_checkpoint(requester: Kubectl) -> None:
    requester.create(restore("Rollback", checkpointName="coder-1"))
    with pytest.raises(
        KubectlFailed, match=r"spec.source.checkpointName: requester lacks verb restore on agentcheckpoints/coder-2"
    ):
        requester.create(restore("Rollback", checkpointName="coder-2"))
    with pytest.raises(KubectlFailed, match=r"spec.source.agent: requester lacks verb restore on agentcheckpoints"):
        requester.create(restore("Reset", agent="coder"))


def test_only_the_operator_may_use_mode_resume(kubectl: Kubectl, requester: Kubectl) -> None:
    resume = restore("Resume", checkpointName="coder-1")
    for user in (requester, kubectl):
        with pytest.raises(
            KubectlFailed, match=r"spec.mode Resume is reserved for the operator; use Rollback or Reset"
        ):
            user.create(resume, "--dry-run=server")
    kubectl.create(resume, f"--as={OPERATOR}", "--dry-run=server")
    kubectl.create(restore("Resume", agent="coder"), f"--as={OPERATOR}", "--dry-run=server")
    kubectl.create(restore("Reset", agent="coder"), "--dry-run=server")


def test_users_cannot_forge_a_checkpoint_of_the_operator(kubectl: Kubectl, requester: Kubectl) -> None:
    metadata = {"name": "forged-1", "namespace": "default"}
    plain: dict[str, Any] = {"apiVersion": "savepoint.dev/v1alpha1", "kind": "AgentCheckpoint", "metadata": metadata}
    plain["spec"] = {"agent": "coder"}
    forged: dict[str, Any] = {**plain, "metadata": {**metadata, "annotations": {"savepoint.dev/attempt": "0" * 32}}}
    genuine = {**forged, "metadata": {**forged["metadata"], "name": "genuine-1"}}
    refusal = r"annotation savepoint.dev/attempt is reserved for the operator"

    def policy_is_enforced() -> bool:
        try:
            kubectl.create(forged, "--dry-run=server")
        except KubectlFailed:
            return True
        return False

    wait_until("the admission policy is in force", policy_is_enforced)
    with pytest.raises(KubectlFailed, match=refusal):
        kubectl.create(forged)
    kubectl.create(plain)
    kubectl.create(genuine, f"--as={OPERATOR}")
    for name in ("forged-1", "genuine-1"):
        with pytest.raises(KubectlFailed, match=refusal):
            kubectl("annotate", "ackpt", name, "--overwrite", "savepoint.dev/attempt=" + "1" * 32, "-n", "default")
    with pytest.raises(KubectlFailed, match=refusal):
        kubectl("annotate", "ackpt", "genuine-1", "savepoint.dev/attempt-", "-n", "default")
    kubectl("annotate", "ackpt", "genuine-1", "note=mine", "-n", "default")
    kubectl("delete", "ackpt", "forged-1", "genuine-1", "-n", "default")


def store(name: str, *, default: bool = False, **s3: str) -> dict[str, Any]:
    required = {"endpoint": "https://s3.test", "bucket": "shared", "credentialsSecretName": "s3-keys"}
    metadata = {"name": name}
    spec = {"default": default, "s3": {**required, **s3}}
    return {"apiVersion": "savepoint.dev/v1alpha1", "kind": "AgentCheckpointStore", "metadata": metadata, "spec": spec}


@pytest.fixture
def stores(kubectl: Kubectl) -> Iterator[Kubectl]:
    """Create a default store, wait until the admission policy compares others with it, and yield kubectl."""
    kubectl.create(store("first", default=True, prefix="a"))

    def is_compared() -> bool:
        try:
            kubectl.create(store("second", prefix="a"), "--dry-run=server")
        except KubectlFailed as error:
            return "AgentCheckpointStore first has the same" in str(error)
        return False

    wait_until("the admission policy sees the store", is_compared)
    yield kubectl
    kubectl("annotate", "ackptstore", "--all", "savepoint.dev/confirm-delete=true", "--overwrite")
    kubectl("delete", "ackptstore", "--all")


def test_a_second_default_store_is_refused(stores: Kubectl) -> None:
    refusal = r"spec.default: AgentCheckpointStore first is the default one already"
    with pytest.raises(KubectlFailed, match=refusal):
        stores.create(store("second", default=True))
    stores.create(store("second"))
    with pytest.raises(KubectlFailed, match=refusal):
        stores.patch("ackptstore/second", {"spec": {"default": True}})
    stores.patch("ackptstore/first", {"spec": {"s3": {"region": "eu-1"}}})
    stores.create(store("of-the-values", default=True), f"--as={OPERATOR}")
    stores.patch("ackptstore/of-the-values", {"spec": {"s3": {"region": "eu-1"}}})  # only a change is judged


@pytest.mark.parametrize("endpoint", ["https://s3.test", "https://S3.test/"])
def test_a_store_in_the_place_of_another_is_refused(stores: Kubectl, endpoint: str) -> None:
    refusal = r"spec.s3.prefix: AgentCheckpointStore first has the same endpoint, bucket and prefix"
    with pytest.raises(KubectlFailed, match=refusal):
        stores.create(store("second", prefix="a", endpoint=endpoint))
    stores.create(store("second", prefix="a/b", endpoint=endpoint))
    with pytest.raises(KubectlFailed, match=refusal):
        stores.patch("ackptstore/second", {"spec": {"s3": {"prefix": "a"}}})
    stores.create(store("elsewhere", prefix="a", endpoint="https://s4.test"))
    stores.create(store("other", prefix="a", bucket="another"))


def test_a_store_that_agents_use_is_deleted_only_on_confirmation(stores: Kubectl) -> None:
    stores.create(store("unused", prefix="u"))
    stores("delete", "ackptstore", "unused")
    stores.patch("ackptstore/first", {"status": {"repositories": 2}}, "--subresource=status")
    for arguments in (("first",), ("--all",)):
        with pytest.raises(KubectlFailed, match=r"AgentCheckpointStore first holds the checkpoints of 2 agents"):
            stores("delete", "ackptstore", *arguments)
    stores("annotate", "ackptstore", "first", "savepoint.dev/confirm-delete=true")
    stores("delete", "ackptstore", "first")
    stores.create(store("first", prefix="a"))


ALLOWED = [
    ("create", "agentcheckpoints.savepoint.dev", "default"),
    ("create", "agentrestores.savepoint.dev", "default"),
    ("patch", "protectedagents.savepoint.dev/status", "default"),
    ("patch", "agentcheckpointpolicies.savepoint.dev/status", "default"),
    ("create", "agentcheckpointstores.savepoint.dev", ""),
    ("watch", "pods", "default"),
    ("create", "pods/eviction", "default"),
    ("get", "nodes", ""),
    ("get", "persistentvolumeclaims", "default"),
    ("create", "tokenreviews.authentication.k8s.io", ""),
    ("create", "events", "default"),
    ("get", "secrets", NAMESPACE),
    ("patch", "secrets/savepoint-tls", NAMESPACE),
    ("create", "leases.coordination.k8s.io", NAMESPACE),
    ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io/savepoint", ""),
]
DENIED = [
    ("get", "secrets", "default"),
    ("list", "secrets", NAMESPACE),
    ("delete", "secrets", NAMESPACE),
    ("update", "secrets", NAMESPACE),
    ("patch", "secrets/savepoint-master-key", NAMESPACE),
    ("patch", "secrets/savepoint-ca", NAMESPACE),
    ("delete", "protectedagents.savepoint.dev", "default"),
    ("delete", "agentcheckpointstores.savepoint.dev", ""),
    ("update", "agentcheckpoints.savepoint.dev", "default"),
    ("create", "pods/ephemeralcontainers", "default"),
    ("impersonate", "serviceaccounts", NAMESPACE),
    ("list", "persistentvolumeclaims", "default"),
    ("patch", "persistentvolumeclaims", "default"),
    ("delete", "pods", "default"),
    ("create", "pods", "default"),
    ("get", "pods/log", "default"),
    ("create", "pods/exec", "default"),
    ("update", "agentcheckpointpolicies.savepoint.dev", "default"),
    ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io/another", ""),
    ("update", "customresourcedefinitions.apiextensions.k8s.io", ""),
    ("create", "serviceaccounts/token", NAMESPACE),
    ("update", "deployments.apps", "default"),
]


@pytest.mark.parametrize(
    ("allowed", "verb", "target", "namespace"), [(True, *row) for row in ALLOWED] + [(False, *row) for row in DENIED]
)
def test_the_operators_rights(kubectl: Kubectl, allowed: bool, verb: str, target: str, namespace: str) -> None:
    resource, _, rest = target.partition("/")
    flags = ["-n", namespace] if namespace else []
    named = rest in ("savepoint", "another", "savepoint-tls", "savepoint-master-key", "savepoint-ca")
    if rest and not named:
        flags.append(f"--subresource={rest}")
    try:
        answer = kubectl("auth", "can-i", verb, f"{resource}/{rest}" if named else resource, f"--as={OPERATOR}", *flags)
    except KubectlFailed:
        answer = "no"
    assert (answer.strip() == "yes") is allowed


@contextmanager
def operator(apiserver: ApiServer, kubectl: Kubectl, store: S3Server, folder: Path, **more: str) -> Iterator[Process]:
    """Run the operator with the chart's environment and account; at the end it must exit cleanly."""
    bucket = store.bucket("chart")
    keys = {"accessKey": store.access_key, "secretKey": store.secret_key}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-keys"}, "stringData": keys}
    kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=secret)
    values = STORE_VALUES | {"store.s3.endpoint": store.endpoint, "store.s3.bucket": bucket}
    values["store.s3.region"] = store.region
    variables = environment(find(render(values), "Deployment", "savepoint-operator"))
    control, health = free_ports(2)
    token = kubectl("create", "token", "savepoint-operator", "-n", NAMESPACE).strip()
    local = {
        "KUBECONFIG": str(apiserver.kubeconfig_with_token("operator", token)),
        "SAVEPOINT_NAMESPACE": NAMESPACE,
        "SAVEPOINT_POD_NAME": "operator-1",
        "SAVEPOINT_CONTROL_PORT": str(control),
        "SAVEPOINT_HEALTH_PORT": str(health),
        **more,
    }
    command = [sys.executable, "-m", "savepoint_operator.main"]
    ready = responds(f"http://{HOST}:{health}/readyz")
    with running("operator", command, folder, ready, environment={**variables, **local}) as process:
        yield process
        process.popen.terminate()
        assert process.popen.wait(30) == 0
    log = (folder / "operator.log").read_text().lower()
    assert "forbidden" not in log
    assert "traceback" not in log


def test_the_operator_starts_with_the_charts_environment_and_account(
    apiserver: ApiServer, kubectl: Kubectl, s3_versitygw: S3Server, tmp_path: Path
) -> None:
    with operator(apiserver, kubectl, s3_versitygw, tmp_path):
        kubectl("wait", "--for=condition=Ready", "ackptstore/default", "--timeout=30s")
        (webhook,) = json.loads(kubectl("get", "mutatingwebhookconfiguration", "savepoint", "-o", "json"))["webhooks"]
        secret = json.loads(kubectl("get", "secret", "savepoint-tls", "-n", NAMESPACE, "-o", "json"))
        assert webhook["clientConfig"]["caBundle"] == secret["data"]["ca.crt"]
        assert set(secret["data"]) == {"tls.crt", "tls.key", "ca.crt"}
        assert kubectl("get", "secret", "savepoint-master-key", "-n", NAMESPACE, "-o", "name")


def test_user_roles_are_aggregated_to_the_clusters_roles(kubectl: Kubectl) -> None:
    for name, aggregated in (("savepoint-view", "view"), ("savepoint-edit", "edit")):
        role = json.loads(kubectl("get", "clusterrole", name, "-o", "json"))
        assert role["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{aggregated}"] == "true"
        assert not any("status" in resource for rule in role["rules"] for resource in rule["resources"])


def test_an_upgrade_keeps_the_ca_bundle(apiserver: ApiServer, kubectl: Kubectl) -> None:
    bundle = "Q0E="
    change = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]
    kubectl("patch", "mutatingwebhookconfiguration", "savepoint", "--type=json", "-p", json.dumps(change))
    values = STORE_VALUES | {"logLevel": "DEBUG"}
    helm("upgrade", "savepoint", str(CHART), "-n", NAMESPACE, *set_flags(values), kubeconfig=apiserver.kubeconfig)
    deployment = json.loads(kubectl("get", "deployment", "savepoint-operator", "-n", NAMESPACE, "-o", "json"))
    assert environment(deployment)["SAVEPOINT_LOG_LEVEL"] == "DEBUG"
    (webhook,) = json.loads(kubectl("get", "mutatingwebhookconfiguration", "savepoint", "-o", "json"))["webhooks"]
    assert webhook["clientConfig"]["caBundle"] == bundle


def test_a_new_release_continues_with_the_objects_and_keys_of_an_uninstalled_one(
    apiserver: ApiServer, kubectl: Kubectl, s3_versitygw: S3Server, tmp_path: Path
) -> None:
    if not kubectl("get", "secret", "savepoint-master-key", "-n", NAMESPACE, "-o", "name", "--ignore-not-found"):
        with operator(apiserver, kubectl, s3_versitygw, tmp_path):
            pass
    api = {"apiVersion": "savepoint.dev/v1alpha1"}
    kubectl.create({**api, "kind": "AgentCheckpoint", "metadata": {"name": "kept-1"}, "spec": {"agent": "kept"}})
    kubectl.create({**api, "kind": "ProtectedAgent", "metadata": {"name": "kept"}})
    kept = [("ackpt", "kept-1"), ("pagent", "kept"), ("crd", "agentcheckpoints.savepoint.dev")]
    keys = ["savepoint-master-key", "savepoint-ca"]

    def uids() -> list[str]:
        objects = [*kept, *(("secret", name) for name in keys)]
        flags = {"secret": ("-n", NAMESPACE)}
        return [
            kubectl("get", kind, name, "-o", "jsonpath={.metadata.uid}", *flags.get(kind, ())) for kind, name in objects
        ]

    before = uids()
    helm("uninstall", "savepoint", "-n", NAMESPACE, kubeconfig=apiserver.kubeconfig)
    assert uids() == before
    with pytest.raises(KubectlFailed, match=r"not found"):
        kubectl("get", "mutatingwebhookconfiguration", "savepoint")
    helm("install", "savepoint", str(CHART), "-n", NAMESPACE, *set_flags(STORE_VALUES), kubeconfig=apiserver.kubeconfig)
    (tmp_path / "again").mkdir()
    with operator(apiserver, kubectl, s3_versitygw, tmp_path / "again", SAVEPOINT_NOT_RUNNING_SECONDS="1"):
        kubectl("wait", "--for=condition=Ready", "ackptstore/default", "--timeout=30s")
        kubectl("wait", "--for=jsonpath={.status.reason}=AgentNotRunning", "ackpt/kept-1", "--timeout=30s")
        kubectl("wait", "--for=jsonpath={.status.reason}=Unprotected", "pagent/kept", "--timeout=30s")
    assert uids() == before
