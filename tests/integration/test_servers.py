"""The test servers behave as the other integration tests assume."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import urllib3
from kubernetes import client, config

from tests.servers.apiserver import ApiServer
from tests.servers.s3 import S3Server

WRITERS = 16


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.client().make_bucket(name)
    return name


def test_only_one_of_sixteen_conditional_puts_succeeds(s3_server: S3Server, bucket: str) -> None:
    url = s3_server.client().presigned_put_object(bucket, "commits/00001.json", expires=timedelta(minutes=5))
    barrier = Barrier(WRITERS)

    with urllib3.PoolManager(maxsize=WRITERS, retries=False, timeout=30) as pool:

        def put(writer: int) -> tuple[int, bytes]:
            body = f'{{"writer": {writer}}}'.encode()
            barrier.wait(30)
            return pool.request("PUT", url, body=body, headers={"If-None-Match": "*"}).status, body

        with ThreadPoolExecutor(WRITERS) as threads:
            answers = list(threads.map(put, range(WRITERS)))

    assert Counter(status for status, _ in answers) == {200: 1, 412: WRITERS - 1}
    [winner] = [body for status, body in answers if status == 200]
    stored = s3_server.client().get_object(bucket, "commits/00001.json")
    try:
        assert stored.read() == winner
    finally:
        stored.close()
        stored.release_conn()


def test_a_presigned_put_without_the_signature_is_refused(s3_server: S3Server, bucket: str) -> None:
    url = s3_server.client().presigned_put_object(bucket, "object").partition("?")[0]
    with urllib3.PoolManager(retries=False, timeout=30) as pool:
        assert pool.request("PUT", url, body=b"x").status == 403


def test_the_api_server_authenticates_its_administrator(apiserver: ApiServer) -> None:
    with connect(apiserver.kubeconfig) as connection:
        assert client.VersionApi(connection).get_code().git_version == "v1.37.2"
        client.CoreV1Api(connection).list_secret_for_all_namespaces()
    headers = {"Authorization": f"Bearer {apiserver.token}"}
    with urllib3.PoolManager(ca_certs=str(apiserver.ca), retries=False, timeout=30) as pool:
        assert pool.request("GET", f"{apiserver.url}/readyz").data == b"ok"
        assert pool.request("GET", f"{apiserver.url}/api/v1/secrets", headers=headers).status == 200
        assert pool.request("GET", f"{apiserver.url}/api/v1/secrets").status == 403


def test_the_api_server_stores_a_namespace(apiserver: ApiServer) -> None:
    name = f"test-{uuid.uuid4().hex[:12]}"
    with connect(apiserver.kubeconfig) as connection:
        core: Any = client.CoreV1Api(connection)
        core.create_namespace({"metadata": {"name": name}})
        assert core.read_namespace(name).metadata.name == name


def test_the_api_server_enforces_the_rules_of_a_custom_resource(apiserver: ApiServer) -> None:
    with connect(apiserver.kubeconfig) as connection:
        extensions: Any = client.ApiextensionsV1Api(connection)
        definition = json.loads(PROBES)
        extensions.create_custom_resource_definition(definition)
        name, group = definition["metadata"]["name"], definition["spec"]["group"]
        custom: Any = client.CustomObjectsApi(connection)
        try:
            assert served(lambda: custom.list_namespaced_custom_object(group, "v1", "default", "probes"))
            probe = {"apiVersion": f"{group}/v1", "kind": "Probe", "metadata": {"generateName": "p-"}}
            custom.create_namespaced_custom_object(group, "v1", "default", "probes", {**probe, "spec": {"size": 1}})
            with pytest.raises(client.ApiException, match=r"failed rule: self\.size"):
                custom.create_namespaced_custom_object(group, "v1", "default", "probes", {**probe, "spec": {"size": 0}})
        finally:
            extensions.delete_custom_resource_definition(name)


def test_a_user_has_only_the_rights_that_rbac_grants(apiserver: ApiServer) -> None:
    user = f"reader-{uuid.uuid4().hex[:12]}"
    with connect(apiserver.kubeconfig) as connection:
        rules: Any = client.RbacAuthorizationV1Api(connection)
        rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}
        rules.create_cluster_role({"metadata": {"name": user}, "rules": [rule]})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": user}
        rules.create_cluster_role_binding({"metadata": {"name": user}, "roleRef": role, "subjects": [subject]})
    with connect(apiserver.kubeconfig_for("reader", [user])) as connection:
        reviews: Any = client.AuthorizationV1Api(connection)

        def allowed(verb: str, resource: str) -> bool:
            attributes = {"verb": verb, "resource": resource, "namespace": "default"}
            review = reviews.create_self_subject_access_review({"spec": {"resourceAttributes": attributes}})
            return bool(review.status.allowed)

        assert allowed("list", "configmaps")
        assert not allowed("delete", "configmaps")
        assert not allowed("list", "secrets")


def test_controllers_delete_the_children_of_a_deleted_owner(apiserver_with_controllers: ApiServer) -> None:
    with connect(apiserver_with_controllers.kubeconfig) as connection:
        core: Any = client.CoreV1Api(connection)
        core.create_namespace({"metadata": {"name": "owned"}})
        owner = core.create_namespaced_config_map("owned", {"metadata": {"name": "owner"}})
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid}
        core.create_namespaced_config_map("owned", {"metadata": {"name": "child", "ownerReferences": [reference]}})
        core.delete_namespaced_config_map("owner", "owned")
        assert deleted(lambda: core.read_namespaced_config_map("child", "owned"))
        core.delete_namespace("owned")
        assert deleted(lambda: core.read_namespace("owned"))


def deleted(read: Callable[[], object]) -> bool:
    """Return whether read() fails with 404 before the deadline."""
    return _becomes(read, exists=False)


def served(read: Callable[[], object]) -> bool:
    """Return whether read() succeeds before the deadline."""
    return _becomes(read, exists=True)


def _becomes(read: Callable[[], object], *, exists: bool) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            read()
            found = True
        except client.ApiException as error:
            if error.status != 404:
                raise
            found = False
        if found == exists:
            return True
        time.sleep(0.1)
    return False


def connect(kubeconfig: Path) -> Any:
    """Return a client as a context manager. It is untyped, since its methods accept manifests as dicts."""
    open_client: Any = config.new_client_from_config
    return open_client(str(kubeconfig))


PROBES = """
{
  "apiVersion": "apiextensions.k8s.io/v1",
  "kind": "CustomResourceDefinition",
  "metadata": {"name": "probes.test.savepoint.invalid"},
  "spec": {
    "group": "test.savepoint.invalid",
    "scope": "Namespaced",
    "names": {"plural": "probes", "singular": "probe", "kind": "Probe"},
    "versions": [{
      "name": "v1",
      "served": true,
      "storage": true,
      "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {
        "type": "object",
        "properties": {"size": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "self.size > 0"}]
      }}}}
    }]
  }
}
"""
