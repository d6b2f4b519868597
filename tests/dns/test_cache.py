"""What the DNS said is remembered within its bounds, and no longer than it holds."""

from __future__ import annotations

import gc
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from policyd.dns.cache import Cache, clamp
from policyd.lookup import FOUND, NXDOMAIN, UNKNOWN, Found


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def key(number: int) -> tuple[str, str]:
    return f"{number}.example", "A"


@given(st.one_of(st.none(), st.integers(-(2**31), 2**32)))
def test_a_ttl_is_held_within_bounds(ttl: int | None) -> None:
    """A minute at least, an hour at most; a minute where nothing is said."""
    assert 60 <= clamp(ttl) <= 3600
    assert clamp(None) == 60
    assert ttl is None or not 60 <= ttl <= 3600 or clamp(ttl) == ttl


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.lists(
                st.one_of(
                    st.binary(max_size=900), st.text(max_size=50), st.tuples(st.integers(0, 9), st.text())
                )
            ),
        )
    )
)
def test_the_bounds_hold_whatever_is_remembered(given_: list[tuple[int, list[object]]]) -> None:
    """Octets and entries; the newest stays, unless it is too large by itself; forgetting it all leaves nothing."""
    cache = Cache(Clock(), most_octets=10_000, most_entries=12)
    for number, records in given_:
        found = Found(FOUND, tuple(records), 60)
        cache.put(key(number), found)
        assert 0 <= cache.octets <= 10_000
        assert len(cache.entries) <= 12
        assert cache.octets == sum(entry.octets for entry in cache.entries.values())
        assert cache.get(key(number)) in (found, found._replace(ttl=61), None)
        if not records:
            assert cache.get(key(number)) is not None
    cache.clear()
    assert (cache.octets, len(cache.entries)) == (0, 0)


def test_what_has_expired_is_not_said() -> None:
    """Also while it still takes room."""
    clock = Clock()
    cache = Cache(clock, 10_000)
    cache.put(key(1), Found(NXDOMAIN, ttl=60))
    cache.put(key(2), Found(UNKNOWN, why="timeout"))
    clock.now = 2
    assert cache.get(key(2)) is None
    assert cache.get(key(1)) is not None
    clock.now = 60
    assert cache.get(key(1)) is None


def test_a_smaller_bound_holds_at_once() -> None:
    """A reload that takes memory away gets it."""
    cache = Cache(Clock(), 1_000_000)
    for number in range(1000):
        cache.put(key(number), Found(NXDOMAIN, ttl=60))
    cache.most_octets = 5_000
    cache.trim()
    assert 0 < len(cache.entries) < 20


def test_the_octets_are_counted_honestly() -> None:
    """The bound is one on memory: what is counted is not less than what Python takes, and not far above."""
    gc.collect()
    tracemalloc.start()
    try:
        cache = Cache(Clock(), 1_000_000_000)
        for number in range(20_000):
            records = (f"127.0.{number // 250}.{number % 250}",) if number % 2 else ()
            cache.put((f"{number}.3.2.10.a-list.example", "A"), Found(FOUND, records, 60 + number % 3000))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.95 * taken < cache.octets < 1.6 * taken, (taken, cache.octets)
