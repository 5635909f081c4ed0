"""Every example runs as its README says: the laptop ones are killed and run again, the manifests are applied."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.apiserver import ApiServer
from tests.servers.kubectl import ROOT, Kubectl

EXAMPLES = ROOT / "examples"
LAPTOP = ("01-file-agent", "02-sdk-loop", "03-training-loop")
CLUSTER = ("04-deployment", "05-policy", "06-rollback")


class Example:
    """A copy of one example's folder, and the command of its README."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder / name
        shutil.copytree(EXAMPLES / name, self.folder)
        (command,) = re.findall(r"^savepoint run .*$", (self.folder / "README.md").read_text(), re.MULTILINE)
        self._command = [sys.executable if word == "python" else word for word in shlex.split(command)]
        self._command[:1] = [sys.executable, "-m", "savepoint_cli.main"]
        self._log = self.folder / "output"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "XDG_CONFIG_HOME": str(self.folder / "config")}
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [*self._command, *more], cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.processes.append(process)
        return process

    def output(self) -> str:
        return self._log.read_text()

    def wait(self, pattern: str, times: int = 1, seconds: float = 30) -> None:
        """Wait until this many lines of the output match."""
        deadline = time.monotonic() + seconds
        while len(re.findall(pattern, self.output(), re.MULTILINE)) < times:
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.output()}"
            time.sleep(0.05)

    def checkpoints(self) -> int:
        """Return how many checkpoints the store holds; 0 before it exists."""
        if not (self.folder / "store" / "savepoint.json").exists():
            return 0
        log = subprocess.run(
            [sys.executable, "-m", "savepoint_cli.main", "log", "store"],
            env={**os.environ, "XDG_CONFIG_HOME": str(self.folder / "config")},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return log.stdout.count(" checkpoint ")

    def wait_checkpoint(self, more: int = 1) -> None:
        """Wait for further checkpoints."""
        goal, deadline = self.checkpoints() + more, time.monotonic() + 30
        while self.checkpoints() < goal:
            assert time.monotonic() < deadline, f"no checkpoint; output:\n{self.output()}"
            time.sleep(0.2)


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Example]:
    """The example that the test is parametrised with; its processes end with the test."""
    made = Example(request.param, tmp_path)
    yield made
    for process in made.processes:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(30)


def test_every_example_has_a_short_readme_and_is_listed_and_run_by_a_test() -> None:
    folders = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    assert folders == sorted([*LAPTOP, *CLUSTER])
    index = (EXAMPLES / "README.md").read_text()
    for name in folders:
        assert f"({name}/README.md)" in index
        assert len((EXAMPLES / name / "README.md").read_text().splitlines()) <= 15


@pytest.mark.parametrize("example", ["01-file-agent"], indirect=True)
def test_a_file_agent_gets_its_folder_back(example: Example) -> None:
    (example.folder / "work").mkdir()
    process = example.start()
    example.wait(r"^note 5 of 30$")
    example.wait_checkpoint()
    kill(process)
    shutil.rmtree(example.folder / "work")
    (example.folder / "work").mkdir()
    process = example.start()
    example.wait(r"^found [1-9]\d* notes$")
    assert process.wait(60) == 0, example.output()
    assert (example.folder / "work" / "notes.txt").read_text() == "".join(f"note {n}\n" for n in range(1, 31))


@pytest.mark.parametrize("example", ["02-sdk-loop"], indirect=True)
def test_a_durable_loop_mails_each_summary_once(example: Example) -> None:
    for mailed in (3, 9):
        process = example.start()
        example.wait(rf"^mailed summary of document {mailed}$")
        kill(process)
    process = example.start()
    assert process.wait(60) == 0, example.output()
    assert re.findall(r"found (\d+) summaries", example.output())[0] == "0"
    lines = [line.split(" ", 1)[1] for line in (example.folder / "outbox.txt").read_text().splitlines()]
    assert lines == [f"summary of document {number}" for number in range(1, 31)]


@pytest.mark.parametrize("example", ["03-training-loop"], indirect=True)
def test_a_training_loop_has_the_losses_of_an_undisturbed_run(example: Example, tmp_path: Path) -> None:
    undisturbed = Example("03-training-loop", tmp_path / "undisturbed")
    assert undisturbed.start("0").wait(60) == 0, undisturbed.output()
    process = example.start("0.05")
    example.wait_checkpoint(2)
    kill(process)
    assert example.start("0.05").wait(60) == 0, example.output()
    steps = [int(step) for step in re.findall(r"^starting at step (\d+)$", example.output(), re.MULTILINE)]
    assert steps[0] == 0 < steps[1] < 60
    (losses,) = re.findall(r"^losses .*$", undisturbed.output(), re.MULTILINE)
    assert re.findall(r"^losses .*$", example.output(), re.MULTILINE) == [losses]


def test_the_manifests_are_accepted(apiserver: ApiServer) -> None:
    kubectl = Kubectl(apiserver.kubeconfig)
    kubectl.install_crds()
    kubectl.create_namespace("examples")
    paths = sorted(EXAMPLES.glob("*/*.yaml"))
    assert len(paths) == 4
    for path in paths:
        kubectl("create", "-n", "examples", "-f", str(path))


@pytest.mark.parametrize("name", CLUSTER)
def test_the_readme_names_the_files_of_its_folder(name: str) -> None:
    readme = (EXAMPLES / name / "README.md").read_text()
    named = set(re.findall(r"-f (\S+\.yaml)", readme))
    assert named == {path.name for path in (EXAMPLES / name).glob("*.yaml")}
