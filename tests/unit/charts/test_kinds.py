"""The chart brings exactly the kinds of crds/, and each keeps to the API's conventions."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
SOURCE, COPY = ROOT / "crds", ROOT / "charts" / "savepoint" / "files" / "crds"
FILES = sorted(path.name for path in SOURCE.glob("*.yaml"))


def crd(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((SOURCE / name).read_text())
    return found


def test_the_chart_has_the_same_files() -> None:
    assert sorted(path.name for path in COPY.glob("*")) == FILES
    different = [name for name in FILES if (SOURCE / name).read_bytes() != (COPY / name).read_bytes()]
    assert not different, f"cp crds/*.yaml {COPY.relative_to(ROOT)}/"


def test_there_are_five() -> None:
    assert {crd(name)["spec"]["names"]["kind"] for name in FILES} == {
        "AgentCheckpoint",
        "AgentRestore",
        "AgentCheckpointPolicy",
        "AgentCheckpointStore",
        "ProtectedAgent",
    }


@pytest.mark.parametrize("name", FILES)
def test_conventions(name: str) -> None:
    document = crd(name)
    spec = document["spec"]
    assert document["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert document["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    assert spec["names"]["categories"] == ["savepoint"]
    assert len(spec["names"]["shortNames"]) == 1
    (version,) = spec["versions"]
    assert version["subresources"] == {"status": {}}
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert {"observedGeneration", "reason", "conditions"} <= set(status)
    assert ".status.reason" in {field["jsonPath"] for field in version["selectableFields"]}


@pytest.mark.parametrize("name", FILES)
def test_messages_name_a_field(name: str) -> None:
    for rule in rules(crd(name)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]):
        assert rule["message"].startswith(("spec", "metadata.name")), rule["message"]


def rules(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [rule for item in schema for rule in rules(item)]
    if not isinstance(schema, dict):
        return []
    own: list[dict[str, Any]] = schema.get("x-kubernetes-validations", [])
    return own + [rule for value in schema.values() for rule in rules(value)]
