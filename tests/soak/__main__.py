"""Runs the soak; see ``python -m tests.soak --help``."""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from savepoint_sidecar.capture.change_detector import probe
from savepoint_sidecar.files.roots import Root

from tests.soak.rounds import Result, Round


def run_round(seed: int, on: Path, scratch: Path) -> Result:
    """Run one round in folders of its own, which are removed again."""
    with tempfile.TemporaryDirectory(dir=on) as place, tempfile.TemporaryDirectory(dir=scratch) as other:
        try:
            return Round(seed, Path(place), Path(other)).run()
        finally:
            for folder, _, _ in os.walk(place):
                Path(folder).chmod(0o700)


def main() -> int:
    """Run all rounds; print each failure, and the totals. Return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first round; each later one has the next")
    parser.add_argument("--on", type=Path, default=Path(tempfile.gettempdir()), help="a folder of the file system")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"))
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    options.on.mkdir(parents=True, exist_ok=True)
    print(f"{options.on}: changes are noticed by {probe(Root('files', '/data', options.on))}", flush=True)
    shutil.rmtree(options.on / ".savepoint", ignore_errors=True)
    counts, failed, began = Counter[str](), 0, time.monotonic()
    for seed in range(options.seed, options.seed + options.rounds):
        result = run_round(seed, options.on, options.scratch)
        counts += result.counts
        failed += bool(result.failures)
        for failure in result.failures:
            print(failure, flush=True)
        if seed % 50 == 0:
            print(f"seed {seed}: {dict(counts)}, {failed} rounds failed", flush=True)
    seconds = time.monotonic() - began
    print(f"{options.rounds} rounds in {seconds:.0f} s: {dict(counts)}; {failed} rounds with silent differences")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
