"""Tests of the process table and of the rules by which processes are ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from savepoint_cli import process_table
from savepoint_cli.leftovers import find_leftovers, record
from savepoint_cli.process_table import Ending, Process, ancestors, descendants, find, is_running
from savepoint_cli.signal_count import SignalCount

A, B = Process(2_000_000_001, 1, 1), Process(2_000_000_002, 1, 1)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Process, int]]:
    signals: list[tuple[Process, int]] = []
    monkeypatch.setattr(process_table, "send", lambda process, number: signals.append((process, number)))
    return signals


def test_processes_are_asked_once_and_killed_when_the_time_is_up(sent: list[tuple[Process, int]]) -> None:
    left = [A]
    ending = Ending(lambda: left, 0.0, 3.0, 0.25)
    assert ending.step(0.1) is None and not sent
    assert ending.step(0.3) is None and ending.step(0.4) is None
    assert sent == [(A, signal.SIGTERM), (A, signal.SIGCONT)]
    left.append(B)  # a new one is asked too
    assert ending.step(0.5) is None and sent[2:] == [(B, signal.SIGTERM), (B, signal.SIGCONT)]
    left.remove(A)
    assert ending.step(3.3) is None and sent[4:] == [(B, signal.SIGKILL)]
    assert ending.step(8.4) == [B]
    left.clear()
    assert ending.step(8.5) == []


def test_a_process_is_not_confused_with_a_later_one_of_its_number() -> None:
    own = find(os.getpid())
    assert own is not None and own.parent == os.getppid()
    assert is_running(own.pid, own.start) and not is_running(own.pid, own.start + 1)
    assert find(2_000_000_000) is None and not is_running(2_000_000_000, 1)
    process_table.send(own._replace(start=own.start + 1), signal.SIGKILL)  # survives it


def test_a_name_with_spaces_and_brackets_is_parsed(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "60"])
    try:
        found = find(child.pid)
        assert found is not None and found.parent == os.getpid()
        assert child.pid in [each.pid for each in descendants([os.getpid()])]
        assert os.getpid() in ancestors(child.pid)
    finally:
        child.kill()
        assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert find(child.pid) is None  # what is left of it counts as ended
        child.wait()


def test_leftovers_are_found_by_their_stage_and_by_the_record(tmp_path: Path) -> None:
    wait = [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"]
    marked, recorded, other = (
        subprocess.Popen(wait, env={**os.environ, "SAVEPOINT_STAGE": stage}, stdout=subprocess.PIPE)
        for stage in (str(tmp_path), "/elsewhere", f"{tmp_path}x")
    )
    try:
        for each in (marked, recorded, other):
            assert each.stdout is not None and each.stdout.readline()
        process = find(recorded.pid)
        assert process is not None
        record(tmp_path / "processes", process, process._replace(pid=other.pid, start=process.start + 10_000))
        assert {each.pid for each in find_leftovers(tmp_path / "processes", tmp_path)} == {marked.pid, recorded.pid}
        (tmp_path / "processes").write_text('{"boot": "another", "processes": [[1, 1]]}')
        assert [each.pid for each in find_leftovers(tmp_path / "processes", tmp_path)] == [marked.pid]
        (tmp_path / "processes").write_text("damaged")
        assert [each.pid for each in find_leftovers(tmp_path / "processes", tmp_path)] == [marked.pid]
    finally:
        for each in (marked, recorded, other):
            each.kill()
            each.communicate()


def test_signals_within_a_moment_count_once() -> None:
    count, now = SignalCount(), time.monotonic()
    assert [count.add(15, now), count.add(15, now + 0.05), count.add(2, now + 0.06)] == [1, 0, 2]
    assert count.add(15, now + 1) == 3
