"""Bad input and the unlucky hour on the cluster: each ends in a condition and an Event that say what to do, in time.

Everything is deployed at once, and what takes several steps goes on in threads; the tests look. No fault may hang, and
none may leave a checkpoint that is half there.
"""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.harness import installation
from e2e.harness.installation import condition
from e2e.harness.kube import CommandFailed, Kubectl, until
from e2e.scenarios.fault_scenarios import (
    AT_START,
    START_SECONDS,
    STORE_SECONDS,
    STORIES,
    FaultScenarios,
    clean_up,
    deploy,
    prepare,
)
from e2e.scenarios.faulty_agents import API, FaultyNamespace, Object, never_ran, seconds_until

pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module")
def trouble(kubeconfig: Path) -> Iterator[FaultScenarios]:
    """Every scenario, deployed."""
    kubectl = Kubectl(kubeconfig)
    installation.install(kubectl)
    name = f"bad-{uuid.uuid4().hex[:6]}"
    with installation.bucket_of(kubectl) as bucket, ThreadPoolExecutor(16) as threads:
        strict, loose = (FaultyNamespace(kubectl.within(each), bucket, name) for each in (name, f"{name}-loose"))
        made = FaultScenarios(kubectl, name, strict, loose)
        try:
            prepare(made)
            deploy(made)
            for title, story in STORIES.items():
                made.stories[title] = threads.submit(story, made)
            yield made
        finally:
            for future in made.stories.values():
                future.cancel()
            clean_up(made)


# -- the API server's own refusals ----------------------------------------------------------------------------------


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
    ("AgentCheckpointPolicy", {"stage": {"sizeLimit": "much"}}, "spec.installation.sizeLimit"),
    ("AgentCheckpointStore", {"s3": {**STORE, "endpoint": "ftp://x"}}, "spec.s3.endpoint"),
    ("AgentCheckpointStore", {"s3": {"endpoint": "http://x", "credentialsSecretName": "keys"}}, "spec.s3.bucket"),
    ("AgentCheckpointStore", {"s3": {"endpoint": "http://x", "bucket": "abc"}}, "spec.s3.credentialsSecretName"),
)


@pytest.mark.parametrize(("kind", "spec", "names"), MALFORMED)
def test_a_malformed_resource_is_refused_by_its_field(
    trouble: FaultScenarios, kind: str, spec: Object, names: str
) -> None:
    body = {"apiVersion": API, "kind": kind, "metadata": {"name": "malformed"}, "spec": spec}
    with pytest.raises(CommandFailed, match=names):  # by the server, not by what kubectl knows of the schema
        trouble.strict.kubectl("create", "--validate=false", "-f", "-", stdin=json.dumps(body))


def test_an_unknown_field_is_refused(trouble: FaultScenarios) -> None:
    body = {"apiVersion": API, "kind": "AgentCheckpoint", "metadata": {"name": "malformed"}, "spec": {"agnet": "a"}}
    with pytest.raises(CommandFailed, match="agnet"):
        trouble.strict.kubectl("create", "--validate=strict", "-f", "-", stdin=json.dumps(body))


# -- stores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("unreachable", "could not be"),
        ("denied", "check the credentials"),
        ("nobucket", "bucket"),
        ("nosecret", "-none"),
        ("unknown", "create it"),
    ],
)
def test_a_bad_store_keeps_the_agent_waiting_and_says_why(trouble: FaultScenarios, agent: str, words: str) -> None:
    place, reason = trouble.strict, AT_START[agent]
    pod = place.kubectl.get("pod", agent)
    found = place.restore_of(pod["metadata"]["uid"], reason, START_SECONDS, words)
    assert condition(found, "Succeeded")["status"] == "Unknown"
    assert seconds_until(found, "Succeeded", pod["metadata"]["creationTimestamp"]) < START_SECONDS
    place.warning(pod["metadata"]["uid"], reason, words)
    place.protected(agent, words, seconds=30)
    place.nothing_visible(agent)
    assert never_ran(place.kubectl, agent)
    logs = place.kubectl("logs", agent, "-c", "savepoint-restore")
    assert reason in logs and "Fresh" not in logs
    if agent != "unknown":
        ready = condition(trouble.kubectl.get("agentcheckpointstore", f"{trouble.name}-{agent}"), "Ready")
        assert (ready["status"], ready["reason"]) == ("False", reason) and words in ready["message"]


def test_a_store_that_is_missing_at_restore_is_no_fresh_start(trouble: FaultScenarios) -> None:
    waits, restored = trouble.told("deleted")
    assert condition(waits, "Succeeded")["status"] == "Unknown"
    assert "create it" in condition(waits, "Succeeded")["message"]
    trouble.strict.warning(waits["status"]["targets"][0]["podUID"], "NoStore", "create it")
    assert restored["metadata"]["uid"] == waits["metadata"]["uid"]
    assert restored["status"]["targets"][0]["bytes"] >= 8 << 20


def test_a_bucket_that_is_missing_or_emptied_is_no_fresh_start(trouble: FaultScenarios) -> None:
    pod, missing, emptied = trouble.told("lost")
    assert "bucket" in condition(missing, "Succeeded")["message"]
    trouble.strict.warning(pod["metadata"]["uid"], "StoreMisconfigured", "bucket")
    assert condition(emptied, "Succeeded")["status"] == "False"
    assert "pinned" in condition(emptied, "Succeeded")["message"]
    trouble.strict.warning(pod["metadata"]["uid"], "RollbackDetected", "pinned")
    assert never_ran(trouble.strict.kubectl, "lost")


def test_a_store_that_only_the_pod_cannot_reach_says_so(trouble: FaultScenarios) -> None:
    pod, waits, restored = trouble.told("unreached")
    told = condition(waits, "Succeeded")
    assert told["status"] == "Unknown" and "in this pod is held up" in told["message"]
    for uid in (pod["metadata"]["uid"], waits["metadata"]["uid"]):
        trouble.strict.warning(uid, "StoreUnavailable", "held up")
    assert condition(restored, "Succeeded")["status"] == "True"


@pytest.mark.parametrize(
    ("agent", "reason", "words"),
    [("denied-later", "StoreDenied", "credentials"), ("cut-off", "StoreUnavailable", "Earlier checkpoints are safe")],
)
def test_a_store_that_goes_bad_fails_the_checkpoint(
    trouble: FaultScenarios, agent: str, reason: str, words: str
) -> None:
    pod, failed, after = trouble.told(agent)
    told = condition(failed, "Ready")
    assert told["reason"] == reason and words in told["message"]
    assert seconds_until(failed, "Ready", failed["metadata"]["creationTimestamp"]) < STORE_SECONDS
    for uid in (failed["metadata"]["uid"], pod["metadata"]["uid"]):
        trouble.strict.warning(uid, "CheckpointFailed", words)
    assert trouble.strict.kinds(agent) == ["grant", "checkpoint", "checkpoint"]
    assert after["status"]["podRef"]["uid"] == pod["metadata"]["uid"]


# -- agents that do not answer --------------------------------------------------------------------------------------


def test_an_agent_in_a_long_step_is_not_waited_for(trouble: FaultScenarios) -> None:
    pod, failed, kinds = trouble.told("stuck")
    _quiesce_timeout(trouble, "stuck", pod, failed)
    assert "crawl" in condition(failed, "Ready")["message"]
    assert kinds == ["grant"]


def test_an_agent_that_stands_still_is_not_waited_for(trouble: FaultScenarios) -> None:
    pod, failed, kinds, after = trouble.told("stopped")
    _quiesce_timeout(trouble, "stopped", pod, failed)
    assert kinds == ["grant"]
    assert after["status"]["consistency"] == "Application"


def _quiesce_timeout(trouble: FaultScenarios, agent: str, pod: Object, failed: Object) -> None:
    told = condition(failed, "Ready")
    assert told["reason"] == "QuiesceTimeout"
    assert "agent.safe_point()" in told["message"] and f'policy "{agent}"' in told["message"]
    assert seconds_until(failed, "Ready", failed["metadata"]["creationTimestamp"]) <= 15
    for uid in (failed["metadata"]["uid"], pod["metadata"]["uid"]):
        trouble.strict.warning(uid, "CheckpointFailed", "QuiesceTimeout")


def test_an_agent_without_the_sdk_need_not_answer(trouble: FaultScenarios) -> None:
    checkpoint, took = trouble.told("mute")
    assert checkpoint["status"]["consistency"] == "Fuzzy"
    assert took < 5 + 20  # its grace, and the kubelet's own time
    assert trouble.strict.kinds("mute")[:2] == ["grant", "checkpoint"]


# -- who is the agent -----------------------------------------------------------------------------------------------


def test_a_deployment_of_two_is_ambiguous(trouble: FaultScenarios) -> None:
    place = trouble.strict
    pods = until("two pods", lambda: _two(place.kubectl.items("pods", "trouble=many")), seconds=30, every=1)
    for pod in pods:
        _ambiguous(place, pod, "use a StatefulSet")
        assert never_ran(place.kubectl, pod["metadata"]["name"])
    place.protected("many", "use a StatefulSet", seconds=30)
    place.nothing_visible("many")


def _ambiguous(place: FaultyNamespace, pod: Object, words: str) -> None:
    uid = pod["metadata"]["uid"]
    place.warning(uid, "AmbiguousAgent", words, START_SECONDS)
    found = place.restore_of(uid, "AmbiguousAgent", START_SECONDS, words)
    assert condition(found, "Succeeded")["status"] == "False"


def _two(pods: list[Object]) -> list[Object] | None:
    return pods if len(pods) == 2 else None


def test_a_second_pod_of_an_agent_does_not_start(trouble: FaultScenarios) -> None:
    second = trouble.told("twins")
    place = trouble.strict
    _ambiguous(place, second, "delete it")
    assert never_ran(place.kubectl, "twins-2")
    assert condition(place.kubectl.get("pod", "twins-1"), "Ready")["status"] == "True"
    assert place.ready_checkpoint("twins")["status"]["podRef"]["name"] == "twins-1"


# -- uids -----------------------------------------------------------------------------------------------------------


def test_a_pod_without_a_uid_is_refused_in_a_restricted_namespace(trouble: FaultScenarios) -> None:
    place = trouble.strict

    def refused() -> Object | None:
        found = condition(place.kubectl.get("deployment", "nouid"), "ReplicaFailure")
        return found if found.get("status") == "True" else None

    told = until("the Deployment says why", refused, seconds=30, every=1)
    assert "RunAsUserRequired" in told["message"] and "savepoint.dev/run-as-user" in told["message"]
    (replicas,) = place.kubectl.items("replicasets", "trouble=nouid")
    place.warning(replicas["metadata"]["uid"], "FailedCreate", "RunAsUserRequired")
    assert not place.kubectl.items("pods", "trouble=nouid")


def test_files_of_another_uid_are_named_with_it(trouble: FaultScenarios) -> None:
    pod, failed = trouble.told("foreign")
    told = condition(failed, "Ready")
    assert told["reason"] == "RunAsUserRequired"
    assert "closed" in told["message"] and "runAsUser: 1000" in told["message"]
    for uid in (failed["metadata"]["uid"], pod["metadata"]["uid"]):
        trouble.loose.warning(uid, "CheckpointFailed", "runAsUser: 1000")
    trouble.loose.nothing_visible("foreign")


# -- space ----------------------------------------------------------------------------------------------------------


def test_a_full_stage_fails_the_checkpoint(trouble: FaultScenarios) -> None:
    pod, failed = trouble.told("large")
    told = condition(failed, "Ready")
    assert told["reason"] == "StageFull"
    assert 'Raise spec.installation.sizeLimit in policy "large"' in told["message"]
    for uid in (failed["metadata"]["uid"], pod["metadata"]["uid"]):
        trouble.strict.warning(uid, "CheckpointFailed", "spec.installation.sizeLimit")
    assert seconds_until(failed, "Ready", failed["metadata"]["creationTimestamp"]) <= 30
    trouble.strict.nothing_visible("large")
    assert condition(trouble.strict.kubectl.get("pod", "large"), "Ready")["status"] == "True"


def test_a_volume_that_is_too_small_is_not_half_filled(trouble: FaultScenarios) -> None:
    _not_restored(trouble, "small", "NoSpace", "give the volume more space")


def test_a_volume_with_files_of_others_is_left_alone(trouble: FaultScenarios) -> None:
    _not_restored(trouble, "filled", "TargetNotEmpty", "Empty the volume to restore")
    listed = trouble.strict.kubectl("exec", "filler", "--", "ls", "-A", "/data").split()
    assert listed == ["theirs"]


def _not_restored(trouble: FaultScenarios, agent: str, reason: str, words: str) -> None:
    place = trouble.strict
    pod, found = trouble.told(agent)
    told = condition(found, "Succeeded")
    assert told["status"] == "False" and words in told["message"]
    place.warning(pod["metadata"]["uid"], reason, words)
    place.protected(agent, words, seconds=30)
    assert never_ran(place.kubectl, agent)
    assert "checkpoint" in place.kinds(agent)  # and it is still the agent's


# -- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agent", "container"), [("noimage", "agent"), ("nosidecar", "savepoint-restore")])
def test_a_missing_image_is_named(trouble: FaultScenarios, agent: str, container: str) -> None:
    place = trouble.strict
    if agent in trouble.stories:
        trouble.told(agent)
    pod = place.kubectl.get("pod", agent)
    told = place.protected(agent, "savepoint.local/no-such:dev", START_SECONDS)
    assert f"Container {container}" in told["message"] and "Correct" in told["message"]
    place.warning(pod["metadata"]["uid"], "CannotStart", "savepoint.local/no-such:dev")
    place.nothing_visible(agent)
