"""Agents that treat their files badly, under ``savepoint run`` with real processes, on disk and on tmpfs.

The checks compare what was restored with what a program outside the checkpoint knows to have been written.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TMPFS = Path("/dev/shm")

MAPPED = """
import mmap, os, struct, sys
import savepoint
agent = savepoint.connect()
meta = agent.document("meta", {"count": 0})
path = os.environ["STATE"] + "/index"
if agent.restored is None:
    with open(path, "wb") as file:
        file.truncate(8192)
file = open(path, "r+b")
index = mmap.mmap(file.fileno(), 0)
if agent.restored is not None:
    print(meta["count"], sum(struct.unpack_from("<q", index, 8 * at)[0] for at in range(1024)))
    os._exit(0)
for turn in agent.loop("turns", range(5)):
    struct.pack_into("<q", index, 8 * turn, 1)
    meta["count"] += 1
    agent.checkpoint("turn")
os.kill(os.getpid(), 9)
"""

RENAMING = """
import os, sys
state = os.environ["STATE"]
for k in range(20):
    os.makedirs(f"{state}/d{k}-a")
    for i in range(25):
        with open(f"{state}/d{k}-a/{i}", "w") as file:
            file.write(f"{k}/{i}")
while not os.path.exists(os.environ["STOP"]):
    for a, b in (("a", "b"), ("b", "a")):
        for k in range(20):
            os.rename(f"{state}/d{k}-{a}", f"{state}/d{k}-{b}")
"""

LOGGING = """
import os, subprocess, sys
import savepoint
agent = savepoint.connect()
if agent.restored is not None:
    print(agent.restored.checkpoint)
    os._exit(0)
path = os.environ["STATE"] + "/server.log"
with open(path, "wb") as file:
    file.write(b"l" * 30_000_000)
helper = subprocess.Popen([sys.executable, "-c", '''
import os, sys
file = open(sys.argv[1], "a", buffering=1)
while os.getppid() == int(sys.argv[2]):
    file.write("tick\\\\n")
    os.stat(sys.argv[1])
''', path, str(os.getpid())])
for turn in agent.loop("turns", range(5)):
    agent.checkpoint("turn")
os.kill(os.getpid(), 9)
"""


@dataclass
class Place:
    """A store, and a state folder on the file system under test."""

    folder: Path
    state: Path

    def run(self, code: str, *options: str) -> "subprocess.Popen[str]":
        """Start the agent under ``savepoint run``."""
        return subprocess.Popen(
            [
                sys.executable, "-m", "savepoint_cli.main", "run", "--store", str(self.folder / "store"), "--agent",
                "a", "--state", str(self.state), *options, "--", sys.executable, "-c", code,
            ],
            env={**os.environ, "STATE": str(self.state), "STOP": str(self.folder / "stop"), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(self, code: str, *options: str) -> tuple[str, str]:
        """Run the agent to its end; return its output and the log."""
        return self.run(code, *options).communicate(timeout=120)

    def lose_files(self) -> None:
        """Delete the state folder."""
        shutil.rmtree(self.state)


@pytest.fixture(params=["disk", "tmpfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "disk":
        (tmp_path / "state").mkdir()
        yield Place(tmp_path, tmp_path / "state")
        return
    with tempfile.TemporaryDirectory(dir=TMPFS) as folder:
        (Path(folder) / "state").mkdir()
        yield Place(tmp_path, Path(folder) / "state")


def test_a_mapped_file_and_the_document_about_it_are_of_one_moment(place: Place) -> None:
    _, log = place.finish(MAPPED, "--interval", "600")
    assert ("noticed by their contents" in log) == place.state.is_relative_to(TMPFS)
    place.lose_files()
    assert place.finish(MAPPED, "--interval", "600")[0] == "5 5\n"


def test_folders_that_are_renamed_all_the_time_lose_no_file(place: Place) -> None:
    process = place.run(RENAMING, "--interval", "0.3")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        committed = subprocess.run(
            [sys.executable, "-m", "savepoint_cli.main", "log", str(place.folder / "store")],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        if committed.count("checkpoint ") >= 3:
            break
    process.send_signal(signal.SIGKILL)
    (place.folder / "stop").touch()
    process.communicate(timeout=60)
    place.lose_files()
    place.finish("pass", "--interval", "600")
    found = {path.relative_to(place.state): path.read_text() for path in place.state.glob("d*/*")}
    assert len(found) == 500
    assert all(text == f"{path.parent.name[1:-2]}/{path.name}" for path, text in found.items())


def test_a_large_log_that_grows_all_the_time_fails_no_checkpoint(place: Place) -> None:
    _, log = place.finish(LOGGING, "--interval", "600")
    assert "attempt failed" not in log and "the checkpoint is Fuzzy" in log
    place.lose_files()
    restored, _ = place.finish(LOGGING, "--interval", "600")
    assert restored.startswith("a-")
    content = (place.state / "server.log").read_bytes()
    assert content.startswith(b"l" * 30_000_000) and content[30_000_000:].replace(b"tick\n", b"") in b"tick"


def test_a_package_updated_under_an_equal_time_between_two_runs_is_captured(place: Place) -> None:
    def put(version: str) -> None:
        new = place.state / "new"
        new.write_text(f"version {version}")
        os.utime(new, (499162500, 499162500))
        new.replace(place.state / "package.json")

    for version in ("1.2.3", "1.2.4"):
        put(version)
        place.finish("pass", "--interval", "600")
    place.lose_files()
    place.finish("pass", "--interval", "600")
    assert (place.state / "package.json").read_text() == "version 1.2.4"


def test_a_date_that_no_checkpoint_can_hold_is_reported_and_ends_nothing(place: Place) -> None:
    for name, year in (("late", 2300), ("early", 1500)):
        (place.state / name).write_text(name)
        subprocess.run(["touch", "-d", f"{year}-01-01", str(place.state / name)], check=True)
    process = place.run("import sys; sys.exit(7)", "--interval", "600")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 7 and "outside the years 1677 to 2262" in log
    place.lose_files()
    place.finish("pass", "--interval", "600")
    assert {path.name: path.read_text() for path in place.state.glob("[le]*")} == {"late": "late", "early": "early"}
