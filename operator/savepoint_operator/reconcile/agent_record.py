"""What the leader remembers of one agent between two looks: attempts in flight, the restore under way, the last word.

Memory only. All of it is either repaired from the chain and the objects, or told again by the pods after a change of
leader; it decides nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from savepoint.contract.control_protocol import Offer, Outcome, Progress, Result, Wait
from savepoint.repository.format.commit import Head

from savepoint_operator.model.views import AgentRef, Contents, Incarnation, SessionView


@dataclass
class AttemptRecord:
    """One attempt, from its order to the status that tells its end."""

    id: str
    trigger: str
    started: datetime
    started_at: float
    """Monotonic seconds."""
    requested_by: str = ""
    why: str = ""
    stage: str = "Pending"
    progress: Progress | None = None
    delay: str = ""
    """Why its commit is tried again."""
    name: str = ""
    """Of its AgentCheckpoint, once there is one."""
    number: int = 0
    offer: Offer | None = None
    contents: Contents | None = None
    """What its manifest says, where no offer was heard."""
    head: Head | None = None
    store: str = ""
    parent: str = ""
    """Name of the checkpoint before it."""
    result: Result | None = None
    pod: tuple[str, str, str] = ("", "", "")
    """Name, uid and node of the pod."""
    ended: datetime | None = None
    written_at: float | None = None
    """Monotonic seconds of the last write of its progress."""

    @property
    def over(self) -> bool:
        """Committed, unchanged or failed."""
        return self.ended is not None

    @property
    def committed(self) -> bool:
        return self.head is not None

    @property
    def unchanged(self) -> bool:
        return self.head is None and self.result is not None and self.result.outcome == "Unchanged"


@dataclass
class RestoreRecord:
    """The start of one pod."""

    who: Incarnation
    started: datetime
    epoch: int = 0
    """0 while it waits."""
    restores: str | None = None
    head: Head | None = None
    wait: Wait | None = None
    progress: Progress | None = None
    outcome: Outcome | None = None
    said: set[tuple[str, str]] = field(default_factory=set)
    """Reasons and messages of waits that Events have told."""
    discarded_since: datetime | None = None
    discarded_seconds: float | None = None
    """How long the predecessor was at work after the checkpoint that is restored."""
    ended: datetime | None = None

    @property
    def waits_for(self) -> Wait | None:
        """What is in its way: as the operator says it, or, once an epoch is granted, as the pod does."""
        if self.wait is None and self.progress is not None and self.progress.reason:
            return Wait(self.progress.reason, self.progress.message)
        return self.wait


@dataclass
class LastFailure:
    """The last thing that went wrong."""

    reason: str
    message: str
    time: datetime
    of_chain: bool = False
    """Its chain of records is damaged: over as soon as it can be read."""


@dataclass(frozen=True)
class CheckpointRequest:
    """A checkpoint that a pod asked for."""

    attempt: str
    trigger: str
    why: str


@dataclass
class AgentRecord:
    """One agent."""

    agent: AgentRef
    who: Incarnation | None = None
    session: SessionView | None = None
    connected_at: float | None = None
    """Monotonic seconds."""
    disconnected_at: float | None = None
    last_heard: datetime | None = None
    """When the predecessor's connection ended."""
    head: Head | None = None
    latest: Head | None = None
    """The record of the checkpoint that a restart now would restore, where this leader has seen it."""
    latest_step: str = ""
    """Where that checkpoint stands, if it has no object to say so."""
    recovery_point: datetime | None = None
    failure: LastFailure | None = None
    failures_in_row: int = 0
    last_start: float | None = None
    """Monotonic seconds at which the last attempt began."""
    random_part: float = 0.5
    attempts: dict[str, AttemptRecord] = field(default_factory=dict)
    restores: dict[str, RestoreRecord] = field(default_factory=dict)
    """By pod uid."""
    completed: bool = False
    ended_pods: set[str] = field(default_factory=set)
    """Uids of pods that were seen to end their run by exiting with 0; they may be deleted before that is recorded."""
    released_pod: str = ""
    """Uid of the pod that has ended its work in good order."""
    stored_bytes: int | None = None
    uncertain: tuple[str, ...] | None = None
    chain_read: bool = False
    """This leader has compared the objects with the chain."""
    collected_at: float | None = None
    requests: dict[str, CheckpointRequest] = field(default_factory=dict)
    """What pods have asked for, by the request's id: it may come twice, and may never be begun."""

    def learn(self, head: Head) -> None:
        """A record was seen: the head only moves up."""
        if self.head is None or head.record.sequence > self.head.record.sequence:
            self.head = head


class AgentRecords:
    """Every agent's line, made when it is first spoken of."""

    def __init__(self, random_part: Callable[[], float]) -> None:
        self._random, self._agent_records = random_part, dict[AgentRef, AgentRecord]()

    def __getitem__(self, agent: AgentRef) -> AgentRecord:
        agent_record = self._agent_records.get(agent)
        if agent_record is None:
            agent_record = self._agent_records[agent] = AgentRecord(agent, random_part=self._random())
        return agent_record

    def get(self, agent: AgentRef) -> AgentRecord | None:
        """The line, if the agent was spoken of."""
        return self._agent_records.get(agent)

    def all(self) -> list[AgentRecord]:
        """Every line."""
        return list(self._agent_records.values())

    def drop(self, agent: AgentRef) -> None:
        """Forget the agent."""
        self._agent_records.pop(agent, None)
