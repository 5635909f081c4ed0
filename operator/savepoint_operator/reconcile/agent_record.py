"""Values that the leader keeps of one agent between reconciles: attempts, restores, its session and its newest record.

Memory only; it decides nothing. After a change of leader everything here is either rebuilt from the chain and the
objects, or reported again by the pods. Fields whose names end in ``_at`` are monotonic seconds; other times are
datetimes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from savepoint.contract.control_protocol import Offer, Outcome, Progress, Result, Wait
from savepoint.contract.vocabulary import CheckpointOutcome, Reason
from savepoint.repository.format.commit import ChainRecord

from savepoint_operator.model.views import AgentRef, Contents, Incarnation, SessionView


@dataclass
class AttemptRecord:
    """One checkpoint attempt, from its order until its outcome is written to its AgentCheckpoint."""

    id: str
    trigger: str
    started: datetime
    started_at: float
    requested_by: str = ""
    trigger_reason: str = ""
    phase: str = Reason.PENDING
    progress: Progress | None = None
    delay_cause: str = ""
    """The reason for which its commit is being retried."""
    name: str = ""
    """The name of its AgentCheckpoint, once there is one."""
    number: int = 0
    offer: Offer | None = None
    contents: Contents | None = None
    """The contents according to its manifest, if this leader did not receive the offer."""
    commit_record: ChainRecord | None = None
    """Its commit record, once that exists."""
    store: str = ""
    parent: str = ""
    """The name of the checkpoint before it."""
    result: Result | None = None
    pod: tuple[str, str, str] = ("", "", "")
    """Name, UID and node of the pod."""
    ended: datetime | None = None
    progress_written_at: float | None = None

    @property
    def finished(self) -> bool:
        """True if the attempt is committed, unchanged or failed."""
        return self.ended is not None

    @property
    def committed(self) -> bool:
        """True if its commit record exists."""
        return self.commit_record is not None

    @property
    def unchanged(self) -> bool:
        """True if it found nothing to commit."""
        return (
            self.commit_record is None
            and self.result is not None
            and self.result.outcome == CheckpointOutcome.UNCHANGED
        )


@dataclass
class RestoreRecord:
    """The restore with which one pod starts."""

    incarnation: Incarnation
    started: datetime
    epoch: int = 0
    """0 while the pod waits for its epoch."""
    checkpoint_name: str | None = None
    """The name of the checkpoint that it restores, None if it starts fresh."""
    head: ChainRecord | None = None
    """The newest record of the chain when the epoch was granted."""
    wait: Wait | None = None
    progress: Progress | None = None
    outcome: Outcome | None = None
    reported_waits: set[tuple[str, str]] = field(default_factory=set)
    """Reasons and messages of waits that Events have reported."""
    discarded_since: datetime | None = None
    discarded_seconds: float | None = None
    """Time that the predecessor worked after the checkpoint that is restored."""
    ended: datetime | None = None

    @property
    def waits_for(self) -> Wait | None:
        """The cause that blocks the start, according to the operator or, once an epoch is granted, to the pod."""
        if self.wait is None and self.progress is not None and self.progress.reason:
            return Wait(self.progress.reason, self.progress.message)
        return self.wait


@dataclass
class LastFailure:
    """The agent's last failure."""

    reason: str
    message: str
    time: datetime
    of_chain: bool = False
    """The agent's chain is damaged; the failure ends as soon as the chain can be read."""


@dataclass(frozen=True)
class CheckpointRequest:
    """A checkpoint that a pod requested."""

    attempt: str
    trigger: str
    trigger_reason: str


@dataclass
class AgentRecord:
    """One agent."""

    agent: AgentRef
    incarnation: Incarnation | None = None
    """The pod that last held the agent's epoch."""
    session: SessionView | None = None
    connected_at: float | None = None
    disconnected_at: float | None = None
    disconnected: datetime | None = None
    """Time at which the sidecar's last connection ended."""
    head: ChainRecord | None = None
    latest: ChainRecord | None = None
    """The record of the checkpoint that a restart would restore now, if this leader has seen it."""
    latest_step: str = ""
    """The step of that checkpoint, if it has no object that shows it."""
    recovery_point: datetime | None = None
    failure: LastFailure | None = None
    last_attempt_at: float | None = None
    random_fraction: float = 0.5
    """A number from 0 to 1 that spreads the work of different agents in time."""
    attempts: dict[str, AttemptRecord] = field(default_factory=dict)
    restores: dict[str, RestoreRecord] = field(default_factory=dict)
    """Restores by the UID of their pod."""
    completed: bool = False
    ended_pods: set[str] = field(default_factory=set)
    """UIDs of pods that ended their run by exiting with 0; they may be deleted before that is recorded."""
    released_pod: str = ""
    """UID of the pod that ended its work and released the epoch."""
    stored_bytes: int | None = None
    uncertain_operations: tuple[str, ...] | None = None
    agent_uid: int | None = None
    """The uid under which the agent runs, if one of its sidecars has reported that it is not the sidecar's."""
    chain_read: bool = False
    """This leader has compared the objects with the chain."""
    collected_at: float | None = None
    requests: dict[str, CheckpointRequest] = field(default_factory=dict)
    """Pods' requests by id: a request may be repeated, and may never be started."""

    def advance_head(self, head: ChainRecord) -> None:
        """Remember the record if it is newer than the known head."""
        if self.head is None or head.record.sequence > self.head.record.sequence:
            self.head = head


class AgentRecords:
    """The records of all agents, each created on first access."""

    def __init__(self, random_fraction: Callable[[], float]) -> None:
        self._random_fraction, self._records = random_fraction, dict[AgentRef, AgentRecord]()

    def __getitem__(self, agent: AgentRef) -> AgentRecord:
        record = self._records.get(agent)
        if record is None:
            record = self._records[agent] = AgentRecord(agent, random_fraction=self._random_fraction())
        return record

    def get(self, agent: AgentRef) -> AgentRecord | None:
        """Return the agent's record, or None if it has none."""
        return self._records.get(agent)

    def all(self) -> list[AgentRecord]:
        """Return every record."""
        return list(self._records.values())

    def drop(self, agent: AgentRef) -> None:
        """Remove the agent's record."""
        self._records.pop(agent, None)
