"""Checks of the pages against what they describe: links, make targets, CRD fields, and messages of the protocols.

They compare names, not meaning: a name that is missing from its page shows that the page was not updated.
"""

import re
import subprocess
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from savepoint.contract import agent_protocol, control_protocol
from savepoint_operator.control.connection import CloseCode

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
)
KINDS = sorted((ROOT / "crds").glob("*.yaml"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
EVERYWHERE = {"apiVersion", "kind", "metadata", "spec", "status", "observedGeneration"}
"""Fields that every kind has and that the pages do not explain."""


def prose(page: Path) -> str:
    """Return the page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_has_a_target(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} has no target"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: {target.name} has no such heading"


def test_every_page_can_be_found_from_the_readme() -> None:
    found, pending = set[Path](), [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page in found or page.suffix != ".md" or not page.exists():
            continue
        found.add(page)
        pending += [
            (page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(prose(page)) if link[0] != "#"
        ]
    unreachable = [page for page in (ROOT / "docs").rglob("*.md") if page not in found]
    assert not unreachable, f"no page links to {unreachable}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/local-cluster.md", "docs/guides/sizing.md"])
def test_every_make_target_on_a_page_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^|&& )make ([a-z0-9-]+)", (ROOT / name).read_text(), re.MULTILINE))
    assert named <= targets, named - targets


def names(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield every field below a schema, except the fields of selectors, conditions and resources."""
    for name, inner in (schema.get("properties") or {}).items():
        yield name
        if name not in ("selector", "conditions", "resources"):
            yield from names(inner)
    items = schema.get("items")
    if isinstance(items, Mapping):
        yield from names(items)


@pytest.mark.parametrize("file", KINDS, ids=lambda file: file.stem)
def test_every_field_of_a_crd_is_on_its_page(file: Path) -> None:
    raw = yaml.safe_load(file.read_text())
    page = (ROOT / "docs" / "spec" / f"{raw['spec']['names']['singular']}.md").read_text()
    for version in raw["spec"]["versions"]:
        fields_of_version = set(names(version["schema"]["openAPIV3Schema"])) - EVERYWHERE
        assert [name for name in sorted(fields_of_version) if not re.search(rf"\b{name}\b", page)] == []


def wire_fields(cls: type[Any]) -> Iterator[str]:
    """Yield the wire names of the fields of a message and of the dataclasses nested in it."""
    for item in fields(cls):
        head, *rest = item.name.split("_")
        yield head + "".join(map(str.capitalize, rest))
        hint = typing.get_type_hints(cls)[item.name]
        for inner in (hint, *typing.get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from wire_fields(inner)


def mentions(page: str, word: str) -> bool:
    """Return whether the page contains the word, not as part of a longer one."""
    return re.search(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])", page) is not None


@pytest.mark.parametrize(
    "cls",
    [*typing.get_args(control_protocol.FromPod), *typing.get_args(control_protocol.FromOperator)],
    ids=control_protocol.type_name,
)
def test_the_control_protocol_names_every_message_and_field(cls: type[Any]) -> None:
    page = (ROOT / "docs" / "control-protocol.md").read_text()
    assert mentions(page, control_protocol.type_name(cls))
    for name in wire_fields(cls):
        assert mentions(page, name), f"{control_protocol.type_name(cls)}.{name} is not on the page"


def test_the_control_protocol_names_every_close_code() -> None:
    page = (ROOT / "docs" / "control-protocol.md").read_text()
    assert all(f"| {code.value} |" in page for code in CloseCode)


MESSAGES = (
    agent_protocol.Entry,
    agent_protocol.Component,
    agent_protocol.Connect,
    agent_protocol.Connected,
    agent_protocol.Restored,
    *typing.get_args(agent_protocol.Order),
    agent_protocol.Flush,
    agent_protocol.Failed,
    agent_protocol.Resumed,
    agent_protocol.CheckpointRequest,
    agent_protocol.Problem,
)


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_the_agent_protocol_names_every_order_and_field(cls: type[Any]) -> None:
    page = (ROOT / "docs" / "agent-protocol.md").read_text()
    assert not cls.TYPE or f'{{"type":"{cls.TYPE}"' in page
    for name in wire_fields(cls):
        assert f'"{name}"' in page, f"{cls.__name__}.{name} is not on the page"


def test_the_agent_protocol_names_every_path_kind_encoding_and_component() -> None:
    page = (ROOT / "docs" / "agent-protocol.md").read_text()
    paths = [value for name, value in vars(agent_protocol).items() if name.startswith("PATH_")]
    components = [value for name, value in vars(agent_protocol).items() if name.startswith("COMPONENT_")]
    constants = [
        *agent_protocol.KINDS,
        *agent_protocol.ENCODINGS,
        *components,
        agent_protocol.TENSORS_PREFIX.rstrip("."),
        agent_protocol.FEATURE_REATTACH,
    ]
    assert len(paths) == 8
    assert [each for each in (*paths, *constants) if not mentions(page, each)] == []
