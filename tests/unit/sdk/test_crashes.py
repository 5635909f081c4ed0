"""A random program is killed at every boundary; whatever happens, it ends as if nothing had happened.

Boundaries: before, inside and after each write to the journal; before and after a commit and its result; between two
turns; before and after the body of a step and of an effect. Deaths are of the process (the stage stays) or of the node.
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
    """The process dies here."""


@dataclass(frozen=True)
class Program:
    """A shape of nested loops, and at which safe points a checkpoint is due."""

    widths: tuple[int, ...]
    steps: int
    effects: bool
    searches: bool
    due: frozenset[int]
    loses: frozenset[int]  # commits whose result never arrives
    late: frozenset[int]  # commits whose result arrives after the next cut was taken
    refuses: frozenset[int]  # flushes that the sidecar does not take


@dataclass
class World:
    """What outlives every process: what was done, and what is known to have been kept."""

    program: Program
    kills: frozenset[int]  # at which boundaries
    node_dies: bool
    boundaries: int = 0
    points: int = 0
    flushes: int = 0
    kept: set[str] = field(default_factory=set)  # steps whose result is safe from the death that is simulated
    confirmed: set[str] = field(default_factory=set)
    ran: Counter[str] = field(default_factory=Counter)
    ids: dict[str, set[str]] = field(default_factory=dict)
    journaled: set[str] = field(default_factory=set)

    def boundary(self) -> None:
        self.boundaries += 1
        if self.boundaries in self.kills:
            raise Killed

    def commit(self) -> None:
        """What is journaled now is part of a cut; it survives the node."""
        self.kept |= self.journaled


class DyingJournal:
    """The real journal in a process that may die around each write."""

    def __init__(self, directory: Path, world: World) -> None:
        self.inner: Journal = FileJournal(directory, durable=False)
        self.directory = directory
        self.world = world

    def replay(self, number: int) -> Iterator[dict[str, Any]]:
        return self.inner.replay(number)

    def append(self, record: Mapping[str, Any], *, durable: bool) -> None:
        self.world.boundary()
        self.inner.append(record, durable=durable)
        try:
            self.world.boundary()
        except Killed:  # in the middle of the write
            newest = max(self.directory.glob("*.log"), key=lambda path: int(path.stem))
            newest.write_bytes(newest.read_bytes()[:-3])
            raise
        if record["t"] in ("step", "confirmed"):
            self.world.journaled.add(record["id"] if record["t"] == "confirmed" else f"{record['p']}/{record['s']}")
            if not self.world.node_dies:
                self.world.commit()
        self.world.boundary()

    def rotate(self) -> int:
        self.world.boundary()
        number = self.inner.rotate()
        self.world.boundary()
        return number

    def forget(self, below: int) -> None:
        self.world.boundary()
        self.inner.forget(below)

    def close(self) -> None:
        self.inner.close()


class DyingLink(SimulatedLink):
    """A sidecar whose agent may die around each flush; it may refuse one, or tell a result late or never."""

    world: World
    owed: list[wire.Order]

    def flush(self, flush: wire.Flush, hold_seconds: float) -> None:
        world, tell = self.world, self._receive
        world.flushes += 1
        number = world.flushes
        world.boundary()
        for order in self.owed:
            tell(order)
        self.owed.clear()
        if number in world.program.refuses:
            tell(wire.Result(flush.transaction, "Failed", None, "", "Unavailable", "not now"))
            raise Unavailable("not now")

        def committed(order: wire.Order) -> None:
            world.commit()
            world.boundary()
            if number in world.program.late:
                self.owed.append(order)
            elif number not in world.program.loses:
                tell(order)
            world.boundary()

        self._receive = committed
        try:
            super().flush(flush, hold_seconds)
        finally:
            self._receive = tell


class Life(Simulation):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def _journal(self, directory: Path) -> Journal:
        return DyingJournal(directory, self.world)

    def _link(self, session: AgentSession) -> Link:
        link = DyingLink(self, session)
        link.world, link.owed = self.world, []
        return link


def run(agent: savepoint.Agent, life: Life) -> dict[str, Any]:
    """The program: it changes documents wherever a program may, before, between and after loops, steps and effects."""
    world, program = life.world, life.world.program
    log = agent.document("log", [])
    count = agent.document("count", {"turns": 0})

    def body(path: str) -> Callable[[], str]:
        def work() -> str:
            world.boundary()
            assert path not in world.kept, f"step {path} is finished and ran again"
            world.ran[path] += 1
            world.boundary()
            return f"result of {path}"

        return work

    def effect(path: str) -> None:
        def send(op: savepoint.Operation) -> str:
            world.boundary()
            assert op.id not in world.kept, f"effect {path} is confirmed and was sent again"
            world.ids.setdefault(path, set()).add(op.id)
            world.boundary()
            return f"sent {path}"

        try:
            result = agent.effect("send", send)
        except savepoint.EffectUncertain:
            agent.uncertain()[0].retry()
            result = agent.effect("send", send)
        assert result == f"sent {path}"

    def due() -> None:
        world.points += 1
        if world.points in program.due:
            life.checkpoint_soon()
        world.boundary()

    def search(here: tuple[int, ...]) -> int:
        """A loop that is left by break, with what it found in a local variable."""
        found = -1
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
                count["turns"] += 1
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


def live(world: World) -> tuple[dict[str, Any], World]:
    """Lives until the program came through."""
    with Life(world) as life:
        while True:
            try:
                agent = life.start()
                return run(agent, life), world
            except Killed:
                life.crash(lose_stage=world.node_dies)
                if world.node_dies:
                    world.journaled &= world.kept


programs = st.builds(
    Program,
    widths=st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple),
    steps=st.integers(0, 2),
    effects=st.booleans(),
    searches=st.booleans(),
    due=st.frozensets(st.integers(1, 60)),
    loses=st.frozensets(st.integers(1, 9)),
    late=st.frozensets(st.integers(1, 9)),
    refuses=st.frozensets(st.integers(1, 9)),
)


@cache
def undisturbed(program: Program) -> dict[str, Any]:
    """How the program ends when nothing happens."""
    return live(World(program, frozenset(), node_dies=False))[0]


def check(program: Program, kills: frozenset[int], node_dies: bool) -> World:
    result, world = live(World(program, kills, node_dies))
    assert result == undisturbed(program)
    for path, ids in world.ids.items():
        assert len(ids) == 1, f"effect {path} had more than one id"
    return world


@settings(max_examples=80, deadline=None)
@given(programs, st.frozensets(st.integers(1, 400), max_size=12), st.booleans())
def test_any_program_killed_anywhere_ends_as_if_nothing_had_happened(
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
    """Only a death between a step's start and the end of its record repeats it, and then once a death."""
    program = Program((3,), 2, False, False, frozenset({2}), frozenset(), frozenset(), frozenset())
    whole = check(program, frozenset(), False).boundaries
    for kill in range(1, whole + 1):
        world = check(program, frozenset({kill}), False)
        assert sum(world.ran.values()) - len(world.ran) <= 1
