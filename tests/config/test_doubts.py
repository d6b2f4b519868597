"""What is no error and most likely not meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd import checks
from policyd.config import doubts, load

TIERS = '[tiers]\ndefault = "a"\n[tier.a]\nlimits = ["5 recipients per 1h"]\n'
BANS = '[[check]]\nuse = "bans"\n'
ALLOW = '[[check]]\nuse = "allow"\n'
QUOTA = '[[check]]\nuse = "quota"\n'
SPF = '[[check]]\nuse = "spf"\nfor = "mx"\n'
LISTS = '[[check]]\nuse = "dnsbl"\nfor = "mx"\nsites = ["bl.example"]\n'
GREYLIST = '[[check]]\nuse = "greylist"\nfor = "mx"\n'
LIMITED = QUOTA + 'name = "limited"\nlimits = ["5 recipients per 1h"]\n'


def told(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "p.toml"
    path.write_text(text)
    return doubts(load(path, checks.options_of))


@pytest.mark.parametrize(
    "text",
    [
        "",
        TIERS + ALLOW + BANS + QUOTA,
        TIERS + BANS + ALLOW + QUOTA,
        ALLOW + BANS + LIMITED,
        ALLOW + 'clients = ["192.0.2.1"]\n' + BANS + LIMITED,
        BANS + ALLOW + 'senders = ["a@example.net"]\n' + LIMITED,
        ALLOW + 'for = "mx"\n' + BANS + LIMITED,
        BANS + LIMITED + 'for = "submission"\n' + ALLOW + 'for = "mx"\n' + LIMITED.replace("limited", "b"),
        BANS + LISTS + SPF + GREYLIST + 'when = ["dnsbl >= 1", "spf = softfail", "spf != pass"]\n',
        BANS + SPF + 'name = "forged"\n' + GREYLIST + 'spf = "forged"\n',
        BANS + GREYLIST,
        BANS + GREYLIST + 'spf = ""\n',
    ],
)
def test_what_is_meant(tmp_path: Path, text: str) -> None:
    """Either order of allow and bans is the admin's to choose; nobody is nagged."""
    assert told(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (BANS + QUOTA, 3, "there are no tiers: nothing is counted"),
        ("[tiers]\ndefault = ''\n[tier.a]\n" + BANS + QUOTA, 6, "no tier has limits"),
        (BANS + ALLOW, 3, "has no effect; put it first"),
        (BANS + ALLOW + LIMITED + 'mode = "off"\n', 3, "has no effect; put it first"),
        (
            BANS + LIMITED + 'for = "mx"\nper = "client"\n' + ALLOW + 'for = "submission"\n',
            9,
            "has no effect",
        ),
        (LIMITED + ALLOW + BANS, 5, "spares nobody what stands before it (limited)"),
        (BANS + SPF + GREYLIST + 'when = ["spf = softfial"]\n', 6, "no result of SPF; write one of pass"),
        (BANS + SPF + GREYLIST + 'when = ["spf >= 1"]\n', 6, "no result of SPF"),
        (
            BANS + LISTS + GREYLIST + 'when = ["dnsbl = listed"]\n',
            7,
            "a score with a word; write 'dnsbl >= 1'",
        ),
        (
            BANS + LISTS + GREYLIST + 'when = ["dnsbl >= 99"]\n',
            7,
            "never holds: the weights of dnsbl add up to",
        ),
        (
            BANS + LISTS + GREYLIST + 'when = ["dnsbl < 0"]\n',
            7,
            "never holds: the weights of dnsbl add up to 0",
        ),
        (BANS + GREYLIST + 'when = ["bans = hit"]\n', 3, "never holds, for bans finds nothing"),
        (BANS + SPF + GREYLIST + 'spf = "sfp"\n', 6, "spf = 'sfp' names no spf check"),
        (ALLOW + 'senders = ["a@example.net"]\n' + BANS, 1, "lets pass by senders, which anybody can write"),
    ],
)
def test_what_is_most_likely_not_meant(tmp_path: Path, text: str, line: int, says: str) -> None:
    """A check without effect, or with more than one thinks, is named with its place."""
    (doubt,) = told(tmp_path, text)
    assert doubt.startswith(f"{tmp_path}/p.toml:{line}: check ")
    assert says in doubt


def test_no_bans(tmp_path: Path) -> None:
    """Without the check nobody can be banned, which should not be found out at night."""
    (doubt,) = told(tmp_path, LIMITED)
    assert "policyctl ban has no effect" in doubt
