"""The keys of the work queue: each names one thing to reconcile."""

from dataclasses import dataclass

from savepoint_operator.model.objects import ObjectKey
from savepoint_operator.model.views import AgentRef


@dataclass(frozen=True)
class AgentWork:
    """An agent: its checkpoints, restores, retention and ProtectedAgent."""

    agent: AgentRef

    def __str__(self) -> str:
        return f"agent {self.agent}"


@dataclass(frozen=True)
class StoreWork:
    """An AgentCheckpointStore."""

    name: str

    def __str__(self) -> str:
        return f"store {self.name}"


@dataclass(frozen=True)
class PolicyWork:
    """An AgentCheckpointPolicy."""

    key: ObjectKey

    def __str__(self) -> str:
        return f"policy {self.key}"


@dataclass(frozen=True)
class WorkloadWork:
    """A Deployment, StatefulSet or Job that carries the agent label itself."""

    kind: str
    key: ObjectKey

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


@dataclass(frozen=True)
class PodWork:
    """A pod with the agent label, to check its name, its injection and its containers."""

    key: ObjectKey

    def __str__(self) -> str:
        return f"pod {self.key}"


@dataclass(frozen=True)
class RollbackWork:
    """An AgentRestore of mode Rollback or Reset, which a user created."""

    key: ObjectKey

    def __str__(self) -> str:
        return f"AgentRestore {self.key}"


Work = AgentWork | StoreWork | PolicyWork | WorkloadWork | PodWork | RollbackWork
