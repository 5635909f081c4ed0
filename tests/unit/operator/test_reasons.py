"""Every reason in the code has a page that says what it means and what to do, and every page a reason."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import yaml
from savepoint.errors import SavepointError
from savepoint_operator.rules.status import checkpoint_status, restore_status, texts

ROOT = Path(__file__).parents[3]
PAGES = {path.stem: path.read_text() for path in (ROOT / "docs" / "reasons").glob("*.md") if path.stem != "README"}
ROOMS = ("operator/savepoint_operator", "agent-sidecar/savepoint_sidecar")
NAME = r'"([A-Z][A-Za-z]+)"'
SAID = (
    rf"Refusal\(\s*{NAME}",
    rf"Refused\(\s*{NAME}",
    rf'Condition\.of\("[A-Za-z]+", [A-Za-z.]+, {NAME}',
    rf"events\.(?:normal|warning)\([^\"]*{NAME}",
    rf"Outcome\(\s*{NAME}",
    rf'"Failed", {NAME}',
    rf'RefusedError\([^"]*"[^"]*", {NAME}',
    rf"checkpoint_status\.failed\({NAME}",
    rf"Protection\(\s*{NAME}",
)


def _classes(root: type[SavepointError]) -> set[type[SavepointError]]:
    return {root}.union(*(_classes(each) for each in root.__subclasses__()))


def _reasons() -> set[str]:
    for module in (
        "savepoint.sdk.errors",
        "savepoint_operator.cluster.errors",
        "savepoint_sidecar.agent_api.process_session",
    ):
        importlib.import_module(module)
    found = {each.reason for each in _classes(SavepointError)}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            source = path.read_text()
            for pattern in SAID:
                for match in re.finditer(pattern, source):
                    found.update(group for group in match.groups() if group)
    found |= checkpoint_status.RUNNING | restore_status.GOOD | set(texts.NEXT_STEP)
    found |= {"Protected", "AtRisk", "Unprotected", "Restoring", "Completed", "Fetching"}
    return found


REASONS = sorted(_reasons())


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_has_a_page(reason: str) -> None:
    assert reason in PAGES, f"docs/reasons/{reason}.md is missing"


def test_what_the_webhook_refuses_has_pages_that_say_so() -> None:
    said: set[str] = set()
    for path in (ROOT / "operator/savepoint_operator/rules").rglob("*.py"):
        if path.parent.name != "admission":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal":
                assert isinstance(node.args[0], ast.Constant), f"{path.name}: a refusal's reason is a word in the code"
                said.add(str(node.args[0].value))
    assert {"AgentNameInvalid", "RunAsUserRequired", "StatePathInvalid", "ContainerNotFound"} <= said
    for reason in said:
        assert "admission" in PAGES[reason].partition("## What it means")[0], reason


def test_the_kind_and_its_page_list_the_same_reasons_of_a_restore() -> None:
    kind = yaml.safe_load((ROOT / "crds" / "agentrestores.yaml").read_text())["spec"]["versions"][0]["schema"]
    told = kind["openAPIV3Schema"]["properties"]["status"]["properties"]["reason"]["description"]
    page = (ROOT / "docs" / "spec" / "agentrestore.md").read_text()
    (row,) = re.findall(r"^\| `reason` \| (.*) See .* \|$", page, re.MULTILINE)
    assert told == row.replace("reason of Succeeded", "reason of condition Succeeded")
    words = {each for each in re.findall(r"[A-Z][A-Za-z]+", told) if each in PAGES}
    assert {"PredecessorRunning", "Restoring", "KeptLocal", "EvictionBlocked"} <= words
    for reason in words - {"Succeeded"}:
        assert "AgentRestore" in PAGES[reason].partition("## What it means")[0], reason


def test_every_page_is_of_a_reason_and_in_the_list() -> None:
    source = "".join(path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    for reason in PAGES:
        assert reason in REASONS or f'"{reason}"' in source, f"nothing says {reason}"
    listed = set(re.findall(r"\[([A-Za-z]+)\]\(", (ROOT / "docs" / "reasons" / "README.md").read_text()))
    assert listed == set(PAGES)


@pytest.mark.parametrize("reason", sorted(PAGES))
def test_a_page_says_what_it_means_and_what_to_do(reason: str) -> None:
    page = PAGES[reason]
    assert page.startswith(f"# {reason}\n\nSeen in: ")
    meaning = page.partition("## What it means\n\n")[2].partition("\n\n## What to do\n\n")
    assert len(meaning[0]) > 10
    assert meaning[2].strip()
