"""Failpoints: one kills its process at the set count, and every one is reached."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from savepoint.contract.control_protocol import CheckpointRef, ObjectName, PolicyTerms, Welcome
from savepoint_sidecar.failpoint import NAMES, Failpoints
from savepoint_sidecar.restore.file_restore import ready_marker, restore_files

from tests.unit.sidecar.harness import running


def test_a_failpoint_kills_at_its_count() -> None:
    program = (
        "from savepoint_sidecar.failpoint import Failpoints\n"
        "f = Failpoints('before-offer:2')\n"
        "f.reach('after-commit'); f.reach('before-offer'); print('once', flush=True); f.reach('before-offer')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"once\n")
    with pytest.raises(ValueError, match="no failpoint"):
        Failpoints("nowhere")


class RecordingFailpoints(Failpoints):
    """Records the names of the failpoints that are reached."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def reach(self, name: str) -> None:
        assert name in NAMES
        self.names.add(name)


async def test_every_failpoint_is_reached(tmp_path: Path) -> None:
    reached = RecordingFailpoints()
    async with running(tmp_path) as harness:
        harness.incarnation.checkpointer._failpoints = reached
        (harness.files / "a").write_bytes(b"x" * 100)
        agent = await harness.connected()
        harness.authority.order()
        await agent.flush()
        assert (await agent.result()).outcome == "Ready"
        await harness.idle()
        ref = CheckpointRef("coder-1", 1, 2, "", ObjectName("0" * 64, 1))
        welcome = Welcome("coder", "demo", 1, 1, "00" * 32, "", PolicyTerms(), ref)
        with harness.authority.reader() as reader:
            restore_files(reader, [harness.root], ready_marker(welcome, "uid", ref), reached)
    assert reached.names == set(NAMES)
