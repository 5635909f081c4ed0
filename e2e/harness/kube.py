"""Access to the cluster for the demo and the suite: kubectl as a program, port-forwards, and the fake services.

A kubeconfig is enough; nothing here depends on how the cluster was created.
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
    """A command failed; the message contains what it printed."""


def until(what: str, poll: Callable[[], T | None], *, seconds: float, every: float = 0.25) -> T:
    """Call ``poll`` until its result is truthy, and return the result.

    Args:
        what: What is awaited, for the error.
        poll: Returns the result, or a falsy value while there is none.
        seconds: How long to wait.
        every: Seconds between two calls.

    Raises:
        TimeoutError: With ``what`` and the last result.
    """
    deadline = time.monotonic() + seconds
    while True:
        result = poll()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s (last result: {result!r})")
        time.sleep(every)


@dataclass(frozen=True)
class Kubectl:
    """kubectl with one kubeconfig, and optionally one namespace."""

    kubeconfig: Path
    namespace: str | None = None

    def within(self, namespace: str) -> "Kubectl":
        """Return kubectl for another namespace of the same cluster."""
        return Kubectl(self.kubeconfig, namespace)

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl and return its standard output. Raises CommandFailed."""
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
        """Run ``kubectl get … -o json`` and return the parsed output."""
        return json.loads(self("get", *arguments, "-o", "json"))

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Return all objects of a kind, optionally only those that match a label selector."""
        found: list[dict[str, Any]] = self.get(kind, *(["-l", selector] if selector else []))["items"]
        return found

    def maybe(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return one object, or None if it does not exist."""
        text = self("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def apply(self, text: str) -> str:
        """Run ``kubectl apply`` on YAML text."""
        return self("apply", "-f", "-", stdin=text)

    def manifest(self, name: str, **values: str) -> str:
        """Apply a file of e2e/agents/manifests with its ``${…}`` replaced by values."""
        return self.apply(Template((MANIFESTS / name).read_text()).substitute(values))


@contextlib.contextmanager
def fresh_namespace(kubectl: Kubectl, prefix: str) -> Iterator[Kubectl]:
    """Yield kubectl for a new namespace that admits only restricted pods; delete it in the background at the end."""
    name = f"{prefix}-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    namespaced = kubectl.within(name)
    # A controller creates it, and after a restart the controllers first wait until their old lease has expired.
    until("default service account", lambda: namespaced.maybe("serviceaccount", "default"), seconds=60)
    try:
        yield namespaced
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


@contextlib.contextmanager
def forwarded(kubectl: Kubectl, target: str, port: int) -> Iterator[str]:
    """Forward a local port to ``target``, such as "service/services", during the block; yield "127.0.0.1:PORT"."""
    command = [str(program("kubectl")), "--kubeconfig", str(kubectl.kubeconfig), "-n", kubectl.namespace or "default"]
    command += ["port-forward", "--address", "127.0.0.1", target, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        # Reads the later output, which would otherwise fill the pipe.
        reader = threading.Thread(target=process.stdout.read, daemon=True)
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
    """The records of the fake services: reports, model calls and ledger. ``scope`` is a prefix of the agents' names."""

    url: str
    scope: str = ""

    def reports(self, agent: str) -> list[dict[str, Any]]:
        """Return all reports of an agent, in order."""
        found: list[dict[str, Any]] = self._get(f"/reports?agent={self.scope}{agent}")
        return found

    def calls(self, agent: str) -> dict[str, list[int]]:
        """Return an agent's model calls by request: [started, completed]."""
        found: dict[str, list[int]] = self._get("/calls").get(self.scope + agent, {})
        return found

    def effects(self, agent: str) -> dict[str, dict[str, Any]]:
        """Return an agent's ledger entries by id."""
        found: dict[str, dict[str, Any]] = self._get("/effects").get(self.scope + agent, {})
        return found

    def turn(self, agent: str) -> int:
        """Return the turn of the newest report, 0 without one."""
        reports = self.reports(agent)
        return int(reports[-1]["turn"]) if reports else 0

    def turns(self, agent: str) -> int:
        """Return how many turns all incarnations of the agent have reported."""
        return sum(report.get("event") == "turn" for report in self.reports(agent))

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            return json.loads(answer.read())


def kubeconfig_from_environment() -> Path:
    """Return KUBECONFIG, or the kubeconfig that ``make cluster`` wrote."""
    if found := os.environ.get("KUBECONFIG"):
        return Path(found)
    done = subprocess.run(["python3", "-m", "e2e.cluster", "kubeconfig"], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())
