"""Sentences of detectors: what is read is written back, what is no sentence is an error that shows one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.sentence import DISTINCT, SHARE, USUAL, Sentence, parse_sentence
from policyd.units import HOUR, MINUTE

windows = st.integers(1, 366 * 24 * 60).map(lambda minutes: minutes * MINUTE)


@given(
    st.one_of(
        st.builds(
            Sentence,
            st.just(DISTINCT),
            st.sampled_from(
                ["client networks", "countries", "sender addresses", "quota breaches", "recipients"]
            ),
            st.integers(0, 2000),
            windows,
            st.just(0),
        ),
        st.builds(
            Sentence,
            st.just(SHARE),
            st.just("failed deliveries"),
            st.integers(0, 99),
            windows,
            st.integers(1, 10**6 - 1),
        ),
        st.builds(
            Sentence,
            st.just(USUAL),
            st.sampled_from(["recipients", "messages"]),
            st.integers(1, 999),
            windows,
            st.integers(1, 10**6 - 1),
        ),
    )
)
def test_what_is_written_is_read_back(sentence: Sentence) -> None:
    """The configuration that is shown loads to the same."""
    assert parse_sentence(str(sentence)) == sentence


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        ("more than 1 country per user in 10m", "countries"),
        ("More than 1 client network per user in 10m", "client networks"),
        ("more  than 3 sender address per user in 1h", "sender addresses"),
        ("more than 1 quota breach per user in 1h", "quota breaches"),
    ],
)
def test_one_is_one(text: str, noun: str) -> None:
    """The singular, capitals and more than one blank are understood."""
    assert parse_sentence(text).noun == noun


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8 client networks per user in 10m",
        "more than -1 countries per user in 10m",
        "more than 8 client networks per server in 10m",
        "more than 8 client networks per user in 10",
        "more than 8 client networks per user in 400d",
        "more than 2001 recipients per user in 1h",
        "more than 100% failed of at least 20 deliveries per user in 1h",
        "more than 30% failed of at least 0 deliveries per user in 1h",
        "more than 0 times the usual recipients per user in 1h, at least 50",
        "more than 5 times the usual bytes per user in 1h, at least 50",
        "more than 5 times the usual recipients per user in 1h",
    ],
)
def test_what_is_no_sentence_is_an_error(text: str) -> None:
    """Never a guess."""
    with pytest.raises(ValueError, match=r"."):
        parse_sentence(text)


def test_the_window_is_in_milliseconds() -> None:
    """As everywhere inside policyd."""
    assert parse_sentence("more than 100 new recipients per user in 1h") == Sentence(
        DISTINCT, "new recipients", 100, HOUR
    )
