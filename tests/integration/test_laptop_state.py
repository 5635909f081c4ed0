"""``savepoint run --from`` and default names, with real processes."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

AGENT = """
import json, os, pathlib, signal, sys
import savepoint

state, kill_at = pathlib.Path(os.environ["STATE"]), int(os.environ["KILL_AT"])
agent = savepoint.connect()
done = agent.document("done", [])
print(json.dumps({"from": agent.restored and agent.restored.checkpoint, "done": list(done)}), flush=True)
for item in agent.loop("items", range(6)):
    agent.step("work", lambda: (state / f"step-{item}").write_text("done") and None)
    done.append(item)
    agent.checkpoint("item")
    if item == kill_at:
        (state / "after").write_text("the last checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)
agent.finish()
print(json.dumps({"end": list(done)}), flush=True)
"""


class Laptop:
    """A store, a state folder and an agent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.store = folder, folder / "state", folder / "store"
        self.state.mkdir()
        (folder / "agent.py").write_text(AGENT)

    def run(
        self, *options: str, kill_at: int = -1, command: tuple[str, ...] = ()
    ) -> "subprocess.CompletedProcess[str]":
        command = command or (sys.executable, str(self.folder / "agent.py"))
        return self.savepoint("run", "--store", str(self.store), *options, "--", *command, kill_at=kill_at)

    def agent(self, *options: str, kill_at: int = -1) -> "subprocess.CompletedProcess[str]":
        return self.run("--agent", "a", "--state", str(self.state), "--interval", "600", *options, kill_at=kill_at)

    def savepoint(self, *arguments: str, kill_at: int = -1) -> "subprocess.CompletedProcess[str]":
        environment = {
            **os.environ,
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "STATE": str(self.state),
            "KILL_AT": str(kill_at),
        }
        return subprocess.run(
            [sys.executable, "-m", "savepoint_cli.main", *arguments],
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def checkpoints(self) -> list[str]:
        """Return the names of the checkpoints, oldest first."""
        lines = self.savepoint("log", str(self.store)).stdout.splitlines()
        return [each for line in lines for each in line.split() if each.startswith("a-") and "checkpoint" in line]

    def damage_newest(self) -> None:
        """Change one byte of the newest pack."""
        pack = max((self.store / "local" / "a" / "packs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(content)


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop(tmp_path)


def test_an_older_checkpoint_is_started_from_and_nothing_is_deleted(laptop: Laptop) -> None:
    assert laptop.agent(kill_at=4).returncode == 137
    (laptop.state / "note").write_text("the user's own")
    names = laptop.checkpoints()
    result = laptop.agent("--from", names[-3])
    assert result.returncode == 0, result.stderr
    first, last = map(json.loads, result.stdout.splitlines())
    assert first == {"from": names[-3], "done": [0, 1, 2]} and last["end"] == [0, 1, 2, 3, 4, 5]
    assert sorted(path.name for path in laptop.state.iterdir()) == [".savepoint", *(f"step-{n}" for n in range(6))]
    (aside,) = (laptop.state / ".savepoint").glob("replaced-*")
    assert (aside / "note").read_text() == "the user's own" and (aside / "after").read_text() == "the last checkpoint"
    assert str(aside) in result.stderr and "note" in result.stderr and f"from {names[-3]}" in result.stderr


def test_files_stay_when_the_agent_is_run_again_after_a_crash(laptop: Laptop) -> None:
    assert laptop.agent(kill_at=4).returncode == 137
    (laptop.state / "note").write_text("the user's own")
    (laptop.state / "step-0").write_text("changed by the user")
    result = laptop.agent()
    assert result.returncode == 0, result.stderr
    assert (laptop.state / "note").read_text() == "the user's own" and (laptop.state / "after").exists()
    assert (laptop.state / "step-0").read_text() == "changed by the user"
    assert list((laptop.state / ".savepoint").glob("replaced-*")) == []


def test_files_go_back_at_a_restart_if_the_user_says_so(laptop: Laptop) -> None:
    assert laptop.agent(kill_at=4).returncode == 137
    (laptop.state / "note").write_text("the user's own")
    result = laptop.agent("--on-restart", "restore")
    assert result.returncode == 0, result.stderr
    assert not (laptop.state / "note").exists() and not (laptop.state / "after").exists()
    (aside,) = (laptop.state / ".savepoint").glob("replaced-*")
    assert {"note", "after"} <= {path.name for path in aside.iterdir()} and str(aside) in result.stderr


def test_a_rollback_leaves_a_store_in_the_state_folder_where_it_is(laptop: Laptop) -> None:
    laptop.store = laptop.state / "deep" / "store"
    assert laptop.agent(kill_at=4).returncode == 137
    names = laptop.checkpoints()
    result = laptop.agent("--from", names[-3])
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["end"] == [0, 1, 2, 3, 4, 5]
    assert set(names) <= set(laptop.checkpoints())


def test_steps_after_the_chosen_checkpoint_run_again_even_if_the_run_is_killed(laptop: Laptop) -> None:
    assert laptop.agent(kill_at=4).returncode == 137
    chosen = laptop.checkpoints()[-3]
    assert laptop.agent("--from", chosen, kill_at=3).returncode == 137
    result = laptop.agent()
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["end"] == [0, 1, 2, 3, 4, 5]
    assert all((laptop.state / f"step-{number}").exists() for number in range(6)), "a step was not run again"


@pytest.mark.parametrize("lose_files", [False, True])
def test_a_damaged_checkpoint_names_the_way_back(laptop: Laptop, lose_files: bool) -> None:
    assert laptop.agent(kill_at=4).returncode == 137
    laptop.damage_newest()
    if lose_files:
        shutil.rmtree(laptop.state)
    names = laptop.checkpoints()
    refused = laptop.agent()
    assert refused.returncode == 1 and "savepoint run --from" in refused.stderr and "verify --all" in refused.stderr
    also = laptop.agent("--from", names[-1])
    assert also.returncode == 1 and "is not whole either" in also.stderr
    unknown = laptop.agent("--from", "a-99")
    assert unknown.returncode == 1 and "has no checkpoint 'a-99'" in unknown.stderr and names[-2] in unknown.stderr
    laptop.state.mkdir(exist_ok=True)
    result = laptop.agent("--from", names[-2])
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["end"] == [0, 1, 2, 3, 4, 5]


def test_a_refused_rollback_is_not_recorded(laptop: Laptop) -> None:
    assert laptop.agent(kill_at=4).returncode == 137
    chosen, newest = laptop.checkpoints()[-3], laptop.checkpoints()[-1]
    refused = laptop.run("--agent", "a", "--from", chosen)
    assert refused.returncode == 1 and "StateLeftBehind" in refused.stderr
    result = laptop.agent()
    assert json.loads(result.stdout.splitlines()[0])["from"] == newest


def test_two_programs_of_one_default_name_are_not_merged(laptop: Laptop) -> None:
    (laptop.folder / "other").mkdir()
    other = shutil.copy(laptop.folder / "agent.py", laptop.folder / "other" / "agent.py")
    assert laptop.run(kill_at=1).returncode == 137
    for command in ((sys.executable, str(other)), (sys.executable, str(laptop.folder / "agent.py"), "--customer", "B")):
        refused = laptop.run(command=command)
        assert refused.returncode == 1 and "AgentNameTaken" in refused.stderr and not refused.stdout
    result = laptop.run()
    assert result.returncode == 0 and json.loads(result.stdout.splitlines()[0])["done"] == [0, 1], result.stderr
    fresh = laptop.run(command=(sys.executable, str(other)))
    assert fresh.returncode == 0 and json.loads(fresh.stdout.splitlines()[0])["done"] == [], (
        "the first run is completed"
    )


@pytest.mark.parametrize("clean", ["clean -fdxq", "stash -u -q", "add -Af && git reset -q --hard", "rm -rq --cached ."])
def test_an_agent_may_clean_its_git_workspace(laptop: Laptop, clean: str) -> None:
    identity = "-c user.name=a -c user.email=a@x"
    script = (
        f"cd {laptop.state}; test -e done && exit 0; git init -q; echo v1 > main; git add main; "
        f"git {identity} commit -qm 1; touch ../ready; read -r _ < ../go; echo x > build; git {identity} {clean}; "
        "echo v2 > main; touch done; kill -9 $$"
    )
    os.mkfifo(laptop.folder / "go")
    command = ("sh", "-ec", script)
    options = ("--agent", "g", "--state", str(laptop.state), "--interval", "0.2")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(laptop.run, *options, command=command)
        await_path(laptop.state / ".savepoint" / "marker.json")
        (laptop.folder / "go").write_text("go\n")
        assert running.result().returncode == 137
    result = laptop.run(*options, command=command)
    assert result.returncode == 0, result.stderr
    assert (laptop.state / "main").read_text() == "v2\n"


def await_path(path: Path) -> None:
    """Wait until the path exists."""
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.01)
