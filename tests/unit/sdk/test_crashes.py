"""Random programs are killed at every boundary and must end with the same result as undisturbed ones.

Boundaries: before, inside and after each write to the journal; before and after a commit and its result; between two
iterations; before and after the body of a step and of an effect. Either the process dies, and the stage is kept, or the
node is lost.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import savepoint
from hypothesis import given, settings
from hypothesis import strategies as st
from savepoint.contract import agent_protocol as wire
from savepoint.errors import Unavailable
from savepoint.sdk.agent_session import AgentSession
from savepoint.sdk.client import Link
from savepoint.sdk.journal import FileJournal, Journal
from savepoint.testing import SimulatedLink, Simulation


class Killed(BaseException):
    """The simulated death of the process."""


@dataclass(frozen=True)
class Program:
    """A shape of nested loops, and the safe points at which a checkpoint is due."""

    widths: tuple[int, ...]
    steps: int
    effects: bool
    searches: bool
    due: frozenset[int]
    lost: frozenset[int]  # commits whose result never arrives
    late: frozenset[int]  # commits whose result arrives after the next checkpoint was flushed
    refused: frozenset[int]  # flushes that the sidecar refuses


@dataclass
class Observations:
    """The record of a test, which outlives every simulated process: what was done, and what must have been kept."""

    program: Program
    kills: frozenset[int]  # boundaries at which to die
    node_dies: bool
    boundaries: int = 0
    points: int = 0
    flushes: int = 0
    kept: set[str] = field(default_factory=set)  # steps whose result survives the simulated death
    confirmed: set[str] = field(default_factory=set)
    ran: Counter[str] = field(default_factory=Counter)
    ids: dict[str, set[str]] = field(default_factory=dict)
    journaled: set[str] = field(default_factory=set)

    def boundary(self) -> None:
        self.boundaries += 1
        if self.boundaries in self.kills:
            raise Killed

    def commit(self) -> None:
        """Note that everything journaled so far is in a checkpoint, which survives the node."""
        self.kept |= self.journaled


class DyingJournal:
    """The real journal, in a process that may die around each write."""

    def __init__(self, directory: Path, observed: Observations) -> None:
        self.inner: Journal = FileJournal(directory, durable=False)
        self.directory = directory
        self.observed = observed

    def replay(self, number: int) -> Iterator[dict[str, Any]]:
        return self.inner.replay(number)

    def append(self, record: Mapping[str, Any], *, durable: bool) -> None:
        self.observed.boundary()
        self.inner.append(record, durable=durable)
        try:
            self.observed.boundary()
        except Killed:  # in the middle of the write
            newest = max(self.directory.glob("*.log"), key=lambda path: int(path.stem))
            newest.write_bytes(newest.read_bytes()[:-3])
            raise
        if record["t"] in ("step", "confirmed"):
            self.observed.journaled.add(record["id"] if record["t"] == "confirmed" else f"{record['p']}/{record['s']}")
            if not self.observed.node_dies:
                self.observed.commit()
        self.observed.boundary()

    def rotate(self) -> int:
        self.observed.boundary()
        number = self.inner.rotate()
        self.observed.boundary()
        return number

    def delete_below(self, number: int) -> None:
        self.observed.boundary()
        self.inner.delete_below(number)

    def close(self) -> None:
        self.inner.close()


class DyingLink(SimulatedLink):
    """A sidecar whose agent may die around each flush; it may refuse one, or send a result late or never."""

    observed: Observations
    delayed: list[wire.Order]

    def flush(self, flush: wire.Flush, hold_seconds: float) -> None:
        observed, receive = self.observed, self._receive
        observed.flushes += 1
        number = observed.flushes
        observed.boundary()
        for order in self.delayed:
            receive(order)
        self.delayed.clear()
        if number in observed.program.refused:
            receive(wire.Result(flush.transaction, "Failed", None, "", "Unavailable", "not now"))
            raise Unavailable("not now")

        def committed(order: wire.Order) -> None:
            observed.commit()
            observed.boundary()
            if number in observed.program.late:
                self.delayed.append(order)
            elif number not in observed.program.lost:
                receive(order)
            observed.boundary()

        self._receive = committed
        try:
            super().flush(flush, hold_seconds)
        finally:
            self._receive = receive


class FaultySimulation(Simulation):
    def __init__(self, observed: Observations) -> None:
        super().__init__()
        self.observed = observed

    def _journal(self, directory: Path) -> Journal:
        return DyingJournal(directory, self.observed)

    def _link(self, session: AgentSession) -> Link:
        link = DyingLink(self, session)
        link.observed, link.delayed = self.observed, []
        return link


def run(agent: savepoint.Agent, simulation: FaultySimulation) -> dict[str, Any]:
    """Run the program, which changes documents before, between and after loops, steps and effects."""
    observed, program = simulation.observed, simulation.observed.program
    log = agent.document("log", [])
    count = agent.document("count", {"iterations": 0})

    def body(path: str) -> Callable[[], str]:
        def work() -> str:
            observed.boundary()
            assert path not in observed.kept, f"finished step {path} ran again"
            observed.ran[path] += 1
            observed.boundary()
            return f"result of {path}"

        return work

    def effect(path: str) -> None:
        def send(op: savepoint.Operation) -> str:
            observed.boundary()
            assert op.id not in observed.kept, f"confirmed effect {path} was sent again"
            observed.ids.setdefault(path, set()).add(op.id)
            observed.boundary()
            return f"sent {path}"

        try:
            result = agent.effect("send", send)
        except savepoint.EffectUncertain:
            agent.uncertain()[0].retry()
            result = agent.effect("send", send)
        assert result == f"sent {path}"

    def due() -> None:
        observed.points += 1
        if observed.points in program.due:
            simulation.checkpoint_soon()
        observed.boundary()

    def search(here: tuple[int, ...]) -> int | str:
        """Leave a loop by break, with what it found in a local variable."""
        found: int | str = -1
        for index in agent.loop("search", range(4)):
            due()
            log.append(["search", here, index])
            found = agent.step("try", body(f"{scope()}/try#0")) and index
            if index == 1:
                break
        return found

    def level(depth: int, path: tuple[int, ...]) -> None:
        for index in agent.loop(f"level{depth}", range(program.widths[depth])):
            here = (*path, index)
            count.setdefault("seen", {}).setdefault(str(depth), []).append(here)
            mine = count["seen"][str(depth)]
            if depth + 1 < len(program.widths):
                agent.step("outer", body(scope() + "/outer#0"))
                log.append(["before", here])
                level(depth + 1, here)
                log.append(["between", here])
                if program.searches:
                    log.append(["found", search(here)])
                level(depth + 1, here)
                log.append(["after", here])
            else:
                results = [agent.step("work", body(f"{scope()}/work#{n}")) for n in range(program.steps)]
                log.append(["half", here])
                due()
                agent.safe_point()
                if program.effects:
                    effect(agent._session.position.current().path)
                log.append([here, results])
                count["iterations"] += 1
                due()
                agent.safe_point()
            mine.append("end")
            due()

    def scope() -> str:
        return agent._session.position.current().path

    if program.searches:
        log.append(["found", search(())])
    level(0, ())
    return {"log": list(log), "count": dict(count)}


def run_to_the_end(observed: Observations) -> tuple[dict[str, Any], Observations]:
    """Restart the program after each death until it ends."""
    with FaultySimulation(observed) as simulation:
        while True:
            try:
                agent = simulation.start()
                return run(agent, simulation), observed
            except Killed:
                simulation.crash(lose_stage=observed.node_dies)
                if observed.node_dies:
                    observed.journaled &= observed.kept


programs = st.builds(
    Program,
    widths=st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple),
    steps=st.integers(0, 2),
    effects=st.booleans(),
    searches=st.booleans(),
    due=st.frozensets(st.integers(1, 60)),
    lost=st.frozensets(st.integers(1, 9)),
    late=st.frozensets(st.integers(1, 9)),
    refused=st.frozensets(st.integers(1, 9)),
)


@cache
def undisturbed(program: Program) -> dict[str, Any]:
    """Return the result of the program without any fault."""
    return run_to_the_end(Observations(program, frozenset(), node_dies=False))[0]


def check(program: Program, kills: frozenset[int], node_dies: bool) -> Observations:
    result, observed = run_to_the_end(Observations(program, kills, node_dies))
    assert result == undisturbed(program)
    for path, ids in observed.ids.items():
        assert len(ids) == 1, f"effect {path} had more than one id"
    return observed


@settings(max_examples=80, deadline=None)
@given(programs, st.frozensets(st.integers(1, 400), max_size=12), st.booleans())
def test_any_program_killed_anywhere_ends_like_an_undisturbed_one(
    program: Program, kills: frozenset[int], node_dies: bool
) -> None:
    check(program, kills, node_dies)


def test_one_program_killed_once_at_every_boundary() -> None:
    program = Program((2, 1), 1, True, True, frozenset(range(1, 40, 3)), frozenset({2}), frozenset({1}), frozenset({3}))
    whole = check(program, frozenset(), False).boundaries
    assert whole > 50
    for kill in range(1, whole + 1):
        check(program, frozenset({kill}), node_dies=kill % 2 == 0)
        if kill % 4 == 0:
            check(program, frozenset({kill, kill + 7}), node_dies=False)


def test_in_place_no_step_runs_twice_once_its_result_is_journaled() -> None:
    """Only a death between a step's start and the end of its record repeats it, once per death."""
    program = Program((3,), 2, False, False, frozenset({2}), frozenset(), frozenset(), frozenset())
    whole = check(program, frozenset(), False).boundaries
    for kill in range(1, whole + 1):
        observed = check(program, frozenset({kill}), False)
        assert sum(observed.ran.values()) - len(observed.ran) <= 1
