"""Tests of the agent's lock: who holds it, and how long a start waits for a supervisor that was killed."""

import fcntl
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from savepoint_cli.agent_lock import AlreadyRunning, agent_lock
from savepoint_cli.leftovers import describe_holder, own_identity

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    handle = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield handle
    os.close(handle)


def test_the_holder_is_named(tmp_path: Path) -> None:
    command = ("python", "agent.py", "two\nlines")
    with agent_lock(tmp_path / "lock", command, NOW), pytest.raises(AlreadyRunning) as caught:  # noqa: SIM117
        with agent_lock(tmp_path / "lock", ("other",), NOW):
            pass
    assert str(caught.value) == f"pid {os.getpid()} since 2026-01-02 03:04:05 UTC (python agent.py two lines)"


def test_a_start_waits_while_a_killed_supervisors_processes_are_ended(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.write(held, f"pid 1 since then (agent)\n{own_identity()}9\n".encode())
    monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(held, fcntl.LOCK_UN))
    with agent_lock(tmp_path / "lock", ("true",), NOW):
        assert f"pid {os.getpid()} since" in (tmp_path / "lock").read_text()


def test_a_start_does_not_wait_forever(tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    os.write(held, f"pid 1 since then (agent)\n{own_identity()}9\n".encode())
    times = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(AlreadyRunning, match="an earlier run, pid 1 since then"):  # noqa: SIM117
        with agent_lock(tmp_path / "lock", ("true",), NOW):
            pass


@pytest.mark.parametrize("text", ["", "pid 5 since then (an older version)", "pid 5\nno identity"])
def test_a_holder_that_cannot_be_identified_counts_as_running(text: str) -> None:
    assert describe_holder(text)[1]


def test_a_holder_is_not_confused_with_a_later_process_of_its_number() -> None:
    boot, pid, start = own_identity().split()
    assert describe_holder(f"this\n{boot} {pid} {start}") == ("this", True)
    assert describe_holder(f"this\n{boot} {pid} {int(start) + 1}") == ("this", False)
    assert describe_holder(f"this\nearlier-boot {pid} {start}") == ("this", False)
