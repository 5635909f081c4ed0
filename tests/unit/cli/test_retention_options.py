"""The options of ``savepoint run`` that say which checkpoints to keep."""

import argparse

import pytest
from savepoint.repository.history.retention import RetentionRules
from savepoint_cli.retention_options import add_retention_arguments, retention_rules


def parse(*arguments: str) -> RetentionRules:
    parser = argparse.ArgumentParser()
    add_retention_arguments(parser)
    return retention_rules(parser.parse_args(arguments))


def test_the_defaults_are_those_of_the_rules() -> None:
    assert parse() == RetentionRules()


def test_every_rule_has_an_option() -> None:
    found = parse(
        *("--keep-last", "3", "--keep-hourly", "24", "--keep-daily", "7", "--keep-weekly", "4"),
        *("--keep-known-good", "2", "--max-age", "30d", "--max-size", "20Gi"),
    )
    assert found == RetentionRules(3, 24, 7, 4, 30 * 86_400, 20 << 30, 2)


@pytest.mark.parametrize(
    ("text", "size"), [("1048576", 1 << 20), ("2M", 2_000_000), ("3GB", 3 * 10**9), ("1Ti", 1 << 40)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert parse("--max-size", text).max_bytes == size


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--keep-last", "0", "at least 1"),
        ("--keep-last", "-1", ""),
        ("--keep-last", "1001", "from 0 to 1000"),
        ("--keep-daily", "x", "from 0 to 1000"),
        ("--keep-daily", "٣", "from 0 to 1000"),
        ("--keep-daily", "1" * 5000, "from 0 to 1000"),
        ("--max-age", "30", "with its unit"),
        ("--max-age", "1s", "one minute"),
        ("--max-age", "999999999w", "hundred years"),
        ("--max-size", "1Ki", "at least 1Mi"),
        ("--max-size", "-5Gi", ""),
        ("--max-size", "lots", "at least 1Mi"),
    ],
)
def test_nonsense_is_refused(option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(option, value)
    assert option in (error := capsys.readouterr().err) and message in error
