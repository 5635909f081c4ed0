"""Run every benchmark in turn and print all figures with their goals: `python -m bench`.

One figure requires a cluster and is measured by `make demo`: the time from the predecessor's release to the running
agent.
"""

import subprocess
import sys

from bench.figure import Figure, parse_line, table

BENCHMARKS = ("bench.sdk_pause", "bench.checkpoint", "bench.sidecar", "bench.webhook_latency")
ON_A_CLUSTER = "      from release to running agent: measured on a cluster by `make demo`, goal: at most 10 s"


def main() -> int:
    """Run all benchmarks; return 0 if every one succeeded and every figure meets its goal."""
    figures: list[Figure] = []
    failed: list[str] = []
    for name in BENCHMARKS:
        print(f"\n== {name}", flush=True)
        found, status = _run(name)
        figures += found
        if not found or (status and all(figure.met for figure in found)):
            failed.append(name)
    print(f"\n== {len(figures)} figures")
    if figures:
        print(table(figures))
    print(ON_A_CLUSTER)
    over = sum(not figure.met for figure in figures)
    print(f"{len(figures) - over} of {len(figures)} figures meet their goals", end="")
    print(f"; failed benchmarks: {', '.join(failed)}" if failed else "")
    return int(bool(over or failed))


def _run(name: str) -> tuple[list[Figure], int]:
    """Run a benchmark; return the figures that it printed, and its exit status."""
    found = []
    with subprocess.Popen([sys.executable, "-u", "-m", name], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if figure := parse_line(line):
                found.append(figure)
    return found, process.returncode


if __name__ == "__main__":
    sys.exit(main())
