"""Run every benchmark, one after the other, and print all figures beside their goals: `python -m bench`.

One figure needs a cluster, and `make demo` measures it there: from the predecessor's release to the agent running.
"""

import subprocess
import sys

from bench.figure import Figure, of_line, table

BENCHES = ("bench.sdk_pause", "bench.checkpoint", "bench.sidecar", "bench.webhook_latency")
ON_A_CLUSTER = "      from release to agent running: `make demo` measures it on the cluster, goal at most 10 s"


def main() -> int:
    """0 when every bench ran and every figure meets its goal."""
    figures: list[Figure] = []
    broken: list[str] = []
    for name in BENCHES:
        print(f"\n== {name}", flush=True)
        found, status = _run(name)
        figures += found
        if not found or (status and all(figure.met for figure in found)):
            broken.append(name)
    print(f"\n== {len(figures)} figures")
    if figures:
        print(table(figures))
    print(ON_A_CLUSTER)
    over = sum(not figure.met for figure in figures)
    print(f"{len(figures) - over} of {len(figures)} figures meet their goals", end="")
    print(f"; these benches have failed: {', '.join(broken)}" if broken else "")
    return int(bool(over or broken))


def _run(name: str) -> tuple[list[Figure], int]:
    """What a bench printed as figures, and its exit status."""
    found = []
    with subprocess.Popen([sys.executable, "-u", "-m", name], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if figure := of_line(line):
                found.append(figure)
    return found, process.returncode


if __name__ == "__main__":
    sys.exit(main())
