"""The Protocol for what reconcile needs of the API server. ``cluster.api.Api`` implements it; the tests use a fake."""

from collections.abc import Mapping
from typing import Any, Protocol

from savepoint_operator.cluster.kinds import Kind

Raw = dict[str, Any]


class ClusterClient(Protocol):
    """Every method raises the errors of ``cluster.errors``, and Unavailable for transient faults."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        """Return the object, read from the API server; None only if the API server says that it does not exist."""
        ...

    async def list(self, kind: Kind, namespace: str = "", selector: str = "") -> list[Raw]:
        """Return every object of the kind, of one namespace or of all, that matches the label selector."""
        ...

    async def create(self, kind: Kind, body: Mapping[str, Any]) -> Raw:
        """Create the object and return it. Raises Conflict if the name is taken."""
        ...

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Mapping[str, Any], *, subresource: str = ""
    ) -> Raw:
        """Apply a merge patch and return the object. Raises NotFound if it does not exist."""
        ...

    async def replace(self, kind: Kind, body: Mapping[str, Any]) -> Raw:
        """Replace the object and return it. Raises Conflict if it has changed since it was read."""
        ...

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete exactly the object with this UID; do nothing if it no longer exists."""
        ...

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Evict exactly the pod with this UID. Raises Blocked while a disruption budget forbids it."""
        ...
