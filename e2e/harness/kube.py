"""Doors to the cluster for the demo and the suite: kubectl as a program, a port-forward, the sample agents' world,
the bucket.

Nothing here knows how the cluster was made: a KUBECONFIG is enough.
"""

import contextlib
import json
import os
import re
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, TypeVar

from e2e.cluster.programs import program

T = TypeVar("T")
MANIFESTS = Path(__file__).parents[1] / "agents" / "manifests"


class CommandFailed(RuntimeError):
    """A command's exit status was not zero; the message holds what it printed."""


def until(what: str, found: Callable[[], T | None], *, seconds: float, every: float = 0.25) -> T:
    """Ask until there is a truthy answer. Raises TimeoutError with what was awaited and the last answer."""
    deadline = time.monotonic() + seconds
    while True:
        answer = found()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s (last answer: {answer!r})")
        time.sleep(every)


@dataclass(frozen=True)
class Kubectl:
    """kubectl with one kubeconfig, and optionally one namespace."""

    kubeconfig: Path
    namespace: str | None = None

    def within(self, namespace: str) -> "Kubectl":
        """The same cluster, another namespace."""
        return Kubectl(self.kubeconfig, namespace)

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run it; standard output. Raises CommandFailed."""
        command = [str(program("kubectl")), "--kubeconfig", str(self.kubeconfig)]
        if self.namespace:
            command += ["-n", self.namespace]
        done = subprocess.run(
            [*command, *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise CommandFailed(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """``kubectl get … -o json``, parsed."""
        return json.loads(self("get", *arguments, "-o", "json"))

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind, optionally by label."""
        found: list[dict[str, Any]] = self.get(kind, *(["-l", selector] if selector else []))["items"]
        return found

    def maybe(self, kind: str, name: str) -> dict[str, Any] | None:
        """One object, or None when there is none."""
        text = self("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def apply(self, text: str) -> str:
        """``kubectl apply`` of YAML text."""
        return self("apply", "-f", "-", stdin=text)

    def manifest(self, name: str, **values: str) -> str:
        """Apply one of e2e/agents/manifests with its ``${…}`` filled in."""
        return self.apply(Template((MANIFESTS / name).read_text()).substitute(values))


@contextlib.contextmanager
def fresh_namespace(kubectl: Kubectl, prefix: str) -> Iterator[Kubectl]:
    """kubectl in a new namespace that admits only restricted pods; it is deleted in the background at the end."""
    name = f"{prefix}-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    here = kubectl.within(name)
    # Controllers make it, and after a restart they first wait for their lease to run out.
    until("default service account", lambda: here.maybe("serviceaccount", "default"), seconds=60)
    try:
        yield here
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


@contextlib.contextmanager
def forwarded(kubectl: Kubectl, target: str, port: int) -> Iterator[str]:
    """A port-forward to ``target`` ("service/services") for as long as the block runs; yields "127.0.0.1:PORT"."""
    command = [str(program("kubectl")), "--kubeconfig", str(kubectl.kubeconfig), "-n", kubectl.namespace or "default"]
    command += ["port-forward", "--address", "127.0.0.1", target, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(
            target=process.stdout.read, daemon=True
        )  # what it prints later must not fill the pipe
        try:
            line = process.stdout.readline()
            match = re.search(r"127\.0\.0\.1:(\d+)", line)
            if not match:
                raise CommandFailed(f"kubectl port-forward {target}: {line.strip()}")
            reader.start()
            yield f"127.0.0.1:{match[1]}"
        finally:
            process.terminate()
            if reader.ident:
                reader.join(10)


@dataclass(frozen=True)
class FakeServices:
    """The witness: what agents reported, asked and booked. ``scope`` is put before an agent's name."""

    url: str
    scope: str = ""

    def reports(self, agent: str) -> list[dict[str, Any]]:
        """All reports of an agent, in order."""
        found: list[dict[str, Any]] = self._get(f"/reports?agent={self.scope}{agent}")
        return found

    def calls(self, agent: str) -> dict[str, list[int]]:
        """Model calls by request: [started, completed]."""
        found: dict[str, list[int]] = self._get("/calls").get(self.scope + agent, {})
        return found

    def effects(self, agent: str) -> dict[str, dict[str, Any]]:
        """The ledger's entries by id."""
        found: dict[str, dict[str, Any]] = self._get("/effects").get(self.scope + agent, {})
        return found

    def turn(self, agent: str) -> int:
        """The turn of the newest report, 0 when there is none."""
        reports = self.reports(agent)
        return int(reports[-1]["turn"]) if reports else 0

    def turns(self, agent: str) -> int:
        """How many turns were reported, over all lives of the agent."""
        return sum(report.get("event") == "turn" for report in self.reports(agent))

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            return json.loads(answer.read())


def kubeconfig_from_environment() -> Path:
    """KUBECONFIG, else the one that ``make cluster`` wrote."""
    if found := os.environ.get("KUBECONFIG"):
        return Path(found)
    done = subprocess.run(["python3", "-m", "e2e.cluster", "kubeconfig"], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())
