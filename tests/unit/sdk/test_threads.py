"""Threads park at safe points: no thread is inside an iteration or a critical block while the state is read."""

import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import savepoint
from savepoint import testing
from savepoint.contract.agent_protocol import Quiesce
from savepoint.sdk.gate import Gate
from savepoint.sdk.scope import Scope


@pytest.fixture
def simulation() -> Iterator[testing.Simulation]:
    with testing.Simulation() as simulation:
        yield simulation


def thread(work: Callable[[], object]) -> threading.Thread:
    started = threading.Thread(target=work, daemon=True)
    started.start()
    return started


def test_a_safe_point_waits_for_a_critical_block_in_another_thread(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    notes = agent.document("notes", [])
    inside, proceed = threading.Event(), threading.Event()

    def half_and_half() -> None:
        with agent.critical():
            notes.append("first half")
            inside.set()
            proceed.wait(10)
            notes.append("second half")

    worker = thread(half_and_half)
    inside.wait(10)
    simulation.checkpoint_soon()
    main = thread(agent.safe_point)
    main.join(0.2)
    assert main.is_alive()
    assert simulation.checkpoints == []
    proceed.set()
    main.join(10)
    worker.join(10)
    assert simulation.checkpoints[0].documents["notes"] == '["first half","second half"]'


def test_a_checkpoint_is_taken_when_every_open_iteration_is_at_its_end(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    notes = agent.document("notes", {"a": 0, "b": 0})
    proceed = threading.Event()
    inside = threading.Barrier(3)

    def work(name: str) -> None:
        for _ in agent.loop(name, range(2)):
            notes[name] += 1
            if notes[name] == 1:
                inside.wait(10)
                if name == "b":
                    proceed.wait(10)
            notes[name] += 10

    workers = [thread(lambda name=name: work(name)) for name in "ab"]  # type: ignore[misc]
    inside.wait(10)
    simulation.checkpoint_soon()
    workers[0].join(0.2)
    assert simulation.checkpoints == []
    proceed.set()
    for worker in workers:
        worker.join(10)
    assert simulation.checkpoints[0].documents["notes"] == '{"a":11,"b":11}'
    assert notes == {"a": 22, "b": 22}


def test_a_thread_that_reaches_no_safe_point_releases_the_others_at_the_timeout(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    inside, proceed = threading.Event(), threading.Event()

    def stuck() -> None:
        for _ in agent.loop("stuck", [1]):
            inside.set()
            proceed.wait(20)

    worker = thread(stuck)
    inside.wait(10)
    agent._session.receive(Quiesce("late", 0.2, 1))
    agent.safe_point()
    assert simulation.checkpoints == []
    proceed.set()
    worker.join(10)


def test_a_worker_in_the_context_of_an_iteration_parks_for_that_iteration(simulation: testing.Simulation) -> None:
    """Run nodes in a pool while their caller waits, as frameworks do."""
    agent = simulation.start()
    calls = []
    for item in agent.loop("jobs", ["a", "b"]):
        with ThreadPoolExecutor(2) as pool:
            simulation.checkpoint_soon()

            def node(item: str = item) -> Any:
                calls.append(agent.step("node", lambda: item))
                agent.safe_point()

            pool.submit(contextvars.copy_context().run, node).result(10)
    assert calls == ["a", "b"]
    assert len(simulation.checkpoints) == 2
    assert 'jobs#0[\\"a\\"]' in simulation.checkpoints[0].components[1][1][0].decode()


def test_steps_of_one_name_in_many_threads_have_different_numbers(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: agent.step("work", lambda: n), range(50)))
    assert results == list(range(50))
    assert len(agent._session.state.root.steps) == 50


def test_a_document_that_changes_while_it_is_read_fails_the_checkpoint(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    document = agent.document("notes", {})

    class Meddler:
        pass

    savepoint.register(Meddler, "tests.meddler", lambda _: document.update(more=1), lambda _: Meddler())
    document["meddler"] = Meddler()
    with pytest.raises(savepoint.StateUnstable, match="'notes' changed while it was read"):
        agent.checkpoint()
    del document["meddler"]
    assert agent.checkpoint() == "agent-1"


def test_a_failure_of_the_programs_save_function_does_not_stop_the_agent(
    simulation: testing.Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    agent = simulation.start()
    broken = False

    def save() -> dict[str, bytes]:
        if broken:
            raise ZeroDivisionError
        return {"w": b"x"}

    agent.tensors("weights", save)
    broken = True
    simulation.checkpoint_soon()
    agent.safe_point()
    assert "ZeroDivisionError" in caplog.text
    broken = False
    assert agent.checkpoint() == "agent-1"


def test_the_open_iteration_of_a_dead_thread_does_not_block_a_checkpoint(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    kept = []

    def dies() -> None:
        loop = agent.loop("loop", [1, 2])
        kept.append(loop)
        next(loop)

    thread(dies).join(10)
    assert agent.checkpoint() == "agent-1"


def test_one_of_many_parked_threads_flushes_and_all_continue() -> None:
    gate = Gate(list)
    root = Scope("", None)
    flushed: list[str] = []
    for number in range(20):
        gate.accept(Quiesce(f"t{number}", 10, 10))
        threads = [thread(lambda: gate.park(root, lambda pending: flushed.append(pending.order.transaction)))
                   for _ in range(4)]  # fmt: skip
        for one in threads:
            one.join(10)
            assert not one.is_alive()
    assert flushed == [f"t{number}" for number in range(20)]
