"""The init container's command as a process."""

import signal
import subprocess
import sys

from savepoint.contract import names

from tests.unit.sidecar.environment import ENVIRONMENT


def test_a_waiting_restore_exits_at_once_on_sigterm() -> None:
    """Process 1 of a container ignores SIGTERM by default, and deleting the pod would take the whole grace period."""
    environment = {**ENVIRONMENT, names.ENV_CONTROL_URL: "ws://127.0.0.1:9/v1/control"}
    program = "import sys; from savepoint_sidecar.main import restore; sys.exit(restore())"
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "waiting" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143
