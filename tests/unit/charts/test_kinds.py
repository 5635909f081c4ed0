"""The chart contains exactly the CRDs of crds/, and each follows the conventions of the Kubernetes API."""

import re
from collections.abc import Iterator
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


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = crd(name)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def test_the_chart_contains_the_same_files_as_crds() -> None:
    assert sorted(path.name for path in COPY.glob("*")) == FILES
    different = [name for name in FILES if (SOURCE / name).read_bytes() != (COPY / name).read_bytes()]
    assert not different, f"cp crds/*.yaml {COPY.relative_to(ROOT)}/"


def test_the_five_kinds_are_defined() -> None:
    assert {crd(name)["spec"]["names"]["kind"] for name in FILES} == {
        "AgentCheckpoint",
        "AgentRestore",
        "AgentCheckpointPolicy",
        "AgentCheckpointStore",
        "ProtectedAgent",
    }


@pytest.mark.parametrize("name", FILES)
def test_every_kind_follows_the_conventions(name: str) -> None:
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
def test_messages_of_rules_begin_with_the_field(name: str) -> None:
    for rule in rules(schema(name)):
        assert rule["message"].startswith(("spec", "metadata.name")), rule["message"]


@pytest.mark.parametrize("name", FILES)
def test_every_field_is_described_in_sentences(name: str) -> None:
    """``kubectl explain`` shows these descriptions."""
    described = dict(descriptions(schema(name), ""))
    for path, text in described.items():
        assert re.fullmatch(r"[A-Z].*\.", text, re.DOTALL), f"{path}: {text!r}"


@pytest.mark.parametrize("name", FILES)
def test_no_key_occurs_twice_in_a_mapping(name: str) -> None:
    """A YAML parser keeps the last one silently; the API server rejects the file."""
    yaml.load((SOURCE / name).read_text(), Loader=UniqueKeys)


class UniqueKeys(yaml.SafeLoader):
    """A loader that raises ValueError for a mapping with a repeated key."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise ValueError(f"line {node.start_mark.line + 1}: {keys}")
        return super().construct_mapping(node, deep)


def rules(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [rule for item in schema for rule in rules(item)]
    if not isinstance(schema, dict):
        return []
    own: list[dict[str, Any]] = schema.get("x-kubernetes-validations", [])
    return own + [rule for value in schema.values() for rule in rules(value)]


def descriptions(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the description (or "") of a schema and of every field below it, standard fields excepted."""
    yield path, schema.get("description", "")
    for name, inner in schema.get("properties", {}).items():
        if path or name not in ("apiVersion", "kind", "metadata"):
            yield from descriptions(inner, f"{path}.{name}")
    for name, inner in schema.get("items", {}).get("properties", {}).items():
        yield from descriptions(inner, f"{path}[].{name}")
