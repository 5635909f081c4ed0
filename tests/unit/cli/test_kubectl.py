"""Tests of the plugin over a scripted kubectl: what it creates, how it waits, and its exit status."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from savepoint.errors import Unavailable
from savepoint_cli import kubectl, kubectl_adapter
from savepoint_cli.kubectl_adapter import Kubectl, Waiter


class Cluster:
    """Answers kubectl's commands; the status of an object advances with every get."""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self.calls: list[list[str]] = []
        self.created: list[dict[str, Any]] = []
        self.statuses = list(statuses)

    def run(self, arguments: Sequence[str], stdin: str) -> str:
        self.calls.append(list(arguments))
        if arguments[0] == "create":
            body = json.loads(stdin)
            self.created.append(body)
            return json.dumps({"metadata": {"name": body["metadata"]["generateName"] + "x1"}})
        if "--output=json" in arguments:
            status = self.statuses.pop(0) if len(self.statuses) > 1 else (self.statuses or [{}])[0]
            return json.dumps({"spec": {"agent": "coder"}, "status": status})
        return "a table\n"


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": status, "reason": reason, "message": message}]}


def invoke(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, *arguments: str) -> int:
    monkeypatch.setattr(kubectl_adapter, "run_kubectl", cluster.run)
    monkeypatch.setattr(kubectl_adapter, "POLL_SECONDS", 0)
    return kubectl.main(arguments)


def test_a_checkpoint_is_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(
        {},
        {**condition("Ready", "False", "Uploading"), "summary": {"progress": "63%"}},
        condition("Ready", "True", "Ready"),
    )
    assert invoke(monkeypatch, cluster, "checkpoint", "coder", "--wait", "-n", "demo") == 0
    out, err = capsys.readouterr()
    assert out == "agentcheckpoint/coder-x1\n" and "coder-x1 Uploading 63%" in err
    assert cluster.created[0]["spec"] == {"agent": "coder"}
    assert all(call[-2:] == ["--namespace", "demo"] for call in cluster.calls)


def test_a_failure_is_printed_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(condition("Ready", "False", "QuiesceTimeout", "in step crawl for 94s"))
    assert invoke(monkeypatch, cluster, "checkpoint", "coder", "--wait") == 1
    assert "in step crawl for 94s" in capsys.readouterr().err


def test_waiting_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(condition("Succeeded", "Unknown", "Waiting"))
    assert invoke(monkeypatch, cluster, "reset", "coder", "--wait", "--timeout", "0.01") == 3


def test_a_rollback_names_the_agent_of_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(condition("Succeeded", "True", "Restored"))
    assert invoke(monkeypatch, cluster, "rollback", "coder-41", "--wait") == 0
    (made,) = cluster.created
    assert made["metadata"] == {"generateName": "coder-"}
    assert made["spec"] == {"mode": "Rollback", "source": {"checkpointName": "coder-41"}}


def test_a_rollback_is_waited_for_through_all_its_phases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = [condition("Succeeded", "Unknown", reason) for reason in ("Waiting", "Checkpointing", "EvictionBlocked")]
    cluster = Cluster({}, {}, *phases, condition("Succeeded", "True", "Succeeded"))
    assert invoke(monkeypatch, cluster, "rollback", "coder-41", "--wait") == 0
    shown = capsys.readouterr().err.split("\n")
    assert shown[:4] == [
        f"coder-x1 {reason}" for reason in ("Waiting", "Checkpointing", "EvictionBlocked", "Succeeded")
    ]


def test_protect_patches_the_template(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster()
    arguments = ["protect", "deployment/coder", "--state", "/workspace", "--state", "/home/node/.agent"]
    assert invoke(monkeypatch, cluster, *arguments, "--dry-run") == 0
    assert cluster.calls == [] and "kubectl patch deployment/coder" in capsys.readouterr().out
    assert invoke(monkeypatch, cluster, *arguments) == 0
    patch = json.loads(cluster.calls[0][4])
    assert patch["spec"]["strategy"] == {"type": "Recreate", "rollingUpdate": None}
    assert patch["spec"]["template"]["metadata"] == {
        "labels": {"savepoint.dev/agent": "coder"},
        "annotations": {"savepoint.dev/state": "/workspace,/home/node/.agent"},
    }
    assert invoke(monkeypatch, cluster, "protect", "statefulset/db") == 0
    assert "strategy" not in json.loads(cluster.calls[1][4])["spec"]


def test_a_dry_run_of_protect_prints_the_patch_as_yaml_and_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster()
    arguments = ["protect", "deployment/coder", "-n", "team", "--state", "/workspace"]
    assert invoke(monkeypatch, cluster, *arguments, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# kubectl patch deployment/coder --namespace=team --type=strategic --patch-file=FILE")
    assert cluster.calls == []
    assert invoke(monkeypatch, cluster, *arguments) == 0
    assert yaml.safe_load(printed) == json.loads(cluster.calls[0][4])


@pytest.mark.parametrize("name", ["my.app", "a" * 53])
def test_a_workload_whose_name_no_agent_can_have_needs_another_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    cluster = Cluster()
    assert invoke(monkeypatch, cluster, "protect", f"deployment/{name}") == 1
    assert "choose one with --agent" in capsys.readouterr().err and cluster.calls == []
    assert invoke(monkeypatch, cluster, "protect", f"deployment/{name}", "--agent", "app") == 0


def test_get_prints_an_agent_with_its_checkpoints_and_restores_as_one_yaml_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, dict[str, Any]] = {
        kubectl.AGENTS: {"kind": "ProtectedAgent", "metadata": {"name": "coder"}},
        kubectl.CHECKPOINTS: {"kind": "AgentCheckpointList", "items": [{"metadata": {"name": "coder-1"}}]},
        kubectl.RESTORES: {"kind": "List", "items": []},
    }

    def run(arguments: Sequence[str], stdin: str) -> str:
        assert "--output=json" in arguments
        return json.dumps(answers[arguments[1]])

    monkeypatch.setattr(kubectl_adapter, "run_kubectl", run)
    assert kubectl.main(["get", "coder", "-o", "yaml"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["kind"] == "List"
    assert [item["metadata"]["name"] for item in printed["items"]] == ["coder", "coder-1"]


def test_yaml_output_without_pyyaml_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert invoke(monkeypatch, Cluster(), "protect", "deployment/coder", "--dry-run") == 1
    assert "savepoint-agents[cli]" in capsys.readouterr().err


def test_get_shows_one_agent_or_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster()
    assert invoke(monkeypatch, cluster, "get") == 0
    assert invoke(monkeypatch, cluster, "get", "coder") == 0
    assert len(cluster.calls) == 4 and "savepoint.dev/agent=coder" in cluster.calls[2]
    assert "a table" in capsys.readouterr().out


def test_an_error_of_kubectl_is_passed_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(arguments: Sequence[str], stdin: str) -> str:
        raise Unavailable("Error from server (Forbidden)")

    monkeypatch.setattr(kubectl_adapter, "run_kubectl", fail)
    assert kubectl.main(["get"]) == 1
    assert "Forbidden" in capsys.readouterr().err


def test_a_missing_kubectl_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable, match="kubectl not found"):
        kubectl_adapter.run_kubectl(["version"], "")


def test_each_phase_is_printed_once() -> None:
    lines: list[str] = []
    cluster = Cluster(*[condition("Ready", "False", "Capturing")] * 3, condition("Ready", "True", "Ready"))
    waiter = Waiter(sleep=lambda _: None, show=lines.append)
    status = waiter.until_ended(
        Kubectl(cluster.run), "x", "coder-1", condition="Ready", in_progress=frozenset({"Capturing"}), seconds=60
    )
    assert status == 0 and lines == ["coder-1 Capturing", "coder-1 Ready"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint", ""], "must not be empty"),
        (["checkpoint", "coder", "--wait", "--timeout", "-1"], "must be a number of seconds"),
        (["protect", "coder", "--dry-run"], "must be KIND/NAME"),
        (["protect", "deployment/", "--dry-run"], "must be KIND/NAME"),
        (["protect", "deployment/coder", "--state", "workspace", "--dry-run"], "must be an absolute path"),
        (["protect", "deployment/Foo_Bar", "--dry-run"], "'Foo_Bar' is not the name of an object"),
        (["protect", "deployment/coder", "--agent", "", "--dry-run"], "must not be empty"),
        (["protect", "deployment/coder", "--agent", "A_b", "--dry-run"], "must be a DNS label"),
        (["protect", "deployment/coder", "--agent", "a" * 53, "--dry-run"], "at most 52 lower-case letters"),
        *(
            (["protect", "deployment/coder", "--state", path, "--dry-run"], "must not be '/', and must not contain")
            for path in ("/", "/a,/b", "/a/../b", "/a//b", "/a:b", "/a\nb", "/a/.")
        ),
    ],
)
def test_an_invalid_argument_is_a_usage_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        kubectl.main(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err
