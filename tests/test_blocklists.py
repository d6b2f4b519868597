"""The words of blocklists: reversed names, what is a refusal, and which name others may see."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.blocklists import (
    Blocklist,
    NoBlocklists,
    hide_key,
    is_refusal,
    mapped_name,
    public_name,
    reversed_address,
)
from tests.fakes import finish


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.99", "99.2.0.192"),
        ("::ffff:192.0.2.99", "99.2.0.192"),
        # The examples of RFC 5782 2.4.
        (
            "2001:db8:1:2:3:4:567:89ab",
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2",
        ),
        ("fe80::1%eth0", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.e.f"),
        ("unknown", ""),
        ("", ""),
        ("192.0.2", ""),
        ("192.0.2.7.bl.example", ""),
    ],
)
def test_an_address_is_asked_in_reverse(address: str, name: str) -> None:
    """RFC 5782 2.1 and 2.4; what is no address is not asked about."""
    assert reversed_address(address) == name


@given(st.ip_addresses(v=6))
def test_every_ipv6_address_has_32_nibbles(address: ipaddress.IPv6Address) -> None:
    """Written shortly or in full, it is the same name."""
    if address.ipv4_mapped is None:
        name = reversed_address(str(address))
        assert int(name.replace(".", "")[::-1], 16) == int(address)
        assert name == reversed_address(address.exploded)


def test_the_test_entry_for_ipv6_is_the_mapped_one() -> None:
    """RFC 5782 5: ::FFFF:7F00:2, as IPv6 though it is mapped."""
    assert mapped_name("127.0.0.2") == "2.0.0.0.0.0.f.7.f.f.f.f." + ".".join("0" * 20)


@pytest.mark.parametrize(
    ("zone", "code", "refuses"),
    [
        ("zen.spamhaus.org", "127.0.0.2", False),
        ("zen.spamhaus.org", "127.255.255.252", True),
        ("bl.example", "127.255.255.254", True),
        ("bl.example", "127.255.255.255", True),
        ("bl.example", "127.255.255.1", True),
        ("bl.example", "127.255.254.1", False),
        ("bl.example", "192.0.2.80", True),
        ("bl.example", "0.0.0.0", True),
        ("multi.uribl.com", "127.0.0.1", True),
        ("multi.surbl.org", "127.0.0.1", True),
        ("bl.example", "127.0.0.1", True),
        ("hostkarma.junkemailfilter.com", "127.0.0.1", False),
        ("list.dnswl.org", "127.0.0.255", True),
        ("list.dnswl.org", "127.0.10.3", True),
        ("list.dnswl.org", "127.0.9.3", False),
        ("bl.example", "127.0.0.255", False),
        ("dbl.spamhaus.org", "127.0.1.255", True),
        ("abcdef.dbl.dq.spamhaus.net", "127.0.1.255", True),
        ("notdbl.spamhaus.org", "127.0.1.255", False),
        ("dbl.spamhaus.org", "127.0.1.2", False),
    ],
)
def test_a_refusal_is_no_listing(zone: str, code: str, refuses: bool) -> None:
    """Servers that took such a reply for a listing refused all mail."""
    assert is_refusal(zone, code) is refuses


@pytest.mark.parametrize(
    ("zone", "public"),
    [
        ("zen.spamhaus.org", "zen.spamhaus.org"),
        ("abcdef.zen.dq.spamhaus.net", "zen.dq.spamhaus.net"),
        ("zen.dq.spamhaus.net", "zen.dq.spamhaus.net"),
        ("0123456789abcdef0123456789abcdef.combined.mail.abusix.zone", "combined.mail.abusix.zone"),
        ("a1b2c3d4e5f6g7h8.bl.example.net", "bl.example.net"),
        ("bl.score.senderscore.com", "bl.score.senderscore.com"),
        ("hostkarma.junkemailfilter.com", "hostkarma.junkemailfilter.com"),
        ("dnsbl-1.uceprotect.net", "dnsbl-1.uceprotect.net"),
        ("ix.dnsbl.manitu.net", "ix.dnsbl.manitu.net"),
    ],
)
def test_what_looks_like_a_key_is_left_out_of_the_public_name(zone: str, public: str) -> None:
    """The refusal is read by strangers, the log by many: the key is neither's."""
    assert public_name(zone) == public


def test_the_admin_names_a_zone_as_he_likes() -> None:
    """As with Postfix's postscreen_dnsbl_reply_map."""
    assert (
        public_name("abcdef.zen.dq.spamhaus.net", {"abcdef.zen.dq.spamhaus.net": "zen.spamhaus.org"})
        == "zen.spamhaus.org"
    )


@pytest.mark.parametrize(
    ("zone", "public"),
    [
        ("abcdef.zen.dq.spamhaus.net", "zen.dq.spamhaus.net"),
        ("abcdef.zen.dq.spamhaus.net", "zen.spamhaus.org"),
        ("abcdef.bl.example.net", "bl.example.net"),
    ],
)
def test_a_list_that_repeats_the_key_gives_nothing_away(zone: str, public: str) -> None:
    """Its TXT record is the list keeper's text, and may name the zone, or the key alone, in any case."""
    told = hide_key(
        f"7.2.0.192.{zone.upper()} listed, see https://example.net/?key=ABCDEF", Blocklist(zone, public)
    )
    assert "abcdef" not in told.lower()
    assert public in told
    assert "listed, see https://example.net/" in told
    assert hide_key("abcdef", Blocklist("bl.example", "bl.example")) == "abcdef"


def test_without_a_resolver_nothing_is_known() -> None:
    """Where policyctl decides a request itself: unknown, and never listed."""
    lists = [Blocklist("bl.example", "bl.example"), Blocklist("b2.example", "b2.example")]
    none = NoBlocklists()
    assert [(each.known, each.codes) for each in finish(none.look_up(lists, "7.2.0.192", 0))] == [
        (False, ())
    ] * 2
    assert finish(none.text(lists[0], "7.2.0.192", 0)) == ""
    none.tally(lists, "7.2.0.192", [])
