"""helm and the project's chart for the tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.programs import program
from tests.servers.kubectl import ROOT

CHART = ROOT / "charts" / "savepoint"
NAMESPACE = "savepoint-system"
KUBE_VERSION = "1.37.0"
STORE_VALUES = {
    "store.s3.endpoint": "https://s3.example.com",
    "store.s3.bucket": "agents",
    "store.s3.credentialsSecret": "s3-keys",
}


class HelmFailed(Exception):
    """helm exited with an error; the message is its standard error."""


def helm(*arguments: str, kubeconfig: Path | None = None) -> str:
    """Run helm and return its output. Raises HelmFailed."""
    flags = [f"--kubeconfig={kubeconfig}"] if kubeconfig else []
    result = subprocess.run(
        [program("helm"), *flags, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    if result.returncode:
        raise HelmFailed(result.stderr.strip())
    return result.stdout


def set_flags(values: dict[str, Any]) -> list[str]:
    """Return the flags that set these values; strings stay strings."""
    return [
        part
        for name, value in values.items()
        for part in (("--set-string" if isinstance(value, str) else "--set-json"), _assignment(name, value))
    ]


def _assignment(name: str, value: Any) -> str:
    return f"{name}={value}" if isinstance(value, str) else f"{name}={json.dumps(value)}"


def render(values: dict[str, Any] | None = None, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
    """Render the chart and return its objects. Raises HelmFailed."""
    text = helm(
        "template", "savepoint", str(CHART), "-n", namespace, f"--kube-version={KUBE_VERSION}", *set_flags(values or {})
    )
    return [item for item in yaml.safe_load_all(text) if item]


def find(items: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """Return the only object of this kind and name."""
    (found,) = (item for item in items if item["kind"] == kind and item["metadata"]["name"] == name)
    return found
