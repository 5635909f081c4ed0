"""The webhook's in-memory index of the cluster: policies, Pod Security levels of namespaces, and uids of agents.

It holds parsed values only, and no pod, Secret or store. The watches of ``cluster.watch`` fill it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from savepoint_operator.cluster.parse import pod_of, policy_of
from savepoint_operator.model.objects import Policy
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.identity import agent_of

ENFORCED_LEVEL: Final = "pod-security.kubernetes.io/enforce"


class PolicyIndex:
    """The policies of every namespace."""

    def __init__(self) -> None:
        self._by_namespace: dict[str, dict[str, Policy]] = {}

    def of(self, namespace: str) -> tuple[Policy, ...]:
        """Return the policies of one namespace."""
        return tuple(self._by_namespace.get(namespace, {}).values())

    def replace(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Replace the whole index."""
        self._by_namespace = {}
        for item in objects:
            self.put(item)

    def put(self, item: Mapping[str, Any]) -> None:
        """Add or update a policy."""
        policy = policy_of(item)
        self._by_namespace.setdefault(item["metadata"]["namespace"], {})[policy.name] = policy

    def remove(self, item: Mapping[str, Any]) -> None:
        """Remove a deleted policy."""
        metadata = item["metadata"]
        policies = self._by_namespace.get(metadata["namespace"], {})
        policies.pop(metadata["name"], None)
        if not policies:
            self._by_namespace.pop(metadata["namespace"], None)


class NamespaceIndex:
    """The Pod Security level that each namespace enforces by its label.

    A namespace that is not known yet counts as enforcing nothing: the API server enforces its level anyway, only with a
    less helpful message.
    """

    def __init__(self) -> None:
        self._levels: dict[str, str] = {}

    def level(self, namespace: str) -> str:
        """Return privileged, baseline or restricted; empty if the namespace has no label."""
        return self._levels.get(namespace, "")

    def replace(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Replace the whole index."""
        self._levels = {}
        for item in objects:
            self.put(item)

    def put(self, item: Mapping[str, Any]) -> None:
        """Add or update a namespace."""
        metadata = item["metadata"]
        level = (metadata.get("labels") or {}).get(ENFORCED_LEVEL)
        if level:
            self._levels[metadata["name"]] = level
        else:
            self._levels.pop(metadata["name"], None)

    def remove(self, item: Mapping[str, Any]) -> None:
        """Remove a deleted namespace."""
        self._levels.pop(item["metadata"]["name"], None)


class AgentIndex:
    """The uid that each agent's last pod was seen to have, where its ProtectedAgent shows one."""

    def __init__(self) -> None:
        self._users: dict[tuple[str, str], int] = {}

    def user_of(self, namespace: str, pod: Mapping[str, Any]) -> int | None:
        """Return the uid of the agent whose pod is being created, if it is known."""
        metadata = pod["metadata"]
        named = {**pod, "metadata": {**metadata, "namespace": namespace, "name": metadata.get("name") or ""}}
        agent = agent_of(pod_of(named))
        return None if isinstance(agent, Refusal) else self._users.get(agent)

    def replace(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Replace the whole index."""
        self._users = {}
        for item in objects:
            self.put(item)

    def put(self, item: Mapping[str, Any]) -> None:
        """Add or update an agent."""
        metadata, user = item["metadata"], (item.get("status") or {}).get("runAsUser")
        if isinstance(user, int) and user > 0:
            self._users[metadata["namespace"], metadata["name"]] = user
        else:
            self.remove(item)

    def remove(self, item: Mapping[str, Any]) -> None:
        """Remove a deleted agent."""
        metadata = item["metadata"]
        self._users.pop((metadata["namespace"], metadata["name"]), None)
