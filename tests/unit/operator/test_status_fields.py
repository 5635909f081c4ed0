"""Every status field of every kind is written by the modules that write that kind's status.

The test reads their source: a field counts as written if its name is a key of a dict literal or is assigned to. Whether
the value is right, or the code is ever reached, is for other tests.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "operator" / "savepoint_operator"
STATUS_WRITER: Final = "reconcile/status_writer.py"
"""Writes the fields that all kinds share."""
WRITERS: Final = {
    "AgentCheckpoint": (
        "rules/status/checkpoint_status.py",
        "rules/status/capture_status.py",
        "reconcile/checkpoint_objects.py",
    ),
    "AgentCheckpointPolicy": ("reconcile/policies.py",),
    "AgentCheckpointStore": ("reconcile/stores.py",),
    "AgentRestore": ("rules/status/restore_status.py", "reconcile/agent/restores.py", "reconcile/rollbacks.py"),
    "ProtectedAgent": (
        "reconcile/agent/protected_agent.py",
        "reconcile/checkpoint_objects.py",
        "rules/crash_loop.py",
    ),
}
KINDS: Final[dict[str, dict[str, Any]]] = {
    raw["spec"]["names"]["kind"]: raw["spec"]["versions"][0]
    for raw in (yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml")))
}


def written(file: str) -> set[str]:
    """Return the names that the file uses as keys of dicts."""
    found = set[ast.expr | None]()
    for node in ast.walk(ast.parse((SOURCE / file).read_text())):
        if isinstance(node, ast.Dict):
            found |= set(node.keys)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found.add(node.slice)
    return {each.value for each in found if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def paths(schema: Mapping[str, Any], above: str) -> Iterator[str]:
    """Yield every field below a schema, in the form of printer columns; all kinds share how conditions are written."""
    for name, inner in (schema.get("properties") or {}).items():
        yield f"{above}.{name}"
        if name != "conditions":
            yield from paths(inner, f"{above}.{name}")
    if isinstance(schema.get("items"), Mapping):
        yield from paths(schema["items"], above)


def status(kind: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = KINDS[kind]["schema"]["openAPIV3Schema"]["properties"]["status"]
    return found


def test_each_kind_has_writers() -> None:
    assert WRITERS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", WRITERS)
def test_every_status_field_is_written(kind: str) -> None:
    keys = set[str]().union(*map(written, (*WRITERS[kind], STATUS_WRITER)))
    assert [path for path in paths(status(kind), "") if path.rpartition(".")[2] not in keys] == []


@pytest.mark.parametrize("kind", WRITERS)
def test_every_printer_column_shows_a_written_field(kind: str) -> None:
    """No column shows a single condition: a column that no code fills would stay empty forever."""
    known = set(paths(KINDS[kind]["schema"]["openAPIV3Schema"], "")) | {".metadata.creationTimestamp"}
    columns = {each["name"]: re.sub(r"\[0\]", "", each["jsonPath"]) for each in KINDS[kind]["additionalPrinterColumns"]}
    assert {name: path for name, path in columns.items() if path not in known} == {}
