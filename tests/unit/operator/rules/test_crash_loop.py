"""A container that keeps crashing after a restore is not one that crashed once, or has stayed up since."""

from datetime import UTC, datetime, timedelta

import pytest
from savepoint_operator.cluster.parse import pod_of
from savepoint_operator.model.objects import CheckpointObject, ContainerExit, Meta, Pod
from savepoint_operator.model.views import AgentRef
from savepoint_operator.rules.crash_loop import Crashes, crashes_of

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def meta(name: str, *, deleting: bool = False) -> Meta:
    return Meta("demo", name, f"uid-{name}", 1, 1, NOW, deleting)


def pod(*exits: ContainerExit) -> Pod:
    return Pod(meta("coder-x"), "n1", "Running", None, True, exits=exits)


def checkpoint(number: int, *, ready: bool = True, deleting: bool = False) -> CheckpointObject:
    name = f"coder-{number}"
    return CheckpointObject(
        meta(name, deleting=deleting), AgentRef("demo", "coder"), hold=False, attempt="", reason="", ready=ready,
        number=number, sequence=number, trigger="Interval",
    )  # fmt: skip


def crashed(restarts: int = 3, code: int = 1, up: float | None = None, reason: str = "Error") -> ContainerExit:
    return ContainerExit("agent", restarts, code, reason, None if up is None else NOW - timedelta(seconds=up))


@pytest.mark.parametrize(
    ("exits", "restarts", "loops"),
    [
        ((), 0, False),
        ((crashed(1),), 1, False),  # once
        ((crashed(2),), 2, True),  # waiting for its next start
        ((crashed(2, up=119),), 2, True),
        ((crashed(2, up=120),), 2, False),  # it has stayed up
        ((crashed(9, code=0),), 9, False),  # it ends, and does not crash
        ((crashed(1), ContainerExit("helper", 4, 2)), 4, True),
    ],
)
def test_a_loop_is_more_than_one_crash(exits: tuple[ContainerExit, ...], restarts: int, loops: bool) -> None:
    found = crashes_of(pod(*exits), "coder-3", [], NOW)
    assert (found.restarts, found.loop is not None, bool(found.message)) == (restarts, loops, loops)
    assert found.status()["restartsSinceRestore"] == (restarts or None)
    assert (found.status()["crashLoop"] is not None) == loops


def test_the_message_names_container_exit_code_and_the_checkpoint_to_go_back_to() -> None:
    checkpoints = [
        checkpoint(1),
        checkpoint(2, deleting=True),
        checkpoint(3),
        checkpoint(4, ready=False),
        checkpoint(5),
    ]
    found = crashes_of(pod(crashed(4, 137, reason="OOMKilled")), "coder-5", checkpoints, NOW)
    assert found.message == (
        "Container agent of pod coder-x has restarted 4 times since coder-5 was restored; it last exited with code 137 "
        "(OOMKilled). The cause is in its log: kubectl logs coder-x -c agent --previous. If it is the restored state, "
        "go back: kubectl savepoint rollback coder-3."
    )
    assert found.status()["crashLoop"] == {"containerName": "agent", "exitCode": 137, "reason": "OOMKilled"}


@pytest.mark.parametrize("restored", ["coder-1", "its state", "deleted-7"])
def test_without_an_earlier_checkpoint_only_a_reset_is_left(restored: str) -> None:
    assert "kubectl savepoint reset" in crashes_of(pod(crashed()), restored, [checkpoint(1)], NOW).message


def test_a_status_without_crashes_removes_the_fields() -> None:
    assert Crashes().status() == {"restartsSinceRestore": None, "crashLoop": None}


def test_exits_are_parsed_from_the_status_of_regular_containers() -> None:
    ended = {"terminated": {"exitCode": 3, "reason": "Error", "finishedAt": "2026-11-24T00:00:00Z"}}
    running = {"running": {"startedAt": "2026-11-24T00:00:00Z"}}
    statuses = [
        {"name": "agent", "restartCount": 2, "state": running, "lastState": ended},
        {
            "name": "backing-off",
            "restartCount": 5,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": ended,
        },
        {"name": "just-ended", "restartCount": 1, "state": ended, "lastState": {}},
        {"name": "first-run", "restartCount": 0, "state": ended},
        {"name": "no-history", "restartCount": 1, "state": running},
    ]
    raw = {
        "metadata": {"name": "p", "namespace": "n"},
        "status": {
            "containerStatuses": statuses,
            "initContainerStatuses": [{**statuses[0], "name": "savepoint-sidecar"}],
        },
    }
    assert pod_of(raw).exits == (
        ContainerExit("agent", 2, 3, "Error", NOW),
        ContainerExit("backing-off", 5, 3, "Error"),
        ContainerExit("just-ended", 1, 3, "Error"),
    )
