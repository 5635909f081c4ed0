"""The README's own example runs as it stands, given what it says that the reader has."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

README = Path(__file__).parents[3] / "README.md"


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SAVEPOINT_SOCKET", "SAVEPOINT_REQUIRED"):
        monkeypatch.delenv(variable, raising=False)
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    sent: list[tuple[str, str]] = []
    scope = {
        "docs": [SimpleNamespace(id="a"), SimpleNamespace(id="b")],
        "ask_llm": lambda doc: f"summary of {doc.id}",
        "send": lambda text, idempotency_key: sent.append((text, idempotency_key)),
    }
    exec(compile(code, "README.md", "exec"), scope)
    assert [text for text, _ in sent] == ["summary of a", "summary of b"]
    assert len({key for _, key in sent}) == 2
