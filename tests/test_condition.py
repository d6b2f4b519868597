"""``when``: what is a condition, and when it holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.condition import Condition, parse_condition
from policyd.opinion import Opinion
from tests.fakes import FakeLedger, engine, rcpt, says

SCORES = st.integers(-999_999_999, 999_999_999)


@pytest.mark.parametrize(
    ("text", "found", "holds"),
    [
        ("dnsbl >= 1", 1, True),
        ("dnsbl >= 1", 0, False),
        ("dnsbl>1", 1, False),
        ("dnsbl <= -4", -4, True),
        (" dnsbl < 0 ", 0, False),
        ("dnsbl = 3", 3, True),
        ("dnsbl != 3", 3, False),
        ("spf = softfail", "softfail", True),
        ("spf = softfail", "fail", False),
        ("spf != pass", "none", True),
        # A word has no order: what can only be a mistake holds never.
        ("spf >= 1", "pass", False),
    ],
)
def test_a_condition_holds(text: str, found: str | int, holds: bool) -> None:
    """Scores are compared as numbers, results as words."""
    condition = parse_condition(text)
    assert condition.holds({condition.check: found}) is holds


@pytest.mark.parametrize("operator", ["=", "!=", ">=", "<=", ">", "<"])
def test_what_was_not_found_fulfils_nothing(operator: str) -> None:
    """Not even "is not": a check that was not asked says nothing."""
    assert not Condition("dnsbl", operator, 1).holds({"other": 1})


@pytest.mark.parametrize(
    "text", ["", "dnsbl", "dnsbl >=", ">= 1", "dnsbl => 1", "dnsbl >= 1 2", "dnsbl = ünder"]
)
def test_what_is_no_condition_is_told_with_an_example(text: str) -> None:
    """The message shows one that is."""
    with pytest.raises(ValueError, match="is no condition; write one like 'dnsbl >= 1'"):
        parse_condition(text)


def test_a_word_has_no_order() -> None:
    """The message says what to write instead."""
    with pytest.raises(ValueError, match="write '= softfail'"):
        parse_condition("spf >= softfail")


@given(st.sampled_from(["=", "!=", ">=", "<=", ">", "<"]), SCORES, SCORES)
def test_numbers_are_compared_as_python_does(operator: str, wanted: int, found: int) -> None:
    """And what is written reads the same again."""
    condition = Condition("a_check-1", operator, wanted)
    assert parse_condition(str(condition)) == condition
    expected = {
        "=": found == wanted,
        "!=": found != wanted,
        ">=": found >= wanted,
        "<=": found <= wanted,
        ">": found > wanted,
        "<": found < wanted,
    }[operator]
    assert condition.holds({"a_check-1": found}) is expected


@pytest.mark.parametrize(("score", "asked"), [(2, True), (0, False)])
def test_a_check_is_asked_only_when_one_of_its_conditions_holds(score: int, asked: bool) -> None:
    """What it found is there for the checks after it, in shadow too."""
    first = says(lambda _: Opinion(reason="scored", finding=score), "dnsbl", "shadow")
    second = says(lambda _: Opinion(reason="asked", final=True), "greylist")
    second = second._replace(when=(parse_condition("spf = none"), parse_condition("dnsbl >= 1")))
    proposal = FakeLedger(engine(first, second)).consult(rcpt("i1", "bob@example.net"))
    assert [heard.check for heard in proposal.heard] == (["dnsbl", "greylist"] if asked else ["dnsbl"])
