"""Wheels for the images' Python, collected on the host because containers cannot reach a package index.

`pip download` for CPython 3.13 on Linux, and `pip wheel` of this repository. Nothing is resolved here: versions and
hashes come from the lock files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from e2e.cluster.command import ClusterError, run
from e2e.cluster.paths import Paths

PYTHON = "3.13"
_PACKAGES = ("core", "operator", "agent-sidecar", "cli")
_SOURCE_FILES = ("pyproject.toml", "README.md", "LICENSE")


def collect(root: Path, requirement: str, paths: Paths) -> list[Path]:
    """Return the wheels of everything in a lock file, or of one project pinned in requirements/dev.lock.

    Raises ClusterError.
    """
    lines = _lines(root, requirement)
    key = hashlib.sha256(f"{PYTHON}\n{lines}".encode()).hexdigest()[:12]
    target = paths.cache / "wheels" / f"{Path(requirement).stem}-{key}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
            listed.write(lines)
            listed.flush()
            _download(Path(listed.name), partial)
        partial.replace(target)
    return sorted(target.glob("*.whl"))


def own(root: Path, paths: Paths) -> Path:
    """Return this repository's wheel; rebuild it if a source file has changed. Raises ClusterError."""
    target = paths.cache / "wheels" / f"own-{_sources_key(root)}"
    if not target.exists():
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        # With SOURCE_DATE_EPOCH the same sources give the same bytes, so images are not rebuilt without need.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
        with tempfile.TemporaryDirectory(prefix="savepoint-sources-") as scratch:
            for name in (*_SOURCE_FILES, *_PACKAGES):
                source = root / name
                if source.is_dir():
                    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "Dockerfile")
                    shutil.copytree(source, Path(scratch) / name, ignore=ignore)
                elif source.exists():
                    shutil.copyfile(source, Path(scratch) / name)
            command: list[str | Path] = [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                "--wheel-dir",
                partial,
                scratch,
            ]
            run(command, env=environment, timeout=300)
        for older in target.parent.glob("own-*"):
            shutil.rmtree(older)
        partial.replace(target)
    found = list(target.glob("*.whl"))
    if len(found) != 1 or not zipfile.is_zipfile(found[0]):
        raise ClusterError(f"{target} does not contain exactly one wheel: delete it and try again")
    return found[0]


def _download(requirements: Path, target: Path) -> None:
    platforms = [f"--platform={name}_{os.uname().machine}" for name in _platforms()]
    run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--no-deps",
            f"--python-version={PYTHON}", "--implementation=cp", *platforms, "--dest", target, "--requirement",
            requirements,
        ],
        timeout=900,
    )  # fmt: skip


def _platforms() -> list[str]:
    """Return the platform tags that Debian trixie's C library satisfies, newest first."""
    return [f"manylinux_2_{minor}" for minor in (41, 39, 36, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)] + ["manylinux2014"]


def _lines(root: Path, requirement: str) -> str:
    """Return the lines of requirements, with their hashes."""
    if requirement.endswith(".lock"):
        return (root / requirement).read_text()
    found: list[str] = []
    for line in (root / "requirements" / "dev.lock").read_text().splitlines():
        if found and not line.startswith(" "):
            break
        if found or line.startswith(f"{requirement}=="):
            found.append(line)
    if not found:
        raise ClusterError(f"requirements/dev.lock does not pin {requirement}")
    return "\n".join(found) + "\n"


def _sources_key(root: Path) -> str:
    """Return a digest of every file that goes into the wheel."""
    digest = hashlib.sha256()
    files = [root / name for name in _SOURCE_FILES]
    for package in _PACKAGES:
        files += [path for path in (root / package).rglob("*") if path.is_file()]
    for path in sorted(files):
        if "__pycache__" in path.parts or path.name == "Dockerfile" or not path.exists():
            continue
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
