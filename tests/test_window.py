"""Sliding windows against a model that remembers every single event."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policyd.units import DAY, HOUR, MAX_AMOUNT, MAX_WINDOW, MIN_WINDOW, MINUTE, SECOND
from policyd.window import LADDER, SLOTS, Counter, Series, slot_width

#: Windows that share widths, that neighbour each other on the ladder, and that are far apart.
WINDOWS = (
    1 * SECOND,
    1_200,
    1_201,
    6 * SECOND,
    7 * SECOND,
    30 * SECOND,
    1 * MINUTE,
    5 * MINUTE,
    1 * HOUR,
    1 * DAY,
    7 * DAY,
    366 * DAY,
)
windows = st.sampled_from(WINDOWS) | st.integers(MIN_WINDOW, MAX_WINDOW)
#: Times between two events: within one slot, within one window, beyond everything.
pauses = (
    st.integers(0, 50)
    | st.integers(0, 2 * SECOND)
    | st.integers(0, 2 * MINUTE)
    | st.integers(0, 3 * HOUR)
    | st.integers(0, 30 * DAY)
)
starts = st.integers(0, 10) | st.integers(0, 60 * 366 * DAY)

Events = list[tuple[int, int]]


def true_sum(events: Events, window: int, now: int) -> int:
    """What really happened in ``(now - window, now]``."""
    return sum(n for at, n in events if now - window < at <= now)


def fullest(events: Events, window: int) -> int:
    """The most that any true window holds: one that ends at an event does."""
    return max((true_sum(events, window, at) for at, _ in events), default=0)


def slots_sum(events: Events, window: int, now: int) -> int:
    """What the slots that touch the window hold: the promise in the module's words, computed from events."""
    width = slot_width(window)
    return sum(n for at, n in events if at // width >= (now - window + 1) // width)


def charge(counter: Counter, asked: list[int], n: int, at: int) -> None:
    """What settle does with a mail that passes: ask for each limit's width, then count once."""
    counter.charge([slot_width(window) for window in asked], n, at)


# --- the ladder ---------------------------------------------------------------------------------------------------


def test_each_width_divides_the_next() -> None:
    """Filling a series from another rests on it: a slot never lies in two slots of a coarser series."""
    assert all(wider % width == 0 and wider > width for width, wider in pairwise(LADDER))


@given(windows)
@example(MIN_WINDOW)
@example(MAX_WINDOW)
@example(60 * LADDER[0])
@example(60 * LADDER[0] + 1)
def test_the_ladder_covers_every_window_with_the_smallest_width_that_fits(window: int) -> None:
    """From 1 s to 366 d: the smallest width that is at least W/60."""
    width = slot_width(window)
    assert width in LADDER
    assert width * 60 >= window
    assert all(smaller * 60 < window for smaller in LADDER if smaller < width)


def test_a_window_beyond_the_ladder_is_an_error() -> None:
    """Not a silent shorter window."""
    assert slot_width(60 * LADDER[-1]) == LADDER[-1]
    with pytest.raises(ValueError, match="longer than the ladder reaches"):
        slot_width(60 * LADDER[-1] + 1)


@given(windows, starts)
def test_a_window_touches_at_most_61_slots(window: int, now: int) -> None:
    """The bound on what one counter costs, however the window lies."""
    width = slot_width(window)
    assert now // width - (now - window + 1) // width + 1 <= SLOTS


# --- limits hold --------------------------------------------------------------------------------------------------


@st.composite
def limit_sets(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Limits on one counter: (amount, window)."""
    return draw(st.lists(st.tuples(st.integers(0, 30), windows), min_size=1, max_size=4))


@settings(max_examples=150)
@given(limit_sets(), starts, st.lists(st.tuples(pauses, st.integers(1, 8)), max_size=60))
def test_no_true_window_ever_holds_more_than_its_limit(
    limits: list[tuple[int, int]], now: int, arrivals: list[tuple[int, int]]
) -> None:
    """Whatever windows share a counter: when each admission tests ``used + n <= limit``, no window overflows."""
    counter = Counter()
    admitted: Events = []
    for pause, n in arrivals:
        now += pause
        if all(counter.used(window, now) + n <= amount for amount, window in limits):
            charge(counter, [window for _, window in limits], n, now)
            admitted.append((now, n))
    for amount, window in limits:
        assert fullest(admitted, window) <= amount


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 30), windows), min_size=1, max_size=4),
    starts,
    st.lists(st.tuples(pauses, st.integers(1, 8), st.integers(0, 3)), max_size=50),
)
def test_a_limit_that_is_always_asked_counts_exactly_its_slots(
    limits: list[tuple[int, int]], now: int, arrivals: list[tuple[int, int, int]]
) -> None:
    """Strict by less than one slot and never more: the count is what the touched slots hold, no other cell."""
    counter = Counter()
    events: Events = []
    asked = [window for _, window in limits]
    for pause, n, _ in arrivals:
        now += pause
        for window in asked:
            used = counter.used(window, now)
            assert used == slots_sum(events, window, now)
            assert true_sum(events, window, now) <= used
            assert used <= true_sum(events, window + slot_width(window) - 1, now)
        charge(counter, asked, n, now)
        events.append((now, n))


@settings(max_examples=120)
@given(
    windows,
    starts,
    st.lists(st.tuples(pauses, st.integers(1, 8)), min_size=1, max_size=30),
    st.integers(1, 250),
)
def test_room_at_is_the_first_moment_with_room_and_at_most_a_slot_late(
    window: int, now: int, arrivals: list[tuple[int, int]], share: int
) -> None:
    """One millisecond before it there is too little room, at it there is enough; never more than a slot late."""
    counter = Counter()
    events: Events = []
    for pause, n in arrivals:
        now += pause
        charge(counter, [window], n, now)
        events.append((now, n))
    used = counter.used(window, now)
    excess = 1 + share % used
    at = counter.room_at(window, now, excess)
    assert at > now
    assert counter.used(window, at) <= used - excess
    assert counter.used(window, at - 1) > used - excess
    # In truth the room came when the oldest `excess` had left the true window.
    gone, counted = (
        0,
        [
            event
            for event in events
            if event[0] // slot_width(window) >= (now - window + 1) // slot_width(window)
        ],
    )
    for when, n in counted:
        gone += n
        if gone >= excess:
            assert when + window <= at < when + window + slot_width(window)
            break


def test_room_is_now_when_nothing_is_over() -> None:
    """Nothing in excess: no waiting. More in excess than was counted: waiting would not help, and none is named."""
    counter = Counter()
    charge(counter, [SECOND], 5, 100)
    assert counter.room_at(SECOND, 100, 0) == 100
    assert counter.room_at(SECOND, 100, -3) == 100
    assert counter.room_at(SECOND, 100, 6) == 100
    assert counter.room_at(SECOND, 100, 5) == 120 + SECOND - 1


def test_room_at_reaches_the_window_of_a_year() -> None:
    """The longest window, to the millisecond."""
    counter = Counter()
    now = 1_000 * DAY
    charge(counter, [MAX_WINDOW], 1, now)
    at = counter.room_at(MAX_WINDOW, now, 1)
    assert (counter.used(MAX_WINDOW, at - 1), counter.used(MAX_WINDOW, at)) == (1, 0)
    assert now + MAX_WINDOW <= at < now + MAX_WINDOW + slot_width(MAX_WINDOW)


def test_cells_beyond_the_span_go_and_those_within_stay() -> None:
    """A busy counter over three windows: never more than 61 cells, and what the touched slots hold is exact."""
    counter = Counter()
    events: Events = []
    for second in range(180):
        at = 1_000_000 + second * SECOND
        charge(counter, [MINUTE], 1 + second % 3, at)
        events.append((at, 1 + second % 3))
        assert counter.used(MINUTE, at) == slots_sum(events, MINUTE, at)
        assert len(counter.all[SECOND].cells) <= SLOTS
    assert len(counter.all[SECOND].cells) == SLOTS
    # What is taken back of a slot that is gone changes nothing, and keeps nothing.
    counter.add(-1, 1_000_000)
    assert counter.used(MINUTE, at) == slots_sum(events, MINUTE, at)
    assert len(counter.all[SECOND].cells) == SLOTS


# --- taking back --------------------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(
    st.lists(windows, min_size=1, max_size=3),
    starts,
    st.lists(
        st.tuples(pauses, st.integers(1, 9), st.booleans(), st.integers(0, 99)), min_size=1, max_size=40
    ),
)
def test_taking_back_is_exact_while_the_series_stand(
    asked: list[int], now: int, steps: list[tuple[int, int, bool, int]]
) -> None:
    """A count that is returned at the time it was taken leaves as if it had never been, in every window."""
    counter = Counter()
    events: Events = []
    for pause, n, back, which in steps:
        now += pause
        for window in asked:
            counter.ask(slot_width(window), now)
        if back and events:
            at, amount = events.pop(which % len(events))
            counter.add(-amount, at)
        else:
            counter.add(n, now)
            events.append((now, n))
        for window in asked:
            assert counter.used(window, now) == slots_sum(events, window, now)


@given(
    starts,
    st.lists(st.tuples(st.integers(0, 3 * MINUTE), st.integers(-20, 20)), max_size=40),
    st.sampled_from(WINDOWS),
)
def test_no_amount_goes_below_zero(start: int, steps: list[tuple[int, int]], window: int) -> None:
    """Taking back more than was counted, or what was counted elsewhere, lends nothing to a later mail."""
    counter = Counter()
    for offset, n in steps:
        counter.ask(slot_width(window), start + offset)
        counter.add(n, start + offset)
        assert all(amount >= 0 for series in counter.all.values() for amount in series.cells.values())
        assert counter.used(window, start + offset) >= max(0, n)


def test_amounts_stay_within_what_the_store_can_hold() -> None:
    """A counter that only a shadow limit looks at grows for ever: it stops at 2^53, and can still be packed."""
    counter = Counter()
    for _ in range(3_000):
        charge(counter, [DAY], MAX_AMOUNT, 5)
    assert counter.used(DAY, 5) == MAX_AMOUNT
    assert Counter.unpack(counter.pack()).used(DAY, 5) == MAX_AMOUNT


# --- which series are kept ----------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(
    starts,
    st.lists(st.tuples(pauses, st.lists(st.sampled_from(WINDOWS), max_size=3), st.booleans()), max_size=40),
)
def test_series_are_dropped_when_nobody_asked_in_their_span_and_only_then(
    now: int, steps: list[tuple[int, list[int], bool]]
) -> None:
    """A width stays for 61 slots after it was asked for, and goes with the first count after that."""
    counter = Counter()
    last_asked: dict[int, int] = {}
    for pause, asked, counts in steps:
        now += pause
        for window in asked:
            counter.ask(slot_width(window), now)
            last_asked[slot_width(window)] = now
        if counts:
            counter.add(1, now)
            last_asked = {width: at for width, at in last_asked.items() if now - at <= width * SLOTS}
        assert counter.all.keys() == last_asked.keys()
        assert all(len(series.cells) <= SLOTS for series in counter.all.values())


@given(windows, starts, st.lists(st.tuples(pauses, st.integers(1, 5)), min_size=1, max_size=20))
def test_a_counter_expires_when_nothing_of_it_can_be_asked_for(
    window: int, now: int, arrivals: list[tuple[int, int]]
) -> None:
    """From ``expires`` on, the row may be deleted: no window of any kept width would see anything."""
    counter = Counter()
    for pause, n in arrivals:
        now += pause
        charge(counter, [window], n, now)
    at = counter.expires(now)
    assert at > now
    longest = max(60 * width for width in counter.all)
    assert all(counter.used(min(w, longest), at) == 0 for w in (window, longest))
    assert Counter().expires(now) == now


def test_peeking_changes_nothing() -> None:
    """A question (`policyctl quota show`, a test at RCPT) leaves the counter as it was."""
    counter = Counter()
    charge(counter, [HOUR], 3, 5 * HOUR)
    assert isinstance(counter.peek(slot_width(DAY), 5 * HOUR), Series)
    before = counter.pack()
    assert counter.used(DAY, 5 * HOUR) == 3
    assert counter.room_at(DAY, 5 * HOUR, 1) > 5 * HOUR
    assert counter.used(HOUR, 5 * HOUR) == 3
    assert counter.pack() == before
    assert list(counter.all) == [slot_width(HOUR)]


def test_a_copy_is_its_own() -> None:
    """What a failed batch did to a copy does not reach the original."""
    counter = Counter()
    charge(counter, [HOUR], 3, 100)
    other = counter.copy()
    charge(other, [HOUR, DAY], 4, 200)
    assert (counter.used(HOUR, 200), other.used(HOUR, 200)) == (3, 7)
    assert list(counter.all) == [slot_width(HOUR)]


# --- changed windows keep their history ---------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, list[int]]]]:
    """A start, and steps: a pause, an amount, and the windows asked for from then on (``[]``: as before)."""
    pool = draw(st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=5))
    steps = draw(
        st.lists(
            st.tuples(pauses, st.integers(1, 9), st.lists(st.sampled_from(pool), max_size=3)),
            min_size=1,
            max_size=40,
        )
    )
    return draw(starts), steps


class Model:
    """Which events each existing series knows: what it was told itself, and what it was filled with."""

    def __init__(self) -> None:
        self.counter = Counter()
        self.events: Events = []
        #: Per width: the indices of the events that the series has got.
        self.knows: dict[int, set[int]] = {}

    def still_known(self, now: int) -> set[int]:
        """Events in the span of some series that got them."""
        return {
            index
            for width, indices in self.knows.items()
            for index in indices
            if self.events[index][0] // width >= now // width - SLOTS + 1
        }

    def ask(self, width: int, now: int) -> None:
        if width not in self.counter.all:
            self.knows[width] = self.still_known(now)
        self.counter.ask(width, now)

    def add(self, n: int, now: int) -> None:
        self.counter.add(n, now)
        self.events.append((now, n))
        self.knows = {width: self.knows[width] for width in self.counter.all}
        for indices in self.knows.values():
            indices.add(len(self.events) - 1)

    def check(self, now: int, window: int) -> None:
        used = self.counter.used(window, now)
        known = [self.events[index] for index in self.still_known(now)]
        assert used >= true_sum(known, window, now), "an amount that was known was lost"
        assert used <= sum(n for _, n in self.events), "an amount was counted twice"
        assert used <= sum(n for at, n in self.events if at >= self.earliest(window, now)), (
            "too old an amount"
        )

    def earliest(self, window: int, now: int) -> int:
        """How old an amount can be and still count: a slot of the coarsest series that can explain it."""
        coarsest = max([slot_width(window), *self.counter.all])
        oldest = now - window + 1
        return oldest // coarsest * coarsest


@settings(max_examples=200)
@given(histories())
def test_a_new_window_sees_what_any_series_knew_and_nothing_twice(
    history: tuple[int, list[tuple[int, int, list[int]]]],
) -> None:
    """For windows that come and go: never less than what was known in the new window, never a fact twice."""
    now, steps = history
    model = Model()
    asked: list[int] = []
    for pause, n, change in steps:
        now += pause
        asked = change or asked
        for window in WINDOWS:
            model.check(now, window)
        for window in asked:
            model.ask(slot_width(window), now)
        model.add(n, now)
        for window in WINDOWS:
            model.check(now, window)


@settings(max_examples=120)
@given(histories(), st.lists(st.integers(0, 99), max_size=10))
def test_taking_back_across_changed_windows_never_undercounts_the_rest(
    history: tuple[int, list[tuple[int, int, list[int]]]], takes: list[int]
) -> None:
    """A count taken back where a filled series has it elsewhere costs no other count."""
    now, steps = history
    model = Model()
    asked: list[int] = []
    taken = iter(takes)
    for pause, n, change in steps:
        now += pause
        asked = change or asked
        for window in asked:
            model.ask(slot_width(window), now)
        model.add(n, now)
        index = next(taken, None)
        index = None if index is None else index % len(model.events)
        if index is not None and index in model.still_known(now):
            at, amount = model.events[index]
            model.counter.add(-amount, at)
            model.events[index] = (at, 0)
        for window in WINDOWS:
            known = [model.events[i] for i in model.still_known(now)]
            assert model.counter.used(window, now) >= true_sum(known, window, now)


@settings(max_examples=120)
@given(
    starts,
    st.lists(st.tuples(st.integers(0, 20 * MINUTE), st.integers(1, 9)), min_size=1, max_size=40),
    windows,
)
def test_a_new_window_returns_room_at_most_a_slot_late(
    now: int, arrivals: list[tuple[int, int]], window: int
) -> None:
    """What is filled in is never placed after now: its room returns within a window and a slot."""
    counter = Counter()
    for pause, n in arrivals:
        now += pause
        charge(counter, [HOUR, 30 * DAY], n, now)
    counter.ask(slot_width(window), now)
    assert counter.used(window, now + window + slot_width(window) - 1) == 0


def test_a_limit_made_shorter_keeps_its_history_and_made_longer_too() -> None:
    """The two changes that admins make, with numbers that can be checked by hand."""
    counter = Counter()
    day = 100 * DAY
    charge(counter, [DAY], 7, day + 1 * HOUR)
    charge(counter, [DAY], 5, day + 10 * HOUR)
    now = day + 10 * HOUR + 5 * MINUTE
    # Slots of 30 minutes: the 5 of five minutes ago count in the new hour, the 7 of nine hours ago do not.
    assert counter.used(HOUR, now) == 5
    assert counter.used(7 * DAY, now) == 12
    charge(counter, [HOUR, 7 * DAY], 1, now)
    assert (counter.used(HOUR, now), counter.used(DAY, now), counter.used(7 * DAY, now)) == (6, 13, 13)
    # The new hour lets go of them in its own time, at most one slot late.
    assert counter.used(HOUR, now + HOUR + MINUTE) == 0
    assert counter.used(DAY, now + HOUR + MINUTE) == 13


def test_a_coarse_slot_gives_only_what_the_finer_series_did_not_see() -> None:
    """The 4 from before the fine series' reach count once, the 6 that both know count once."""
    counter = Counter()
    counter.ask(slot_width(DAY), 0)  # slots of 30 minutes
    counter.add(4, 10 * SECOND)
    now = 5 * MINUTE
    counter.all[slot_width(MINUTE)] = Series(slot_width(MINUTE), now, {now // SECOND: 0})
    counter.add(6, now)
    assert counter.used(DAY, now) == 10
    assert counter.used(HOUR, now) == 10
    assert counter.used(5 * MINUTE, now) == 10
    assert counter.used(MINUTE, now) == 6


def test_time_that_went_back_is_still_counted() -> None:
    """A count older than the newest slot stands where it belongs; one taken later counts already, which is strict."""
    counter = Counter()
    charge(counter, [SECOND], 2, 10_000)
    charge(counter, [SECOND], 3, 9_900)
    assert counter.used(SECOND, 9_950) == 5
    assert counter.used(SECOND, 10_000) == 5
    assert counter.used(SECOND, 10_919) == 2
    assert counter.used(1 * MINUTE, 9_950) == 5


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 5)), max_size=30), st.sampled_from(WINDOWS[:8])
)
def test_unordered_times_never_undercount(events: Events, window: int) -> None:
    """Times in any order within the span: the count is never below the truth."""
    counter = Counter()
    counter.ask(slot_width(5 * MINUTE), 0)
    for at, n in events:
        counter.add(n, at)
    now = max((at for at, _ in events), default=0)
    assert counter.used(5 * MINUTE, now) == slots_sum(events, 5 * MINUTE, now)
    assert counter.used(window, now) >= true_sum(events, window, now)


# --- packed -------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(histories(), st.integers(1, 2**45))
def test_packing_loses_nothing_that_can_be_asked(
    history: tuple[int, list[tuple[int, int, list[int]]]], factor: int
) -> None:
    """Packed and read after every step, a counter answers as one that was never packed."""
    now, steps = history
    kept, packed = Counter(), Counter()
    asked: list[int] = []
    for pause, n, change in steps:
        now += pause
        asked = change or asked
        charge(kept, asked, n * factor, now)
        charge(packed, asked, n * factor, now)
        packed = Counter.unpack(packed.pack())
        assert packed.all.keys() == kept.all.keys()
        for width, series in kept.all.items():
            assert packed.all[width].asked == series.asked
        for window in WINDOWS:
            assert packed.used(window, now) == kept.used(window, now)
            assert packed.room_at(window, now, n) == kept.room_at(window, now, n)


@given(histories())
def test_pack_and_unpack_are_each_others_inverse(
    history: tuple[int, list[tuple[int, int, list[int]]]],
) -> None:
    """Bytes to counter to bytes gives the same bytes."""
    now, steps = history
    counter = Counter()
    for pause, n, asked in steps:
        now += pause
        charge(counter, asked, n, now)
    blob = counter.pack()
    assert Counter.unpack(blob).pack() == blob
    assert Counter.unpack(Counter().pack()).all == {}


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_junk_is_a_value_error(blob: bytes) -> None:
    """Anything read from a damaged row is refused with ValueError, or can be written again: nothing else is raised."""
    try:
        counter = Counter.unpack(blob)
    except ValueError:
        return
    assert Counter.unpack(counter.pack()).all.keys() == counter.all.keys()


@settings(max_examples=150)
@given(histories(), st.data())
def test_a_damaged_counter_is_a_value_error_or_a_counter(
    history: tuple[int, list[tuple[int, int, list[int]]]], data: st.DataObject
) -> None:
    """Flipped, cut and lengthened rows: ValueError, or a counter that can be counted in and packed."""
    now, steps = history
    counter = Counter()
    for pause, n, asked in steps:
        now += pause
        charge(counter, asked or [DAY], n, now)
    blob = bytearray(counter.pack())
    for _ in range(data.draw(st.integers(0, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)))
    try:
        read = Counter.unpack(bytes(blob[:cut]) if data.draw(st.booleans()) else bytes(blob))
    except ValueError:
        return
    charge(read, [HOUR], 1, now)
    Counter.unpack(read.pack())


def test_every_cut_and_every_addition_is_noticed() -> None:
    """A row that is too short or too long is damaged, not read as something smaller."""
    counter = Counter()
    charge(counter, [HOUR, DAY], 3, 100 * DAY)
    blob = counter.pack()
    for length in range(len(blob)):
        with pytest.raises(ValueError, match="damaged counter"):
            Counter.unpack(blob[:length])
    with pytest.raises(ValueError, match="damaged counter"):
        Counter.unpack(blob + b"\0")


def test_another_format_or_width_is_named() -> None:
    """A database of a newer policyd is not misread."""
    with pytest.raises(ValueError, match="format 9"):
        Counter.unpack(b"\x09\x00")
    odd = Counter({21: Series(21, 0, {1: 1})})
    with pytest.raises(ValueError, match="damaged counter"):
        Counter.unpack(odd.pack())
