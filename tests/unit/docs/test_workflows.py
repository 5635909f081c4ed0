"""The workflows call make targets that exist, and pin every action to a commit."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps() -> Iterator[dict[str, Any]]:
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            yield from job["steps"]


def test_every_action_is_pinned_to_a_commit() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []


def test_every_command_is_a_make_target() -> None:
    commands = [step["run"].split() for step in steps() if "run" in step]
    called = {command[1] for command in commands}
    assert all(command[0] == "make" for command in commands)
    assert called <= TARGETS
    assert {"lint", "unit", "integration", "e2e", "build-images"} <= called


def test_the_end_to_end_tests_run_on_two_versions_of_kubernetes() -> None:
    (path,) = WORKFLOWS
    matrix = yaml.safe_load(path.read_text())["jobs"]["end-to-end"]["strategy"]["matrix"]
    assert len(matrix["node-image"]) == 2
