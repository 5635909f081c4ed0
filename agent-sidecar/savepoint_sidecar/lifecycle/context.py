"""Values that the parts of a started incarnation share: its dependencies, and whether it may still take checkpoints."""

from dataclasses import dataclass
from typing import Final

from savepoint.contract.control_protocol import Welcome
from savepoint.contract.vocabulary import Reason
from savepoint.errors import Refused, SavepointError, Unavailable

from savepoint_sidecar.agent_api.process_session import ProcessSessions
from savepoint_sidecar.authority.authority import Authority
from savepoint_sidecar.checkpoint.checkpointer import Checkpointer
from savepoint_sidecar.lifecycle.config import Clock, IncarnationConfig
from savepoint_sidecar.lifecycle.recovery import Recovery
from savepoint_sidecar.lifecycle.requests import CheckpointRequests
from savepoint_sidecar.lifecycle.state_lock import StateLock

SHUTTING_DOWN: Final = "The pod is stopping: its final checkpoint is taken instead of this one."
COMPLETED: Final = "The run is completed: its final checkpoint holds its last state, which does not change any more."


@dataclass
class IncarnationState:
    """Progress of the incarnation. Changed on the event loop only."""

    stopped: Refused | None = None
    """The authority's order to stop, once it has arrived."""
    completed: bool = False
    """The agent has finished its run."""
    shutting_down: bool = False

    @property
    def decline_error(self) -> SavepointError | None:
        """The error with which a checkpoint ordered now is declined, or None if it may be taken."""
        if self.stopped is not None:
            return self.stopped
        if self.completed:
            return Refused(COMPLETED, Reason.COMPLETED)
        return Unavailable(SHUTTING_DOWN) if self.shutting_down else None


@dataclass(frozen=True)
class IncarnationContext:
    """The dependencies of the parts of one incarnation."""

    authority: Authority
    welcome: Welcome
    config: IncarnationConfig
    clock: Clock
    state: IncarnationState
    state_lock: StateLock
    sessions: ProcessSessions
    requests: CheckpointRequests
    recovery: Recovery
    checkpointer: Checkpointer
