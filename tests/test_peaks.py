"""The busiest windows: what they hold is what a limit would have counted, and a suggested limit leaves room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policyd.peaks import Days, Measured, Peak, Sent, Spread, merged, rounded_up
from policyd.units import DAY, HOUR, MINUTE
from policyd.window import Counter, slot_width

events = st.lists(st.tuples(st.integers(0, 5 * HOUR), st.integers(1, 50)), max_size=40)


@given(events, st.sampled_from([MINUTE, 10 * MINUTE, HOUR, 90 * MINUTE, DAY]))
def test_a_peak_is_what_a_limit_would_have_counted(some: list[tuple[int, int]], window: int) -> None:
    """The same slots as the counter's: whoever gets a limit of their peak was never refused by it."""
    peak, counter, most = Peak(window), Counter(), 0
    counter.ask(slot_width(window), 0)
    for at, amount in sorted(some):
        now = peak.add(at, amount)
        counter.charge((slot_width(window),), amount, at)
        assert now == counter.used(window, at)
        most = max(most, now)
    assert peak.highest == most


def test_the_busiest_window_of_each_day() -> None:
    """Days are those of ledger time; the oldest go."""
    days = Days(HOUR, 5 * MINUTE, keep=2)
    for at, amount in ((0, 1), (DAY + HOUR, 3), (DAY + HOUR + MINUTE, 4), (DAY + 5 * HOUR, 2), (3 * DAY, 5)):
        days.add(at, amount)
    assert days.days == [[1, 7], [3, 5]]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9))),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9))),
)
def test_learning_the_same_days_again_changes_nothing(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    """The larger amount of each day stays, whatever the order in which logs are learned."""
    first = merged([], [list(pair) for pair in one], 60)
    second = [list(pair) for pair in other]
    both = merged(first, second, 60)
    assert merged(both, second, 60) == both == merged(merged([], second, 60), first, 60)
    assert [day for day, _ in both] == sorted({day for day, _ in one + other})


@given(st.lists(st.integers(0, 2000), min_size=1))
def test_so_many_per_cent_do_not_exceed_a_share(amounts: list[int]) -> None:
    """And no smaller amount would do, as far as three digits tell."""
    spread = Spread()
    for amount in amounts:
        spread.add(amount)
    for percent in (50, 95, 99, 100):
        share = spread.share(percent)
        assert sum(amount <= share for amount in amounts) * 100 >= len(amounts) * percent
        assert sum(rounded_up(amount, 3) < share for amount in amounts) * 100 < len(amounts) * percent
    assert spread.share(100) == spread.highest == max(amounts)
    assert spread.suggested >= spread.share(99) * 1.5


def test_rounding_is_upwards() -> None:
    """A limit that is named leaves what was sent."""
    assert [rounded_up(amount, 2) for amount in (0, 7, 99, 100, 101, 1234)] == [0, 7, 99, 100, 110, 1300]


def test_mail_among_the_own_domains_is_left_out_as_the_quota_leaves_it_out() -> None:
    """count = "external": such a mail has no message, no recipient and no octet."""
    windows = {("messages", HOUR): None, ("recipients", HOUR): None, ("bytes", HOUR): None}
    for external, expected in ((True, [1, 2, 10]), (False, [2, 8, 20])):
        measured = Measured(windows, external)
        measured.add(Sent(1000, 5, 2, 10))
        measured.add(Sent(2000, 3, 0, 10))
        assert [peak.highest for peak in measured.peaks.values()] == expected
