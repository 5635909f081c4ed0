"""kubectl against the API server of the integration tests: what a user types, and what it prints."""

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


class Refused(Exception):
    """kubectl ended with an error; the message is what it said."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl as one user."""

    kubeconfig: Path

    def __call__(self, *arguments: str, given: Any = None) -> str:
        """Run it; ``given`` goes to its standard input as JSON. Raises Refused."""
        done = subprocess.run(
            [program("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=None if given is None else json.dumps(given),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise Refused(done.stderr.strip())
        return done.stdout

    def create(self, item: Mapping[str, Any], *arguments: str) -> dict[str, Any]:
        """The object as the API server made it."""
        made: dict[str, Any] = json.loads(self("create", "-f", "-", "-o", "json", *arguments, given=item))
        return made

    def patch(self, what: str, change: Mapping[str, Any], *arguments: str) -> dict[str, Any]:
        """A merge patch; the object it made."""
        made: dict[str, Any] = json.loads(
            self("patch", what, "--type=merge", "-p", json.dumps(change), "-o", "json", *arguments)
        )
        return made

    def namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """A namespace with these labels, made where there is none. Do not delete it: nothing here finalizes it."""
        metadata = {"name": name, "labels": dict(labels or {})}
        self("apply", "-f", "-", given={"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def columns(self, what: str, *arguments: str) -> dict[str, str]:
        """Heading → cell of the one row that ``kubectl get`` prints."""
        heading, row = self("get", what, *arguments).splitlines()
        starts = [
            index for index, letter in enumerate(heading) if letter != " " and (not index or heading[index - 1] == " ")
        ]
        pairs = list(zip(starts, [*starts[1:], None], strict=True))
        return {heading[begin:end].strip(): row[begin:end].strip() for begin, end in pairs}

    def install_kinds(self) -> None:
        """The kinds of crds/, served."""
        self("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))  # a release may have made them
        names = [yaml.safe_load(path.read_text())["metadata"]["name"] for path in sorted(CRDS.glob("*.yaml"))]
        self("wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in names))
        until = time.monotonic() + 30
        while "agentrestores" not in self("api-resources", "--api-group=savepoint.dev", "-o", "name", "--cached=false"):
            assert time.monotonic() < until, "the kinds are not served"
            time.sleep(0.2)
