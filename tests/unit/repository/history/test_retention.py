"""Checkpoints to keep: counts and generations add up, limits take away, and some always stay."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from savepoint.repository.history.retention import Candidate, RetentionRules, kept

START = datetime(2026, 11, 2, tzinfo=UTC)  # a Monday
ONE = RetentionRules(keep_last=1)


def each(
    number: int, minutes: float, *, stored: int = 10, uploaded: int = 1, losses: tuple[int, ...] = ()
) -> Candidate:
    return Candidate(str(number), number, START + timedelta(minutes=minutes), stored, uploaded, losses)


def names(candidates: list[Candidate], rules: RetentionRules, now: datetime, *protected: str) -> list[int]:
    return sorted(map(int, kept(candidates, rules, now, frozenset(protected))))


def test_the_newest_of_each_hour_day_and_week_is_kept() -> None:
    every = [each(number, 30.0 * number) for number in range(1, 48 * 21)]  # three weeks
    now = every[-1].time
    assert names(every, RetentionRules(keep_last=2), now) == [1006, 1007]
    assert names(every, RetentionRules(keep_last=1, hourly=3), now) == [1003, 1005, 1007]
    assert names(every, RetentionRules(keep_last=1, daily=3), now) == [911, 959, 1007]
    assert names(every, RetentionRules(keep_last=1, weekly=9), now) == [335, 671, 1007]


def test_counts_and_generations_are_a_union_and_say_why() -> None:
    every = [each(1, 0), each(2, 30), each(3, 24 * 60), each(4, 24 * 60 + 1)]
    found = kept(every, RetentionRules(keep_last=2, daily=2), every[-1].time)
    assert found == {"4": ["last", "daily", "newest"], "3": ["last"], "2": ["daily"]}


def test_generations_count_days_with_a_checkpoint_only_and_in_utc() -> None:
    every = [each(1, 0), each(2, 60 * 24 * 10), each(3, 60 * 24 * 20)]
    assert names(every, RetentionRules(keep_last=1, daily=3), every[-1].time) == [1, 2, 3]


def test_age_takes_away_all_but_the_newest_and_the_protected() -> None:
    every = [each(number, number) for number in range(1, 6)]
    now = START + timedelta(days=30)
    rules = RetentionRules(keep_last=5, max_age_seconds=3600)
    assert names(every, rules, now) == [5]
    assert names(every, rules, now, "2") == [2, 5]
    assert names(every, rules, START + timedelta(minutes=63)) == [3, 4, 5]


def test_size_takes_away_the_oldest_but_never_the_newest_or_the_protected() -> None:
    every = [each(number, number, stored=100, uploaded=10) for number in range(1, 6)]
    now = every[-1].time
    assert names(every, RetentionRules(keep_last=5, max_bytes=115), now) == [4, 5]
    assert names(every, RetentionRules(keep_last=5, max_bytes=1), now) == [5]
    assert names(every, RetentionRules(keep_last=5, max_bytes=1), now, "1") == [1, 5]


def test_checkpoints_from_before_a_loss_stay_whatever_the_limits() -> None:
    every = [*(each(number, number) for number in range(1, 9)), each(9, 9, losses=(4, 6))]
    rules = RetentionRules(keep_last=1, max_age_seconds=60, max_bytes=1)
    now = START + timedelta(days=400)
    assert names(every, rules, now) == [4, 6, 9]
    assert names(every, RetentionRules(keep_last=1, min_known_good=2), now) == [3, 4, 5, 6, 9]
    assert names(every, RetentionRules(keep_last=1, min_known_good=0), now) == [9]
    assert names([*every, each(10, 10)], ONE, now) == [10]


def test_nothing_is_kept_of_nothing() -> None:
    assert kept([], RetentionRules(), START) == {}


counts = st.integers(0, 4)
rules_strategy = st.builds(
    RetentionRules,
    keep_last=counts,
    hourly=counts,
    daily=counts,
    weekly=counts,
    max_age_seconds=st.none() | st.integers(60, 10**6),
    max_bytes=st.none() | st.integers(1, 500),
    min_known_good=counts,
)


@st.composite
def histories(draw: st.DrawFn) -> list[Candidate]:
    steps = draw(st.lists(st.integers(-600, 60 * 24 * 3), min_size=1, max_size=30))
    found, minutes = [], 0
    for number, step in enumerate(steps, 1):
        minutes += step  # a clock may be set back
        losses = draw(st.lists(st.integers(1, number), max_size=2))
        size = draw(st.integers(0, 100))
        found.append(each(number, minutes, stored=size * 2, uploaded=size, losses=tuple(losses)))
    return found


@given(histories(), rules_strategy, st.integers(0, 10**6), st.sets(st.integers(1, 30)))
def test_what_must_stay_stays_and_applying_the_rules_again_changes_nothing(
    every: list[Candidate], rules: RetentionRules, age: int, held: set[int]
) -> None:
    now = max(one.time for one in every) + timedelta(seconds=age)
    protected = frozenset(map(str, held))
    stay = kept(every, rules, now, protected)
    assert every[-1].name in stay
    assert stay.keys() >= protected & {one.name for one in every}
    for sequence in every[-1].shrinkages:
        before = [one.name for one in every if one.sequence <= sequence]
        assert stay.keys() >= set(before[len(before) - min(rules.min_known_good, len(before)) :])
    left = [one for one in every if one.name in stay]
    assert kept(left, rules, now, protected).keys() == stay.keys()
    assert all(stay.values())


@given(histories(), rules_strategy)
def test_without_limits_each_rule_alone_keeps_no_more_than_all_together(
    every: list[Candidate], rules: RetentionRules
) -> None:
    now = max(one.time for one in every)
    together = RetentionRules(rules.keep_last, rules.hourly, rules.daily, rules.weekly)
    stay = kept(every, together, now).keys()
    for alone in (
        RetentionRules(rules.keep_last),
        RetentionRules(0, hourly=rules.hourly),
        RetentionRules(0, daily=rules.daily),
        RetentionRules(0, weekly=rules.weekly),
    ):
        assert kept(every, alone, now).keys() <= stay
