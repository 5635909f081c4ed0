"""The main job on the cluster: the scenarios of `make demo`, each with tests of its own.

Every scenario is a fixture, run once when the first test asks for it: so each test also runs alone, and a failure names
the check that failed.
"""

import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from e2e.checks import checks, report
from e2e.checks.checks import Check
from e2e.checks.report import Observations
from e2e.harness import installation as setup
from e2e.harness import namespace_teardown
from e2e.harness.installation import Installation, Settings
from e2e.harness.kube import Kubectl, until
from e2e.harness.laptop import laptop
from e2e.scenarios import main_job
from e2e.scenarios.main_job import CODER, RESEARCHER, ContainerKill, Corruption, OperatorKill, Reschedule

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def installation(kubeconfig: Path) -> Iterator[Installation]:
    """The chart installed by Helm, with the researcher, its unprotected twin and the coder at work."""
    kubectl = Kubectl(kubeconfig)
    setup.install(kubectl)
    settings = Settings(namespace=f"agents-{uuid.uuid4().hex[:8]}")  # data of another run stays in the bucket
    setup.agents_namespace(kubectl, settings)
    with setup.opened(kubeconfig, settings) as opened:
        main_job.deploy_agents(opened)
        yield opened
        opened.nodes.heal()
        namespace_teardown.remove(kubectl, settings.namespace)


@pytest.fixture(scope="module")
def kill(installation: Installation) -> ContainerKill:
    """The researcher was killed in place."""
    return main_job.kill_in_place(installation)


@pytest.fixture(scope="module")
def moves(installation: Installation) -> list[Reschedule]:
    """Each node was drained once."""
    return main_job.drain_every_node(installation, print)


@pytest.fixture(scope="module")
def operator_kill(installation: Installation) -> OperatorKill:
    """The operator was killed during a checkpoint."""
    return main_job.kill_operator_during_checkpoint(installation, print)


@pytest.fixture(scope="module")
def corruption(installation: Installation) -> Corruption:
    """One stored object was damaged and repaired."""
    return main_job.corrupt_and_repair(installation, print)


def failed(found: list[Check]) -> list[Check]:
    return [check for check in found if not check.holds]


def test_a_laptop_agent_survives_two_kills() -> None:
    with laptop(mebibytes=16) as machine:
        for victim in ("agent", "supervisor"):
            process = machine.start()
            machine.wait_turns(8)
            machine.kill(machine.agent_pid(process.pid) if victim == "agent" else process.pid, process)
        process = machine.start()
        machine.wait_turns(8)
        assert machine.stop(process) in (0, 130, 143)
        assert "checkpoint" in machine.log()
        found = report.laptop_checks(machine)
    print(checks.table(found))
    assert not failed(found)


def test_checkpoints_appear_on_the_interval(installation: Installation) -> None:
    for agent in (RESEARCHER, CODER):
        found = installation.wait_checkpoint(agent, installation.newest_sequence(agent))
        assert found["status"]["trigger"]["type"] == "Interval"
    assert installation.checkpoints(RESEARCHER)[-1]["status"]["consistency"] == "Application"
    assert installation.checkpoints(CODER)[-1]["status"]["consistency"] == "Fuzzy"


def test_a_checkpoint_on_demand_by_object(installation: Installation) -> None:
    before = installation.newest_sequence(RESEARCHER)
    made = installation.checkpoint_now(RESEARCHER)
    assert made["status"]["sequence"] > before
    assert made["status"]["trigger"]["type"] == "Manual"


def test_a_checkpoint_on_demand_by_annotation(installation: Installation) -> None:
    before = installation.newest_sequence(CODER)
    pod = installation.wait_running(CODER)["metadata"]["name"]
    installation.agents("annotate", "pod", pod, "--overwrite", "savepoint.dev/checkpoint-now=first")

    def manual() -> bool:
        newer = [item for item in installation.checkpoints(CODER) if item["status"]["sequence"] > before]
        return any(item["status"]["trigger"]["type"] == "Manual" for item in newer)

    until("a checkpoint by annotation", manual, seconds=60)


def test_what_kubectl_shows(installation: Installation) -> None:
    for agent in (RESEARCHER, CODER):
        installation.wait_checkpoint(agent, 0)
        installation.agents("wait", "--for=condition=Protected", f"protectedagent/{agent}", "--timeout=60s")
    header, *rows = installation.agents("get", "pagent").splitlines()
    assert header.split()[:6] == ["NAME", "STATE", "POD", "NODE", "EPOCH", "RECOVERY-POINT"]
    assert {row.split()[0]: row.split()[1] for row in rows} == {RESEARCHER: "Protected", CODER: "Protected"}
    header, *rows = installation.agents("get", "ackpt", "-l", f"savepoint.dev/agent={RESEARCHER}").splitlines()
    assert header.split()[1:] == ["AGENT", "TRIGGER", "STATUS", "PROGRESS", "SIZE", "UPLOADED", "PAUSE", "AGE"]
    assert any("Ready" in row and "100%" in row for row in rows)


def test_an_agent_killed_in_place_continues(kill: ContainerKill) -> None:
    assert kill.calls_repeated <= 1


def test_a_coder_killed_in_place_keeps_its_workspace(installation: Installation) -> None:
    """Without the SDK its files stay as the crash left them, and scheduled checkpoints continue."""
    installation.checkpoint_now(CODER)  # the interval starts again: the next turns are not yet in a checkpoint
    installation.wait_turns(CODER, 2)
    (uid, restarts), restores = _incarnations(installation)[CODER], _names(installation.restores(CODER))
    main_job.restart_in_place(installation, CODER)
    until("the restart is counted", lambda: _incarnations(installation)[CODER] == (uid, restarts + 1), seconds=30)
    assert not failed(checks.coder_continues(installation.services.reports(CODER)))
    assert _names(installation.restores(CODER)) == restores
    later = installation.wait_checkpoint(CODER, installation.newest_sequence(CODER))["status"]
    assert (later["trigger"]["type"], later["podRef"]["uid"]) == ("Interval", uid)


def test_agents_survive_the_drain_of_each_node(installation: Installation, moves: list[Reschedule]) -> None:
    assert [move.calls_repeated for move in moves] == [0, 0]
    assert [move.turns_lost for move in moves] == [0, 0]
    assert all(move.final_checkpoint_is_complete for move in moves), moves
    assert not failed(checks.coder_continues(installation.services.reports(CODER)))
    assert installation.agents("get", "arst").splitlines()[0].split()[:6] == [
        "NAME",
        "AGENT",
        "MODE",
        "FROM",
        "STATUS",
        "DISCARDED",
    ]


def test_a_checkpoint_survives_the_kill_of_the_operator(operator_kill: OperatorKill) -> None:
    assert not failed(report.operator_killed(operator_kill))


def test_a_corrupted_object_is_refused_and_named(corruption: Corruption) -> None:
    assert corruption.key.rsplit("/", 1)[-1] in corruption.refusal
    assert not corruption.agent_started
    assert corruption.recovered


def test_every_check_of_the_main_job_holds(
    installation: Installation,
    kill: ContainerKill,
    moves: list[Reschedule],
    operator_kill: OperatorKill,
    corruption: Corruption,
) -> None:
    found = report.cluster_checks(installation, Observations(kill, moves, operator_kill, corruption))
    print(checks.table(found))
    print(checks.summary(found))
    assert not [check for check in found if check.failed]


SECRETS = (setup.SECRET_KEY, "X-Amz-Signature", "eyJhbGciOi")
"""The store's key, a presigned URL, a token."""


def test_no_secret_is_shown(installation: Installation) -> None:
    """I9: neither the store's key nor a token nor a presigned URL in objects, Events, pod specs or logs."""
    shown = installation.agents("get", "pods,events,pagent,ackpt,arst,ackptpol", "-o", "yaml")
    for pod in installation.agents.items("pods", "savepoint.dev/agent"):
        for container in ("savepoint-restore", "savepoint-sidecar"):
            shown += installation.agents("logs", pod["metadata"]["name"], "-c", container)
    shown += _system_logs(installation) + installation.kubectl.within(setup.SYSTEM)("get", "events,pods", "-o", "yaml")
    for secret in SECRETS:
        assert secret not in shown


def _system_logs(installation: Installation) -> str:
    return "".join(installation.kubectl.within(setup.SYSTEM)("logs", name) for name in _system(installation))


def _system(installation: Installation) -> set[str]:
    """Return the names of the operator's and the webhook's pods that are not being deleted."""
    pods = installation.kubectl.within(setup.SYSTEM).items("pods", "app.kubernetes.io/component in (operator,webhook)")
    return {pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("deletionTimestamp")}


def _level(installation: Installation, deployment: str) -> str:
    spec = installation.kubectl.within(setup.SYSTEM).get("deployment", deployment)["spec"]["template"]["spec"]
    environment = spec["containers"][0]["env"]
    return str(next(each["value"] for each in environment if each["name"] == "SAVEPOINT_LOG_LEVEL"))


def _incarnations(installation: Installation) -> dict[str, tuple[str, int]]:
    """Return the pod UID and the container's restart count of each protected agent."""
    found = {}
    for agent in (RESEARCHER, CODER):
        pod = installation.wait_running(agent)
        status = next(each for each in pod["status"]["containerStatuses"] if each["name"] == "agent")
        found[agent] = (pod["metadata"]["uid"], int(status["restartCount"]))
    return found


def _names(items: list[dict[str, Any]]) -> set[str]:
    return {item["metadata"]["name"] for item in items}


def test_upgrade_leaves_checkpoints_and_agents_alone(installation: Installation) -> None:
    installation.wait_checkpoint(RESEARCHER, 0)
    incarnations = _incarnations(installation)
    for level in ("DEBUG", "INFO"):
        before, names, sequence = (
            _system(installation),
            _names(installation.checkpoints(RESEARCHER)),
            installation.newest_sequence(RESEARCHER),
        )
        setup.install(installation.kubectl, logLevel=level)
        until("every pod has been replaced", partial(_replaced, installation, before), seconds=60)
        assert {_level(installation, f"savepoint-{each}") for each in ("operator", "webhook")} == {level}
        assert names & _names(installation.checkpoints(RESEARCHER))  # some may have expired since
        installation.wait_turns(RESEARCHER, 3)
        assert installation.checkpoint_now(RESEARCHER)["status"]["sequence"] > sequence
        logs = _system_logs(installation)
        assert not [secret for secret in SECRETS if secret in logs]  # at every level
    assert _incarnations(installation) == incarnations


def _replaced(installation: Installation, before: set[str]) -> bool:
    now = _system(installation)
    return bool(now) and not before & now


def test_uninstall_leaves_checkpoints_and_agents_alone(installation: Installation) -> None:
    """The agents continue without an operator, and a new release takes over their checkpoints."""
    incarnations = _incarnations(installation)
    installation.checkpoint_now(RESEARCHER)
    setup.uninstall(installation.kubectl)
    until("operator and webhook are removed", lambda: not _system(installation), seconds=60)
    names, sequence = _names(installation.checkpoints(RESEARCHER)), installation.newest_sequence(RESEARCHER)
    installation.wait_turns(RESEARCHER, 40)  # longer than a sidecar waits before it checks whether its node is cut off
    installation.wait_turns(CODER, 5)
    assert _incarnations(installation) == incarnations
    assert names and _names(installation.checkpoints(RESEARCHER)) == names
    setup.install(installation.kubectl)
    resumed = installation.wait_checkpoint(RESEARCHER, sequence)["status"]
    assert resumed["trigger"]["type"] == "Interval" and resumed["podRef"]["uid"] == incarnations[RESEARCHER][0]
    installation.agents("wait", "--for=condition=Protected", f"protectedagent/{RESEARCHER}", "--timeout=60s")
    assert names & _names(installation.checkpoints(RESEARCHER))
    assert _incarnations(installation) == incarnations
