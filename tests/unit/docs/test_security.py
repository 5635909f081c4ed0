"""Every test that docs/security.md cites for an attack exists under that name."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
CITATION = re.compile(r"`((?:[\w/]+\.py)?)::(test_\w+)`")


def test_the_cited_tests_exist() -> None:
    cited, missing, path = 0, [], ""
    for row in re.findall(r"^\| .* \|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE):
        for file, name in CITATION.findall(row):
            path = file or path  # `::name` repeats the file of the citation before it
            cited += 1
            source = ROOT / "tests" / path
            if not source.is_file() or not re.search(rf"^ *(async )?def {name}\(", source.read_text(), re.MULTILINE):
                missing.append(f"{path}::{name}")
    assert cited > 40
    assert missing == []
