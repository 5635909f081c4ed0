"""The webhook's in-memory index of policies and namespaces."""

from typing import Any

from savepoint_operator.admission.index import NamespaceIndex, PolicyIndex


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
