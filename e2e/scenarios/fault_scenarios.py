"""Everything that is set up to go wrong, all at once: namespaces, stores, agents, and what takes several steps.

What must come of each is the suite's to say (test_bad_input).
"""

import contextlib
import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from e2e.harness import installation, namespace_teardown
from e2e.harness.kube import Kubectl, until
from e2e.scenarios.faulty_agents import (
    CODER,
    PYTHON,
    SLEEP,
    AgentPod,
    FaultyNamespace,
    Object,
    gone,
    never_ran,
    policy,
    store,
)

START_SECONDS = 60
"""So long after its creation at most, a pod that cannot start has said why."""
STORE_SECONDS = 150
"""So long a checkpoint tries to reach a store that does not answer."""
S3 = f"http://s3.{installation.SERVICES}.svc:7070"
CLOSED_PORT = f"http://s3.{installation.SERVICES}.svc:7071"

STUCK = """
import savepoint, time
agent = savepoint.connect()
def crawl():
    print("in the step", flush=True)
    time.sleep(30)
for turn in agent.loop("turns", range(1000)):
    agent.step("crawl", crawl)
    print("turn", turn, flush=True)
"""
STOPPED = """
import os, savepoint, signal, time
agent = savepoint.connect()
os.kill(os.getpid(), signal.SIGSTOP)
while True:
    agent.safe_point()
    time.sleep(0.1)
"""
LARGE = """
import savepoint, time
agent = savepoint.connect()
agent.document("notes", default={"text": ""})["text"] = "".join(str(number) for number in range(1 << 20))
while True:
    agent.safe_point()
    time.sleep(0.1)
"""
WAIT_FOR_GO = "while [ ! -e /tmp/go ]; do sleep 0.2; done; kill -CONT $pid; wait $pid"
FILL = f"head -c 8388608 /dev/urandom >/data/precious; {SLEEP}"
AT_START = {
    "unreachable": "StoreUnavailable",
    "denied": "StoreDenied",
    "nobucket": "StoreMisconfigured",
    "nosecret": "StoreMisconfigured",
    "unknown": "NoStore",
}
"""Agents whose store is bad, and what their start says."""


@dataclass
class FaultScenarios:
    """All that was deployed, and what the threads have seen."""

    kubectl: Kubectl
    name: str
    strict: FaultyNamespace
    loose: FaultyNamespace
    stories: dict[str, Future[Any]] = field(default_factory=dict)

    def told(self, story: str) -> Any:
        """What a thread came back with; its failure is the test's."""
        return self.stories[story].result(timeout=240)

    def store(self, kind: str, bucket: str = "", secret: str = "", endpoint: str = S3) -> Object:
        """A store of this run."""
        return store(f"{self.name}-{kind}", bucket or self.name, secret or f"{self.name}-keys", endpoint)


def prepare(here: FaultScenarios) -> None:
    """Namespaces, buckets, Secrets and stores."""
    for place, level in ((here.strict, "restricted"), (here.loose, "baseline")):
        labels = {"pod-security.kubernetes.io/enforce": level}
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": place.kubectl.namespace, "labels": labels},
        }
        here.kubectl.apply(json.dumps(body))
    for bucket in (here.name, f"{here.name}-2"):
        here.strict.bucket.make_bucket(bucket)
    system = here.kubectl.within(installation.SYSTEM)
    for secret, key in ((f"{here.name}-keys", installation.SECRET_KEY), (f"{here.name}-wrong", "not-the-key")):
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}}
        system.apply(json.dumps({**body, "stringData": {"accessKey": installation.ACCESS_KEY, "secretKey": key}}))
    here.strict.create(
        here.store("whole"),
        here.store("lost", f"{here.name}-2"),
        here.store("unreachable", endpoint=CLOSED_PORT),
        here.store("denied", secret=f"{here.name}-wrong"),
        here.store("nobucket", bucket=f"{here.name}-3"),
        here.store("nosecret", secret=f"{here.name}-none"),
    )
    for place in (here.strict, here.loose):
        until("service account", partial(place.kubectl.maybe, "serviceaccount", "default"), seconds=60)
    _fill_claim(here)


def _fill_claim(here: FaultScenarios) -> None:
    """A persistent volume with files of others. Before everything else: a provisioner's pod gets one try."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "filled"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "64Mi"}}},
    }
    command = ("sh", "-c", f"echo theirs >/data/theirs; {SLEEP}")
    here.strict.create(claim, AgentPod("filler", "", command=command, state="/data", claim="filled").pod())
    here.strict.started("filler", seconds=200)


def deploy(here: FaultScenarios) -> None:
    """What needs no second step."""
    whole = f"{here.name}-whole"
    for agent in AT_START:
        here.strict.create(policy(agent, f"{here.name}-{agent}"), AgentPod(agent, agent, state="/data").pod())
    stuck = policy("stuck", whole, quiesce={"timeoutSeconds": 4})
    here.strict.create(stuck, AgentPod("stuck", "stuck", PYTHON, ("python", "-u", "-c", STUCK)).pod())
    stopped = policy("stopped", whole, quiesce={"timeoutSeconds": 4})
    script = f"python -u -c '{STOPPED}' & pid=$!; {WAIT_FOR_GO}"
    here.strict.create(stopped, AgentPod("stopped", "stopped", PYTHON, ("sh", "-c", script)).pod())
    mute = AgentPod(
        "mute", "mute", command=("sh", "-c", "trap '' TERM; echo here >/data/file; sleep 1000"), state="/data"
    )
    here.strict.create(policy("mute", whole), mute.pod())
    here.strict.create(policy("many", whole), AgentPod("many", "many").deployment(replicas=2))
    here.strict.create(policy("twins", whole), AgentPod("twins-1", "twins", state="/data").pod())
    here.strict.create(
        policy("nouid", whole), AgentPod("nouid", "nouid", CODER, ("sleep", "1000"), uid=None).deployment()
    )
    stage_policy = policy("large", whole, stage={"sizeLimit": "1Mi", "medium": "Memory"})
    here.strict.create(stage_policy, AgentPod("large", "large", PYTHON, ("python", "-u", "-c", LARGE)).pod())
    here.strict.create(policy("noimage", whole), AgentPod("noimage", "noimage", "savepoint.local/no-such:dev").pod())
    here.strict.create(policy("nosidecar", whole), AgentPod("nosidecar", "nosidecar", gated=True).pod())
    writes = f"umask 077; echo secret >/data/closed; {SLEEP}"
    foreign = AgentPod("foreign", "foreign", CODER, ("bash", "-c", writes), uid=None, non_root=False, state="/data")
    here.loose.create(policy("foreign", whole), foreign.pod())


def clean_up(here: FaultScenarios) -> None:
    """Nothing of this run stays."""
    names = [here.name, f"{here.name}-loose"]
    here.kubectl("delete", "namespace", *names, "--wait=false", "--ignore-not-found")
    kinds = (
        "whole",
        "lost",
        "deleted",
        "unreached",
        "denied-later",
        "cut-off",
        *(kind for kind in AT_START if kind != "unknown"),
    )
    stores = [f"{here.name}-{kind}" for kind in kinds]
    here.kubectl("delete", "agentcheckpointstore", *stores, "--ignore-not-found")
    secrets = [f"{here.name}-keys", f"{here.name}-wrong"]
    here.kubectl.within(installation.SYSTEM)("delete", "secret", *secrets, "--ignore-not-found")
    namespace_teardown.remove(here.kubectl, *names)
    for bucket in (here.name, f"{here.name}-2"):
        with contextlib.suppress(Exception):  # one of them is removed by its test
            for each in here.strict.bucket.list_objects(bucket, recursive=True):
                here.strict.bucket.remove_object(bucket, str(each.object_name))
            here.strict.bucket.remove_bucket(bucket)


# -- what takes several steps ---------------------------------------------------------------------------------------


def _stuck(here: FaultScenarios) -> tuple[Object, Object, list[str]]:
    pod = here.strict.started("stuck")
    logs = partial(here.strict.kubectl, "logs", "stuck", "-c", "agent")
    until("the agent is in its step", lambda: "in the step" in logs(), seconds=60, every=1)
    failed = here.strict.failed(here.strict.ask("stuck"), seconds=25)
    kinds = here.strict.kinds("stuck")
    until(
        "the agent goes on",
        lambda: "turn 0" in logs(),
        seconds=60,
        every=2,
    )
    return pod, failed, kinds


def _stopped(here: FaultScenarios) -> tuple[Object, Object, list[str], Object]:
    pod = here.strict.started("stopped")
    failed = here.strict.failed(here.strict.ask("stopped"), seconds=25)
    kinds = here.strict.kinds("stopped")
    here.strict.kubectl("exec", "stopped", "-c", "agent", "--", "touch", "/tmp/go")
    return pod, failed, kinds, here.strict.ready_checkpoint("stopped")


def _mute(here: FaultScenarios) -> tuple[Object, float]:
    here.strict.started("mute")
    checkpoint = here.strict.ready_checkpoint("mute")
    return checkpoint, gone(here.strict.kubectl, "mute", seconds=60)


def _large(here: FaultScenarios) -> tuple[Object, Object]:
    pod = here.strict.started("large")
    return pod, here.strict.failed(here.strict.ask("large"), seconds=60)


def _foreign(here: FaultScenarios) -> tuple[Object, Object]:
    pod = here.loose.started("foreign")
    return pod, here.loose.failed(here.loose.ask("foreign"), seconds=60)


def _twins(here: FaultScenarios) -> Object:
    here.strict.started("twins-1")
    here.strict.create(AgentPod("twins-2", "twins", state="/data").pod())
    found: Object = here.strict.kubectl.get("pod", "twins-2")
    return found


def _nosidecar(here: FaultScenarios) -> Object:
    """The image of the injected container is changed before the pod may be scheduled."""
    here.strict.kubectl("set", "image", "pod/nosidecar", "savepoint-restore=savepoint.local/no-such:dev")
    here.strict.kubectl("patch", "pod", "nosidecar", "--type=merge", "-p", '{"spec":{"schedulingGates":[]}}')
    found: Object = here.strict.kubectl.get("pod", "nosidecar")
    return found


def _first_life(here: FaultScenarios, agent: str, store_kind: str = "whole") -> AgentPod:
    """An agent with 8 MiB of files and a checkpoint of them."""
    pod = AgentPod(agent, agent, command=("sh", "-c", FILL), state="/data")
    here.strict.create(policy(agent, f"{here.name}-{store_kind}"), pod.pod())
    here.strict.started(agent)
    here.strict.ready_checkpoint(agent)
    return pod


def _second_life(here: FaultScenarios, pod: AgentPod, reason: str) -> tuple[Object, Object]:
    """Another pod of the same agent, whose start must fail in time."""
    second = here.strict.replace(pod)
    return second, here.strict.restore_of(second["metadata"]["uid"], reason, START_SECONDS)


def _small(here: FaultScenarios) -> tuple[Object, Object]:
    _first_life(here, "small")
    return _second_life(here, AgentPod("small", "small", state="/data", size="4Mi"), "NoSpace")


def _filled(here: FaultScenarios) -> tuple[Object, Object]:
    _first_life(here, "filled")
    return _second_life(here, AgentPod("filled", "filled", state="/data", claim="filled"), "TargetNotEmpty")


def _deleted(here: FaultScenarios) -> tuple[Object, Object]:
    """The store's object is gone when the next pod starts, and comes back."""
    here.strict.create(here.store("deleted"))
    pod = _first_life(here, "deleted", "deleted")
    here.kubectl("delete", "agentcheckpointstore", f"{here.name}-deleted")
    second = here.strict.replace(pod)
    waits = here.strict.restore_of(second["metadata"]["uid"], "NoStore", START_SECONDS)
    assert never_ran(here.strict.kubectl, "deleted")
    here.strict.create(here.store("deleted"))
    return waits, here.strict.restore_of(second["metadata"]["uid"], "Restored", START_SECONDS)


def _unreached(here: FaultScenarios) -> tuple[Object, Object, Object]:
    """Pods are sent to an address where no store answers, which the operator does not use; then to the right one."""

    def send_to(endpoint: str) -> None:
        body = json.dumps({"spec": {"s3": {"podEndpoint": endpoint}}})
        here.kubectl("patch", "agentcheckpointstore", f"{here.name}-unreached", "--type=merge", "-p", body)

    here.strict.create(here.store("unreached"))
    pod = _first_life(here, "unreached", "unreached")
    send_to(CLOSED_PORT)
    second, waits = _second_life(here, pod, "StoreUnavailable")
    assert never_ran(here.strict.kubectl, "unreached")
    send_to(S3)
    return second, waits, here.strict.restore_of(second["metadata"]["uid"], "Restored", START_SECONDS)


def _lost(here: FaultScenarios) -> tuple[Object, Object, Object]:
    """The bucket is gone when the next pod starts, and an empty one takes its place."""
    pod = _first_life(here, "lost", "lost")
    bucket, client = f"{here.name}-2", here.strict.bucket
    here.strict.kubectl("delete", "pod", "lost", "--wait=true")
    for each in client.list_objects(bucket, recursive=True):
        client.remove_object(bucket, str(each.object_name))
    client.remove_bucket(bucket)
    here.strict.create(pod.pod())
    second: Object = here.strict.kubectl.get("pod", "lost")
    missing = here.strict.restore_of(second["metadata"]["uid"], "StoreMisconfigured", START_SECONDS)
    assert never_ran(here.strict.kubectl, "lost")
    client.make_bucket(bucket)
    emptied = here.strict.restore_of(second["metadata"]["uid"], "RollbackDetected", 120)
    return second, missing, emptied


def _turned(here: FaultScenarios, kind: str, s3: Object) -> tuple[Object, Object, Object]:
    """The store goes bad under a running agent, which is asked for a checkpoint then, and becomes good again."""
    name = f"{here.name}-{kind}"
    good = here.store(kind)
    here.strict.create(good)
    _first_life(here, kind, kind)
    pod: Object = here.strict.kubectl.get("pod", kind)
    body = json.dumps({"spec": {"s3": s3}})
    here.kubectl("patch", "agentcheckpointstore", name, "--type=merge", "-p", body)
    here.kubectl("wait", "--for=condition=Ready=False", f"agentcheckpointstore/{name}", "--timeout=60s")
    here.strict.kubectl("exec", kind, "-c", "agent", "--", "touch", "/data/news")
    failed = here.strict.failed(here.strict.ask(kind), STORE_SECONDS)
    here.strict.create(good)
    here.kubectl("wait", "--for=condition=Ready", f"agentcheckpointstore/{name}", "--timeout=60s")
    return pod, failed, here.strict.ready_checkpoint(kind)


def _denied_later(here: FaultScenarios) -> tuple[Object, Object, Object]:
    return _turned(here, "denied-later", {"credentialsSecretName": f"{here.name}-wrong"})


def _cut_off(here: FaultScenarios) -> tuple[Object, Object, Object]:
    return _turned(here, "cut-off", {"endpoint": CLOSED_PORT})


STORIES: dict[str, Callable[[FaultScenarios], Any]] = {
    "stuck": _stuck,
    "stopped": _stopped,
    "mute": _mute,
    "large": _large,
    "foreign": _foreign,
    "twins": _twins,
    "nosidecar": _nosidecar,
    "small": _small,
    "filled": _filled,
    "deleted": _deleted,
    "unreached": _unreached,
    "lost": _lost,
    "denied-later": _denied_later,
    "cut-off": _cut_off,
}
