"""The guarantees of documents, loops, steps and effects, one per test."""

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import savepoint
from savepoint import testing


@pytest.fixture
def simulation() -> Iterator[testing.Simulation]:
    with testing.Simulation() as simulation:
        yield simulation


class Calls:
    """A function that records its calls."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __call__(self, value: Any) -> Any:
        self.made.append(value)
        return value

    def failing(self, error: Exception) -> Callable[[Any], Any]:
        def call(value: Any) -> Any:
            self.made.append(value)
            raise error

        return call


# -- documents --


def test_a_document_is_a_copy_of_its_default_and_one_object(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    default: dict[str, Any] = {"notes": []}
    document = agent.document("notes", default)
    document["notes"].append(1)
    assert default == {"notes": []}
    assert agent.document("notes", {}) is document
    assert document.__class__ is dict


def test_documents_are_restored_as_they_were_at_the_safe_point(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    notes, raw = agent.document("notes", []), agent.document("raw", bytearray())
    notes.append((1, b"x"))
    raw += b"abc"
    assert agent.checkpoint() == "agent-1"
    notes.append("later")
    simulation.crash(lose_stage=True)
    agent = simulation.start()
    assert agent.restored is not None
    assert agent.restored.checkpoint == "agent-1"
    assert agent.document("notes", []) == [(1, b"x")]
    assert agent.document("raw", bytearray(b"default")) == b"abc"


def test_a_document_that_the_program_does_not_use_is_kept(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    agent.document("old", {"a": 1})
    agent.checkpoint()
    agent = simulation.start()
    agent.document("new", {})
    agent.checkpoint()
    assert simulation.start().document("old", {}) == {"a": 1}


def test_a_document_of_another_type_is_refused(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    agent.document("notes", [])
    agent.checkpoint()
    agent = simulation.start()
    with pytest.raises(savepoint.RestoreFailed, match="saved as a list"):
        agent.document("notes", {})
    assert agent.document("notes", []) == []


def test_many_large_documents_are_restored(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    for number in range(5):
        agent.document(f"d{number}", {"text": '"' * 300_000 + str(number)})
    agent.checkpoint()
    simulation.crash(lose_stage=True)
    agent = simulation.start()
    for number in range(5):
        assert agent.document(f"d{number}", {}) == {"text": '"' * 300_000 + str(number)}


def test_an_unsavable_document_fails_the_checkpoint_and_names_the_path(
    simulation: testing.Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    agent = simulation.start()
    document = agent.document("notes", {})
    document["owner"] = object()
    with pytest.raises(savepoint.NotEncodable, match=r"notes\.owner"):
        agent.checkpoint()
    simulation.checkpoint_soon()
    agent.safe_point()  # does not raise
    assert "notes.owner" in caplog.text
    document.clear()
    assert agent.checkpoint() == "agent-1"


# -- replay: iterations that run again change documents once --


def test_a_checkpoint_in_the_middle_of_an_iteration_changes_no_document_twice(simulation: testing.Simulation) -> None:
    def program(agent: savepoint.Agent, until: str) -> list[str]:
        notes = agent.document("notes", [])
        for item in agent.loop("loop", "ab"):
            notes.append(item)
            mine = agent.document("mine", {"items": []})["items"]
            mine.append(item)
            agent.checkpoint()
            mine.append("later")
            if item == until:
                raise StopAsyncIteration
        return [*notes, *agent.document("mine", {})["items"]]

    with pytest.raises(StopAsyncIteration):
        program(simulation.start(), "b")
    simulation.crash(lose_stage=True)
    assert program(simulation.start(), "-") == ["a", "b", "a", "later", "b", "later"]


def test_changes_before_the_first_loop_are_kept(simulation: testing.Simulation) -> None:
    def program(agent: savepoint.Agent, until: int) -> dict[str, Any]:
        state = agent.document("state", {"starts": 0, "iterations": []})
        state["starts"] += 1
        for outer in agent.loop("outer", range(2)):
            state["iterations"].append([outer])
            for inner in agent.loop("inner", range(3)):
                state["iterations"][-1].append(inner)
                simulation.checkpoint_soon()
                if inner == until:
                    raise StopAsyncIteration
        return state

    for until in (1, 2):
        with pytest.raises(StopAsyncIteration):
            program(simulation.start(), until)
        simulation.crash(lose_stage=True)
    assert program(simulation.start(), -1) == {"starts": 3, "iterations": [[0, 0, 1, 2], [1, 0, 1, 2]]}


def test_a_loop_left_by_break_is_left_again_without_repeated_changes(simulation: testing.Simulation) -> None:
    def program(agent: savepoint.Agent, fails: bool) -> tuple[list[Any], Any]:
        notes, found = agent.document("notes", []), None
        for number in agent.loop("search", range(9)):
            notes.append(number)
            if number == 2:
                found = number
                break
        for item in agent.loop("rest", "ab"):
            notes.append(item)
            if fails:
                simulation.checkpoint_soon()
        return notes, found

    program(simulation.start(), True)
    simulation.crash(lose_stage=True)
    assert program(simulation.start(), False) == ([0, 1, 2, "a", "b"], 2)


def test_a_program_that_misses_the_replay_point_is_warned_and_continues(
    simulation: testing.Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    agent = simulation.start()
    notes = agent.document("notes", [])
    for _ in agent.loop("loop", [1]):
        notes.append("first")
        agent.checkpoint()
        break
    simulation.crash(lose_stage=True)
    agent = simulation.start()  # a newer version, without the checkpoint in the iteration
    notes = agent.document("notes", [])
    for _ in agent.loop("loop", [1]):
        notes.append("again")
    assert notes == ["first", "again"]
    assert "did not reach the point where its checkpoint was taken" in caplog.text
    agent.checkpoint()
    assert simulation.checkpoints[-1].documents["notes"] == '["first","again"]'


# -- handles --


def test_a_handle_is_reopened_from_its_descriptor(simulation: testing.Simulation) -> None:
    opened: list[Any] = []

    def reopen(descriptor: Any) -> dict[str, Any]:
        opened.append(descriptor)
        return {"cursor": descriptor["cursor"] if descriptor else 0}

    def describe(cursor: dict[str, Any]) -> dict[str, Any]:
        return {"cursor": cursor["cursor"]}

    simulation.start().handle("search", reopen, describe)["cursor"] = 7
    agent = simulation.start()
    agent.handle("search", reopen, describe)["cursor"] = 7
    agent.checkpoint()
    simulation.crash(lose_stage=True)
    simulation.start().checkpoint()  # a program that does not use it keeps it
    agent = simulation.start()
    assert agent.handle("search", reopen, describe) == {"cursor": 7}
    assert opened == [None, None, {"cursor": 7}]
    agent.handle("bad", lambda _: 1, lambda _: object())
    with pytest.raises(savepoint.NotEncodable, match="handle 'bad'"):
        agent.checkpoint()


# -- loops --


def run_loop(agent: savepoint.Agent, items: Any, until: Any = None, **options: Any) -> list[Any]:
    """Return the items whose iterations ran; leave in the iteration of ``until`` by an exception."""
    ran = []
    for item in agent.loop("loop", items, **options):
        ran.append(item)
        if item == until:
            raise StopAsyncIteration(ran)
    return ran


def run_loop_until(agent: savepoint.Agent, items: Any, until: Any) -> list[Any]:
    with pytest.raises(StopAsyncIteration) as caught:
        run_loop(agent, items, until)
    ran: list[Any] = caught.value.args[0]
    return ran


def test_iterations_finished_in_the_checkpoint_are_skipped_and_the_rest_runs(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    ran = []
    for item in agent.loop("loop", "abcd"):
        ran.append(item)
        if item == "b":
            simulation.checkpoint_soon()  # taken once this iteration is finished
        if item == "d":
            break
    assert ran == ["a", "b", "c", "d"]
    simulation.crash()
    assert run_loop(simulation.start(), "abcd") == ["c", "d"]  # c was finished after the checkpoint


def test_leaving_by_an_exception_keeps_the_position(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    assert run_loop_until(agent, "abc", "b") == ["a", "b"]
    assert run_loop(agent, "abc") == ["b", "c"]  # in the same process as well
    assert run_loop(agent, "abc") == ["a", "b", "c"]  # the first loop is finished: this is the next one of the name


def test_a_finished_loop_collapses_and_is_skipped_without_its_items(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    run_loop(agent, range(1000))
    agent.checkpoint()
    simulation.crash(lose_stage=True)

    def never() -> Iterator[int]:
        raise AssertionError("the items of a finished loop are read")
        yield 0

    agent = simulation.start()
    assert run_loop(agent, never()) == []
    assert run_loop(agent, [7]) == [7]
    assert "1000" not in simulation.checkpoints[-1].components[1][1][0].decode()


def test_a_repeated_key_is_an_error(simulation: testing.Simulation) -> None:
    with pytest.raises(savepoint.LoopKeyRepeated, match=r"'loop'.*two items with the key \"a\""):
        run_loop(simulation.start(), ["a", "b", "a"])


def test_keys_identify_items_in_any_order(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    items = [{"id": 1}, {"id": 2}, {"id": 3}]
    for item in agent.loop("loop", items, key=lambda it: it["id"]):
        if item["id"] == 2:
            break
    agent.checkpoint()
    simulation.crash()
    assert run_loop(simulation.start(), items[::-1], key=lambda it: it["id"]) == [{"id": 3}, {"id": 2}]
    with pytest.raises(savepoint.NotEncodable, match="pass key="):
        run_loop(simulation.start(), items)


def test_an_endless_loop_continues_counting(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    for number in agent.loop("iterations", itertools.count()):
        if number == 5000:
            simulation.checkpoint_soon()
        if number == 5001:
            break
    simulation.crash()
    assert next(iter(simulation.start().loop("iterations", itertools.count()))) == 5001


def test_nested_loops_keep_their_own_positions(simulation: testing.Simulation) -> None:
    def program(agent: savepoint.Agent, until: tuple[str, int] | None) -> list[tuple[str, int]]:
        ran = []
        for outer in agent.loop("outer", "ab"):
            for inner in agent.loop("inner", range(3)):
                ran.append((outer, inner))
                if (outer, inner) == until:
                    simulation.checkpoint_soon()
                    raise StopAsyncIteration
        return ran

    with pytest.raises(StopAsyncIteration):
        program(agent := simulation.start(), ("b", 1))
    agent.safe_point()
    simulation.crash(lose_stage=True)
    assert program(simulation.start(), None) == [("b", 1), ("b", 2)]


def test_break_leaves_the_scope(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    calls = Calls()
    for _ in agent.loop("loop", "ab"):
        agent.step("inside", calls, 1)
        break
    agent.step("inside", calls, 2)  # in another scope, so it is another step
    assert calls.made == [1, 2]


def test_two_loops_of_one_name_at_once_are_refused(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    with pytest.raises(RuntimeError, match="different names"):
        list(zip(agent.loop("loop", "ab"), agent.loop("loop", "ab"), strict=True))


# -- steps --


def test_a_finished_step_is_replayed_after_a_crash_in_place(simulation: testing.Simulation) -> None:
    calls = Calls()
    assert simulation.start().step("ask", calls, ("a", b"b")) == ("a", b"b")
    simulation.crash()
    assert simulation.start().step("ask", calls, ("a", b"b")) == ("a", b"b")
    assert calls.made == [("a", b"b")]


def test_without_the_stage_only_committed_steps_are_replayed(simulation: testing.Simulation) -> None:
    calls = Calls()
    agent = simulation.start()
    agent.step("first", calls, 1)
    agent.checkpoint()
    agent.step("second", calls, 2)
    simulation.crash(lose_stage=True)
    agent = simulation.start()
    agent.step("first", calls, 1)
    agent.step("second", calls, 2)
    assert calls.made == [1, 2, 2]


def test_changed_arguments_are_refused(simulation: testing.Simulation) -> None:
    simulation.start().step("ask", Calls(), 1)
    agent = simulation.start()
    with pytest.raises(savepoint.StepChanged, match=r"'ask'.*agent\.loop"):
        agent.step("ask", Calls(), 2)
    assert agent.step("ask", Calls(), 1) == 1


def test_a_failed_step_is_retried_under_its_own_name(simulation: testing.Simulation) -> None:
    calls = Calls()
    agent = simulation.start()
    with pytest.raises(ValueError, match="no"):
        agent.step("ask", calls.failing(ValueError("no")), 1)
    agent.step("ask", calls, 1)
    agent.step("ask", calls, 2)
    agent = simulation.start()
    assert [agent.step("ask", calls, 1), agent.step("ask", calls, 2)] == [1, 2]
    assert calls.made == [1, 1, 2]


def test_steps_inside_a_step_are_numbered_apart_from_its_neighbours(simulation: testing.Simulation) -> None:
    calls = Calls()

    def program(agent: savepoint.Agent) -> list[Any]:
        inner = agent.step("plan", lambda: agent.step("ask", calls, 1))
        return [inner, agent.step("ask", calls, 2)]

    assert program(simulation.start()) == [1, 2]
    assert program(simulation.start()) == [1, 2]
    assert calls.made == [1, 2]


def test_an_interrupted_step_keeps_the_steps_finished_inside_it(simulation: testing.Simulation) -> None:
    calls = Calls()

    def plan(agent: savepoint.Agent, fails: bool) -> int:
        agent.step("ask", calls, 1)
        if fails:
            raise ValueError("half way")
        return 3

    with pytest.raises(ValueError, match="half way"):
        (agent := simulation.start()).step("plan", lambda: plan(agent, True))
    agent = simulation.start()
    assert agent.step("plan", lambda: plan(agent, False)) == 3
    assert calls.made == [1]


def test_an_unsavable_result_names_its_path(simulation: testing.Simulation) -> None:
    with pytest.raises(savepoint.NotEncodable, match=r"result of step 'ask'\.answers\[1\]"):
        simulation.start().step("ask", lambda: {"answers": [1, object()]})


def test_steps_of_finished_iterations_are_dropped(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    for number in agent.loop("loop", range(100)):
        agent.step("ask", Calls(), f"text {number}")
    agent.checkpoint()
    assert "text" not in simulation.checkpoints[-1].components[1][1][0].decode()


def test_a_step_repeated_across_safe_points_is_warned_about(
    simulation: testing.Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    agent = simulation.start()
    agent.step("a", Calls(), 1)
    agent.step("a", Calls(), 2)
    assert caplog.text == ""
    agent.safe_point()
    agent.step("a", Calls(), 3)
    agent.safe_point()
    agent.step("a", Calls(), 4)
    assert caplog.text.count("put what repeats into agent.loop()") == 1


def test_scopes_separate_names(simulation: testing.Simulation) -> None:
    calls = Calls()

    def program(agent: savepoint.Agent) -> None:
        for reviewer in ("kind", "strict"):
            with agent.scope(reviewer):
                agent.step("review", calls, reviewer)

    program(simulation.start())
    simulation.checkpoint_soon()
    agent = simulation.start()
    program(agent)
    agent.checkpoint()
    simulation.crash(lose_stage=True)
    program(simulation.start())
    assert calls.made == ["kind", "strict"]


# -- effects --


def send(agent: savepoint.Agent, sent: list[str], **options: Any) -> Any:
    def body(op: savepoint.Operation) -> int:
        sent.append(op.id)
        return len(sent)

    return agent.effect("mail", body, **options)


def test_a_confirmed_effect_is_skipped_and_its_result_returned(simulation: testing.Simulation) -> None:
    sent: list[str] = []
    assert send(simulation.start(), sent) == 1
    simulation.crash()
    assert send(simulation.start(), sent) == 1
    assert len(sent) == 1


def test_effects_are_distinguished_by_scope_name_key_and_order(simulation: testing.Simulation) -> None:
    sent: list[str] = []
    agent = simulation.start()
    for _ in agent.loop("loop", "ab"):
        send(agent, sent)
        send(agent, sent)
        send(agent, sent, key="k")
        send(agent, sent, key="k")  # the same effect
    assert len(sent) == len(set(sent)) == 6


def uncertain(simulation: testing.Simulation, sent: list[str]) -> savepoint.Agent:
    """Return an agent that was restarted after it died while sending."""

    def dies(op: savepoint.Operation) -> None:
        sent.append(op.id)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulation.start().effect("mail", dies, risk="high")
    simulation.crash()
    return simulation.start()


def test_an_uncertain_effect_is_reported(simulation: testing.Simulation) -> None:
    sent: list[str] = []
    agent = uncertain(simulation, sent)
    (found,) = agent.uncertain()
    assert (found.id, found.name, found.risk) == (sent[0], "mail", "high")
    with pytest.raises(savepoint.EffectUncertain, match="never confirmed") as caught:
        send(agent, sent)
    assert caught.value.effect_id == sent[0]
    assert len(sent) == 1


def test_an_uncertain_effect_can_be_confirmed(simulation: testing.Simulation) -> None:
    sent: list[str] = []
    agent = uncertain(simulation, sent)
    agent.uncertain()[0].confirm({"status": "seen"})
    assert agent.uncertain() == []
    simulation.crash()
    assert send(simulation.start(), sent) == {"status": "seen"}
    assert len(sent) == 1


def test_an_uncertain_effect_can_be_resent_under_its_id(simulation: testing.Simulation) -> None:
    sent: list[str] = []
    agent = uncertain(simulation, sent)
    agent.uncertain()[0].retry()
    simulation.crash()
    assert send(simulation.start(), sent) == 2
    assert sent[0] == sent[1]


@pytest.mark.parametrize(("policy", "result", "times"), [("retry", 2, 2), ("skip", None, 1)])
def test_the_caller_may_decide_in_advance(simulation: testing.Simulation, policy: Any, result: Any, times: int) -> None:
    sent: list[str] = []
    agent = uncertain(simulation, sent)
    assert send(agent, sent, on_uncertain=policy) == result
    assert send(simulation.start(), sent) == result
    assert len(sent) == times
    assert len(set(sent)) == 1


def test_a_body_may_say_that_nothing_was_sent(simulation: testing.Simulation) -> None:
    def refused(op: savepoint.Operation) -> None:
        op.not_sent()
        raise ConnectionRefusedError

    sent: list[str] = []
    agent = simulation.start()
    with pytest.raises(ConnectionRefusedError):
        agent.effect("mail", refused)
    assert agent.uncertain() == []
    assert send(agent, sent) == 1


def test_a_with_block_runs_again_under_the_same_id(simulation: testing.Simulation) -> None:
    seen = []
    for fails in (True, False, False):
        agent = simulation.start()
        try:
            with agent.effect("mail", key=7) as op:
                seen.append((op.id, op.sent_before, op.confirmed, op.result))
                if fails:
                    raise ValueError
                op.confirm("done")
        except ValueError:
            assert len(agent.uncertain()) == 1
    identity = seen[0][0]
    assert seen == [
        (identity, False, False, None),
        (identity, True, False, None),
        (identity, True, True, "done"),
    ]


def test_a_fenced_agent_sends_nothing(simulation: testing.Simulation) -> None:
    sent: list[str] = []
    agent = simulation.start()
    simulation.fence("another pod may run")
    with pytest.raises(savepoint.Superseded, match="another pod may run"):
        send(agent, sent)
    simulation.unfence()
    assert send(agent, sent) == 1


def test_uncertain_effects_are_part_of_the_checkpoint(simulation: testing.Simulation) -> None:
    sent: list[str] = []
    agent = uncertain(simulation, sent)
    agent.checkpoint()
    assert simulation.checkpoints[-1].uncertain == tuple(sent)
    simulation.crash(lose_stage=True)
    assert [item.id for item in simulation.start().uncertain()] == sent


def test_an_unsavable_result_of_an_effect_raises_and_the_effect_stays_confirmed(simulation: testing.Simulation) -> None:
    sent: list[str] = []

    def body(op: savepoint.Operation) -> object:
        sent.append(op.id)
        return object()

    agent = simulation.start()
    with pytest.raises(savepoint.NotEncodable):
        agent.effect("mail", body)
    assert send(simulation.start(), sent) is None
    assert len(sent) == 1


# -- the end of a run, and agents that are not managed --


def test_the_next_run_starts_fresh_with_new_ids(simulation: testing.Simulation) -> None:
    sent: list[str] = []
    for _ in range(2):
        agent = simulation.start()
        assert agent.restored is None
        notes = agent.document("notes", [])
        notes.append(1)
        assert notes == [1]
        send(agent, sent)
        agent.finish()
        with pytest.raises(savepoint.Unavailable, match="finished"):
            agent.safe_point()
    assert len(set(sent)) == 2


def test_no_checkpoint_inside_critical(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    with agent.critical():
        simulation.checkpoint_soon()
        agent.safe_point()
        assert simulation.checkpoints == []
        with pytest.raises(savepoint.NotAtSafePoint):
            agent.checkpoint()
    agent.safe_point()
    assert len(simulation.checkpoints) == 1


def test_the_position_is_described_in_words(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    for number in agent.loop("docs", [1, 2, 3]):
        if number == 2:
            simulation.checkpoint_soon()
            agent.safe_point()
            break
    assert simulation.checkpoints[-1].step == "docs 2 of 3"


def test_an_unmanaged_agent_works_in_memory_and_logs_it_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SAVEPOINT_SOCKET", raising=False)
    monkeypatch.delenv("SAVEPOINT_REQUIRED", raising=False)
    with caplog.at_level(logging.INFO):
        agent = savepoint.connect()
        agent.document("notes", []).append(1)
        calls = Calls()
        sent: list[str] = []
        for item in agent.loop("loop", "ab"):
            agent.step("ask", calls, item)
            send(agent, sent)
        agent.tensors("weights", lambda: {"w": b"x"})
        agent.safe_point()
        assert (agent.checkpoint(), agent.finish(), agent.managed, agent.restored) == ("", "", False, None)
    assert calls.made == ["a", "b"]
    assert len(caplog.records) == 1


def test_a_required_agent_that_is_not_managed_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAVEPOINT_SOCKET", raising=False)
    monkeypatch.setenv("SAVEPOINT_REQUIRED", "1")
    with pytest.raises(savepoint.Unavailable, match="SAVEPOINT_REQUIRED"):
        savepoint.connect()
