"""What was read from logs, on disk while it is needed: each mail once, in order, and summed up exactly."""

from __future__ import annotations

import contextlib
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from policyd.store.gathered import Gathered, Row, Totals
from policyd.units import DAY


def row(at: int, key: int, user: str, recipients: int = 1, known: int = 1) -> Row:
    return Row(at, key, known, user, user, "198.51.100.7", user, 100, recipients, recipients, "a@example.com")


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5)), max_size=20))
def test_a_mail_that_stands_in_two_logs_is_one(some: list[tuple[int, int]]) -> None:
    """The copy of which more is known stays; sums are those of the mails."""
    best: dict[int, tuple[int, int]] = {}
    with contextlib.closing(Gathered()) as gathered:
        for key, known in some:
            # Copies of one mail differ in what is known of it only.
            gathered.add(row(key + 1, key, "abc"[key % 3], key + 1, known), [key])
            best[key] = (key + 1, max(known, best.get(key, (0, 0))[1]))
        totals = gathered.sort()
        mails = list(gathered.mails())
    assert totals == Totals(
        len(best),
        sum(key + 1 for key in best),
        len({key % 3 for key in best}),
        min((at for at, _ in best.values()), default=0),
        max((at for at, _ in best.values()), default=0),
    )
    assert [(mail.key, mail.known) for mail in mails] == [(key, best[key][1]) for key in sorted(best)]


@given(st.lists(st.tuples(st.integers(0, 3 * DAY), st.sampled_from("abc"), st.integers(0, 4)), max_size=30))
def test_recipients_are_pairs_with_their_newest_day(some: list[tuple[int, str, int]]) -> None:
    """And mails come account by account, each account's in order of time."""
    newest: dict[tuple[str, int], int] = defaultdict(int)
    with contextlib.closing(Gathered()) as gathered:
        for number, (at, user, recipient) in enumerate(some):
            gathered.add(row(at, number, user), [recipient])
            newest[user, recipient] = max(newest[user, recipient], at // DAY)
        gathered.sort()
        assert list(gathered.met()) == [(*pair, newest[pair]) for pair in sorted(newest)]
        by_account = [(user, at) for user, at, *_ in gathered.by_account()]
    assert by_account == sorted((user, at) for at, user, _ in some)
