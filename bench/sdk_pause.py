"""How long a checkpoint stops the agent, by the SDK's own share: compare, copy, encode. `python -m bench.sdk_pause`.

The sidecar's share (what changed in files since its pre-copy) comes on top: bench.checkpoint measures both. Arrays of
``--mebibytes`` with ``--percent`` of their 4 KiB rows changed at random since the last checkpoint; a JSON document of
1 MiB; a turn of steps. Prints one line a case: median and worst of ``--rounds`` in milliseconds. The goal is the whole
pause's, for the median of a change in one piece; the other cases have none.
"""

import argparse
import random
import statistics
import sys
import tempfile
import timeit
from pathlib import Path

import numpy as np
from savepoint.contract import agent_protocol as wire
from savepoint.errors import Unavailable
from savepoint.sdk.agent import Agent
from savepoint.sdk.agent_session import AgentSession
from savepoint.sdk.journal import FileJournal
from savepoint.sdk.stage import Stage
from savepoint.sdk.state import State

from bench.figure import Figure, told

ROW = 4096
GOAL_MILLISECONDS = 100.0


class InstantSidecar:
    """Takes every flush at once and gives its result before the next one."""

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


def agent_in(folder: Path) -> tuple[Agent, AgentSession]:
    state = State(FileJournal(folder / "journal"), Stage(folder))
    state.restore(())
    session = AgentSession(wire.Connected("bench", "bench", "", 1, 1), state, required=False)
    session.attach(InstantSidecar(session))
    return Agent(session), session


def pauses(agent: Agent, session: AgentSession, rounds: int, change: "object") -> list[float]:
    found = []
    for number in range(rounds):
        change()  # type: ignore[operator]
        session.receive(wire.Quiesce(f"{change}-{number}", 60, 60))
        found.append(timeit.timeit(agent.safe_point, number=1) * 1000)
    return found


def say(what: str, found: list[float]) -> None:
    print(f"{what:58} median {statistics.median(found):8.2f} ms   worst {max(found):8.2f} ms", flush=True)


def main() -> int:
    """0 when the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--percent", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--stage", type=Path, help="folder for the stage; default: the temporary folder")
    options = parser.parse_args()
    size = options.mebibytes << 20
    picks = random.Random(1)  # the same rows in every run

    with tempfile.TemporaryDirectory(dir=options.stage) as name:
        agent, session = agent_in(Path(name))
        agent.document(
            "notes", {"lines": [f"line {number}, and what was thought about it" for number in range(20_000)]}
        )
        say("documents: 1 MiB of JSON", pauses(agent, session, options.rounds, lambda: None))

        weights = np.random.default_rng(1).integers(0, 256, size, np.uint8)
        rows = size // ROW
        took = timeit.timeit(lambda: agent.tensors("weights", lambda: {"w": weights}), number=1)
        print(f"registration of {options.mebibytes} MiB, both buffers: {took:.2f} s")

        def scattered() -> None:
            for row in picks.sample(range(rows), int(rows * options.percent / 100)):
                weights[row * ROW] ^= 1

        def together() -> None:
            start = picks.randrange(rows - int(rows * options.percent / 100)) * ROW
            weights[start : start + int(size * options.percent / 100)] ^= 1

        def everything() -> None:
            weights[:] ^= 1

        share = 0.0
        for what, change in (
            ("nothing changed", lambda: None),
            (f"{options.percent:g} % changed, in one piece", together),
            (f"{options.percent:g} % of 4 KiB rows changed, scattered", scattered),
            ("everything changed", everything),
        ):
            found = pauses(agent, session, options.rounds, change)
            say(f"tensors, {options.mebibytes} MiB: {what}", found)
            if change is together:
                share = statistics.median(found)
        session.close(Unavailable("the bench is over"))

    with tempfile.TemporaryDirectory(dir=options.stage) as name:
        agent, session = agent_in(Path(name))
        number = 100_000
        print(f"safe point, nothing pending: {timeit.timeit(agent.safe_point, number=number) / number * 1e9:.0f} ns")
        count = 2000
        took = timeit.timeit(lambda: agent.step("work", int), number=count)
        print(f"step, journaled: {took / count * 1e6:.0f} µs")
        count = 200
        took = timeit.timeit(lambda: agent.effect("send", lambda op: None), number=count)
        print(f"effect, intent and confirmation on disk: {took / count * 1e6:.0f} µs")
        session.close(Unavailable("the bench is over"))
    name = f"the SDK's share of the pause, {options.percent:g} % changed in one piece, median"
    return told([Figure(name, share, "ms", GOAL_MILLISECONDS)])


if __name__ == "__main__":
    sys.exit(main())
