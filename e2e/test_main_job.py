"""The main job on the cluster, scene by scene, in the order of the file: each leaves the agents running for the next.

The same scenes as `make demo`; here each proof is a test of its own, so that a failure says which one.
"""

import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from e2e.checks import checks as proof
from e2e.checks import report
from e2e.harness import installation as stage
from e2e.harness import namespace_teardown
from e2e.harness.installation import Installation, Settings
from e2e.harness.kube import Kubectl, until
from e2e.harness.laptop import laptop
from e2e.scenarios import main_job
from e2e.scenarios.main_job import CODER, RESEARCHER, Observations

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def lab(kubeconfig: Path) -> Iterator[Installation]:
    """The chart installed by Helm, with the researcher, its twin and the coder at work."""
    kubectl = Kubectl(kubeconfig)
    stage.install(kubectl)
    settings = Settings(namespace=f"agents-{uuid.uuid4().hex[:8]}")  # data of another run stays in the bucket
    stage.agents_namespace(kubectl, settings)
    with stage.opened(kubeconfig, settings) as opened:
        main_job.protect(opened)
        yield opened
        opened.nodes.heal()
        namespace_teardown.remove(kubectl, settings.namespace)


@pytest.fixture(scope="module")
def facts() -> Observations:
    """What the scenes saw."""
    return Observations()


def test_a_laptop_agent_survives_two_kills() -> None:
    with laptop(mebibytes=16) as here:
        for wounded in ("agent", "supervisor"):
            process = here.start()
            here.wait_turns(8)
            here.kill(here.agent_pid(process.pid) if wounded == "agent" else process.pid, process)
        process = here.start()
        here.wait_turns(8)
        assert here.stop(process) in (0, 130, 143)
        assert "checkpoint" in here.log()
        found = report.laptop_proofs(here)
    print(proof.table(found))
    assert not [entry for entry in found if not entry.holds]


def test_checkpoints_appear_on_the_interval(lab: Installation) -> None:
    for agent in (RESEARCHER, CODER):
        found = lab.wait_checkpoint(agent, 0)
        assert found["status"]["trigger"]["type"] == "Interval"
    assert lab.checkpoints(RESEARCHER)[-1]["status"]["consistency"] == "Application"
    assert lab.checkpoints(CODER)[-1]["status"]["consistency"] == "Fuzzy"


def test_a_checkpoint_on_demand_by_object(lab: Installation) -> None:
    before = lab.newest_sequence(RESEARCHER)
    made = lab.checkpoint_now(RESEARCHER)
    assert made["status"]["sequence"] > before
    assert made["status"]["trigger"]["type"] == "Manual"


def test_a_checkpoint_on_demand_by_annotation(lab: Installation) -> None:
    before = lab.newest_sequence(CODER)
    pod = lab.wait_running(CODER)["metadata"]["name"]
    lab.agents("annotate", "pod", pod, "--overwrite", "savepoint.dev/checkpoint-now=first")

    def manual() -> bool:
        newer = [item for item in lab.checkpoints(CODER) if item["status"]["sequence"] > before]
        return any(item["status"]["trigger"]["type"] == "Manual" for item in newer)

    until("a checkpoint by annotation", manual, seconds=60)


def test_what_kubectl_shows(lab: Installation) -> None:
    header, *rows = lab.agents("get", "pagent").splitlines()
    assert header.split()[:6] == ["NAME", "STATE", "POD", "NODE", "EPOCH", "RECOVERY-POINT"]
    assert {row.split()[0]: row.split()[1] for row in rows} == {RESEARCHER: "Protected", CODER: "Protected"}
    header, *rows = lab.agents("get", "ackpt", "-l", f"savepoint.dev/agent={RESEARCHER}").splitlines()
    assert header.split()[1:] == ["AGENT", "TRIGGER", "STATUS", "PROGRESS", "SIZE", "UPLOADED", "PAUSE", "AGE"]
    assert any("Ready" in row and "100%" in row for row in rows)


def test_a_process_killed_in_place_goes_on(lab: Installation, facts: Observations) -> None:
    main_job.kill_in_place(lab, facts)
    assert facts.repeated_by_kills <= 1


def test_a_coder_killed_in_place_keeps_its_workspace(lab: Installation) -> None:
    """Without the SDK nothing is set back: its files are as the crash left them, and checkpoints go on."""
    lab.checkpoint_now(CODER)  # none is due by time for some seconds: the turns after it are in no checkpoint
    lab.wait_turns(CODER, 2)
    (uid, restarts), restores = _lives(lab)[CODER], _names(lab.restores(CODER))
    main_job.restart_in_place(lab, CODER)
    until("the restart is counted", lambda: _lives(lab)[CODER] == (uid, restarts + 1), seconds=30)
    assert not [entry for entry in proof.coder_goes_on(lab.world.reports(CODER)) if not entry.holds]
    assert _names(lab.restores(CODER)) == restores
    later = lab.wait_checkpoint(CODER, lab.newest_sequence(CODER))["status"]
    assert (later["trigger"]["type"], later["podRef"]["uid"]) == ("Interval", uid)


def test_agents_survive_the_drain_of_each_node(lab: Installation, facts: Observations) -> None:
    main_job.drain_every_node(lab, facts, print)
    assert [move.calls_repeated for move in facts.moves] == [0, 0]
    assert [move.turns_lost for move in facts.moves] == [0, 0]
    assert {move.trigger for move in facts.moves} <= {"Drain", "Shutdown"}
    assert not [entry for entry in proof.coder_goes_on(lab.world.reports(CODER)) if not entry.holds]
    assert lab.agents("get", "arst").splitlines()[0].split()[:6] == [
        "NAME",
        "AGENT",
        "MODE",
        "FROM",
        "STATUS",
        "DISCARDED",
    ]


def test_the_operator_is_killed_during_a_checkpoint(lab: Installation, facts: Observations) -> None:
    main_job.kill_operator_during_checkpoint(lab, facts, print)
    assert not [entry for entry in report.operator_killed(facts) if not entry.holds]


def test_a_corrupted_object_is_refused_and_named(lab: Installation, facts: Observations) -> None:
    main_job.corrupt_and_mend(lab, facts, print)
    assert facts.corrupted_key.rsplit("/", 1)[-1] in facts.corrupted_refusal
    assert not facts.corrupted_agent_started
    assert facts.mended


def test_every_proof_holds(lab: Installation, facts: Observations) -> None:
    found = report.cluster_proofs(lab, facts)
    print(proof.table(found))
    print(proof.summary(found))
    assert not [entry for entry in found if entry.failed]


SECRETS = (stage.SECRET_KEY, "X-Amz-Signature", "eyJhbGciOi")
"""The store's key, a presigned URL, a token."""


def test_no_secret_is_shown(lab: Installation) -> None:
    """I9: neither the store's key nor a token nor a presigned URL in objects, Events, pod specs or logs."""
    shown = lab.agents("get", "pods,events,pagent,ackpt,arst,ackptpol", "-o", "yaml")
    for pod in lab.agents.items("pods", "savepoint.dev/agent"):
        for container in ("savepoint-restore", "savepoint-sidecar"):
            shown += lab.agents("logs", pod["metadata"]["name"], "-c", container)
    shown += _system_logs(lab) + lab.kubectl.within(stage.SYSTEM)("get", "events,pods", "-o", "yaml")
    for secret in SECRETS:
        assert secret not in shown


def _system_logs(lab: Installation) -> str:
    return "".join(lab.kubectl.within(stage.SYSTEM)("logs", name) for name in _system(lab))


def _system(lab: Installation) -> set[str]:
    """The operator's and the webhook's pods that are not on their way out."""
    pods = lab.kubectl.within(stage.SYSTEM).items("pods", "app.kubernetes.io/component in (operator,webhook)")
    return {pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("deletionTimestamp")}


def _level(lab: Installation, deployment: str) -> str:
    spec = lab.kubectl.within(stage.SYSTEM).get("deployment", deployment)["spec"]["template"]["spec"]
    environment = spec["containers"][0]["env"]
    return str(next(each["value"] for each in environment if each["name"] == "SAVEPOINT_LOG_LEVEL"))


def _lives(lab: Installation) -> dict[str, tuple[str, int]]:
    """Of each protected agent: its pod, and how often its container was started again."""
    found = {}
    for agent in (RESEARCHER, CODER):
        pod = lab.wait_running(agent)
        status = next(each for each in pod["status"]["containerStatuses"] if each["name"] == "agent")
        found[agent] = (pod["metadata"]["uid"], int(status["restartCount"]))
    return found


def _names(items: list[dict[str, Any]]) -> set[str]:
    return {item["metadata"]["name"] for item in items}


def test_upgrade_leaves_checkpoints_and_agents_alone(lab: Installation) -> None:
    lives = _lives(lab)
    for level in ("DEBUG", "INFO"):
        before, names, sequence = _system(lab), _names(lab.checkpoints(RESEARCHER)), lab.newest_sequence(RESEARCHER)
        stage.install(lab.kubectl, logLevel=level)
        until("every pod is another one", partial(_replaced, lab, before), seconds=60)
        assert {_level(lab, f"savepoint-{each}") for each in ("operator", "webhook")} == {level}
        assert names & _names(lab.checkpoints(RESEARCHER))  # some may be beyond keepLast since
        lab.wait_turns(RESEARCHER, 3)
        assert lab.checkpoint_now(RESEARCHER)["status"]["sequence"] > sequence
        logs = _system_logs(lab)
        assert not [secret for secret in SECRETS if secret in logs]  # at every level
    assert _lives(lab) == lives


def _replaced(lab: Installation, before: set[str]) -> bool:
    now = _system(lab)
    return bool(now) and not before & now


def test_uninstall_leaves_checkpoints_and_agents_alone(lab: Installation) -> None:
    """The agents run on without an operator, and a new release takes up what the old one has left."""
    lives = _lives(lab)
    lab.checkpoint_now(RESEARCHER)
    stage.uninstall(lab.kubectl)
    until("operator and webhook go", lambda: not _system(lab), seconds=60)
    names, sequence = _names(lab.checkpoints(RESEARCHER)), lab.newest_sequence(RESEARCHER)
    lab.wait_turns(RESEARCHER, 40)  # longer than a sidecar waits before it asks whether its node is cut off
    lab.wait_turns(CODER, 5)
    assert _lives(lab) == lives
    assert names and _names(lab.checkpoints(RESEARCHER)) == names
    stage.install(lab.kubectl)
    resumed = lab.wait_checkpoint(RESEARCHER, sequence)["status"]
    assert resumed["trigger"]["type"] == "Interval" and resumed["podRef"]["uid"] == lives[RESEARCHER][0]
    lab.agents("wait", "--for=condition=Protected", f"protectedagent/{RESEARCHER}", "--timeout=60s")
    assert names & _names(lab.checkpoints(RESEARCHER))
    assert _lives(lab) == lives
