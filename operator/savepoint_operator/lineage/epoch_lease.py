"""What a pod holds with an epoch: a value."""

from dataclasses import dataclass, field

from savepoint.contract.control_protocol import CheckpointRef
from savepoint.repository.format.keys import AgentKey

from savepoint_operator.model.ports import OpenStore
from savepoint_operator.model.views import AgentRef, PodIdentity


@dataclass(frozen=True)
class EpochLease:
    """One pod's hold of one epoch of one agent."""

    agent: AgentRef
    pod: PodIdentity
    epoch: int
    run: int
    store: OpenStore = field(repr=False)
    key: AgentKey = field(repr=False)
    parent: CheckpointRef | None
    """What the chain points to: what a start restores, and what the next checkpoint is made on."""
    pending_key: str
    """Where this pod may leave a checkpoint that it could not have committed, relative to the repository."""

    def object_key(self, key: str) -> str:
        """A key of the repository as the store's signer knows it: below the store's prefix."""
        return f"{self.agent.namespace}/{self.agent.name}/{key}"
