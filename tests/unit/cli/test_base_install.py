"""Tests of the command line after a base installation, without the packages of any extra."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"aiohttp", "zstandard", "cryptography", "minio", "urllib3", "yaml"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from savepoint_cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "arguments", [["run", "--store", "store", "--", "true"], ["log", "store"], ["verify", "store"]]
)
def test_the_missing_extra_is_named(tmp_path: Path, arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], cwd=tmp_path, env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and f"`savepoint {arguments[0]}` needs" in result.stderr
    assert "pip install 'savepoint-agents[sidecar]'" in result.stderr
    assert not (tmp_path / "store").exists()
