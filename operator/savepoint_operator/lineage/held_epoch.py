"""The epoch that a pod holds, as a value."""

from dataclasses import dataclass, field

from savepoint.contract.control_protocol import CheckpointRef
from savepoint.repository.format.keys import AgentKey

from savepoint_operator.model.ports import OpenStore
from savepoint_operator.model.views import AgentRef, PodIdentity


@dataclass(frozen=True)
class HeldEpoch:
    """One epoch of one agent, held by one pod, with the store and key that the pod works with."""

    agent: AgentRef
    pod: PodIdentity
    epoch: int
    run: int
    store: OpenStore = field(repr=False)
    key: AgentKey = field(repr=False)
    parent: CheckpointRef | None
    """The checkpoint that the chain's head points to: what a start restores and the parent of the next checkpoint."""
    pending_key: str
    """The key under which this pod may leave a checkpoint that it cannot commit, relative to the repository."""

    def object_key(self, key: str) -> str:
        """Return a key of the repository relative to the store's prefix, as the store's signer expects it."""
        return f"{self.agent.namespace}/{self.agent.name}/{key}"
