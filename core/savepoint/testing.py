"""An agent's life inside one unit test: run it, take checkpoints, kill it, bring it back. Standard library only.

::

    with savepoint.testing.Simulation() as life:
        with pytest.raises(RuntimeError):
            program(life.start(), fail_at="b")      # your program, given the agent instead of calling connect()
        life.crash()                                # memory is gone, the stage is there: a crash in place
        program(life.start())                       # goes on; finished steps are replayed

It is the real SDK with the real journal in a temporary folder; only the sidecar is simulated: what it commits is held
in memory. It does not simulate files below state paths.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.errors import Unavailable
from savepoint.sdk.agent import Agent
from savepoint.sdk.agent_session import AgentSession
from savepoint.sdk.client import Link
from savepoint.sdk.journal import FileJournal, Journal
from savepoint.sdk.stage import Stage
from savepoint.sdk.state import State

_TIME: Final = "2000-01-01T00:00:00Z"  # of simulated checkpoints
_PATIENCE_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint: ``documents`` as JSON text by name, and what the agent said of itself."""

    name: str
    number: int
    documents: dict[str, str]
    step: str | None
    uncertain: tuple[str, ...]
    completed: bool = False
    components: tuple[tuple[wire.Component, tuple[bytes, ...]], ...] = field(default=(), repr=False)


class Simulation:
    """One agent's lineage. ``start`` begins an incarnation, ``crash`` ends it."""

    def __init__(self, name: str = "agent") -> None:
        self.name = name
        self.checkpoints: list[Checkpoint] = []  # newest last; only the last one counts for a restart
        self._folder = Path(tempfile.mkdtemp(prefix="savepoint-"))
        self._stages = 0
        self._run = 1
        self._epoch = 0
        self._transactions = 0
        self._session: AgentSession | None = None

    def __enter__(self) -> "Simulation":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def stage(self) -> Path:
        """The folder that stands for the stage volume of this node."""
        return self._folder / str(self._stages)

    def start(self) -> Agent:
        """A new process of the agent: what the last checkpoint and the journal hold is back."""
        self._end()
        self._epoch += 1
        last = self.checkpoints[-1] if self.checkpoints and not self.checkpoints[-1].completed else None
        restored = None
        if last is not None:
            restored = wire.Restored(last.name, last.number, last.number, _TIME, "Restarted")
        components = () if last is None else self._written(last)
        connected = wire.Connected("simulated", self.name, "test", self._epoch, self._run, restored, components)
        stage = Stage(self.stage)
        state = State(self._journal(stage_layout.journal_folder(self.stage, self._run)), stage)
        state.restore(components)
        session = self._session = AgentSession(connected, state, required=False)
        session.attach(self._link(session))
        return Agent(session)

    def checkpoint_soon(self) -> None:
        """Take a checkpoint at the agent's next safe point, as an interval would."""
        self._order("Interval", None)

    def crash(self, *, lose_stage: bool = False) -> None:
        """Kill the process. ``lose_stage``: its node is gone too, and only what was committed counts."""
        self._end()
        if lose_stage:
            self._stages += 1

    def fence(self, message: str = "the simulation says so") -> None:
        """Effects are refused from here on."""
        self._live().receive(wire.Fenced(message))

    def unfence(self) -> None:
        """Effects may go on."""
        self._live().receive(wire.Unfenced())

    # -- what a test of this project may replace --

    def _journal(self, directory: Path) -> Journal:
        return FileJournal(directory, durable=False)

    def _link(self, session: AgentSession) -> Link:
        return SimulatedLink(self, session)

    # -- what the simulated sidecar asks --

    def order(self, request: str) -> None:
        """The agent asked for a checkpoint."""
        self._order("Agent", request)

    def commit(self, flush: wire.Flush, *, completed: bool = False) -> Checkpoint:
        """What was flushed becomes the newest checkpoint."""
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
                (component, tuple(self._bytes(entry) for entry in component.entries)) for component in flush.components
            ),
        )
        self.checkpoints.append(checkpoint)
        if completed:
            self._run = self._epoch + 1
        return checkpoint

    # -- inside --

    def _live(self) -> AgentSession:
        if self._session is None:
            raise Unavailable("no incarnation runs: call start() first")
        return self._session

    def _order(self, trigger: str, request: str | None) -> None:
        self._transactions += 1
        session = self._live()
        link = session.link
        if isinstance(link, SimulatedLink):
            link.requests[str(self._transactions)] = request
        session.receive(wire.Quiesce(str(self._transactions), _PATIENCE_SECONDS, _PATIENCE_SECONDS, trigger))

    def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close(Unavailable("this incarnation was killed"))

    def _bytes(self, entry: wire.Entry) -> bytes:
        return entry.inline.encode() if entry.inline is not None else (self.stage / str(entry.path)).read_bytes()

    def _written(self, checkpoint: Checkpoint) -> tuple[wire.Component, ...]:
        """The checkpoint's components as a sidecar hands them back: text inline, the rest in restored files."""
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
    """A sidecar that commits at once."""

    def __init__(self, simulation: Simulation, session: AgentSession) -> None:
        self.requests: dict[str, str | None] = {}
        self._simulation = simulation
        self._receive: Callable[[wire.Order], None] = session.receive

    def flush(self, flush: wire.Flush, hold_seconds: float) -> None:
        checkpoint = self._simulation.commit(flush)
        request = self.requests.pop(flush.transaction, None)
        self._receive(wire.Result(flush.transaction, "Ready", request, checkpoint.name))

    def finish(self, flush: wire.Flush, timeout_seconds: float) -> str:
        return self._simulation.commit(flush, completed=True).name

    def request(self, request: wire.CheckpointRequest) -> None:
        self._simulation.order(request.request)

    def failed(self, failed: wire.Failed) -> None:
        request = self.requests.pop(failed.transaction, None)
        self._receive(wire.Result(failed.transaction, "Failed", request, "", failed.reason, failed.message))

    def resumed(self, resumed: wire.Resumed) -> None:
        pass

    def close(self) -> None:
        pass
