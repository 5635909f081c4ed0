"""What the queue holds: names of things to look at."""

from dataclasses import dataclass

from savepoint_operator.model.objects import ObjectKey
from savepoint_operator.model.views import AgentRef


@dataclass(frozen=True)
class AgentWork:
    """Everything of one agent: checkpoints, restores, retention, its ProtectedAgent."""

    agent: AgentRef


@dataclass(frozen=True)
class StoreWork:
    """One store."""

    name: str


@dataclass(frozen=True)
class PolicyWork:
    """One policy."""

    key: ObjectKey


@dataclass(frozen=True)
class WorkloadWork:
    """A workload that carries our label on itself."""

    kind: str
    key: ObjectKey


@dataclass(frozen=True)
class PodWork:
    """A labelled pod: is it injected, is its name an agent's?"""

    key: ObjectKey


@dataclass(frozen=True)
class RollbackWork:
    """A rollback or reset that a user asked for."""

    key: ObjectKey


Work = AgentWork | StoreWork | PolicyWork | WorkloadWork | PodWork | RollbackWork
