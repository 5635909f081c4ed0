"""``savepoint run`` with real processes: the agent and its supervisor are repeatedly killed at random moments.

The agent records, outside of its state, each real call of a step's function, so that a repeated step is noticed.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from savepoint_sidecar.restore.markers import MARKER_ATTRIBUTE

AGENT = """
import json, os, pathlib, sys, time
import savepoint

calls, state = pathlib.Path(os.environ["CALLS"]), pathlib.Path(os.environ["STATE"])

def report(name, value):
    with open(calls, "a") as file:
        file.write(json.dumps({name: value}) + "\\n")

def replace(name, content):
    (state / ".new").write_bytes(content)
    (state / ".new").rename(state / name)

def work(item):
    # it may run again: what a killed call left is written over
    report("step", item)
    time.sleep(float(os.environ["STEP_SECONDS"]))
    replace("blob", bytes([item % 251]) * (1000 * (item + 1)))
    lines = (state / "log.txt").read_text().splitlines() if item else []
    replace("log.txt", "".join(f"{line}\\n" for line in [*lines[:item], f"{item}={item * 7}"]).encode())
    return item * 7

agent = savepoint.connect()
notes = agent.document("notes", default={"items": [], "sum": 0})
lines = (state / "log.txt").read_text().splitlines() if (state / "log.txt").exists() else []
blob = (state / "blob").read_bytes() if (state / "blob").exists() else b""
report("connected", {
    "items": len(notes["items"]), "lines": len(lines), "blob": len(blob),
    "stray": (state / "stray").exists(), "checkpoint": agent.restored.checkpoint if agent.restored else None,
    "how": agent.restored.how if agent.restored else None, "pid": os.getpid(),
})
for item in agent.loop("items", range(int(os.environ["ITEMS"]))):
    result = agent.step("work", work, item)
    (state / "stray").write_text("between safe points")
    (state / "stray").unlink()
    notes["items"].append(item)
    notes["sum"] += result
agent.finish()
report("finished", {"items": notes["items"], "sum": notes["sum"]})
"""


LAST_ITEMS = 30


@dataclass
class Laptop:
    """A store, a state folder, and an agent that reports its steps."""

    folder: Path
    items: int = 60
    step_seconds: float = 0.01
    runs: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(self, *more: str, interval: str = "0.15", command: list[str] | None = None) -> "subprocess.Popen[bytes]":
        """Start ``savepoint run`` in the background."""
        arguments = ["run", "--store", str(self.folder / "store"), "--agent", "worker", "--interval", interval, *more]
        if command is None:
            (self.folder / "agent.py").write_text(AGENT)
            arguments += ["--state", str(self.folder / "state")]
            command = [sys.executable, str(self.folder / "agent.py")]
        with (self.folder / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "savepoint_cli.main", *arguments, "--", *command],
                env=self.environment(),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self.runs.append(process)
        return process

    def savepoint(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run another command and return its result."""
        return subprocess.run(
            [sys.executable, "-m", "savepoint_cli.main", *arguments],
            env=self.environment(),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "CALLS": str(self.folder / "calls"),
            "STATE": str(self.folder / "state"),
            "ITEMS": str(self.items),
            "STEP_SECONDS": str(self.step_seconds),
        }

    def reports(self, name: str) -> list[dict[str, object]]:
        """Return the agent's reports of this name."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [each[name] for each in map(json.loads, lines) if name in each]

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def agent_pid(self) -> int:
        """Return the process id of the agent that connected last."""
        return int(str(self.reports("connected")[-1]["pid"]))

    def await_reports(self, name: str, count: int, process: "subprocess.Popen[bytes]", seconds: float = 30) -> None:
        """Wait until there are this many reports of this name, or the run has ended."""
        end = time.monotonic() + seconds
        while len(self.reports(name)) < count and process.poll() is None:
            assert time.monotonic() < end, f"no report {name} number {count}: {self.stderr()}"
            time.sleep(0.01)

    def check(self, kills: int) -> None:
        """Check that the agent finished undisturbed, and that only steps in flight at a kill ran again."""
        self.check_finished()
        for each in self.reports("connected"):
            items, lines, blob = (int(str(each[name])) for name in ("items", "lines", "blob"))
            assert items <= lines and blob in (1000 * lines, 1000 * (lines + 1)), f"older than documents: {each}"
        calls = Counter(map(str, self.reports("step")))
        assert sum(calls.values()) - self.items <= kills, f"finished steps ran again: {calls}"
        assert max(calls.values()) <= 1 + kills

    def check_finished(self) -> None:
        """Check that documents and files are those of an undisturbed run, and that each step ran."""
        items = list(range(self.items))
        (finished,) = self.reports("finished")
        assert finished == {"items": items, "sum": sum(items) * 7}
        state = self.folder / "state"
        assert (state / "log.txt").read_text() == "".join(f"{item}={item * 7}\n" for item in items)
        assert (state / "blob").read_bytes() == bytes([items[-1] % 251]) * (1000 * (items[-1] + 1))
        assert {str(item) for item in items} == set(map(str, self.reports("step")))


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    (tmp_path / "state").mkdir()
    laptop = Laptop(tmp_path)
    yield laptop
    for process in laptop.runs:
        process.kill()
        process.wait()


def kill_and_run(laptop: Laptop, kills: int, seed: int, victim: str, *options: str) -> int:
    """Run, kill at a random moment after the agent has connected, and run again; finally let it finish.

    Return the number of kills.

    Do not kill during the last items: an agent that is killed after its run is completed, and before it has reported
    that, starts the next run.
    """
    generator = random.Random(seed)
    killed = 0
    while True:
        before = len(laptop.reports("connected"))
        process = laptop.start(*options)
        laptop.await_reports("connected", before + 1, process)
        if killed < kills:
            time.sleep(generator.uniform(0.0, 0.4))  # between none and three checkpoints
            if process.poll() is None and len({*map(str, laptop.reports("step"))}) < laptop.items - LAST_ITEMS:
                os.kill(process.pid if victim == "supervisor" else laptop.agent_pid(), signal.SIGKILL)
                killed += 1
        status = process.wait(60)
        if status == 0:
            break
        assert status in (-signal.SIGKILL, 128 + signal.SIGKILL), laptop.stderr()
    assert killed >= kills * 2 // 3, "the agent finished before it could be killed often enough: give it more items"
    return killed


@pytest.mark.timeout(300)
def test_an_agent_that_is_killed_twenty_times_repeats_no_finished_step(laptop: Laptop) -> None:
    laptop.items = 400
    laptop.check(kill_and_run(laptop, 20, 1, "agent"))
    verified = laptop.savepoint("verify", str(laptop.folder / "store"), "--all")
    assert verified.returncode == 0, verified.stderr


@pytest.mark.timeout(300)
def test_an_agent_continues_after_its_supervisor_was_killed(laptop: Laptop) -> None:
    """The moments are random; the critical ones have their own tests."""
    laptop.items = 200
    laptop.check(kill_and_run(laptop, 6, 2, "supervisor"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["agent", "supervisor"])
def test_files_that_are_set_back_are_of_the_same_checkpoint_as_documents(laptop: Laptop, victim: str) -> None:
    laptop.items = 100
    kill_and_run(laptop, 4, 3, victim, "--on-restart", "restore")
    laptop.check_finished()
    for each in laptop.reports("connected"):
        assert each["items"] == each["lines"], "files and documents are not of the same checkpoint"
        assert each["blob"] == 1000 * int(str(each["items"])) and not each["stray"], each


@pytest.mark.parametrize(
    "failpoint",
    [
        "before-quiesce",
        "after-quiesce",
        "while-quiesced",
        "while-storing",
        "between-puts",
        "before-manifest",
        "before-offer",
        "after-commit",
        "after-result",
    ],
)
def test_a_supervisor_that_is_killed_at_a_failpoint_loses_nothing(
    laptop: Laptop, failpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAVEPOINT_FAILPOINT", f"{failpoint}:2")
    process = laptop.start()
    assert process.wait(60) == -signal.SIGKILL, laptop.stderr()
    monkeypatch.delenv("SAVEPOINT_FAILPOINT")
    assert laptop.start().wait(60) == 0, laptop.stderr()
    laptop.check(1)


def test_the_agent_dies_with_its_supervisor(laptop: Laptop) -> None:
    laptop.step_seconds = 5
    process = laptop.start()
    laptop.await_reports("connected", 1, process)
    pid = laptop.agent_pid()
    process.kill()
    process.wait()
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < end, "the agent outlived its supervisor"
        time.sleep(0.01)


def test_a_second_run_names_the_process_that_runs_the_agent(laptop: Laptop) -> None:
    laptop.step_seconds = 5
    process = laptop.start()
    laptop.await_reports("connected", 1, process)
    second = laptop.savepoint("run", "--store", str(laptop.folder / "store"), "--agent", "worker", "--", "true")
    assert second.returncode == 75
    assert f"pid {process.pid}" in second.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_causes_a_final_checkpoint(laptop: Laptop, number: signal.Signals) -> None:
    laptop.step_seconds = 0.02  # the signal arrives well before the end
    process = laptop.start(interval="600")
    laptop.await_reports("step", 10, process)
    process.send_signal(number)
    assert process.wait(30) == 128 + signal.SIGTERM, laptop.stderr()
    log = laptop.savepoint("log", str(laptop.folder / "store")).stdout
    assert "Shutdown" in log
    assert laptop.start().wait(60) == 0, laptop.stderr()
    assert int(str(laptop.reports("connected")[1]["items"])) >= 9
    laptop.check(0)


def test_the_exit_status_is_passed_on(laptop: Laptop) -> None:
    assert laptop.start(command=["sh", "-c", "exit 7"]).wait(30) == 7
    assert laptop.start(command=["sh", "-c", "kill -SEGV $$"]).wait(30) == 128 + signal.SIGSEGV
    assert laptop.start(command=["no-such-command"]).wait(30) == 127


def test_a_lost_folder_of_an_agent_without_the_sdk_is_restored(laptop: Laptop) -> None:
    state = laptop.folder / "state"
    script = f"mkdir -p {state}/deep && echo one > {state}/deep/a && ln -s a {state}/deep/l && chmod 750 {state}/deep"
    shell = ["sh", "-c", script]
    assert laptop.start("--state", str(state), command=shell).wait(30) == 0, laptop.stderr()
    for each in (state / "deep" / "a", state / "deep" / "l"):
        each.unlink()
    (state / "deep").rmdir()
    (state / ".savepoint" / "marker.json").unlink()
    read = ["sh", "-c", f"cat {state}/deep/l && stat -c %a {state}/deep"]
    assert laptop.start("--state", str(state), command=read).wait(30) == 0, laptop.stderr()
    assert (state / "deep" / "l").readlink() == Path("a")
    assert (state / "deep" / "a").read_text() == "one\n"
    assert (state / "deep").stat().st_mode & 0o777 == 0o750


def test_a_users_files_are_not_overwritten(laptop: Laptop) -> None:
    """The folder is another one than the agent's, which no marker and no record in the store proves to be its own."""
    state = laptop.folder / "state"
    assert laptop.start("--state", str(state), command=["sh", "-c", f"echo one > {state}/a"]).wait(30) == 0
    state.rename(laptop.folder / "moved")
    state.mkdir()
    (state / "a").write_text("the user's own")
    assert laptop.start("--state", str(state), command=["true"]).wait(30) == 1
    assert "TargetNotEmpty" in laptop.stderr()
    assert (state / "a").read_text() == "the user's own"


def test_a_folder_that_lost_its_marker_keeps_its_files(laptop: Laptop) -> None:
    state = laptop.folder / "state"
    assert laptop.start("--state", str(state), command=["sh", "-c", f"echo one > {state}/a"]).wait(30) == 0
    shutil.rmtree(state / ".savepoint")
    with suppress(OSError):  # a file system without attributes
        os.removexattr(state, MARKER_ATTRIBUTE)
    (state / "a").write_text("newer")
    assert laptop.start("--state", str(state), command=["true"]).wait(30) == 0, laptop.stderr()
    assert (state / "a").read_text() == "newer"


def run_with(laptop: Laptop, states: list[str], script: str, *more: str) -> int:
    """Run a shell script as an agent with these state folders, and return the exit status."""
    options = [option for state in states for option in ("--state", str(laptop.folder / state))]
    return laptop.start(*options, *more, command=["sh", "-ec", f"cd {laptop.folder}; {script}"]).wait(30)


def test_two_lost_folders_of_one_base_name_are_restored_to_their_own_places(laptop: Laptop) -> None:
    states = ["alice/data", "bob/data"]
    write = "echo alice > alice/data/a; echo bob > bob/data/b"
    assert run_with(laptop, states, write) == 0, laptop.stderr()
    for each in ("alice", "bob"):
        shutil.rmtree(laptop.folder / each)
    check = "test $(cat alice/data/a) = alice -a $(cat bob/data/b) = bob -a ! -e bob/data/a -a ! -e alice/data/b"
    assert run_with(laptop, states[::-1], check) == 0, laptop.stderr()


def test_a_renamed_state_folder_is_refused_then_moved_then_dropped(laptop: Laptop) -> None:
    folder = laptop.folder
    assert run_with(laptop, ["old"], "echo precious > old/work") == 0, laptop.stderr()
    assert run_with(laptop, ["new"], "touch started") == 1
    assert "StateLeftBehind" in laptop.stderr() and str(folder / "old") in laptop.stderr()
    assert not (folder / "started").exists() and not (folder / "new").exists(), "a refused run changes nothing"
    moved = ("--move-state", str(folder / "old"), str(folder / "new"))
    assert run_with(laptop, ["new"], "test $(cat new/work) = precious; echo more > new/more", *moved) == 0
    shutil.rmtree(folder / "new")
    assert run_with(laptop, ["new"], "test -e new/work -a -e new/more") == 0, "the move was not remembered"
    assert run_with(laptop, ["other"], "echo x > other/x") == 1
    assert run_with(laptop, ["other"], "echo x > other/x", "--drop-state", str(folder / "new")) == 0, laptop.stderr()
    assert run_with(laptop, ["other"], "test -e other/x") == 0, "the drop was not remembered"


def test_a_file_as_state_is_refused_before_a_store_is_created(laptop: Laptop) -> None:
    (laptop.folder / "agent.db").write_text("rows")
    assert run_with(laptop, ["agent.db"], "true") == 1
    assert "StatePathInvalid" in laptop.stderr() and "Traceback" not in laptop.stderr()
    assert not (laptop.folder / "store").exists() and (laptop.folder / "agent.db").read_text() == "rows"


def test_a_folder_in_another_one_is_restored_with_it(laptop: Laptop) -> None:
    states = ["proj", "proj/data"]
    assert (
        run_with(
            laptop,
            states,
            "echo code > proj/main; echo rows > proj/data/rows",
        )
        == 0
    ), laptop.stderr()
    shutil.rmtree(laptop.folder / "proj")
    assert run_with(laptop, states[::-1], "test -e proj/main -a -e proj/data/rows") == 0, laptop.stderr()
