"""The processes of ``savepoint run``: none of the agent's survives its run, and the terminal works as in a shell."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from savepoint_cli.process_table import Process, descendants, find, is_running

SDK_AGENT = """
import os, pathlib, sys, time, savepoint
agent = savepoint.connect()
turns = agent.document("turns", [])
for turn in agent.loop("turns", range(10_000)):
    turns.append(turn)
    pathlib.Path("turns").write_text(str(len(turns)))
    time.sleep(0.02)
"""
RESUMED = """
import savepoint
with savepoint.connect() as agent:
    print(len(agent.document("turns", [])), flush=True)
"""
HELPER = "import os, signal, sys, time; {setup}; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
HELPERS = {
    "plain": "pass",
    "own session": "os.setsid()",
    "own group, ignores signals": "os.setpgid(0, 0); [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]",
    "daemon": "os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0)",
    "empty environment": "len(sys.argv) > 2 or os.execve(sys.executable, [sys.executable, '-c', "
    "sys.orig_argv[2], sys.argv[1], 'again'], {})",
}


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


@dataclass
class Laptop:
    """A folder with a store, in which ``savepoint run`` starts commands."""

    folder: Path
    runs: "list[subprocess.Popen[str]]" = field(default_factory=list)
    helpers: list[Process] = field(default_factory=list)

    def command(self, *command: str, options: tuple[str, ...] = ()) -> list[str]:
        run = [sys.executable, "-m", "savepoint_cli.main", "run", "--store", "store", "--agent", "worker"]
        return [*run, "--interval", "600", *options, "--", *command]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "XDG_CONFIG_HOME": str(self.folder / "config"), "PYTHONUNBUFFERED": "1"}

    def start(self, *command: str, options: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            self.command(*command, options=options), cwd=self.folder, env=self.environment(), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.runs.append(process)
        return process

    def shell(self, script: str, options: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        """Run a shell script, which can start ``$PYTHON``."""
        return self.start("bash", "-c", script.replace("$PYTHON", sys.executable), options=options)

    def write(self, name: str, program: str) -> None:
        (self.folder / name).write_text(program)

    def write_helper(self, setup: str) -> None:
        self.write("helper.py", f"import sys, subprocess\ncode = {HELPER.format(setup=setup)!r}\n"
                   "subprocess.Popen([sys.executable, '-c', code, sys.argv[1]], stdin=subprocess.DEVNULL,"
                   " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n")  # fmt: skip

    def await_helper(self, name: str = "helper") -> Process:
        path = self.folder / name
        wait_until(lambda: path.exists() and path.read_text(), f"{name} has started")
        process = find(int(path.read_text()))
        assert process is not None
        self.helpers.append(process)
        return process

    def turns(self) -> int:
        path = self.folder / "turns"
        return int(path.read_text() or 0) if path.exists() else 0

    def restored_turns(self) -> int:
        self.write("resumed.py", RESUMED)
        output, errors = self.start(sys.executable, "resumed.py").communicate(timeout=60)
        assert output, errors
        return int(output)


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    laptop = Laptop(tmp_path)
    yield laptop
    for process in laptop.runs:
        process.kill()
        process.communicate()
    for helper in laptop.helpers:
        if is_running(helper.pid, helper.start):
            os.kill(helper.pid, signal.SIGKILL)


def has_ended(process: Process) -> bool:
    return not is_running(process.pid, process.start)


def keeper_of(run: "subprocess.Popen[str]") -> Process:
    (keeper,) = [each for each in descendants([run.pid]) if each.parent == run.pid]
    return keeper


@pytest.mark.parametrize("setup", HELPERS.values(), ids=HELPERS.keys())
@pytest.mark.parametrize("victim", ["supervisor", "keeper", "agent"])
def test_no_process_of_the_agent_survives_a_kill(laptop: Laptop, setup: str, victim: str) -> None:
    laptop.write_helper(setup)
    run = laptop.shell("$PYTHON helper.py helper; sleep 600; true")
    helper = laptop.await_helper()
    keeper = keeper_of(run)
    everything = descendants([run.pid])
    if victim == "agent":
        (agent,) = [each for each in everything if each.parent == keeper.pid and each.pid != helper.pid
                    and b"bash" in Path(f"/proc/{each.pid}/cmdline").read_bytes()]  # fmt: skip
        os.kill(agent.pid, signal.SIGKILL)
    else:
        os.kill(run.pid if victim == "supervisor" else keeper.pid, signal.SIGKILL)
    for each in (*everything, helper):
        wait_until(partial(has_ended, each), f"{each} has ended")
    _, errors = run.communicate(timeout=30)
    assert run.returncode == (-signal.SIGKILL if victim == "supervisor" else 128 + signal.SIGKILL), errors


def test_what_the_command_leaves_is_named_and_ended_and_its_exit_status_stays(laptop: Laptop) -> None:
    laptop.write_helper(HELPERS["own session"])
    run = laptop.shell("$PYTHON helper.py helper; while [ ! -s helper ]; do sleep 0.01; done; exit 7")
    helper = laptop.await_helper()
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 7 and has_ended(helper)
    assert f"ending what it left running: {helper.pid} (" in errors


def test_the_next_run_ends_what_outlived_supervisor_and_keeper(laptop: Laptop) -> None:
    laptop.write_helper(HELPERS["own session"])
    run = laptop.shell("$PYTHON helper.py helper; sleep 600; true")
    helper, keeper = laptop.await_helper(), keeper_of(run)
    run.send_signal(signal.SIGSTOP)  # it must not react to the keeper's end
    os.kill(keeper.pid, signal.SIGKILL)
    wait_until(lambda: has_ended(keeper), "the keeper has ended")
    run.kill()
    run.wait(30)
    assert not has_ended(helper)
    second = laptop.start("sh", "-c", "exit 3")
    _, errors = second.communicate(timeout=30)
    assert second.returncode == 3 and has_ended(helper)
    assert f"ending processes that an earlier run left: {helper.pid} (" in errors


def test_sigterm_reaches_the_agent_behind_a_shell(laptop: Laptop) -> None:
    laptop.write("agent.py", SDK_AGENT)
    run = laptop.shell("$PYTHON agent.py; echo ended")
    wait_until(lambda: laptop.turns() > 5, "the agent works")
    everything = descendants([run.pid])
    run.terminate()
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 128 + signal.SIGTERM, errors
    assert all(map(has_ended, everything))
    done = laptop.turns()
    assert laptop.restored_turns() == done


def test_an_agent_that_its_wrapper_leaves_behind_flushes_before_it_is_ended(laptop: Laptop) -> None:
    laptop.write("agent.py", SDK_AGENT)
    run = laptop.shell("$PYTHON agent.py & until [ -s turns ]; do sleep 0.01; done; exit 5")
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 5, errors
    done = laptop.turns()
    assert laptop.restored_turns() == done


def test_a_helper_that_ignores_sigterm_is_killed_when_the_grace_period_ends(laptop: Laptop) -> None:
    laptop.write_helper(HELPERS["own group, ignores signals"])
    run = laptop.shell("trap '' TERM; $PYTHON helper.py helper; while true; do sleep 1; done", ("--grace", "1"))
    helper = laptop.await_helper()
    run.terminate()
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 128 + signal.SIGKILL and has_ended(helper), errors


def test_sigint_reaches_what_a_shell_waits_for(laptop: Laptop) -> None:
    laptop.write_helper(HELPERS["plain"])
    run = laptop.shell("$PYTHON helper.py helper; sleep 600; true")
    laptop.await_helper()
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=15)  # the grace period is longer
    assert run.returncode == 128 + signal.SIGINT, errors


def test_a_store_that_disappears_does_not_change_the_exit_status(laptop: Laptop) -> None:
    run = laptop.shell("rm -rf store; sleep 1; exit 7", ("--interval", "0.2", "--state", "work"))
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 7, errors
    assert "Traceback" not in errors


def test_nohup_protects_the_agent_and_its_supervisor(laptop: Laptop) -> None:
    run = subprocess.Popen(
        ["nohup", *laptop.command("bash", "-c", "echo started; sleep 1; kill -HUP $$; exit 4")],
        cwd=laptop.folder, env=laptop.environment(), text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    laptop.runs.append(run)
    assert run.stdout is not None and run.stdout.readline() == "started\n"
    run.send_signal(signal.SIGHUP)
    run.communicate(timeout=30)
    assert run.returncode == 4


class Terminal:
    """A terminal with a shell's part in job control: it starts one job, and can stop and continue it."""

    def __init__(self, laptop: Laptop, *command: str, program: list[str] | None = None) -> None:
        """Start ``savepoint run`` with this command, or another program."""
        self.output = b""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            job = os.fork()
            if job == 0:
                os.setpgid(0, 0)
                os.tcsetpgrp(0, os.getpgrp())
                signal.signal(signal.SIGTTOU, signal.SIG_DFL)
                os.chdir(laptop.folder)
                arguments = program or laptop.command(*command)
                os.execvpe(arguments[0], arguments, laptop.environment())
            self._be_shell(job)

    def _be_shell(self, job: int) -> None:
        """Report each stop of the job, continue it in the foreground at once, and exit with its status."""
        while True:
            _, status = os.waitpid(job, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                code = os.waitstatus_to_exitcode(status)
                os.write(1, f"<status {code}>".encode())
                os._exit(0)
            foreground = os.tcgetpgrp(0)
            os.tcsetpgrp(0, os.getpgrp())
            os.write(1, f"<stopped {os.WSTOPSIG(status)} {foreground == job}>".encode())
            os.read(0, 1)  # the person types `fg`
            os.tcsetpgrp(0, job)
            os.kill(-job, signal.SIGCONT)

    def type(self, text: bytes) -> None:
        os.write(self._fd, text)

    def read_until(self, text: bytes, seconds: float = 30.0) -> bytes:
        end = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < end, self.output.decode(errors="replace")
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    self.output += os.read(self._fd, 65536)
                except OSError:
                    assert text in self.output, self.output.decode(errors="replace")
        before, _, self.output = self.output.partition(text)
        return before

    def close(self) -> None:
        os.close(self._fd)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


READER = """
import os
print("ready", os.tcgetpgrp(0) == os.getpgrp(), flush=True)
for _ in range(2):
    print("read", repr(input()), flush=True)
raise SystemExit(6)
"""


def test_an_interactive_agent_reads_the_terminal_and_can_be_stopped_and_continued(laptop: Laptop) -> None:
    laptop.write("agent.py", READER)
    terminal = Terminal(laptop, sys.executable, "agent.py")
    try:
        terminal.read_until(b"ready True")
        terminal.type(b"one\n")
        terminal.read_until(b"read 'one'")
        terminal.type(b"\x1a")
        terminal.read_until(f"<stopped {int(signal.SIGTSTP)} True>".encode())
        terminal.type(b"\n")
        terminal.type(b"two\n")
        terminal.read_until(b"read 'two'")
        terminal.read_until(b"<status 6>")
    finally:
        terminal.close()


def test_a_job_in_the_background_leaves_the_terminal_to_the_shell(laptop: Laptop) -> None:
    """It takes the terminal neither at its start nor at its end."""
    script = 'set -m; "$@" & wait $!; echo status $?; read -t 20 line; echo got $line; exit 8'
    run = laptop.command("sh", "-c", "exit 3")
    terminal = Terminal(laptop, program=["bash", "-c", script, "bash", *run])
    try:
        terminal.read_until(b"status 3")
        terminal.type(b"word\n")
        terminal.read_until(b"got word")
        terminal.read_until(b"<status 8>")
    finally:
        terminal.close()


def test_ctrl_c_keeps_the_work_since_the_last_checkpoint(laptop: Laptop) -> None:
    laptop.write("agent.py", SDK_AGENT)
    terminal = Terminal(laptop, "bash", "-c", f"{sys.executable} agent.py; exit 9")
    try:
        wait_until(lambda: laptop.turns() > 150, "the agent works, well after its first checkpoint")
        terminal.type(b"\x03")
        terminal.read_until(b"press Ctrl-C again to stop at once")
        terminal.read_until(b"<status 130>")
    finally:
        terminal.close()
    done = laptop.turns()
    assert laptop.restored_turns() == done


def test_a_second_ctrl_c_ends_a_call_that_never_returns(laptop: Laptop) -> None:
    laptop.write("agent.py", "import savepoint, time\nagent = savepoint.connect()\nprint('ready')\ntime.sleep(600)\n")
    terminal = Terminal(laptop, sys.executable, "agent.py")
    try:
        terminal.read_until(b"ready")
        terminal.type(b"\x03")
        terminal.read_until(b"press Ctrl-C again to stop at once")
        terminal.type(b"\x03")
        terminal.read_until(b"KeyboardInterrupt", seconds=10)
        terminal.read_until(b"<status 130>")
    finally:
        terminal.close()


def test_ctrl_c_ends_a_command_without_the_sdk(laptop: Laptop) -> None:
    terminal = Terminal(laptop, "bash", "-c", "echo ready; sleep 600")
    try:
        terminal.read_until(b"ready")
        terminal.type(b"\x03")
        terminal.read_until(b"<status 130>")
    finally:
        terminal.close()
