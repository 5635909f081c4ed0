"""Agents that abandon, rewrite and fill their files, under ``savepoint run``; a witness outside knows what they wrote.

See also test_impolite_files.py (mapped files, renamed folders, logs), test_laptop_processes.py (helpers) and
test_laptop_state.py (git clean, stash and reset).
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

KILLED_IN_A_TRANSACTION = """
import os, sqlite3, sys
db = sqlite3.connect(os.environ["STATE"] + "/agent.db", isolation_level=None)
db.execute("PRAGMA cache_size=5")
db.execute("CREATE TABLE notes (n INTEGER, pad BLOB)")
for n in range(1, 400):
    db.execute("INSERT INTO notes VALUES (?, zeroblob(2000))", (n,))
    with open(os.environ["WITNESS"], "w") as witness:
        witness.write(str(n))
db.execute("BEGIN")
db.execute("UPDATE notes SET n = -n, pad = randomblob(2000)")
os.kill(os.getpid(), 9)
"""

COLLECTING_GARBAGE = """
cd "$STATE"; git init -q .; git config user.name a; git config user.email a@x; git config gc.auto 0
n=0; while [ $n -lt 12 ]; do
  n=$((n + 1)); seq $((n * 1000)) > numbers; git add numbers; git commit -qm $n; git rev-parse HEAD > "$WITNESS"
  [ $((n % 4)) = 0 ] && git gc -q --prune=now
done
kill -9 $$
"""

FILLING = """
import os
written = 0
with open(os.environ["STATE"] + "/filler", "wb", buffering=0) as file:
    try:
        while True:
            written += file.write(b"x" * 65536)
    except OSError as error:
        with open(os.environ["WITNESS"], "w") as witness:
            witness.write(f"{error.errno} {written}")
os._exit(9)
"""

ODD_DATES = """
import os
for year, name in ((10**9, "past"), (4 * 10**9, "future"), (-10**9, "before")):
    path = os.environ["STATE"] + "/" + name
    with open(path, "w") as file:
        file.write(os.environ["TEXT"])
    os.utime(path, (year, year))
os._exit(9)
"""


class Laptop:
    """A store, a state folder, and a witness beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.witness = folder, folder / "state", folder / "witness"
        self.state.mkdir()

    def run(self, *command: str, before: str = "true", text: str = "") -> "subprocess.CompletedProcess[str]":
        """Run an agent to its end. ``before`` is a shell command that prepares its mounts."""
        run = [
            sys.executable, "-m", "savepoint_cli.main", "run", "--store", str(self.folder / "store"), "--agent", "a",
            "--state", str(self.state), "--interval", "0.3", "--", *command,
        ]  # fmt: skip
        if before != "true":
            run = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{before} && exec "$@"', "sh", *run]
        environment = {**os.environ, "STATE": str(self.state), "WITNESS": str(self.witness), "TEXT": text}
        return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=100, check=False)

    def lose_files(self) -> None:
        shutil.rmtree(self.state)
        self.state.mkdir()


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop(tmp_path)


def test_a_database_whose_agent_was_killed_in_a_transaction_holds_what_was_committed(laptop: Laptop) -> None:
    killed = laptop.run(sys.executable, "-c", KILLED_IN_A_TRANSACTION)
    assert killed.returncode == 137, killed.stderr
    laptop.lose_files()
    again = laptop.run("true")
    assert again.returncode == 0, again.stderr
    with closing(sqlite3.connect(laptop.state / "agent.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        numbers = [n for (n,) in connection.execute("SELECT n FROM notes ORDER BY n")]
    assert numbers == list(range(1, int(laptop.witness.read_text()) + 1))


def test_a_workspace_in_which_git_collects_garbage_is_restored_whole(laptop: Laptop) -> None:
    killed = laptop.run("bash", "-c", COLLECTING_GARBAGE)
    assert killed.returncode == 137, killed.stderr
    laptop.lose_files()
    assert laptop.run("true").returncode == 0
    checked = subprocess.run(
        "git fsck --full --strict && git rev-parse HEAD && git status --porcelain -uno",
        shell=True, cwd=laptop.state, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert checked.stdout.splitlines() == [laptop.witness.read_text().strip()]


def test_a_state_folder_that_the_agent_filled_is_restored(laptop: Laptop) -> None:
    full = laptop.run(
        sys.executable, "-c", FILLING, before=f"mount -t tmpfs -o size=8m tmpfs {laptop.state}"
    )  # fmt: skip
    assert full.returncode == 9, full.stderr
    number, written = map(int, laptop.witness.read_text().split())
    assert number == 28 and written > 4 << 20
    assert laptop.run("true").returncode == 0
    assert (laptop.state / "filler").read_bytes() == b"x" * written


def test_files_with_wrong_dates_are_captured_when_they_change_under_the_same_date(laptop: Laptop) -> None:
    for text in ("first", "other"):
        assert laptop.run(sys.executable, "-c", ODD_DATES, text=text).returncode == 9
    laptop.lose_files()
    assert laptop.run("true").returncode == 0
    found = {path.name: path.read_text() for path in laptop.state.iterdir() if path.is_file()}
    assert found == {"past": "other", "future": "other", "before": "other"}
    assert (laptop.state / "future").stat().st_mtime == 4 * 10**9
