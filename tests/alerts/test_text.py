"""An alert in words, and as JSON: the facts, the commands, and nothing that a sender could smuggle in."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policyd.alert import KINDS, TEST, Alert
from policyd.alerts.payload import encoded
from policyd.alerts.text import words

FACTS: dict[str, Any] = {
    "detector": "hijacked",
    "when": "more than 8 client networks per user in 10m",
    "reason": "9 client networks in 10m",
    "values": ["192.0.2.0/24", "198.51.100.0/24"],
    "step": 1,
    "lasts": 3_600_000,
    "ref": "7F3K2AA",
    "client": "192.0.2.7",
    "sender": "alice@example.org",
    "decisions": [4711],
    "passed": {"messages": 120, "recipients": 3400},
}


def alert(
    kind: str = "suspend", subject: str = "alice@example.org", resolved: bool = False, **facts: Any
) -> Alert:
    return Alert("0123456789abcdef0123", "mail", kind, subject, resolved, facts, 1, 0, 1_795_865_882_240)


def test_a_suspension_says_who_from_where_since_when_how_many_and_what_to_type() -> None:
    """What the admin needs at three in the morning is in the mail."""
    text = words(alert(**FACTS)).text()
    for part in (
        "alice@example.org is suspended until 2026-11-28",
        "9 client networks in 10m",
        "2: 192.0.2.0/24, 198.51.100.0/24",
        "192.0.2.7",
        "120 messages, 3400 recipients",
        "policyctl user show alice@example.org",
        "policyctl explain 7F3K2AA",
        "policyctl queue alice@example.org --hold",
        "policyctl release alice@example.org",
    ):
        assert part in text


def test_a_database_that_cannot_be_written_has_its_own_disk_looked_at() -> None:
    """`url` of [store] may put it anywhere."""
    assert "df -h '/srv/mail db/p.db'\n" in words(alert("store-sick", path="/srv/mail db/p.db")).text() + "\n"


@pytest.mark.parametrize("resolved", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, TEST])
def test_every_kind_has_words_of_its_own(kind: str, resolved: bool) -> None:
    """None is told by its bare name, and what began differs from what is over."""
    said = words(alert(kind, "zen", resolved, used=8, limit=10, unit="recipients", window=3_600_000))
    assert not said.title.startswith("zen: ") or kind in ("detect", "stage-missing")
    if resolved and kind not in ("detect", "quota-80%", "quota-100%", TEST):
        assert said.title != words(alert(kind, "zen")).title


def test_the_numbers_of_a_quota() -> None:
    """How much of what."""
    facts = {"check": "quota", "used": 480, "limit": 600, "unit": "recipients", "window": 86_400_000}
    assert (
        words(alert("quota-80%", **facts)).title == "alice@example.org has used 480 of 600 recipients per 1d"
    )


@pytest.mark.parametrize(
    ("facts", "commands"),
    [
        (
            {"scope": "user", "limit": 20, "unit": "messages"},
            [
                "policyctl user show alice@example.org",
                "policyctl grant alice@example.org 20 messages --for 1d",
            ],
        ),
        (
            {"scope": "user", "limit": 5_000_000, "unit": "bytes"},
            [
                "policyctl user show alice@example.org",
                "policyctl grant alice@example.org 5000000 bytes --for 1d",
            ],
        ),
        (
            {"scope": "client:mx", "limit": 20, "unit": "recipients"},
            ["policyctl quota top --per client:mx --unit recipients --window 1h"],
        ),
        (
            {"scope": "server", "limit": 20, "unit": "bytes"},
            ["policyctl quota top --per server --unit bytes --window 1h"],
        ),
        ({"scope": "user", "limit": "much", "unit": "; reboot"}, ["policyctl user show alice@example.org"]),
        ({"scope": "client", "limit": 1, "unit": "; reboot"}, []),
    ],
)
def test_what_helps_against_a_limit(facts: dict[str, Any], commands: list[str]) -> None:
    """More of the unit that is used up; what is no account is not looked for, nor granted anything, as one."""
    said = words(alert("quota-100%", used=1, window=3_600_000, **facts))
    assert [command for _, command in said.commands] == commands


def test_many_together() -> None:
    """A flood is one text with one line each, and how many are left out."""
    events = [
        {"subject": f"u{n}@example.org", "resolved": False, "wall_at": 0, "facts": {}} for n in range(3)
    ]
    many = Alert("0" * 20, "mail", "detect", "", False, {"events": events, "left_out": 7}, 10, 0, 0)
    text = words(many).text()
    assert text.startswith("10 times detect")
    assert "u2@example.org" in text
    assert "7 more" in text


VALUES = st.recursive(
    st.one_of(st.text(max_size=20), st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@example("suspend", "", False, {"events": 0})
@given(
    st.sampled_from([*KINDS, TEST, "else"]),
    st.text(max_size=40),
    st.booleans(),
    st.dictionaries(
        st.one_of(st.sampled_from([*FACTS, "by", "used", "events"]), st.text(max_size=8)), VALUES, max_size=5
    ),
)
def test_whatever_the_facts_are(kind: str, subject: str, resolved: bool, facts: dict[str, Any]) -> None:
    """Any facts have words: printable ASCII in lines of policyd's own, and JSON that says the same as was noted."""
    # A fact may be called like a parameter.
    one = dataclasses.replace(alert(kind, subject, resolved), facts=facts)
    said = words(one)
    assert all(line.isprintable() and line.isascii() for line in said.text().split("\n"))
    assert "\n" not in said.title
    assert json.loads(encoded(one, "mx"))["data"]["subject"] == subject


@pytest.mark.parametrize("hostile", ["a\nBcc: all@example.org", "x'; rm -rf / #@example.org", "\x1b[2Jclear"])
def test_a_hostile_name_stays_one_word(hostile: str) -> None:
    """Who pastes a command from an alert runs that command."""
    for _, command in words(alert("suspend", hostile, **FACTS)).commands:
        assert command.isprintable()
        assert "rm -rf" not in command or "'x'\"'\"'; rm -rf / #@example.org'" in command
