"""Every reason is a member of ``Reason``, is used, and has a page that says what it means and what to do."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

import pytest
import yaml
from savepoint.contract import vocabulary
from savepoint.contract.vocabulary import Reason
from savepoint.errors import SavepointError

from tests.unit.docs import reason_pages

ROOT = Path(__file__).parents[3]
PRODUCT = ("core", "operator", "agent-sidecar", "cli")
PACKAGES = ("savepoint", "savepoint_operator", "savepoint_sidecar", "savepoint_cli")
PAGES = {path.stem: path.read_text() for path in reason_pages.FOLDER.glob("*.md") if path != reason_pages.INDEX}
ENUMS = {name: item for name, item in vars(vocabulary).items() if inspect.isclass(item) and issubclass(item, StrEnum)}

ALSO_OTHER_WORDS: Final = {
    "Ready": "a condition type of Savepoint's kinds, of Nodes and of Pods",
    "Succeeded": "the condition type of AgentRestore, and a pod's phase",
    "Protected": "the condition type of ProtectedAgent",
    "Pending": "a pod's phase",
}
"""Reasons whose text may stand as a literal anywhere, because it is also a word of Kubernetes or a condition type."""

ALSO_THERE: Final = {
    ("core/savepoint/__init__.py", "Restored"): "the name of a class",
    ("core/savepoint/contract/agent_protocol.py", "Restored"): "how the agent's process got its state: or Restarted",
    ("agent-sidecar/savepoint_sidecar/lifecycle/incarnation.py", "Restored"): "the same",
    ("agent-sidecar/savepoint_sidecar/lifecycle/recovery.py", "Restored"): "the same",
    ("operator/savepoint_operator/admission/review.py", "Invalid"): "the reason of a Status of the Kubernetes API",
    ("operator/savepoint_operator/rules/crash_loop.py", "Error"): "the kubelet's reason of any failed exit",
}
"""Literals (file, text) that are not reasons although they equal one."""


@functools.cache
def _sources() -> dict[str, ast.Module]:
    paths = [path for folder in PRODUCT for path in sorted((ROOT / folder).rglob("*.py"))]
    modules = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}
    for name in ("reasons", "vocabulary"):
        del modules[f"core/savepoint/contract/{name}.py"]
    return modules


def _literals(module: ast.Module) -> Iterator[ast.Constant]:
    """Yield the string literals of a module, except docstrings and the names in ``__all__``."""
    skipped: set[int] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.Assign) and any(
            isinstance(each, ast.Name) and each.id == "__all__" for each in node.targets
        ):
            skipped.update(id(each) for each in ast.walk(node.value))
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node


def _member(node: ast.expr) -> str | None:
    """Return the value of an expression such as ``Reason.READY``, whichever enum of the vocabulary it belongs to."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ENUMS:
        members = ENUMS[node.value.id].__members__
        return str(members[node.attr]) if node.attr in members else None
    return None


def _errors(root: type[SavepointError] = SavepointError) -> set[type[SavepointError]]:
    return {root}.union(*(_errors(each) for each in root.__subclasses__()))


def test_every_reason_has_a_page_and_every_page_a_reason() -> None:
    assert set(PAGES) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_a_page_says_what_it_means_and_what_to_do(reason: Reason) -> None:
    page = PAGES[reason]
    assert page.startswith(reason_pages.header(reason)), f"run {reason_pages.COMMAND}"
    meaning, _, remedy = page.removeprefix(reason_pages.header(reason)).partition(reason_pages.REMEDY)
    assert meaning.startswith(reason_pages.MEANING)
    assert len(meaning.removeprefix(reason_pages.MEANING)) > 10
    assert remedy.strip()


def test_the_index_is_derived_from_the_reasons() -> None:
    assert reason_pages.INDEX.read_text() == reason_pages.index(), f"run {reason_pages.COMMAND}"


@pytest.mark.parametrize("reason", Reason)
def test_a_meaning_is_one_sentence(reason: Reason) -> None:
    assert re.fullmatch(r"[A-Z].*\.", reason.meaning)
    assert not re.search(r"[.] [A-Z]", reason.meaning)
    assert reason.seen_in and not reason.seen_in.endswith(".")


def test_product_code_spells_no_reason_as_a_literal() -> None:
    found = [
        f"{name}:{literal.lineno}: {literal.value!r}"
        for name, module in _sources().items()
        for literal in _literals(module)
        if literal.value in set(Reason)
        and literal.value not in ALSO_OTHER_WORDS
        and (name, literal.value) not in ALSO_THERE
    ]
    assert not found, "use the member of savepoint.contract.vocabulary:\n" + "\n".join(found)


def test_every_exception_to_that_is_needed() -> None:
    literals = {(name, str(literal.value)) for name, module in _sources().items() for literal in _literals(module)}
    assert set(ALSO_THERE) <= literals
    assert set(ALSO_OTHER_WORDS) <= {text for _, text in literals}


def test_every_reason_is_used_in_product_code() -> None:
    used = {
        _member(node) for _, module in _sources().items() for node in ast.walk(module) if isinstance(node, ast.expr)
    }
    assert [reason for reason in Reason if reason not in used] == []


def test_every_error_carries_a_reason() -> None:
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    product = [error for error in _errors() if error.__module__.partition(".")[0] in PACKAGES]
    assert len(product) > 20
    assert {error.reason for error in product} <= set(Reason)


def test_pages_of_admission_refusals_name_admission() -> None:
    refused: set[str] = set()
    for name, module in _sources().items():
        if not name.startswith("operator/savepoint_operator/rules/admission/"):
            continue
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal":
                reason = _member(node.args[0])
                assert reason, f"{name}:{node.lineno}: the reason of a refusal must be a member of Reason"
                refused.add(reason)
    assert {"AgentNameInvalid", "RunAsUserRequired", "StatePathInvalid", "ContainerNotFound"} <= refused
    for reason in refused:
        assert "admission" in PAGES[reason].partition(reason_pages.MEANING)[0], reason


def test_the_crd_and_its_page_list_the_same_reasons_of_a_restore() -> None:
    kind = yaml.safe_load((ROOT / "crds" / "agentrestores.yaml").read_text())["spec"]["versions"][0]["schema"]
    described = kind["openAPIV3Schema"]["properties"]["status"]["properties"]["reason"]["description"]
    page = (ROOT / "docs" / "spec" / "agentrestore.md").read_text()
    (row,) = re.findall(r"^\| `reason` \| (.*) See .* \|$", page, re.MULTILINE)
    assert described == row.replace("eason of Succeeded", "eason of condition Succeeded")
    words = {each for each in re.findall(r"[A-Z][A-Za-z]+", described) if each in PAGES}
    assert {"PredecessorRunning", "Restoring", "KeptLocal", "EvictionBlocked"} <= words
    for reason in words - {"Succeeded"}:
        assert "AgentRestore" in PAGES[reason].partition(reason_pages.MEANING)[0], reason
