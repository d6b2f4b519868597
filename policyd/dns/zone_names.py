"""Which names show whether a blocklist is sound (RFC 5782 section 5, and random ones), and what an answer says against it."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from policyd.blocklists import REFUSALS, Blocklist, is_refusal, mapped_name, reversed_address
from policyd.lookup import Found

#: What the list wants to say (Spamhaus, return codes).
REFUSAL_TEXTS = {
    REFUSALS + "252": "the zone is mistyped",
    REFUSALS + "254": "asked through a public resolver; use one of your own",
    REFUSALS + "255": "asked too often",
}

#: A name as it stands before the zone, and as it is shown.
Name = tuple[str, str]


class Asked(NamedTuple):
    """One name of a test, and what was said on it."""

    shown: str
    found: Found


def present(domains: bool) -> list[Name]:
    """What a list has to list; the second one only if it knows IPv6."""
    if domains:
        return [("test", "TEST")]
    return [("2.0.0.127", "127.0.0.2"), (mapped_name("127.0.0.2"), "::FFFF:7F00:2")]


def absent(domains: bool) -> list[Name]:
    """What no list may list; the first two have to be answered, the others are of IPv6, which a list need not know."""
    if domains:
        return [("invalid", "INVALID"), random_name("domain")]
    return [
        ("1.0.0.127", "127.0.0.1"),
        random_name("v4"),
        (mapped_name("127.0.0.1"), "::FFFF:7F00:1"),
        random_name("v6"),
    ]


def random_name(kind: str) -> Name:
    """A name that no list has any reason to list, as it is asked and as it is shown."""
    if kind == "domain":
        name = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(20)) + ".invalid"
        return name, name
    # Not of 127.0.0.0/16 and 127.255.0.0/16, where lists have entries of their own.
    number = secrets.randbelow(254 << 16) + (1 << 16)
    address = f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    return (
        (reversed_address(address), address) if kind == "v4" else (mapped_name(address), f"::ffff:{address}")
    )


def against(blocklist: Blocklist, asked: Asked) -> str:
    """What an answer that must not be says against the list."""
    codes = [str(code) for code in asked.found.records]
    for code in codes:
        if code.startswith(REFUSALS):
            return f"refuses to answer: {code} ({REFUSAL_TEXTS.get(code, 'see its documentation')})"
        if not code.startswith("127."):
            return f"answers {code}, which is no reply of a list, for {asked.shown}"
        if is_refusal(blocklist.zone, code):
            return f"refuses to answer: {code} for {asked.shown}"
    return f"lists {asked.shown} as {codes[0]}, as it would list everybody" if codes else "answers nothing"
