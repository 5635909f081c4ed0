"""Losses of state that count, and their end."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savepoint.contract.shrinkage import MAX_SHRINKAGES, WHOLE, Amount, Shrinkage, has_shrunk, shrinkages

MIB = 1 << 20


@pytest.mark.parametrize(
    ("before", "now", "shrunk"),
    [
        (Amount(4 * MIB, 1), Amount(2 * MIB, 1), False),  # exactly half
        (Amount(4 * MIB, 1), Amount(2 * MIB - 1, 1), True),
        (Amount(MIB, 1), Amount(1, 1), False),  # less than 1 MiB is lost
        (Amount(MIB + 1, 1), Amount(1, 1), True),
        (Amount(0, 2000), Amount(0, 212), True),
        (Amount(0, 20), Amount(0, 10), False),
        (Amount(0, 21), Amount(0, 10), True),
        (Amount(0, 9), Amount(0, 0), False),  # less than 10 files are lost
        (Amount(0, 10), Amount(0, 0), True),
        (Amount(0, None), Amount(0, 0), False),
        (Amount(0, 100), Amount(0, None), False),
        (Amount(1, 1), Amount(10 * MIB, 100), False),
        (Amount(0, 0), Amount(0, 0), False),
    ],
)
def test_a_loss_counts_from_half_and_one_mebibyte_or_ten_files(before: Amount, now: Amount, shrunk: bool) -> None:
    assert has_shrunk(before, now) is shrunk


def test_the_percentage_can_be_chosen() -> None:
    assert has_shrunk(Amount(0, 100), Amount(0, 79), 80)
    assert not has_shrunk(Amount(0, 100), Amount(0, 21), 20)


def test_a_file_tree_that_is_missing_is_lost() -> None:
    before = {WHOLE: Amount(100 * MIB, 30), "work": Amount(2 * MIB, 20)}
    found = shrinkages((), 7, before, {WHOLE: Amount(98 * MIB, 20)})
    assert found == (Shrinkage(7, "work", 2 * MIB, 0, 20, 0),)


def test_a_loss_stays_until_the_state_has_grown_again() -> None:
    first = shrinkages((), 1, {WHOLE: Amount(0, 100)}, {WHOLE: Amount(0, 10)})
    assert [(each.sequence, each.files_before, each.files_now) for each in first] == [(1, 100, 10)]
    later = shrinkages(first, 2, {WHOLE: Amount(0, 10)}, {WHOLE: Amount(0, 49)})
    assert [(each.sequence, each.files_before, each.files_now) for each in later] == [(1, 100, 49)]
    assert shrinkages(later, 3, {WHOLE: Amount(0, 49)}, {WHOLE: Amount(0, 50)}) == ()


def test_each_further_loss_is_listed_once_and_their_number_is_bounded() -> None:
    lost: tuple[Shrinkage, ...] = ()
    files = 1 << 40
    for sequence in range(1, 40):
        lost = shrinkages(lost, sequence, {WHOLE: Amount(0, files)}, {WHOLE: Amount(0, files // 3)})
        files //= 3
    assert len(lost) <= MAX_SHRINKAGES
    assert lost[0].files_before == 1 << 40


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
def test_the_open_losses_are_those_that_the_state_is_still_far_below(sizes: list[int]) -> None:
    lost: tuple[Shrinkage, ...] = ()
    for sequence, (before, now) in enumerate(itertools.pairwise(sizes), 1):
        lost = shrinkages(lost, sequence, {WHOLE: Amount(0, before)}, {WHOLE: Amount(0, now)})
        assert all(each.files_now == now and has_shrunk(Amount(0, each.files_before), Amount(0, now)) for each in lost)
        assert (sequence in {each.sequence for each in lost}) is has_shrunk(Amount(0, before), Amount(0, now))
        assert len(lost) <= 22  # each one is more than twice as small as the one before
