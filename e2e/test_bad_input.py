"""Faults and invalid input on the cluster: each ends, in time, in a condition and an Event that state the remedy.

The scenarios of the selected tests run in a few threads, and the tests check their results. No fault may hang, and none
may leave an incomplete checkpoint.
"""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from e2e.harness import installation
from e2e.harness.installation import condition
from e2e.harness.kube import CommandFailed, Kubectl, until
from e2e.scenarios.fault_scenarios import START_SECONDS, STORE_SECONDS, start
from e2e.scenarios.fault_setup import SCENARIO_SECONDS, STORE_FAULTS, FaultScenarios, clean_up, prepare
from e2e.scenarios.faulty_agents import API, LABEL, FaultyNamespace, Object, never_ran, seconds_until

pytestmark = pytest.mark.timeout(SCENARIO_SECONDS + 120)
scenario = pytest.mark.scenario
AT_ONCE = 4
"""Scenarios at a time: with all 25 at once, pods on two cores took more than 90 s to become ready."""


@pytest.fixture(scope="module")
def faults(kubeconfig: Path, request: pytest.FixtureRequest) -> Iterator[FaultScenarios]:
    """Yield the scenarios that the selected tests name in their marker, deployed and running."""
    markers = [marker for item in request.session.items for marker in item.iter_markers("scenario")]
    selected = {str(name) for marker in markers for name in marker.args}
    kubectl = Kubectl(kubeconfig)
    installation.install(kubectl)
    name = f"bad-{uuid.uuid4().hex[:6]}"
    with installation.bucket_of(kubectl) as bucket, ThreadPoolExecutor(AT_ONCE) as threads:
        restricted, baseline = (
            FaultyNamespace(kubectl.within(namespace), bucket, name) for namespace in (name, f"{name}-baseline")
        )
        scenarios = FaultScenarios(kubectl, name, restricted, baseline)
        try:
            prepare(scenarios)
            start(scenarios, selected, threads)
            yield scenarios
        finally:
            for future in scenarios.running.values():
                future.cancel()
            clean_up(scenarios)


def case(agent: str, *values: str) -> Any:
    """Return the parameters of a test about the scenario of this name."""
    return pytest.param(agent, *values, marks=scenario(agent))


# -- rejections by the API server ------------------------------------------------------------------------------------


STORE: Object = {"endpoint": "http://x", "bucket": "abc", "credentialsSecretName": "keys"}
MALFORMED: tuple[tuple[str, Object, str], ...] = (
    ("AgentCheckpoint", {"agent": "Not_A_Name"}, "spec.agent"),
    ("AgentCheckpoint", {}, "spec.agent"),
    ("AgentCheckpoint", {"agent": "a", "retention": {"hold": "Maybe"}}, "spec.retention.hold"),
    ("AgentRestore", {"mode": "Rollback", "source": {"agent": "a"}}, "spec.source.checkpointName"),
    ("AgentRestore", {"mode": "Rollback", "source": {"agent": "a", "checkpointName": "a-1"}}, "spec.source"),
    ("AgentRestore", {"mode": "Sideways", "source": {"agent": "a"}}, "spec.mode"),
    ("AgentCheckpointPolicy", {"triggers": [{"interval": {"periodSeconds": 1}}]}, "periodSeconds"),
    ("AgentCheckpointPolicy", {"state": {"paths": [{"mountPath": "work/../x"}]}}, "mountPath"),
    ("AgentCheckpointPolicy", {"stage": {"sizeLimit": "much"}}, "spec.stage.sizeLimit"),
    ("AgentCheckpointPolicy", {"state": {"exclude": ["**"]}}, "spec.state.exclude"),
    ("AgentCheckpointPolicy", {"state": {"paths": [{"mountPath": "/proc"}]}}, "spec.state.paths"),
    ("AgentCheckpointPolicy", {"selector": {"matchLabels": {"a b!": "x"}}}, "spec.selector.matchLabels"),
    (
        "AgentCheckpointPolicy",
        {"injection": {"resources": {"limits": {"memory": 1}}}},
        "spec.injection.resources.limits.memory",
    ),
    ("AgentCheckpointStore", {"s3": {**STORE, "endpoint": "https://h:99999"}}, "spec.s3.endpoint"),
    ("AgentCheckpointStore", {"s3": {**STORE, "bucket": "a..b"}}, "spec.s3.bucket"),
    ("AgentCheckpointStore", {"s3": {**STORE, "endpoint": "ftp://x"}}, "spec.s3.endpoint"),
    ("AgentCheckpointStore", {"s3": {"endpoint": "http://x", "credentialsSecretName": "keys"}}, "spec.s3.bucket"),
    ("AgentCheckpointStore", {"s3": {"endpoint": "http://x", "bucket": "abc"}}, "spec.s3.credentialsSecretName"),
)


@pytest.mark.parametrize(("kind", "spec", "field"), MALFORMED)
def test_the_rejection_of_a_malformed_resource_names_the_field(
    faults: FaultScenarios, kind: str, spec: Object, field: str
) -> None:
    body = {"apiVersion": API, "kind": kind, "metadata": {"name": "malformed"}, "spec": spec}
    with pytest.raises(CommandFailed, match=field):  # by the server: kubectl does not validate
        faults.restricted.kubectl("create", "--validate=false", "-f", "-", stdin=json.dumps(body))


def test_an_unknown_field_is_rejected(faults: FaultScenarios) -> None:
    body = {"apiVersion": API, "kind": "AgentCheckpoint", "metadata": {"name": "malformed"}, "spec": {"agnet": "a"}}
    with pytest.raises(CommandFailed, match="agnet"):
        faults.restricted.kubectl("create", "--validate=strict", "-f", "-", stdin=json.dumps(body))


# -- stores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "text"),
    [
        case("unreachable", "cannot reach the store"),
        case("denied", "check the credentials"),
        case("nobucket", "bucket"),
        case("nosecret", "-none"),
        case("unknown", "Create it"),
    ],
)
def test_an_agent_with_a_faulty_store_waits_and_reports_the_cause(
    faults: FaultScenarios, agent: str, text: str
) -> None:
    place, reason = faults.restricted, STORE_FAULTS[agent]
    faults.observed(agent)
    pod = place.kubectl.get("pod", agent)
    found = place.wait_restore(pod["metadata"]["uid"], reason, START_SECONDS, text)
    assert condition(found, "Succeeded")["status"] == "Unknown"
    assert seconds_until(found, "Succeeded", pod["metadata"]["creationTimestamp"]) < START_SECONDS
    place.wait_warning(pod["metadata"]["uid"], reason, text)
    place.wait_unprotected(agent, text, seconds=30)
    place.assert_no_checkpoint(agent)
    assert never_ran(place.kubectl, agent)
    logs = place.kubectl("logs", agent, "-c", "savepoint-restore")
    assert reason in logs and "Fresh" not in logs
    if agent != "unknown":
        ready = condition(faults.kubectl.get("agentcheckpointstore", f"{faults.name}-{agent}"), "Ready")
        assert (ready["status"], ready["reason"]) == ("False", reason) and text in ready["message"]


@scenario("deleted")
def test_an_agent_does_not_start_fresh_while_its_store_is_deleted(faults: FaultScenarios) -> None:
    waiting, restored = faults.observed("deleted")
    assert condition(waiting, "Succeeded")["status"] == "Unknown"
    assert "Create it" in condition(waiting, "Succeeded")["message"]
    faults.restricted.wait_warning(waiting["status"]["targets"][0]["podUID"], "NoStore", "Create it")
    assert restored["metadata"]["uid"] == waiting["metadata"]["uid"]
    assert restored["status"]["targets"][0]["bytes"] >= 8 << 20


@scenario("lost")
def test_an_agent_does_not_start_fresh_from_a_missing_or_emptied_bucket(faults: FaultScenarios) -> None:
    pod, missing, emptied = faults.observed("lost")
    assert "bucket" in condition(missing, "Succeeded")["message"]
    faults.restricted.wait_warning(pod["metadata"]["uid"], "StoreMisconfigured", "bucket")
    assert condition(emptied, "Succeeded")["status"] == "False"
    assert "pinned" in condition(emptied, "Succeeded")["message"]
    faults.restricted.wait_warning(pod["metadata"]["uid"], "RollbackDetected", "pinned")
    assert never_ran(faults.restricted.kubectl, "lost")


@scenario("unreached")
def test_a_store_that_only_the_pod_cannot_reach_is_reported(faults: FaultScenarios) -> None:
    pod, waiting, restored = faults.observed("unreached")
    succeeded = condition(waiting, "Succeeded")
    assert succeeded["status"] == "Unknown" and "in this pod is held up" in succeeded["message"]
    for uid in (pod["metadata"]["uid"], waiting["metadata"]["uid"]):
        faults.restricted.wait_warning(uid, "StoreUnavailable", "held up")
    assert condition(restored, "Succeeded")["status"] == "True"


@pytest.mark.parametrize(
    ("agent", "reason", "text"),
    [
        case("denied-later", "StoreDenied", "credentials"),
        case("cut-off", "StoreUnavailable", "Earlier checkpoints are safe"),
    ],
)
def test_a_checkpoint_fails_if_its_store_becomes_faulty(
    faults: FaultScenarios, agent: str, reason: str, text: str
) -> None:
    pod, failed, after = faults.observed(agent)
    ready = condition(failed, "Ready")
    assert ready["reason"] == reason and text in ready["message"]
    assert seconds_until(failed, "Ready", failed["metadata"]["creationTimestamp"]) < STORE_SECONDS
    for uid in (failed["metadata"]["uid"], pod["metadata"]["uid"]):
        faults.restricted.wait_warning(uid, "CheckpointFailed", text)
    assert faults.restricted.record_kinds(agent) == ["grant", "checkpoint", "checkpoint"]
    assert after["status"]["podRef"]["uid"] == pod["metadata"]["uid"]


# -- agents that do not answer --------------------------------------------------------------------------------------


@scenario("stuck")
def test_a_checkpoint_does_not_wait_for_a_long_step(faults: FaultScenarios) -> None:
    pod, failed, kinds = faults.observed("stuck")
    _assert_quiesce_timeout(faults, "stuck", pod, failed)
    assert "crawl" in condition(failed, "Ready")["message"]
    assert kinds == ["grant"]


@scenario("stopped")
def test_a_checkpoint_does_not_wait_for_a_stopped_process(faults: FaultScenarios) -> None:
    pod, failed, kinds, after = faults.observed("stopped")
    _assert_quiesce_timeout(faults, "stopped", pod, failed)
    assert kinds == ["grant"]
    assert after["status"]["consistency"] == "Application"


def _assert_quiesce_timeout(faults: FaultScenarios, agent: str, pod: Object, failed: Object) -> None:
    ready = condition(failed, "Ready")
    assert ready["reason"] == "QuiesceTimeout"
    assert "agent.safe_point()" in ready["message"] and f'policy "{agent}"' in ready["message"]
    assert seconds_until(failed, "Ready", failed["metadata"]["creationTimestamp"]) <= 15
    for uid in (failed["metadata"]["uid"], pod["metadata"]["uid"]):
        faults.restricted.wait_warning(uid, "CheckpointFailed", "QuiesceTimeout")


@scenario("mute")
def test_an_agent_without_the_sdk_need_not_answer(faults: FaultScenarios) -> None:
    checkpoint, took = faults.observed("mute")
    assert checkpoint["status"]["consistency"] == "Fuzzy"
    assert took < 5 + 20  # its grace period, and the time that the kubelet itself takes
    assert faults.restricted.record_kinds("mute")[:2] == ["grant", "checkpoint"]


# -- several pods of one agent --------------------------------------------------------------------------------------


@scenario("many")
def test_a_deployment_with_two_replicas_is_ambiguous(faults: FaultScenarios) -> None:
    faults.observed("many")
    place = faults.restricted
    pods = until("two pods", lambda: _two(place.kubectl.items("pods", f"{LABEL}=many")), seconds=30, every=1)
    for pod in pods:
        _assert_ambiguous(place, pod, "use a StatefulSet")
        assert never_ran(place.kubectl, pod["metadata"]["name"])
    place.wait_unprotected("many", "use a StatefulSet", seconds=30)
    place.assert_no_checkpoint("many")


def _assert_ambiguous(place: FaultyNamespace, pod: Object, text: str) -> None:
    uid = pod["metadata"]["uid"]
    place.wait_warning(uid, "AmbiguousAgent", text, START_SECONDS)
    found = place.wait_restore(uid, "AmbiguousAgent", START_SECONDS, text)
    assert condition(found, "Succeeded")["status"] == "False"


def _two(pods: list[Object]) -> list[Object] | None:
    return pods if len(pods) == 2 else None


@scenario("twins")
def test_a_second_pod_of_an_agent_does_not_start(faults: FaultScenarios) -> None:
    second = faults.observed("twins")
    place = faults.restricted
    _assert_ambiguous(place, second, "delete it")
    assert never_ran(place.kubectl, "twins-2")
    assert condition(place.kubectl.get("pod", "twins-1"), "Ready")["status"] == "True"
    assert place.ready_checkpoint("twins")["status"]["podRef"]["name"] == "twins-1"


# -- user IDs -------------------------------------------------------------------------------------------------------


@scenario("nouid")
def test_a_pod_without_a_uid_is_rejected_in_a_restricted_namespace(faults: FaultScenarios) -> None:
    faults.observed("nouid")
    place = faults.restricted

    def replica_failure() -> Object | None:
        found = condition(place.kubectl.get("deployment", "nouid"), "ReplicaFailure")
        return found if found.get("status") == "True" else None

    failure = until("the Deployment reports the cause", replica_failure, seconds=30, every=1)
    assert "RunAsUserRequired" in failure["message"] and "savepoint.dev/run-as-user" in failure["message"]
    (replicas,) = place.kubectl.items("replicasets", f"{LABEL}=nouid")
    place.wait_warning(replicas["metadata"]["uid"], "FailedCreate", "RunAsUserRequired")
    assert not place.kubectl.items("pods", f"{LABEL}=nouid")


@scenario("foreign")
def test_an_unreadable_file_is_named_with_its_uid(faults: FaultScenarios) -> None:
    pod, failed = faults.observed("foreign")
    ready = condition(failed, "Ready")
    assert ready["reason"] == "RunAsUserRequired"
    assert "closed" in ready["message"] and "runAsUser: 1000" in ready["message"]
    for uid in (failed["metadata"]["uid"], pod["metadata"]["uid"]):
        faults.baseline.wait_warning(uid, "CheckpointFailed", "runAsUser: 1000")
    faults.baseline.assert_no_checkpoint("foreign")


# -- space ----------------------------------------------------------------------------------------------------------


@scenario("large")
def test_a_full_stage_fails_the_checkpoint(faults: FaultScenarios) -> None:
    pod, failed = faults.observed("large")
    ready = condition(failed, "Ready")
    assert ready["reason"] == "StageFull"
    assert 'Raise spec.stage.sizeLimit in policy "large"' in ready["message"]
    for uid in (failed["metadata"]["uid"], pod["metadata"]["uid"]):
        faults.restricted.wait_warning(uid, "CheckpointFailed", "spec.stage.sizeLimit")
    assert seconds_until(failed, "Ready", failed["metadata"]["creationTimestamp"]) <= 30
    faults.restricted.assert_no_checkpoint("large")
    assert condition(faults.restricted.kubectl.get("pod", "large"), "Ready")["status"] == "True"


@scenario("small")
def test_nothing_is_restored_to_a_volume_that_is_too_small(faults: FaultScenarios) -> None:
    _assert_not_restored(faults, "small", "NoSpace", "give the volume more space")


@scenario("filled")
def test_nothing_is_restored_to_a_volume_with_foreign_files(faults: FaultScenarios) -> None:
    _assert_not_restored(faults, "filled", "TargetNotEmpty", "Empty the volume to restore")
    listed = faults.restricted.kubectl("exec", "filler", "--", "ls", "-A", "/data").split()
    assert listed == ["theirs"]


@scenario("renamed")
def test_a_pod_whose_state_has_another_path_does_not_start_without_it(faults: FaultScenarios) -> None:
    _assert_not_restored(faults, "renamed", "StateLeftBehind", "{from: /data, to: /moved}")


def _assert_not_restored(faults: FaultScenarios, agent: str, reason: str, text: str) -> None:
    place = faults.restricted
    pod, restore = faults.observed(agent)
    succeeded = condition(restore, "Succeeded")
    assert succeeded["status"] == "False" and text in succeeded["message"]
    place.wait_warning(pod["metadata"]["uid"], reason, text)
    place.wait_unprotected(agent, text, seconds=30)
    assert never_ran(place.kubectl, agent)
    assert "checkpoint" in place.record_kinds(agent)  # the agent keeps its checkpoint


# -- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agent", "container"), [case("noimage", "agent"), case("nosidecar", "savepoint-restore")])
def test_a_missing_image_is_named(faults: FaultScenarios, agent: str, container: str) -> None:
    place = faults.restricted
    faults.observed(agent)
    pod = place.kubectl.get("pod", agent)
    protected = place.wait_unprotected(agent, "savepoint.local/no-such:dev", START_SECONDS)
    assert f"Container {container}" in protected["message"] and "Correct" in protected["message"]
    place.wait_warning(pod["metadata"]["uid"], "CannotStart", "savepoint.local/no-such:dev")
    place.assert_no_checkpoint(agent)
