"""Restored values are checked: invalid ones are refused, and for a newer format the error names the remedy."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import savepoint
from hypothesis import given
from hypothesis import strategies as st
from savepoint.contract.agent_protocol import Component, Entry
from savepoint.sdk.journal import FileJournal, NoJournal
from savepoint.sdk.ledger import Effect
from savepoint.sdk.scope import StepRecord
from savepoint.sdk.stage import Stage
from savepoint.sdk.state import State


def restore(name: str, value: Any) -> State:
    state = State(NoJournal(), None)
    text = json.dumps(value)
    state.restore([Component(name, "Execution", (Entry(name, "json", len(text), inline=text),))])
    return state


@pytest.mark.parametrize("name", ["execution", "effects"])
def test_a_newer_version_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(savepoint.SavepointError, match="install a newer savepoint-agents") as caught:
        restore(name, {"version": 2})
    assert caught.value.reason == "SchemaTooNew"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("execution", []), ("execution", {}), ("execution", {"version": 1, "journal": "x"}),
        ("execution", {"version": 1, "scopes": []}), ("execution", {"version": 1, "scopes": {"steps": {"a": 1}}}),
        ("execution", {"version": 1, "scopes": {"loops": {"a#0": {"ranges": [1]}}}}),
        ("execution", {"version": 1, "at": {"scope": 1}}), ("effects", {"version": 1, "effects": {"a": {}}}),
        ("effects", {"version": 1, "effects": []}), ("effects", {"version": 1, "effects": {"a": {"state": "Lost"}}}),
    ],
)  # fmt: skip
def test_invalid_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(savepoint.RestoreFailed):
        restore(name, value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["steps", "loops", "below", "at", "scope", "loop", "effects", "state", "ranges", "a"]), inner
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from(["execution", "effects"]), plain, plain)
def test_invalid_values_raise_nothing_but_our_errors(name: str, scopes: Any, at: Any) -> None:
    with contextlib.suppress(savepoint.SavepointError):
        restore(name, {"version": 1, "scopes": scopes, "at": at, "effects": scopes})


def test_a_restored_file_of_another_length_is_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / "d").write_text("[1]")
    state = State(NoJournal(), stage)
    with pytest.raises(savepoint.RestoreFailed, match="not 4 bytes long"):
        state.restore([Component("documents", "Memory", (Entry("d", "json", 4, path="restored/d"),))])


def test_a_damaged_journal_record_is_reported(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    list(journal.replay(0))
    journal.append({"t": "step"}, durable=False)
    journal.close()
    with pytest.raises(savepoint.RestoreFailed, match="journal"):
        State(FileJournal(tmp_path), None).restore([])


def test_records_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    list(journal.replay(0))
    journal.append({"t": "levitate"}, durable=False)
    journal.append({"t": "confirmed", "id": "unknown", "r": "1"}, durable=False)
    journal.close()
    assert State(FileJournal(tmp_path), None).restore([]) == 0


def journaled(folder: Path, *steps: str) -> None:
    """Record finished steps of these names, as one process, and an effect that was sent."""
    state = State(FileJournal(folder), None)
    state.restore([])
    for name in steps:
        state.record_step(state.root, name, StepRecord("digest", f'"{name}"'))
    state.record_sent(Effect("e1", "", "mail", "", "", "2026-01-01T00:00:00Z"))
    state.journal.close()


def recorded(folder: Path, *, steps_count: bool = True) -> list[str]:
    """Return the steps of which a new process knows, and check that it knows the effect."""
    state = State(FileJournal(folder), None)
    assert state.restore([], steps_count=steps_count) == len(state.root.steps)
    state.journal.close()
    assert state.ledger.get("e1") is not None
    return sorted(state.root.steps)


def test_steps_whose_files_were_set_back_run_again_and_effects_do_not(tmp_path: Path) -> None:
    journaled(tmp_path, "a#0", "b#0")
    assert recorded(tmp_path) == ["a#0", "b#0"]
    assert recorded(tmp_path, steps_count=False) == []
    assert recorded(tmp_path) == [], "they count again after the next crash, although their files were set back"


def test_steps_that_ran_after_the_files_were_set_back_count(tmp_path: Path) -> None:
    journaled(tmp_path, "a#0", "b#0")
    recorded(tmp_path, steps_count=False)
    journaled(tmp_path, "a#0")
    assert recorded(tmp_path) == ["a#0"]


def test_steps_of_the_checkpoint_stay_when_files_are_set_back(tmp_path: Path) -> None:
    text = '{"version": 1, "journal": 0, "scopes": {"steps": {"a#0": ["old", "1"]}}}'
    components = [Component("execution", "Execution", (Entry("execution", "json", len(text), inline=text),))]
    first = State(FileJournal(tmp_path), None)
    first.restore(components)
    before = dict(first.root.steps)
    first.record_step(first.root, "a#0", StepRecord("new", "2"))
    first.journal.close()
    state = State(FileJournal(tmp_path), None)
    state.restore(components, steps_count=False)
    assert state.root.steps == before and before
