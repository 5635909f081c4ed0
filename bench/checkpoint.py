"""Pause and upload of real checkpoints of 256 MiB with 1 % changed, in laptop mode: `python -m bench.checkpoint`.

The benchmark's agent keeps weights and optimizer state, changes one of a hundred contiguous ranges of rows between two
checkpoints, and times each of its safe points: the longest one is the pause that the agent sees. The supervisor's
memory is printed without a goal, because it also does the operator's work; bench.sidecar measures that of a sidecar.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.figure import Figure, report

ROUNDS = 8
MEBIBYTES = 256
RESEARCHER = Path(__file__).resolve().parent.parent / "e2e" / "agents" / "researcher"
"""Directory of the sample agent whose network is trained."""
AGENT = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import savepoint
from state import Network
agent = savepoint.connect()
network = Network.fresh(int(sys.argv[2]))
agent.tensors("weights", lambda: {"weights": network.weights}, lambda arrays: None, kind="ModelWeights")
agent.tensors("optimizer", lambda: {"momentum": network.momentum}, lambda arrays: None, kind="OptimizerState")
memory = agent.document("memory", default={"turn": 0})
pauses = []
while len(pauses) < int(sys.argv[3]):
    began = time.perf_counter()
    agent.safe_point()
    took = time.perf_counter() - began
    if took > 0.002:
        pauses.append(took)
        memory["turn"] += 1
        network.train(memory["turn"], 1)
    time.sleep(0.001)
print(json.dumps(pauses), flush=True)
time.sleep(6)
"""


def main() -> int:
    """Run the benchmark; return 0 if every goal is met."""
    with tempfile.TemporaryDirectory(prefix="savepoint-bench-") as folder:
        root = Path(folder)
        script = root / "agent.py"
        script.write_text(AGENT)
        environment = {**os.environ, "XDG_CONFIG_HOME": str(root / "config"), "OPENBLAS_NUM_THREADS": "1"}
        tool = str(Path(sys.executable).with_name("savepoint"))
        command = [tool, "run", "--store", str(root / "store"), "--interval", "3", "--", sys.executable, str(script)]
        command += [str(RESEARCHER), str(MEBIBYTES), str(ROUNDS)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            print(f"error: the agent ended early with status {process.wait()}")
            return 1
        pauses = [1000 * pause for pause in json.loads(line)]
        time.sleep(2)
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak, now = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmHWM", "VmRSS"))  # type: ignore[index]
        process.wait(60)
        log = subprocess.run(
            [tool, "log", str(root / "store")], env=environment, capture_output=True, text=True, check=True
        )
    uploads = [_bytes(line.split()[-1]) for line in log.stdout.splitlines() if " checkpoint " in line]
    increments = [upload for upload in uploads[1:] if upload]
    share = 100 * max(increments) / (MEBIBYTES << 20)
    others = ", ".join(f"{pause:.1f}" for pause in pauses[1:])
    print(f"pause of the first checkpoint: {pauses[0]:.1f} ms; of the others: {others}")
    print(f"memory of the supervisor: {now:.0f} MiB between checkpoints, peak {peak:.0f} MiB")
    return report(
        [
            Figure("pause seen by the agent, longest", max(pauses[1:]), "ms", 100),
            Figure("uploaded with 1 % changed, most", share, "% of the state", 2),
        ]
    )


def _bytes(text: str) -> int:
    """Return the number of bytes in a size as `savepoint log` prints it, such as 12Ki."""
    found = re.fullmatch(r"(\d+)(|Ki|Mi|Gi)", text)
    return int(found[1]) * {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}[found[2]] if found else 0


if __name__ == "__main__":
    sys.exit(main())
