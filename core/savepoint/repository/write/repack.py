"""Chooses which packs the next checkpoint stops referring to, so that the number and waste of packs stay bounded. Pure.

The chunks of a repacked pack are stored again when the writer meets their content, which it has just read anyway.
"""

from collections.abc import Sequence

from savepoint.repository.format.chunk import MAX_PACK_BYTES
from savepoint.repository.write.chunk_index import PackUse

BUDGET_BYTES = 32 << 20
"""The most bytes that one checkpoint stores again."""
MIN_PACKS = 128
MIN_LIVE_PERCENT = 30
MIN_WASTE_BYTES = 1 << 20
"""A pack with less waste than this is never wasteful: it is repacked only if there are too many packs."""


def packs_to_repack(uses: Sequence[PackUse]) -> list[str]:
    """Return the names of wasteful packs, worst first, then the least used packs if there are too many.

    Their live bytes stay within the budget.
    """
    limit = allowed_packs(sum(use.live for use in uses))
    by_use = sorted(uses, key=lambda use: (use.live, use.name))
    wasteful = sorted((use for use in uses if _is_wasteful(use)), key=lambda use: (use.live / use.size, use.name))
    excess = len(uses) - limit // 2 if len(uses) * 8 > limit * 7 else 0
    chosen: list[str] = []
    budget = BUDGET_BYTES
    for use in [*wasteful, *by_use]:
        if use.name in chosen or (len(chosen) >= excess and not _is_wasteful(use)) or use.live > budget:
            continue
        chosen.append(use.name)
        budget -= use.live
    return chosen


def allowed_packs(live_bytes: int) -> int:
    """Return the number of packs that may hold this many live bytes: 128, or twice what they would fill if more."""
    return max(MIN_PACKS, 2 * -(-live_bytes // MAX_PACK_BYTES))


def _is_wasteful(use: PackUse) -> bool:
    return use.live * 100 < use.size * MIN_LIVE_PERCENT and use.size - use.live >= MIN_WASTE_BYTES
