"""A simulated agent for unit tests: run it, take checkpoints, kill it, restart it. Standard library only.

::

    with savepoint.testing.Simulation() as simulation:
        with pytest.raises(RuntimeError):
            program(simulation.start(), fail_at="b")    # your program, given the agent instead of calling connect()
        simulation.crash()                              # memory is lost, the stage is kept: a crash in place
        program(simulation.start())                     # continues; finished steps are replayed

The SDK and its journal, in a temporary folder, are the real ones; only the sidecar is simulated, and keeps what it
commits in memory. Files below state paths are not simulated.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.contract.vocabulary import CheckpointOutcome, Trigger
from savepoint.errors import Unavailable
from savepoint.sdk.agent import Agent
from savepoint.sdk.agent_session import AgentSession
from savepoint.sdk.client import Link
from savepoint.sdk.journal import FileJournal, Journal
from savepoint.sdk.stage import Stage
from savepoint.sdk.state import State

_TIME: Final = "2000-01-01T00:00:00Z"  # of simulated checkpoints
_TIMEOUT_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint of a simulation.

    Attributes:
        name: Its name, ``<agent>-<number>``.
        number: Its number, counted from 1.
        documents: Documents by name, as JSON text. Documents that went through a file are not in it.
        step: The position of the outermost loop, for example ``docs 2 of 3``; None outside of loops.
        uncertain: Ids of the effects that were sent and never confirmed.
        completed: True if ``Agent.finish()`` took it.
        components: What was flushed, with the bytes of each entry.
    """

    name: str
    number: int
    documents: dict[str, str]
    step: str | None
    uncertain: tuple[str, ...]
    completed: bool = False
    components: tuple[tuple[wire.Component, tuple[bytes, ...]], ...] = field(default=(), repr=False)


class Simulation:
    """The processes and checkpoints of one agent. Use it as a context manager.

    Attributes:
        name: The agent's name.
        checkpoints: The committed checkpoints, newest last; a restart uses the last one.
    """

    def __init__(self, name: str = "agent") -> None:
        """Create the simulation of an agent that has never run.

        Args:
            name: The agent's name.
        """
        self.name = name
        self.checkpoints: list[Checkpoint] = []
        self._folder = Path(tempfile.mkdtemp(prefix="savepoint-"))
        self._nodes = 0  # nodes lost so far
        self._run = 1
        self._epoch = 0
        self._transactions = 0
        self._session: AgentSession | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def stage(self) -> Path:
        """The folder that stands for the stage volume of the current node."""
        return self._folder / str(self._nodes)

    def start(self) -> Agent:
        """Start a new process of the agent, killing the current one if there is one.

        Returns:
            The agent, with its state restored from the last checkpoint and the journal.

        Raises:
            RestoreFailed: The saved state or the journal cannot be read.
        """
        self._kill()
        self._epoch += 1
        last = self.checkpoints[-1] if self.checkpoints and not self.checkpoints[-1].completed else None
        restored = None
        if last is not None:
            restored = wire.Restored(last.name, last.number, last.number, _TIME, "Restarted")
        components = () if last is None else self._restore_components(last)
        connected = wire.Connected("simulated", self.name, "test", self._epoch, self._run, restored, components)
        stage = Stage(self.stage)
        state = State(self._journal(stage_layout.journal_folder(self.stage, self._run)), stage)
        state.restore(components)
        session = self._session = AgentSession(connected, state, required=False)
        session.attach(self._link(session))
        return Agent(session)

    def checkpoint_soon(self) -> None:
        """Order a checkpoint, which is taken at the agent's next safe point, as if the policy's interval were due.

        Raises:
            Unavailable: No process of the agent is running.
        """
        self._order(Trigger.INTERVAL, None)

    def crash(self, *, lose_stage: bool = False) -> None:
        """Kill the process.

        Args:
            lose_stage: Whether its node is lost as well: the stage and its journal are deleted, and only
                committed checkpoints remain.
        """
        self._kill()
        if lose_stage:
            self._nodes += 1

    def fence(self, message: str = "the simulation has fenced this agent") -> None:
        """Make the agent refuse effects, as if another incarnation of it might be running.

        Args:
            message: The reason, which becomes part of the ``Superseded`` error.

        Raises:
            Unavailable: No process of the agent is running.
        """
        self._running_session().receive(wire.Fenced(message))

    def unfence(self) -> None:
        """Allow effects again.

        Raises:
            Unavailable: No process of the agent is running.
        """
        self._running_session().receive(wire.Unfenced())

    # -- what Savepoint's own tests may replace --

    def _journal(self, directory: Path) -> Journal:
        return FileJournal(directory, durable=False)

    def _link(self, session: AgentSession) -> Link:
        return SimulatedLink(self, session)

    # -- calls from the simulated sidecar --

    def order(self, request: str) -> None:
        """Order the checkpoint that the agent has requested."""
        self._order(Trigger.AGENT, request)

    def commit(self, flush: wire.Flush, *, completed: bool = False) -> Checkpoint:
        """Make what was flushed the newest checkpoint, and return it."""
        number = len(self.checkpoints) + 1
        documents = next(item for item in flush.components if item.name == wire.COMPONENT_DOCUMENTS)
        checkpoint = Checkpoint(
            name=f"{self.name}-{number}",
            number=number,
            documents={entry.name: entry.inline for entry in documents.entries if entry.inline is not None},
            step=flush.execution.step,
            uncertain=flush.execution.uncertain,
            completed=completed,
            components=tuple(
                (component, tuple(self._content(entry) for entry in component.entries))
                for component in flush.components
            ),
        )
        self.checkpoints.append(checkpoint)
        if completed:
            self._run = self._epoch + 1
        return checkpoint

    # -- internals --

    def _running_session(self) -> AgentSession:
        if self._session is None:
            raise Unavailable("no process of the agent is running: call start() first")
        return self._session

    def _order(self, trigger: str, request: str | None) -> None:
        self._transactions += 1
        session = self._running_session()
        link = session.link
        if isinstance(link, SimulatedLink):
            link.requests[str(self._transactions)] = request
        session.receive(wire.Quiesce(str(self._transactions), _TIMEOUT_SECONDS, _TIMEOUT_SECONDS, trigger))

    def _kill(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close(Unavailable("this process of the agent was killed"))

    def _content(self, entry: wire.Entry) -> bytes:
        return entry.inline.encode() if entry.inline is not None else (self.stage / str(entry.path)).read_bytes()

    def _restore_components(self, checkpoint: Checkpoint) -> tuple[wire.Component, ...]:
        """Return the checkpoint's components as a sidecar restores them: text inline, other values in files."""
        folder = stage_layout.restored_folder(self.stage)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        components: list[wire.Component] = []
        for component, contents in checkpoint.components:
            entries: list[wire.Entry] = []
            for entry, content in zip(component.entries, contents, strict=True):
                value: dict[str, Any] = {"inline": content.decode()} if entry.encoding == "json" else {}
                if not value:
                    path = folder / f"{len(components)}-{len(entries)}"
                    path.write_bytes(content)
                    value = {"path": path.relative_to(self.stage).as_posix()}
                entries.append(wire.Entry(entry.name, entry.encoding, len(content), meta=entry.meta, **value))
            components.append(wire.Component(component.name, component.kind, tuple(entries)))
        return tuple(components)


class SimulatedLink:
    """A link to a sidecar that commits at once."""

    def __init__(self, simulation: Simulation, session: AgentSession) -> None:
        self.requests: dict[str, str | None] = {}  # transaction -> the request it answers
        self._simulation = simulation
        self._receive: Callable[[wire.Order], None] = session.receive

    def flush(self, flush: wire.Flush, hold_seconds: float) -> None:
        checkpoint = self._simulation.commit(flush)
        request = self.requests.pop(flush.transaction, None)
        self._receive(wire.Result(flush.transaction, CheckpointOutcome.READY, request, checkpoint.name))

    def finish(self, flush: wire.Flush, timeout_seconds: float) -> str:
        return self._simulation.commit(flush, completed=True).name

    def request(self, request: wire.CheckpointRequest) -> None:
        self._simulation.order(request.request)

    def failed(self, failed: wire.Failed) -> None:
        request = self.requests.pop(failed.transaction, None)
        self._receive(
            wire.Result(failed.transaction, CheckpointOutcome.FAILED, request, "", failed.reason, failed.message)
        )

    def resumed(self, resumed: wire.Resumed) -> None:
        pass

    def close(self) -> None:
        pass
