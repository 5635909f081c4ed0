"""Selection of the AgentCheckpointPolicy that applies to a pod. Pure; used by the webhook and the operator alike."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from savepoint_operator.model.objects import Meta, Policy

NO_POLICY: Final = Policy(
    Meta(
        namespace="",
        name="",
        uid="",
        version=0,
        generation=0,
        created=datetime.fromtimestamp(0, UTC),
        deleting=False,
    )
)
"""The defaults for a pod that no policy selects."""


def matching_policies(policies: Iterable[Policy], labels: Mapping[str, str]) -> list[Policy]:
    """Return the policies that select the labels, oldest first, then by name. The first one applies."""
    found = [policy for policy in policies if policy.selector.selects(labels)]
    return sorted(found, key=lambda policy: (policy.meta.created, policy.name))


def choose_policy(policies: Iterable[Policy], labels: Mapping[str, str]) -> Policy | None:
    """Return the policy that applies to a pod with these labels, out of those in its namespace; None if none does."""
    return next(iter(matching_policies(policies, labels)), None)
