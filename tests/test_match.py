"""One canonical form, and the most specific network or domain first."""

from __future__ import annotations

import contextlib
import ipaddress
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.match import (
    Network,
    NetworkSet,
    address_key,
    client_key,
    domain_key,
    domain_of,
    fold,
    parse_address,
    parse_network,
)

NFC, NFD = "jos\u00e9@b\u00fccher.example", unicodedata.normalize("NFD", "jos\u00e9@b\u00fccher.example")


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Alice@Example.ORG", "alice@example.org"),
        ("", ""),
        (NFD.upper(), NFC),
        (NFC, NFC),
        ("\u212a", "k"),  # the Kelvin sign
        ("\u00c5ngstr\u00f6m", "\u00e5ngstr\u00f6m"),
        ("\u212bngstr\u00f6m", "\u00e5ngstr\u00f6m"),
        ("\uff21", "\uff41"),  # full width stays full width: another character for every mail system
    ],
)
def test_folding(text: str, folded: str) -> None:
    """Lower case and NFC; nothing that would make two accounts one."""
    assert fold(text) == folded


@settings(max_examples=300)
@given(st.text(max_size=30))
def test_folding_twice_changes_nothing(text: str) -> None:
    """What is stored folded is found by what is asked folded, in NFC and NFD."""
    folded = fold(text)
    assert fold(folded) == folded
    assert unicodedata.is_normalized("NFC", folded)
    assert fold(unicodedata.normalize("NFD", text)) == folded
    assert address_key(address_key(text)) == address_key(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Alice@Example.org.", "alice@example.org"),
        ("alice@example.org..", "alice@example.org"),
        ("a.@example.org", "a.@example.org"),
        ("dotted.", "dotted."),
        ("", ""),
        ("@", "@"),
    ],
)
def test_a_dot_at_the_end_of_a_domain_makes_no_other_address(text: str, key: str) -> None:
    """It would step past bans and open a second counter; a login without a domain keeps its dot."""
    assert address_key(text) == key


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("alice@example.org", "example.org"),
        ("alice@example.org.", "example.org"),
        ("a@b@example.org", "example.org"),
        ("alice", ""),
        ("alice@", ""),
        ("", ""),
        ("a@[192.0.2.1]", "[192.0.2.1]"),
    ],
)
def test_the_domain_is_what_stands_after_the_last_at(address: str, domain: str) -> None:
    """A quoted local part may hold "@" itself."""
    assert domain_of(address) == domain


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:C000:0201", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:DB8:0:0:ffff::1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", ""),
        ("", ""),
        ("192.0.2.256", ""),
        ("192.0.2.01", ""),
        ("[2001:db8::1]", ""),
        ("IPv6:2001:db8::1", ""),
        ("192.0.2.0/24", ""),
        ("1", ""),
    ],
)
def test_a_client_is_counted_by_its_address_or_its_64(text: str, key: str) -> None:
    """An IPv6 client has a whole /64 to itself; an IPv4-mapped address is the IPv4 one."""
    assert client_key(text) == key
    assert (parse_address(text) is None) == (key == "")


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.1", "192.0.2.1/32"),
        (" 192.0.2.1 ", "192.0.2.1/32"),
        ("192.0.2.0/255.255.255.0", "192.0.2.0/24"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("[2001:db8::]/32", "2001:db8::/32"),
        ("[2001:db8::1]", "2001:db8::1/128"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_networks(text: str, network: str) -> None:
    """As main.cf's mynetworks writes them, with brackets or without."""
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.1/24", "has host bits set; write 192.0.2.0/24"),
        ("2001:db8::1/32", "has host bits set; write 2001:db8::/32"),
        ("", "is no IP address or network"),
        ("192.0.2.0/33", "is no IP address or network"),
        ("example.org", "is no IP address or network"),
        ("fe80::1%eth0", "has a zone"),
    ],
)
def test_what_is_no_network_says_why(text: str, why: str) -> None:
    """And what to write instead, where that is clear."""
    with pytest.raises(ValueError, match=why):
        parse_network(text)


def networks_of(*texts: str) -> NetworkSet:
    return NetworkSet(parse_network(text) for text in texts)


def test_the_most_specific_network_comes_first() -> None:
    """Whatever the order in which they were added; the versions are kept apart."""
    found = networks_of("10.0.0.0/8", "0.0.0.0/0", "10.1.2.3", "10.1.0.0/16", "2001:db8::/32", "::/0")
    assert [str(network) for network in found.holding("10.1.2.3")] == [
        "10.1.2.3/32",
        "10.1.0.0/16",
        "10.0.0.0/8",
        "0.0.0.0/0",
    ]
    assert [str(network) for network in found.holding("::ffff:10.9.0.1")] == ["10.0.0.0/8", "0.0.0.0/0"]
    assert [str(network) for network in found.holding("2001:db8::1")] == ["2001:db8::/32", "::/0"]
    assert str(found.find("2001:db9::1")) == "::/0"
    assert list(found.holding("unknown")) == []
    assert "10.1.2.3" in found
    assert "unknown" not in found
    assert 5 not in found


def test_a_network_can_be_taken_out_again() -> None:
    """Bans come and go; the set does not keep what is gone."""
    found = networks_of("10.0.0.0/8", "10.1.0.0/16")
    found.discard(parse_network("10.1.0.0/16"))
    found.discard(parse_network("10.1.0.0/16"))
    found.discard(parse_network("2001:db8::/32"))
    assert str(found.find("10.1.2.3")) == "10.0.0.0/8"
    assert len(found) == 1


def test_sets_are_equal_by_their_members() -> None:
    """A reload that changes nothing is seen as such."""
    assert networks_of("10.0.0.0/8", "::1") == networks_of("::1", "10.0.0.0/8", "10.0.0.0/8")
    assert networks_of("10.0.0.0/8") != networks_of("10.0.0.0/9")
    assert networks_of() != 5
    assert sorted(str(network) for network in networks_of("10.0.0.0/8", "::1")) == ["10.0.0.0/8", "::1/128"]


def network_of(bits: int, length: int, version: int) -> Network:
    width = 32 if version == 4 else 128
    length = min(length, width)
    number = (bits & (2**width - 1)) >> (width - length) << (width - length)
    return (
        ipaddress.IPv4Network((number, length)) if version == 4 else ipaddress.IPv6Network((number, length))
    )


members = st.builds(
    network_of, st.integers(0, 2**128 - 1) | st.integers(0, 255), st.integers(0, 128), st.sampled_from([4, 6])
)
addresses = st.ip_addresses() | st.integers(0, 255).map(ipaddress.IPv4Address)


@settings(max_examples=300)
@given(st.lists(members, max_size=12), addresses)
def test_holding_agrees_with_the_standard_library(
    all_members: list[Network], address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    """Every network that holds the address, each once, longest prefix first."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    expected = sorted({n for n in all_members if address in n}, key=lambda n: n.prefixlen, reverse=True)
    assert list(NetworkSet(all_members).holding(str(address))) == expected


@given(st.text(max_size=40))
def test_any_text_is_asked_without_harm(text: str) -> None:
    """Values come from outside: nothing raises but parse_network, and that only ValueError."""
    fold(text)
    domain_of(text)
    client_key(text)
    assert list(networks_of("0.0.0.0/0", "::/0").holding(text)) in (
        [],
        [parse_network("0.0.0.0/0")],
        [parse_network("::/0")],
    )
    with contextlib.suppress(ValueError):
        parse_network(text)


@pytest.mark.parametrize(
    "spelling",
    [
        "b\u00fccher.example",
        "B\u00dcCHER.example",
        "xn--bcher-kva.example",
        "bu\u0308cher.example.",
        "b\u00fccher\u3002example",
    ],
)
def test_every_spelling_of_a_domain_is_one_domain(spelling: str) -> None:
    """U-labels, A-labels, decomposed, ideographic dot: none steps past a ban of another (RFC 5890)."""
    assert domain_key(fold(spelling)) == "xn--bcher-kva.example"
    assert address_key(f"a@{spelling}") == "a@xn--bcher-kva.example"


@pytest.mark.parametrize("odd", ["\u2028", "a\ud7ff..b", "\u00e4" * 300, "-\u00e4-.x", "xn--\u00e4"])
def test_what_is_no_domain_stays_as_it_is(odd: str) -> None:
    """Hostile text is compared as it is, and never raises."""
    assert domain_key(odd) == odd.rstrip(".")
