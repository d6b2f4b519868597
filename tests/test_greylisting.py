"""Triplets: what changes from try to try is left out, what is another's stays apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.greylisting import MOST, Triplet, normal_sender, origin_of, parse_triplet

#: Two senders of the same mail, as two tries may write it.
SAME = {
    "BATV": ("prvs=0123abcdef=alice@example.net", "prvs=9876543210=alice@example.net"),
    "BATV and none": ("prvs=0123abcdef=alice@example.net", "alice@example.net"),
    "Barracuda": ("btv1==0123abc==alice@example.net", "btv1==99f==alice@example.net"),
    "msprvs1": ("msprvs1=17777abc_x=bounces-1@example.net", "msprvs1=18888def_y=bounces-2@example.net"),
    "SRS0": (
        "srs0=hhhh=tt=example.com=alice@forwarder.example",
        "srs0=xxxx=uu=example.com=alice@forwarder.example",
    ),
    "SRS0 with plus": (
        "srs0+aaaa=bb=example.com=alice@f.example",
        "srs0+cccc=dd=example.com=alice@f.example",
    ),
    "SRS1": (
        "srs1=hash=first.example==hhhh=tt=example.com=alice@f.example",
        "srs1=hush=first.example==xxxx=uu=example.com=alice@f.example",
    ),
    "BATV within SRS0": (
        "srs0=hhhh=tt=example.com=prvs=0123abcdef=alice@f.example",
        "srs0=xxxx=uu=example.com=prvs=abcdef0123=alice@f.example",
    ),
    "SRS0 within BATV": (
        "prvs=0123abcdef=srs0=hhhh=tt=example.com=alice@f.example",
        "prvs=abcdef0123=srs0=xxxx=uu=example.com=alice@f.example",
    ),
    "extension": ("alice+one@example.net", "alice+two@example.net"),
    "extension and none": ("alice+one@example.net", "alice@example.net"),
    "VERP digits": ("bounce-1234-5@example.net", "bounce-99-17@example.net"),
    "VERP with recipient": ("list-77-bob=example.org@example.net", "list-78-bob=example.org@example.net"),
    "VERP in the extension": ("owner+77-bob=example.org@example.net", "owner+1-x@example.net"),
    "message ids": (
        "0100018f3c2d4e5a-1f2e3d4c-0b5a-4c6d-8e7f-001122334455-000000@amazonses.example",
        "0100019999999999-aabbccdd-1111-4222-9333-445566778899-000000@amazonses.example",
    ),
    "long token": ("b.a1b2c3d4e5f6g7h8i9@example.net", "b.zz9y8x7w6v5u4t3s2r1@example.net"),
}
DIFFERENT = [
    ("alice@example.net", "bob@example.net"),
    ("alice@example.net", "alice@example.com"),
    ("alice1@example.net", "alice2@example.net"),
    ("alice1@example.net", "alice@example.net"),
    ("srs0=h=t=example.com=alice@f.example", "srs0=h=t=example.com=bob@f.example"),
    ("srs0=h=t=example.com=alice@f.example", "srs0=h=t=example.net=alice@f.example"),
    ("srs1=h=one.example==h=t=e.com=a@f.example", "srs1=h=two.example==h=t=e.com=a@f.example"),
    ("<>", "alice@example.net"),
    ("+alice@example.net", "+bob@example.net"),
    ("prvs=@example.net", "alice@example.net"),
]


@pytest.mark.parametrize("name", SAME)
def test_what_changes_from_try_to_try_is_left_out(name: str) -> None:
    """A second try is known again, whatever tag its server puts in."""
    first, second = SAME[name]
    assert normal_sender(first) == normal_sender(second)


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_others_are_others(first: str, second: str) -> None:
    """A name with a number in it is a name; an original address within a forwarded one still counts."""
    assert normal_sender(first) != normal_sender(second)


@pytest.mark.parametrize(
    ("sender", "normal"),
    [
        ("", "<>"),
        ("alice@example.net", "alice@example.net"),
        ("bounce-1234-bob=example.org@example.net", "bounce-#-bob=example.org@example.net"),
        ("postmaster", "postmaster"),
        ('"a b"@example.net', '"a b"@example.net'),
        ("prvs=0123abcdef=@example.net", "prvs=#=@example.net"),
        ("deadbeef@example.net", "deadbeef@example.net"),
        ("1234@example.net", "#@example.net"),
    ],
)
def test_a_sender_is_normalised(sender: str, normal: str) -> None:
    """As `policyctl greylist` shows it; the domain is never touched."""
    assert normal_sender(sender) == normal


local = st.text(st.sampled_from("ab1290=+-_.#srpv"), min_size=0, max_size=40)


@given(st.one_of(local, st.sampled_from(("prvs=0123456789=", "srs0=a=b=", "srs1=a=b==c=d="))), local)
def test_normalising_keeps_the_domain_and_ends(prefix: str, rest: str) -> None:
    """For any local part: an answer, of the same domain, not longer than a pattern may make it."""
    normal = normal_sender(f"{prefix}{rest}@example.net")
    assert normal.endswith("@example.net")
    assert len(normal) <= len(prefix + rest + "@example.net") + 8


@given(st.text(max_size=300))
def test_any_sender_has_a_normal_form(sender: str) -> None:
    """What a stranger writes raises nothing, and the same text always comes out the same."""
    assert normal_sender(sender) == normal_sender(sender)
    assert normal_sender(sender)


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("192.0.2.255", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::ffff", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", ""),
        ("", ""),
    ],
)
def test_a_client_is_its_network(address: str, origin: str) -> None:
    """/24 and /64: who has an address there has others."""
    assert origin_of(address) == origin


@given(st.text(max_size=600), st.text(max_size=600))
def test_a_key_is_bounded_and_can_be_taken_apart(sender: str, recipient: str) -> None:
    """Whatever the peer writes: at most 300 characters, printable, three parts."""
    key = Triplet("2001:db8:1234:5678::/64", sender, recipient).key
    assert len(key) <= 300
    assert key.isprintable()
    parsed = parse_triplet(key)
    assert parsed.origin == "2001:db8:1234:5678::/64"
    assert parsed.key == key


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=MOST + 1, max_size=400), st.text()
)
def test_long_addresses_stay_apart(sender: str, rest: str) -> None:
    """Two that begin alike are two: a flood of long ones neither fills the table nor meets one another's."""
    other = sender + "x"
    assert Triplet("192.0.2.0/24", sender, rest).key != Triplet("192.0.2.0/24", other, rest).key
