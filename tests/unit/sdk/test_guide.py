"""Every example of docs/guides/sdk.md runs unchanged."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import savepoint
from savepoint.sdk.errors import _BY_REASON

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "sdk.md"
EXAMPLES = re.findall(r"^## (\w+)\n.*?^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "code"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_the_example_runs(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SAVEPOINT_SOCKET", "SAVEPOINT_REQUIRED"):
        monkeypatch.delenv(variable, raising=False)
    exec(compile(code, f"sdk.md: {name}", "exec"), {"__name__": "example"})


def test_every_method_and_error_is_in_the_guide() -> None:
    text = GUIDE.read_text()
    methods = {name for name in vars(savepoint.Agent) if not name.startswith("_")}
    for name in methods:
        assert f"agent.{name}" in text, f"agent.{name} is not in the guide"
    for name in savepoint.__all__:
        value = getattr(savepoint, name)
        if isinstance(value, type) and issubclass(value, savepoint.SavepointError):
            assert f"`{name}`" in text or f"savepoint.{name}" in text, f"{name} is not in the guide"


def test_every_error_that_the_socket_can_raise_is_exported() -> None:
    assert {each.__name__ for each in _BY_REASON.values()} <= set(savepoint.__all__)


def test_an_example_runs_in_a_process_of_its_own() -> None:
    """Run one example where nothing of this process is left over."""
    code = dict(EXAMPLES)["loop"]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "not managed by Savepoint" in done.stderr
