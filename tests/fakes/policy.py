"""AgentCheckpointPolicies as values, for tests of what a policy decides."""

from datetime import UTC, datetime
from typing import Any

from savepoint_operator.model.objects import Meta, Policy

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


def policy(name: str, created: datetime = CREATED, **fields: Any) -> Policy:
    """Return a policy of namespace agents with these fields."""
    return Policy(Meta("agents", name, uid="", version=0, generation=0, created=created, deleting=False), **fields)
