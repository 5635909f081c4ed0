"""The SDK's share of the pause of a checkpoint: compare, copy and encode. `python -m bench.sdk_pause`.

The sidecar's share (capturing files that changed since its pre-copy) is added to it; bench.checkpoint measures both.
Measured are arrays of ``--mebibytes`` with ``--percent`` of their 4 KiB rows changed since the last checkpoint, a JSON
document of 1 MiB, and single calls of the SDK. Each case prints a line with the median and the maximum of ``--rounds``,
in milliseconds. Only the median of a contiguous change has a goal, which is that of the whole pause.
"""

import argparse
import random
import statistics
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
from savepoint.contract import agent_protocol as wire
from savepoint.errors import Unavailable
from savepoint.sdk.agent import Agent
from savepoint.sdk.agent_session import AgentSession
from savepoint.sdk.journal import FileJournal
from savepoint.sdk.stage import Stage
from savepoint.sdk.state import State

from bench.figure import Figure, report

ROW = 4096
GOAL_MILLISECONDS = 100.0


class InstantSidecar:
    """A fake sidecar that accepts every flush and returns its result immediately."""

    def __init__(self, session: AgentSession) -> None:
        self.session = session
        self.pauses: list[int] = []

    def flush(self, flush: wire.Flush, hold_seconds: float) -> None:
        self.session.receive(wire.Result(flush.transaction, "Ready", None, "bench"))

    def finish(self, flush: wire.Flush, timeout_seconds: float) -> str:
        return "bench"

    def request(self, request: wire.CheckpointRequest) -> None:
        pass

    def failed(self, failed: wire.Failed) -> None:
        raise SystemExit(f"the flush failed: {failed.message}")

    def resumed(self, resumed: wire.Resumed) -> None:
        pass

    def close(self) -> None:
        pass


def connect(folder: Path) -> tuple[Agent, AgentSession]:
    """Return an agent whose stage is in the folder, connected to a fake sidecar."""
    state = State(FileJournal(folder / "journal"), Stage(folder))
    state.restore(())
    session = AgentSession(wire.Connected("bench", "bench", "", 1, 1), state, required=False)
    session.attach(InstantSidecar(session))
    return Agent(session), session


def pauses(agent: Agent, session: AgentSession, rounds: int, change: Callable[[], None]) -> list[float]:
    """Return the milliseconds that each round's checkpoint paused the agent, after one change each."""
    found = []
    for number in range(rounds):
        change()
        session.receive(wire.Quiesce(f"{change}-{number}", 60, 60))
        found.append(timeit.timeit(agent.safe_point, number=1) * 1000)
    return found


def print_case(what: str, found: list[float]) -> None:
    print(f"{what:58} median {statistics.median(found):8.2f} ms   max {max(found):8.2f} ms", flush=True)


def main() -> int:
    """Run the benchmark; return 0 if the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--percent", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--stage", type=Path, help="directory for the stage; default: a temporary one")
    options = parser.parse_args()
    size = options.mebibytes << 20
    generator = random.Random(1)  # the same rows in every run

    with tempfile.TemporaryDirectory(dir=options.stage) as name:
        agent, session = connect(Path(name))
        agent.document(
            "notes", {"lines": [f"line {number}, and what was thought about it" for number in range(20_000)]}
        )
        print_case("documents: 1 MiB of JSON", pauses(agent, session, options.rounds, lambda: None))

        weights = np.random.default_rng(1).integers(0, 256, size, np.uint8)
        rows = size // ROW
        took = timeit.timeit(lambda: agent.tensors("weights", lambda: {"w": weights}), number=1)
        print(f"registration of {options.mebibytes} MiB, both buffers: {took:.2f} s")

        def scattered() -> None:
            for row in generator.sample(range(rows), int(rows * options.percent / 100)):
                weights[row * ROW] ^= 1

        def contiguous() -> None:
            start = generator.randrange(rows - int(rows * options.percent / 100)) * ROW
            weights[start : start + int(size * options.percent / 100)] ^= 1

        def everything() -> None:
            weights[:] ^= 1

        share = 0.0
        for what, change in (
            ("nothing changed", lambda: None),
            (f"{options.percent:g} % changed, contiguous", contiguous),
            (f"{options.percent:g} % of 4 KiB rows changed, scattered", scattered),
            ("everything changed", everything),
        ):
            found = pauses(agent, session, options.rounds, change)
            print_case(f"tensors, {options.mebibytes} MiB: {what}", found)
            if change is contiguous:
                share = statistics.median(found)
        session.close(Unavailable("the benchmark is over"))

    with tempfile.TemporaryDirectory(dir=options.stage) as name:
        agent, session = connect(Path(name))
        number = 100_000
        print(f"safe point, nothing pending: {timeit.timeit(agent.safe_point, number=number) / number * 1e9:.0f} ns")
        count = 2000
        took = timeit.timeit(lambda: agent.step("work", int), number=count)
        print(f"step, journaled: {took / count * 1e6:.0f} µs")
        count = 200
        took = timeit.timeit(lambda: agent.effect("send", lambda op: None), number=count)
        print(f"effect, intent and confirmation on disk: {took / count * 1e6:.0f} µs")
        session.close(Unavailable("the benchmark is over"))
    name = f"the SDK's share of the pause, {options.percent:g} % changed contiguously, median"
    return report([Figure(name, share, "ms", GOAL_MILLISECONDS)])


if __name__ == "__main__":
    sys.exit(main())
