"""Tests of the commands that continue a run: which ones are the same program, and which are refused."""

from pathlib import Path

import pytest
from savepoint.errors import AgentNameTaken
from savepoint_cli.command_record import COMMANDS_KEPT, check_command, identity, read_record, record_command
from savepoint_cli.run_options import RunOptions

SAME = [
    (["python", "agent.py"], ["python3.12", "-u", "./agent.py"]),
    (["python", "agent.py", "--x"], ["/usr/bin/env", "python", "sub/../agent.py", "--x"]),
    (["python", "-m", "crew"], ["uv", "run", "python", "-m", "crew"]),
    (["./run"], ["run/../run"]),
]
DIFFERENT = [
    (["python", "agent.py"], ["python", "other/agent.py"]),
    (["python", "agent.py"], ["python", "agent.py", "--customer", "A"]),
    (["python", "agent.py", "a b"], ["python", "agent.py", "a", "b"]),
    (["python", "-m", "crew_a"], ["python", "-m", "crew_b"]),
    (["python", "-m", "crew", "A"], ["python", "-m", "crew", "B"]),
    (["bash", "-c", "a.sh"], ["bash", "-c", "b.sh"]),
    (["python", "-c", "1"], ["python", "-c", "2"]),
    (["node", "index.js"], ["node", "other.js"]),
    (["./run"], ["../run"]),
]


def options(command: list[str], agent: str = "") -> RunOptions:
    return RunOptions(Path("store"), agent or "agent", tuple(command), default_name=not agent)


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_program_continues_its_run(one: list[str], other: list[str], tmp_path: Path) -> None:
    assert identity(one) == identity(other)
    record_command(tmp_path, 1, options(one))
    check_command(tmp_path, 1, options(other), has_values=True)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_another_program_does_not_continue_the_run(one: list[str], other: list[str], tmp_path: Path) -> None:
    record_command(tmp_path, 1, options(one))
    with pytest.raises(AgentNameTaken, match="--agent agent"):
        check_command(tmp_path, 1, options(other), has_values=True)
    check_command(tmp_path, 2, options(other), has_values=True)  # the first run is completed
    check_command(tmp_path, 1, options(other), has_values=False)  # files only: the state folders are compared
    check_command(tmp_path, 1, options(other, "agent"), has_values=True)  # an explicit word
    record_command(tmp_path, 1, options(other, "agent"))
    for command in (one, other):
        check_command(tmp_path, 1, options(command), has_values=True)


def test_a_module_is_identified_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "crew").mkdir(parents=True)
    found = set()
    for name in ("a", "b"):
        monkeypatch.chdir(tmp_path / name)
        found.add(identity(["python", "-m", "crew"]))
    assert len(found) == 2


def test_two_given_names_that_the_store_cannot_distinguish_are_refused(tmp_path: Path) -> None:
    record_command(tmp_path, 1, options(["a"], "Crew_A"))
    with pytest.raises(AgentNameTaken, match="'Crew_A' and 'crew-a'"):
        check_command(tmp_path, 1, options(["a"], "crew-a"), has_values=False)
    check_command(tmp_path, 1, options(["a"], "Crew_A"), has_values=True)
    check_command(tmp_path, 2, options(["a"], "crew-a"), has_values=True)


def test_a_name_may_be_given_after_it_was_the_default(tmp_path: Path) -> None:
    record_command(tmp_path, 1, options(["a"]))
    check_command(tmp_path, 1, options(["b"], "my-agent"), has_values=True)
    record_command(tmp_path, 1, options(["b"], "my-agent"))
    record_command(tmp_path, 1, options(["a"]))
    record = read_record(tmp_path)
    assert record is not None and record.name == "my-agent" and record.commands == (("a",), ("b",))


def test_a_stage_without_a_record_or_with_a_damaged_one_is_accepted(tmp_path: Path) -> None:
    check_command(tmp_path, 1, options(["a"]), has_values=True)
    record_command(tmp_path, 1, options(["a"]))
    (record,) = tmp_path.iterdir()
    for content in ("", "[]", '{"run": 1, "name": "", "commands": []}', '{"run": "x"}', "\xff"):
        record.write_text(content)
        check_command(tmp_path, 1, options(["b"]), has_values=True)
    record_command(tmp_path, 1, options(["b"]))
    assert read_record(tmp_path) is not None


def test_the_number_of_commands_is_bounded(tmp_path: Path) -> None:
    for number in range(COMMANDS_KEPT + 5):
        record_command(tmp_path, 1, options(["a", str(number)], "agent"))
    record_command(tmp_path, 1, options(["a", "x" * 100_000], "agent"))
    record = read_record(tmp_path)
    assert record is not None and len(record.commands) == COMMANDS_KEPT
    assert record.commands[:2] == (("a", "x" * 100_000), ("a", str(COMMANDS_KEPT + 4)))
