"""Kubernetes quantities, such as 320Mi, 1.5, 100m and 1e9, as exact numbers. Pure."""

import re
from decimal import Decimal
from typing import Final

_PATTERN: Final = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]{1,3}))?")
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def parse_quantity(value: int | str) -> Decimal | None:
    """Return the number that a quantity of the API denotes, or None if it is not one."""
    found = _PATTERN.fullmatch(str(value))
    if found is None:
        return None
    number, suffix, exponent = Decimal(found[1]), found[2] or "", found[3] or "0"
    if suffix in _BINARY:
        return number * Decimal(1024) ** (_BINARY.index(suffix) + 1)
    return number.scaleb(_DECIMAL.get(suffix, 0) + int(exponent))
