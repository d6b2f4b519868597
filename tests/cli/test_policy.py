"""policyctl policy: the configuration in sentences that those who are held to it can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd import detectors
from policyd.checks import options_of
from policyd.cli.policy_words import _NOUNS, TRIAL, policy
from policyd.config import load
from tests.cli.place import Place

POLICY = """
[site]
domains = ["example.org"]
[tiers]
default = "new"
[tier.new]
limits = ["1 messages per 1h", "20 recipients per 10m", "20MB per 1d"]
promote = { to = "regular", after = "14d" }
[tier.regular]
[[check]]
use = "bans"
never = ["boss@example.org"]
[[check]]
use = "quota"
for = "submission"
on_breach = "reject"
[[check]]
use = "quota"
name = "whole-server"
for = "submission"
per = "server"
count = "all"
limits = ["5000 recipients per 1h"]
mode = "shadow"
[[check]]
use = "dnsbl"
for = "mx"
sites = ["secretkey0123456789abcdefgh.zen.dq.spamhaus.net*3", "bl.example", "white.example*-2"]
[[check]]
use = "spf"
for = "mx"
on_none = "defer"
[[check]]
use = "sender_login"
for = "submission"
mode = "off"
[[detect]]
name = "hijacked"
when = "more than 8 client networks per user in 10m"
then = "suspend"
[[detect]]
name = "bounces"
when = "more than 30% failed of at least 20 deliveries per user in 1h"
then = "alert"
[suspend]
ladder = ["1h", "permanent"]
"""


def sentences(tmp_path: Path, modes: dict[str, str] | None = None, text: str = POLICY) -> list[str]:
    (tmp_path / "policyd.toml").write_text(text)
    _, sections = policy(load(tmp_path / "policyd.toml", options_of), modes or {})
    return [sentence for section in sections for sentence in section.sentences]


def test_limits_violations_and_what_follows_are_said(tmp_path: Path) -> None:
    """Numbers, windows, tiers, detectors and the ladder, in words; what is off is not there, what is tried says so."""
    said = sentences(tmp_path)
    for sentence in (
        (
            "An account may send at most 1 message in any hour, to at most 20 recipients in any 10 minutes and at most 20MB "
            "in any day. Mail among our own domains does not count."
        ),
        'After 14 days of clean sending, and at least 10 messages, it goes to the tier "regular".',
        'An account in the tier "regular" may send without a limit of its own.',
        f"All accounts of this server together may send to at most 5000 recipients in any hour.{TRIAL}",
        "Sending from more than 8 different networks with one account within 10 minutes: the account is suspended.",
        "More than 30 % of an account's deliveries failing within one hour, of at least 20: the administrators look into it.",
        "Mail over a limit is refused for good. The refusal says which limit, and when there is room again.",
        "A suspended account cannot send: the first time for one hour and the second time until an administrator releases it.",
        "Mail is refused when its sender's domain says that the server may not send for it or has no SPF record (SPF).",
    ):
        assert sentence in said, sentence
    assert not any("does not belong to the account" in each for each in said)


def test_it_helps_no_attacker(tmp_path: Path) -> None:
    """Neither keys of blocklists nor who is spared, and no allow list as one that refuses."""
    text = "\n".join(sentences(tmp_path))
    assert "secretkey" not in text
    assert "white.example" not in text
    assert "boss" not in text
    assert "spamhaus.net and bl.example are refused for good" in text


def test_a_mode_set_by_hand_counts_more_than_the_file(tmp_path: Path) -> None:
    """Published is what holds now."""
    assert not any(TRIAL in each for each in sentences(tmp_path, {"whole-server": "enforce"}))
    assert not any(
        "whole server" in each or "this server together" in each
        for each in sentences(tmp_path, {"whole-server": "off"})
    )
    assert any(
        each.startswith("An account may send") and TRIAL in each
        for each in sentences(tmp_path, {"*": "shadow"})
    )
    assert not any("8 different networks" in each for each in sentences(tmp_path, {"hijacked": "off"}))


@pytest.mark.parametrize("noun", detectors.names())
def test_each_detector_has_a_sentence(tmp_path: Path, noun: str) -> None:
    """What is counted is said in words that need no manual."""
    assert noun in _NOUNS
    text = f'[[detect]]\nname = "x"\nwhen = "more than 8 {noun} per user in 1d"\nthen = "alert"\n'
    assert any(
        "8" in each and "within one day: the administrators" in each for each in sentences(tmp_path, {}, text)
    )


def test_the_page_is_headed_with_names_that_mean_something_to_its_readers(tmp_path: Path) -> None:
    """`postfix enable` takes over what Postfix has mail for, localhost among it; nobody has an address there."""
    (tmp_path / "policyd.toml").write_text(POLICY.replace('["example.org"]', '["localhost", "example.org"]'))
    title, _ = policy(load(tmp_path / "policyd.toml", options_of), {})
    assert title == "Acceptable use of mail at example.org"


def test_markdown_and_json(tmp_path: Path) -> None:
    """A page with headings, in which nothing of a name is taken for markup; and the same for programs."""
    place = Place(tmp_path)
    page = place.run("policy", "--markdown")
    assert page.exit_code == 0, page.output
    assert page.output.startswith(
        "# Acceptable use of mail at example.org\n\n## How much may be sent\n\n- An account may"
    )
    found = place.json("policy")
    assert [section["title"] for section in found["sections"]][:2] == [
        "How much may be sent",
        "What counts as a violation",
    ]
    plain = place.run("policy")
    assert max(len(line) for line in plain.output.splitlines()) <= 100


@pytest.mark.parametrize(
    ("sites", "threshold", "said"),
    [
        (
            '"a.example*3", "b.example*3"',
            3,
            "Servers listed by a.example and b.example are refused for good.",
        ),
        (
            '"a.example*3", "b.example*2", "c.example=127.0.0.2*1", "c.example=127.0.0.3*1", "w.example*-9"',
            3,
            "Servers listed by a.example are refused for good; a listing by b.example or c.example adds up with others.",
        ),
        (
            '"a.example", "b.example"',
            2,
            "Servers listed by enough of a.example and b.example are refused for good.",
        ),
        (
            '"a.example=127.0.0.2*2", "a.example=127.0.0.3*2"',
            4,
            "Servers listed by a.example are refused for good.",
        ),
    ],
)
def test_a_list_that_is_not_enough_alone_is_not_said_to_be(
    tmp_path: Path, sites: str, threshold: int, said: str
) -> None:
    """What is published is true: a list below the threshold refuses nobody by itself."""
    text = f'[[check]]\nuse = "dnsbl"\nfor = "mx"\nsites = [{sites}]\nthreshold = {threshold}\n'
    assert said in sentences(tmp_path, text=text)


def test_a_list_that_is_off_is_not_published(tmp_path: Path) -> None:
    """What was taken out by hand refuses nobody, nor do lists that cannot reach the threshold without it."""
    text = '[[check]]\nuse = "dnsbl"\nfor = "mx"\nsites = ["a.example*2", "b.example*1"]\nthreshold = 2\n'
    said = "\n".join(sentences(tmp_path, {"dnsbl/b.example": "off"}, text))
    assert "Servers listed by a.example are refused for good." in said
    assert "listed by" not in "\n".join(sentences(tmp_path, {"dnsbl/a.example": "off"}, text))
