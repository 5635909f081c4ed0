"""What the webhook knows of the cluster: policies, and each namespace's Pod Security level, in memory.

It holds parsed values only, and no pod, Secret or store. How it is filled is ``watch``'s.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from savepoint_operator.rules.admission.policy import AdmissionPolicy

ENFORCED_LEVEL: Final = "pod-security.kubernetes.io/enforce"


class PolicyIndex:
    """The policies of every namespace."""

    def __init__(self) -> None:
        self._by_namespace: dict[str, dict[str, AdmissionPolicy]] = {}

    def of(self, namespace: str) -> tuple[AdmissionPolicy, ...]:
        """The policies of one namespace."""
        return tuple(self._by_namespace.get(namespace, {}).values())

    def replace(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Everything there is."""
        self._by_namespace = {}
        for item in objects:
            self.put(item)

    def put(self, item: Mapping[str, Any]) -> None:
        """A policy that is new or has changed."""
        policy = AdmissionPolicy.parse(item)
        self._by_namespace.setdefault(item["metadata"]["namespace"], {})[policy.name] = policy

    def remove(self, item: Mapping[str, Any]) -> None:
        """A policy that is gone."""
        metadata = item["metadata"]
        policies = self._by_namespace.get(metadata["namespace"], {})
        policies.pop(metadata["name"], None)
        if not policies:
            self._by_namespace.pop(metadata["namespace"], None)


class NamespaceIndex:
    """The Pod Security level that each namespace enforces by its label.

    A namespace that is not known yet counts as one that enforces nothing: the API server itself still enforces, only
    its message says less.
    """

    def __init__(self) -> None:
        self._levels: dict[str, str] = {}

    def level(self, namespace: str) -> str:
        """privileged, baseline or restricted; empty where the namespace says nothing."""
        return self._levels.get(namespace, "")

    def replace(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Everything there is."""
        self._levels = {}
        for item in objects:
            self.put(item)

    def put(self, item: Mapping[str, Any]) -> None:
        """A namespace that is new or has changed."""
        metadata = item["metadata"]
        level = (metadata.get("labels") or {}).get(ENFORCED_LEVEL)
        if level:
            self._levels[metadata["name"]] = level
        else:
            self._levels.pop(metadata["name"], None)

    def remove(self, item: Mapping[str, Any]) -> None:
        """A namespace that is gone."""
        self._levels.pop(item["metadata"]["name"], None)
