"""Tests of the messages of ``savepoint run``: they name its own options, and no object of a cluster."""

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import savepoint.repository
import savepoint_sidecar
from savepoint_cli.laptop_messages import LaptopFormatter, laptop_text

CLUSTER = re.compile(r"\b(pods?|kubectl|runAsUser|fsGroup|kubelet|operator|in the policy|spec\.\w+)\b")
FOLDERS = [
    *(Path(savepoint_sidecar.__file__).parent / name for name in ("agent_api", "capture", "checkpoint", "files")),
    *(Path(savepoint_sidecar.__file__).parent / name for name in ("lifecycle", "restore", "stage")),
    Path(savepoint.repository.__file__).parent,
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Agent did not reach a safe point within 5s; it was resumed. Add agent.safe_point(), or raise "
            "spec.quiesce.timeoutSeconds in the policy.",
            "Agent did not reach a safe point within 5s; it was resumed. Add agent.safe_point().",
        ),
        (
            "/w/a belongs to uid 7. Set runAsUser: 7 on the agent's container, or annotate the pod template with "
            "savepoint.dev/run-as-user: 7.",
            "/w/a belongs to uid 7. Start `savepoint run` as uid 7, or leave the file out with --exclude.",
        ),
        (
            "/w/a changed. Exclude it with spec.state.exclude in the policy, or stop the writer.",
            "/w/a changed. Exclude it with --exclude GLOB, or stop the writer.",
        ),
        ("Raise the size of the stage volume, or wait.", "Free space on the store's disk, or wait."),
        (
            "no space left in /w (full): give the volume more space",
            "no space left in /w (full): free space on its disk",
        ),
        (
            "/w cannot be written as uid 5: set runAsUser on the agent's container, or fsGroup on the pod",
            "/w cannot be written as uid 5: start `savepoint run` as the folder's owner",
        ),
        ("checkpoint failed: the pod is stopping", "checkpoint failed: the agent is stopping"),
        ("the operator refused it; another pod runs", "the supervisor refused it; another run runs"),
    ],
)
def test_a_remedy_names_an_option_of_the_command(text: str, expected: str) -> None:
    assert laptop_text(text) == expected


@pytest.mark.parametrize(
    "text", ["cannot read /srv/pod/operator.db: gone", "/a/pod-1.txt changed", "'pod' has no host"]
)
def test_a_path_is_not_translated(text: str) -> None:
    assert laptop_text(text) == text


def test_every_message_that_a_laptop_can_show_is_free_of_cluster_terms() -> None:
    found = {text: laptop_text(text) for folder in FOLDERS for path in folder.rglob("*.py") for text in messages(path)}
    assert len(found) > 60
    left = [text for text in found.values() if CLUSTER.search(text)]
    assert not left


def messages(path: Path) -> Iterator[str]:
    """Return the texts with several words in a module that are not docstrings; X stands for a value."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(node, ast.Expr | ast.JoinedStr | ast.FormattedValue):
                continue
            text = ""
            if isinstance(child, ast.Constant) and isinstance(child.value, str):
                text = child.value
            elif isinstance(child, ast.JoinedStr):
                text = "".join(str(each.value) if isinstance(each, ast.Constant) else "X" for each in child.values)
            if text.count(" ") >= 3:
                yield text


def test_a_log_line_is_translated_with_its_values() -> None:
    formatter = LaptopFormatter("savepoint: %(message)s")
    record = logging.LogRecord("s", logging.WARNING, "", 0, "no checkpoint: %s", ("the pod is stopping",), None)
    assert formatter.format(record) == "savepoint: no checkpoint: the agent is stopping"
