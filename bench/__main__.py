"""Run every benchmark, one after the other, and say which missed its goal: `python -m bench`."""

import subprocess
import sys

BENCHES = ("bench.sdk_pause", "bench.checkpoint", "bench.webhook_latency")


def main() -> int:
    """0 when all goals are met."""
    missed = []
    for name in BENCHES:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", name], check=False).returncode:
            missed.append(name)
    print(
        f"\n{len(BENCHES) - len(missed)} of {len(BENCHES)} met their goals"
        + (f"; not: {', '.join(missed)}" if missed else "")
    )
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
