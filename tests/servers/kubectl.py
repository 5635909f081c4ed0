"""kubectl against the API server of the tests, with the commands and the output of a user."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.programs import program

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "crds"


class KubectlFailed(Exception):
    """kubectl exited with an error; the message is its standard error."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl as one user."""

    kubeconfig: Path

    def __call__(self, *arguments: str, stdin: Any = None) -> str:
        """Run it with ``stdin`` as JSON, and return its output. Raises KubectlFailed."""
        result = subprocess.run(
            [program("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=None if stdin is None else json.dumps(stdin),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if result.returncode:
            raise KubectlFailed(result.stderr.strip())
        return result.stdout

    def create(self, item: Mapping[str, Any], *arguments: str) -> dict[str, Any]:
        """Create an object and return it as the API server stored it."""
        created: dict[str, Any] = json.loads(self("create", "-f", "-", "-o", "json", *arguments, stdin=item))
        return created

    def patch(self, target: str, change: Mapping[str, Any], *arguments: str) -> dict[str, Any]:
        """Apply a merge patch and return the object."""
        patched: dict[str, Any] = json.loads(
            self("patch", target, "--type=merge", "-p", json.dumps(change), "-o", "json", *arguments)
        )
        return patched

    def create_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Create or label a namespace. Do not delete it: no controller finalizes it."""
        metadata = {"name": name, "labels": dict(labels or {})}
        self("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def columns(self, target: str, *arguments: str) -> dict[str, str]:
        """Return the only row that ``kubectl get`` prints, by heading."""
        heading, row = self("get", target, *arguments).splitlines()
        starts = [
            index for index, letter in enumerate(heading) if letter != " " and (not index or heading[index - 1] == " ")
        ]
        pairs = list(zip(starts, [*starts[1:], None], strict=True))
        return {heading[begin:end].strip(): row[begin:end].strip() for begin, end in pairs}

    def install_crds(self) -> None:
        """Install the kinds of crds/, and wait until the API server serves them."""
        self("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))  # a Helm release may own them
        names = [yaml.safe_load(path.read_text())["metadata"]["name"] for path in sorted(CRDS.glob("*.yaml"))]
        self("wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in names))
        deadline = time.monotonic() + 30
        while "agentrestores" not in self("api-resources", "--api-group=savepoint.dev", "-o", "name", "--cached=false"):
            assert time.monotonic() < deadline, "the kinds are not served"
            time.sleep(0.2)
