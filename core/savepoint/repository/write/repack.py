"""Which packs a checkpoint stops referring to, so that the number and the waste of packs stay bounded. Pure.

The chunks of a retired pack are stored again when the writer meets their content, which it has just read anyway.
"""

from collections.abc import Sequence

from savepoint.repository.format.chunk import MAX_PACK_BYTES
from savepoint.repository.write.chunk_index import PackUse

BUDGET_BYTES = 32 << 20
"""Stored again per checkpoint, at most."""
MIN_PACKS = 128
POOR_PERCENT = 30
WORTH_BYTES = 1 << 20
"""A pack with less waste than this is never poor: only the number of packs can retire it."""


def packs_to_retire(uses: Sequence[PackUse]) -> list[str]:
    """Poor packs, poorest first; then the least used ones while there are too many; within the budget."""
    limit = allowed_packs(sum(use.live for use in uses))
    by_use = sorted(uses, key=lambda use: (use.live, use.name))
    poor = sorted((use for use in uses if _is_poor(use)), key=lambda use: (use.live / use.size, use.name))
    excess = len(uses) - limit // 2 if len(uses) * 8 > limit * 7 else 0
    retired: list[str] = []
    budget = BUDGET_BYTES
    for use in [*poor, *by_use]:
        if use.name in retired or (len(retired) >= excess and not _is_poor(use)) or use.live > budget:
            continue
        retired.append(use.name)
        budget -= use.live
    return retired


def allowed_packs(live_bytes: int) -> int:
    """How many packs may hold so many bytes: 128, or twice as many as they would fill."""
    return max(MIN_PACKS, 2 * -(-live_bytes // MAX_PACK_BYTES))


def _is_poor(use: PackUse) -> bool:
    return use.live * 100 < use.size * POOR_PERCENT and use.size - use.live >= WORTH_BYTES
