"""The slow deletion of a namespace is explained; kubectl is a fake."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from e2e.harness import namespace_teardown
from e2e.harness.kube import CommandFailed

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
NAMESPACE = {
    "metadata": {"name": "agents"},
    "spec": {"finalizers": ["kubernetes"]},
    "status": {
        "conditions": [
            {"type": "NamespaceDeletionDiscoveryFailure", "status": "False", "reason": "Fine", "message": "fine"},
            {"type": "NamespaceContentRemaining", "status": "True", "reason": "SomeRemain", "message": "pods. has 1"},
        ]
    },
}


def pod(name: str = "coder", over: float | None = None, **metadata: Any) -> dict[str, Any]:
    if over is not None:
        metadata |= {"deletionTimestamp": (NOW - timedelta(seconds=over)).isoformat(), "deletionGracePeriodSeconds": 30}
    status = {
        "phase": "Running",
        "initContainerStatuses": [{"name": "savepoint-sidecar", "state": {"running": {}}}],
        "containerStatuses": [{"name": "agent", "state": {"terminated": {"exitCode": 143, "finishedAt": "noon"}}}],
    }
    return {
        "kind": "Pod",
        "metadata": {"name": name, "uid": name, **metadata},
        "spec": {"nodeName": "n1"},
        "status": status,
    }


def test_a_pod_is_described_with_its_grace_period_and_containers() -> None:
    assert namespace_teardown.describe_pod(pod(over=41, finalizers=["example.com/wait"]), NOW) == (
        "pod coder on n1, Running; grace period 30 s, exceeded by 41 s; finalizers: example.com/wait; "
        "savepoint-sidecar running; agent terminated 143 at noon"
    )
    assert "12 s left" in namespace_teardown.describe_pod(pod(over=-12), NOW)
    assert "not being deleted" in namespace_teardown.describe_pod(pod(), NOW)


def test_a_namespace_is_described_with_the_conditions_that_are_true() -> None:
    assert namespace_teardown.describe_namespace(NAMESPACE) == [
        "namespace agents, finalizers: kubernetes",
        "  NamespaceContentRemaining: SomeRemain: pods. has 1",
    ]


def test_pods_that_ended_late_are_reported_once() -> None:
    lines: list[str] = []
    watch = namespace_teardown.PodWatch(lines.append)
    watch.observe([pod("late", over=25), pod("good", over=1), pod("stays", over=25)], NOW)
    watch.observe([pod("stays", over=25)], NOW)
    watch.observe([pod("stays", over=25)], NOW)
    assert [line.partition(":")[0] for line in lines] == ["ended 25 s after its grace period"]
    assert "pod late" in lines[0]


class Cluster:
    """A namespace that exists for a number of polls, with one pod and one object in it."""

    def __init__(self, polls: float) -> None:
        self._polls = polls
        self.deleted: tuple[str, ...] = ()

    def __call__(self, *arguments: str, **_: Any) -> str:
        if arguments[0] == "api-resources":
            return "pods\nconfigmaps\nwidgets.example.com\n"
        self.deleted = arguments
        return ""

    def within(self, namespace: str) -> "Cluster":
        return self

    def maybe(self, kind: str, name: str) -> dict[str, Any] | None:
        self._polls -= 1
        return NAMESPACE if self._polls >= 0 else None

    def items(self, kind: str) -> list[dict[str, Any]]:
        if kind == "widgets.example.com":
            raise CommandFailed("the server could not find the requested resource")
        found = {"kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["f"], "deletionTimestamp": "now"}}
        return [pod()] if kind == "pods" else [found]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Let every poll take ten seconds; return the fake clock."""
    seconds = [0.0]

    def sleep(_: float) -> None:
        seconds[0] += 10

    monkeypatch.setattr("e2e.harness.namespace_teardown.time.sleep", sleep)
    monkeypatch.setattr("e2e.harness.namespace_teardown.time.monotonic", lambda: seconds[0])
    return lambda: seconds[0]


def test_a_slow_deletion_is_reported_and_awaited(clock: Callable[[], float]) -> None:
    lines: list[str] = []
    cluster: Any = Cluster(polls=10)
    namespace_teardown.remove(cluster, "agents", say=lines.append)
    assert cluster.deleted[:3] == ("delete", "namespace", "agents")
    assert clock() == 100
    (text,) = lines
    assert text.startswith("not deleted after 80 s:\nnamespace agents") and "pod coder on n1" in text


def test_a_deletion_that_never_ends_fails_with_its_cause(clock: Callable[[], float]) -> None:
    cluster: Any = Cluster(polls=float("inf"))
    with pytest.raises(TimeoutError, match=r"not deleted within 180 s:\nnamespace agents") as failure:
        namespace_teardown.remove(cluster, "agents", say=lambda text: None)
    for part in (
        "SomeRemain: pods. has 1",
        "ConfigMap held; being deleted; finalizers: f",
        "widgets.example.com cannot",
    ):
        assert part in str(failure.value)
