"""The webhook's in-memory index of policies, namespaces and agents."""

from typing import Any

from savepoint_operator.admission.index import AgentIndex, NamespaceIndex, PolicyIndex


def policy(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "name": name}, "spec": spec}


def namespace(name: str, level: str = "") -> dict[str, Any]:
    labels = {"pod-security.kubernetes.io/enforce": level} if level else {}
    return {"metadata": {"name": name, "labels": labels}}


def test_policies_are_kept_by_namespace() -> None:
    index = PolicyIndex()
    index.replace([policy("a", "p"), policy("a", "q"), policy("b", "p", containerName="x")])
    assert [item.name for item in index.of("a")] == ["p", "q"]
    assert [item.container_name for item in index.of("b")] == ["x"]
    assert index.of("c") == ()


def test_policies_are_updated_and_removed() -> None:
    index = PolicyIndex()
    index.put(policy("a", "p"))
    index.put(policy("a", "p", containerName="x"))
    assert [item.container_name for item in index.of("a")] == ["x"]
    index.put(policy("a", "q"))
    index.remove(policy("a", "q"))
    assert [item.name for item in index.of("a")] == ["p"]
    index.remove(policy("a", "p"))
    index.remove(policy("a", "p"))
    assert index.of("a") == ()
    index.put(policy("a", "p"))
    index.replace([])
    assert index.of("a") == ()


def test_the_level_of_a_namespace_follows_its_label() -> None:
    index = NamespaceIndex()
    index.replace([namespace("a", "restricted"), namespace("b")])
    assert (index.level("a"), index.level("b"), index.level("new")) == ("restricted", "", "")
    index.put(namespace("a"))
    index.put(namespace("b", "baseline"))
    assert (index.level("a"), index.level("b")) == ("", "baseline")
    index.remove(namespace("b"))
    assert index.level("b") == ""
    index.put({"metadata": {"name": "c"}})
    assert index.level("c") == ""


def agent(namespace: str, name: str, **status: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "name": name}, "status": status}


def created(label: str, kind: str = "", **metadata: Any) -> dict[str, Any]:
    """Return a pod as it is before its creation, where its own name and namespace may be missing."""
    owners = [{"kind": kind, "name": "x", "uid": "u", "controller": True}] if kind else []
    labels = {"savepoint.dev/agent": label, **metadata.pop("labels", {})}
    return {"metadata": {"labels": labels, "ownerReferences": owners, **metadata}, "spec": {}}


def test_the_uid_of_an_agent_follows_its_status() -> None:
    index = AgentIndex()
    index.replace([agent("a", "coder", runAsUser=1000), agent("b", "coder", runAsUser=2000), agent("a", "mailer")])
    assert index.user_of("a", created("coder", "ReplicaSet", generateName="coder-")) == 1000
    assert index.user_of("b", created("coder", name="coder")) == 2000
    assert index.user_of("a", created("mailer")) is index.user_of("c", created("coder")) is None
    index.put(agent("a", "coder", runAsUser=3000))
    assert index.user_of("a", created("coder")) == 3000
    index.put(agent("a", "coder"))
    index.remove(agent("b", "coder"))
    assert index.user_of("a", created("coder")) is index.user_of("b", created("coder")) is None


def test_each_pod_of_a_set_has_the_uid_of_its_own_agent() -> None:
    index = AgentIndex()
    index.replace([agent("a", "coder-0", runAsUser=1000), agent("a", "coder-1", runAsUser=2000)])
    assert index.user_of("a", created("coder", "StatefulSet", name="web-1")) == 2000
    job = created("coder", "Job", labels={"batch.kubernetes.io/job-completion-index": "0"})
    assert index.user_of("a", job) == 1000
    assert index.user_of("a", created("coder")) is None


def test_neither_root_nor_anything_but_a_number_is_taken_from_a_status() -> None:
    index = AgentIndex()
    index.replace([agent("a", "zero", runAsUser=0), agent("a", "text", runAsUser="1000"), agent("a", "no", x=1)])
    assert [index.user_of("a", created(name)) for name in ("zero", "text", "no", "Not_A_Name")] == [None] * 4
