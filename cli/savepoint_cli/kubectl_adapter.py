"""The adapter to kubectl: runs it, creates and reads objects with it, and waits for them."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from savepoint.contract.names import API_VERSION
from savepoint.errors import Unavailable

EXIT_FAILED: Final = 1
EXIT_TIMEOUT: Final = 3
POLL_SECONDS: Final = 0.5

Run = Callable[[Sequence[str], str], str]


@dataclass(frozen=True)
class Kubectl:
    """Adapter to kubectl. ``run`` starts it with arguments and standard input, and returns its output."""

    run: Run
    namespace: str | None = None

    def text(self, *arguments: str, stdin: str = "") -> str:
        """Run one command and return its output. Unavailable with kubectl's own message if it fails."""
        scope = ["--namespace", self.namespace] if self.namespace else []
        return self.run([*arguments, *scope], stdin)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return one object."""
        found: dict[str, Any] = json.loads(self.text("get", kind, name, "--output=json"))
        return found

    def create(self, kind: str, generate_name: str, spec: dict[str, Any]) -> str:
        """Create a Savepoint object and return its generated name."""
        metadata = {"generateName": generate_name}
        body = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
        made = json.loads(self.text("create", "--filename=-", "--output=json", stdin=json.dumps(body)))
        return str(made["metadata"]["name"])


@dataclass(frozen=True)
class Waiter:
    """Waits for an object, and prints its progress."""

    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    show: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def until_ended(
        self, kubectl: Kubectl, kind: str, name: str, *, condition: str, in_progress: frozenset[str], seconds: float
    ) -> int:
        """Wait until a checkpoint or restore has ended, and print one line for each new phase.

        Args:
            kubectl: Reads the object.
            kind: The object's resource name.
            name: The object's name.
            condition: The condition that is True after success.
            in_progress: Reasons with which the condition is False although the object has not ended.
            seconds: How long to wait.

        Returns:
            The exit status: 0 for success, 1 for a failure, 3 if it has not ended in time.

        Raises:
            Unavailable: kubectl failed.
        """
        ends_at, shown = self.clock() + seconds, ""
        while True:
            status = kubectl.get(kind, name).get("status", {})
            found: dict[str, Any] = next(
                (each for each in status.get("conditions", []) if each["type"] == condition), {}
            )
            reason = found.get("reason") or status.get("reason", "")
            line = " ".join(part for part in (name, reason, status.get("summary", {}).get("progress", "")) if part)
            if found.get("status") == "True":
                self.show(line)
                return 0
            if reason not in in_progress and found.get("status") != "Unknown":
                self.show(f"error: {line}: {found.get('message', 'failed')}")
                return EXIT_FAILED
            if reason and line != shown:
                self.show(line)
                shown = line
            if self.clock() >= ends_at:
                last = found.get("message") or reason or "no status yet"
                self.show(f"error: timed out after {seconds:g} s waiting for {name}: {last}")
                return EXIT_TIMEOUT
            self.sleep(POLL_SECONDS)


def run_kubectl(arguments: Sequence[str], stdin: str) -> str:
    """Run the kubectl in PATH and return its output. Unavailable with its own message if it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - the user's own kubectl, no shell
            ["kubectl", *arguments],  # noqa: S607 - found in PATH, as the user's shell finds it
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise Unavailable("kubectl not found in PATH; install it or add its folder to PATH") from error
    if done.returncode != 0:
        raise Unavailable(done.stderr.strip() or f"kubectl {arguments[0]} failed with exit status {done.returncode}")
    return done.stdout
