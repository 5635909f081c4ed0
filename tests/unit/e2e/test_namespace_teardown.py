"""A namespace that does not go is explained; kubectl is a stand-in."""

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


def test_a_pod_says_how_late_it_is_and_what_its_containers_do() -> None:
    assert namespace_teardown.of_pod(pod(over=41, finalizers=["example.com/wait"]), NOW) == (
        "pod coder on n1, Running; grace 30 s, over for 41 s; finalizers: example.com/wait; "
        "savepoint-sidecar running; agent terminated 143 at noon"
    )
    assert "12 s of it left" in namespace_teardown.of_pod(pod(over=-12), NOW)
    assert "not asked to end" in namespace_teardown.of_pod(pod(), NOW)


def test_a_namespace_says_only_what_is_wrong() -> None:
    assert namespace_teardown.of_namespace(NAMESPACE) == [
        "namespace agents, finalizers: kubernetes",
        "  NamespaceContentRemaining: SomeRemain: pods. has 1",
    ]


def test_pods_that_went_late_are_told_once() -> None:
    said: list[str] = []
    seen = namespace_teardown.NamespaceTeardown(said.append)
    seen.seen([pod("late", over=25), pod("good", over=1), pod("stays", over=25)], NOW)
    seen.seen([pod("stays", over=25)], NOW)
    seen.seen([pod("stays", over=25)], NOW)
    assert [text.partition(":")[0] for text in said] == ["ended 25 s after its grace"]
    assert "pod late" in said[0]


class Cluster:
    """A namespace that goes after so many looks, with one pod and one object in it."""

    def __init__(self, looks: float) -> None:
        self._looks = looks
        self.deleted: tuple[str, ...] = ()

    def __call__(self, *arguments: str, **_: Any) -> str:
        if arguments[0] == "api-resources":
            return "pods\nconfigmaps\nwidgets.example.com\n"
        self.deleted = arguments
        return ""

    def within(self, namespace: str) -> "Cluster":
        return self

    def maybe(self, kind: str, name: str) -> dict[str, Any] | None:
        self._looks -= 1
        return NAMESPACE if self._looks >= 0 else None

    def items(self, kind: str) -> list[dict[str, Any]]:
        if kind == "widgets.example.com":
            raise CommandFailed("the server could not find the requested resource")
        found = {"kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["f"], "deletionTimestamp": "now"}}
        return [pod()] if kind == "pods" else [found]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Every look takes ten seconds."""
    seconds = [0.0]

    def sleep(_: float) -> None:
        seconds[0] += 10

    monkeypatch.setattr("e2e.harness.namespace_teardown.time.sleep", sleep)
    monkeypatch.setattr("e2e.harness.namespace_teardown.time.monotonic", lambda: seconds[0])
    return lambda: seconds[0]


def test_what_is_slow_is_told_and_waited_for(clock: Callable[[], float]) -> None:
    said: list[str] = []
    cluster: Any = Cluster(looks=10)
    namespace_teardown.remove(cluster, "agents", say=said.append)
    assert cluster.deleted[:3] == ("delete", "namespace", "agents")
    assert clock() == 100
    (text,) = said
    assert text.startswith("still there after 80 s:\nnamespace agents") and "pod coder on n1" in text


def test_what_never_goes_ends_with_its_cause(clock: Callable[[], float]) -> None:
    cluster: Any = Cluster(looks=float("inf"))
    with pytest.raises(TimeoutError, match=r"not deleted within 180 s:\nnamespace agents") as told:
        namespace_teardown.remove(cluster, "agents", say=lambda text: None)
    for words in (
        "SomeRemain: pods. has 1",
        "ConfigMap held; being deleted; finalizers: f",
        "widgets.example.com cannot",
    ):
        assert words in str(told.value)
