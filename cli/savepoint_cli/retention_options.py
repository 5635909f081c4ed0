"""Options of ``savepoint run`` that say which checkpoints to keep."""

import argparse
import re
from typing import Final

from savepoint.repository.history.retention import RetentionRules

MAX_COUNT: Final = 1000
MAX_AGE_SECONDS: Final = 100 * 366 * 86_400
_AGE: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SIZE: Final = re.compile(r"([0-9]{1,15})(|[KMGT]i?|[KMGT]B)")
_UNITS: Final = "KMGT"


def add_retention_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of a command."""
    default = RetentionRules()
    group = parser.add_argument_group(
        "retention",
        "Checkpoints to keep. --keep-last, --keep-hourly, --keep-daily and --keep-weekly add up; --max-age and "
        "--max-size then take away, but never the newest checkpoint or one from before a loss of state.",
    )
    for name, count, text in (
        ("last", default.keep_last, "newest checkpoints"),
        ("hourly", default.hourly, "hours, in UTC, of which to keep the newest checkpoint"),
        ("daily", default.daily, "days, in UTC, of which to keep the newest checkpoint"),
        ("weekly", default.weekly, "weeks, in UTC, of which to keep the newest checkpoint"),
    ):
        least = 1 if name == "last" else 0
        group.add_argument(
            f"--keep-{name}",
            type=_at_least_one if least else _count,
            default=count,
            metavar="N",
            help=f"number of {text} (default: {count})",
        )
    group.add_argument(
        "--keep-known-good",
        type=_count,
        default=default.min_known_good,
        metavar="N",
        help="number of checkpoints to keep from before much of the state was lost, until it has grown again "
        f"(default: {default.min_known_good})",
    )
    group.add_argument("--max-age", type=_age, metavar="AGE", help="age to delete checkpoints at, such as 36h or 30d")
    group.add_argument(
        "--max-size", type=_size, metavar="SIZE", help="size to limit an agent's checkpoints to, such as 20Gi"
    )


def retention_rules(options: argparse.Namespace) -> RetentionRules:
    """Return the rules that the options give."""
    return RetentionRules(
        keep_last=options.keep_last,
        hourly=options.keep_hourly,
        daily=options.keep_daily,
        weekly=options.keep_weekly,
        max_age_seconds=options.max_age,
        max_bytes=options.max_size,
        min_known_good=options.keep_known_good,
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(MAX_COUNT)) or int(text) > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {MAX_COUNT}")
    return int(text)


def _at_least_one(text: str) -> int:
    count = _count(text)
    if count == 0:
        raise argparse.ArgumentTypeError("must be at least 1: the newest checkpoint is always kept")
    return count


def _age(text: str) -> int:
    found = _AGE.fullmatch(text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 60 <= seconds <= MAX_AGE_SECONDS:
        raise argparse.ArgumentTypeError(
            "must be a number with its unit, s, m, h, d or w, from one minute to a hundred years, such as 30d"
        )
    return seconds


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text)
    size = 0
    if found:
        unit = found[2]
        base = 1000 if len(unit) == 1 or unit.endswith("B") else 1024
        size = int(found[1]) * (base ** (_UNITS.index(unit[0]) + 1) if unit else 1)
    if size < 1 << 20:
        raise argparse.ArgumentTypeError("must be at least 1Mi: bytes, or a number with a unit, such as 20Gi")
    return size
