"""What reconcile needs of the API server, as a Protocol: ``cluster.api.Api`` is it, and a fake in the tests."""

from collections.abc import Mapping
from typing import Any, Protocol

from savepoint_operator.cluster.kinds import Kind

Raw = dict[str, Any]


class ClusterClient(Protocol):
    """Raises ``cluster.errors`` and, for what may pass, Unavailable."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        """The object as it is now; None only when the API server says that there is none."""
        ...

    async def list(self, kind: Kind, namespace: str = "", selector: str = "") -> list[Raw]:
        """Every object of the kind."""
        ...

    async def create(self, kind: Kind, body: Mapping[str, Any]) -> Raw:
        """Conflict when the name is taken."""
        ...

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Mapping[str, Any], *, subresource: str = ""
    ) -> Raw:
        """A merge patch."""
        ...

    async def replace(self, kind: Kind, body: Mapping[str, Any]) -> Raw:
        """Conflict when the object has changed."""
        ...

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Exactly this object; idempotent."""
        ...

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Exactly this pod; Blocked while a disruption budget forbids it."""
        ...
