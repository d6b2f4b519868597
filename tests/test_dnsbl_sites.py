"""Sites of blocklists: all that Postfix's postscreen_dnsbl_sites takes, and nothing that it would not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.dnsbl_sites import ANY_REPLY, DnsblSite, least_score, most_score, parse_filter, parse_site, sites


@pytest.mark.parametrize(
    ("text", "zone", "weight", "lets_through", "stops"),
    [
        ("bl.example.net", "bl.example.net", 1, ["127.0.0.1", "127.255.0.3"], ["192.0.2.1"]),
        ("BL.Example.NET.", "bl.example.net", 1, ["127.0.0.2"], []),
        ("bl.example.net*2", "bl.example.net", 2, ["127.0.0.2"], []),
        ("wl.example.net*-4", "wl.example.net", -4, ["127.0.0.2"], []),
        ("bl.example.net*+3", "bl.example.net", 3, ["127.0.0.2"], []),
        ("bl.example.net*0", "bl.example.net", 0, ["127.0.0.2"], []),
        ("bl.example.net=127.0.0.4", "bl.example.net", 1, ["127.0.0.4"], ["127.0.0.3", "127.0.1.4"]),
        (
            "zen.spamhaus.org=127.0.0.[2..11]*3",
            "zen.spamhaus.org",
            3,
            ["127.0.0.2", "127.0.0.11"],
            ["127.0.0.1", "127.0.0.12", "127.255.255.254"],
        ),
        (
            "wl.mailspike.net=127.0.0.[18;19;20]*-2",
            "wl.mailspike.net",
            -2,
            ["127.0.0.18", "127.0.0.20"],
            ["127.0.0.17"],
        ),
        (
            "list.dnswl.org=127.0.[0..255].3*-8",
            "list.dnswl.org",
            -8,
            ["127.0.0.3", "127.0.255.3"],
            ["127.0.9.2"],
        ),
        (
            "b.example=127.[0;2].[1..3;7;9..10].[5]",
            "b.example",
            1,
            ["127.0.1.5", "127.2.7.5", "127.0.10.5"],
            ["127.1.1.5", "127.0.8.5", "127.0.4.5"],
        ),
        ("_bl.example", "_bl.example", 1, [], []),
    ],
)
def test_what_postfix_takes_means_the_same(
    text: str, zone: str, weight: int, lets_through: list[str], stops: list[str]
) -> None:
    """zone[=filter][*weight], with numbers and [a;b;c..d] in each octet (postconf(5))."""
    site = parse_site(text)
    assert (site.zone, site.weight, site.text) == (zone, weight, text)
    assert all(site.passes(code) for code in lets_through)
    assert not any(site.passes(code) for code in stops)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no name of a zone"),
        ("*2", "no name of a zone"),
        ("=127.0.0.2", "no name of a zone"),
        ("bl..example.net", "no name of a zone"),
        (".example.net", "no name of a zone"),
        ("-bl.example.net", "no name of a zone"),
        ("127.0.0.1", "no name of a zone"),
        ("a" * 64 + ".example", "no name of a zone"),
        ("bl.example.net:txt", "there are no options but =filter and [*]weight"),
        ("bl.example.net txt", "there are no options but"),
        ("bl.ex\u00e4mple", "has '\u00e4' in it"),
        ("bl.example.net=", "has no filter"),
        ("bl.example.net=*3", "has no filter"),
        ("bl.example.net=127.0.0", "has 3 octets; four"),
        ("bl.example.net=127.0.0.2.3", "has 5 octets"),
        ("bl.example.net=127.0.0.", "malformed"),
        ("bl.example.net=127.0.0.256", "beyond 255"),
        ("bl.example.net=127.0.0.[4..2]", "goes down; write 2..4"),
        ("bl.example.net=127.0.0.[2;]", "'' in the filter"),
        ("bl.example.net=127.0.0.[]", "'' in the filter"),
        ("bl.example.net=127.0.0.2..4", "where a dot belongs|is no number|malformed"),
        ("bl.example.net=127.0.0.[2", "malformed"),
        ("bl.example.net=127.0.0.2]", "where a dot belongs"),
        ("bl.example.net=127.0.0.x", "'x' in the filter"),
        ("bl.example.net=127.0.0.-2", "'-2' in the filter"),
        ("bl.example.net*", "the weight ''"),
        ("bl.example.net*x", "the weight 'x'"),
        ("bl.example.net*1.5", "the weight '1.5'"),
        ("bl.example.net*3=127.0.0.2", "the weight '3=127.0.0.2'"),
        ("bl.example.net*2*3", "the weight '2[*]3'"),
        ("bl.example.net*9999999", "the weight '9999999'"),
    ],
)
def test_what_is_malformed_is_an_error_with_the_remedy(text: str, says: str) -> None:
    """A list that counts otherwise than the admin meant refuses the wrong mail: nothing is guessed."""
    with pytest.raises(ValueError, match=says) as caught:
        parse_site(text)
    assert "write" in str(caught.value) or "filter" in str(caught.value)


@given(st.text("127.0[;]-=*abc \n", max_size=30))
def test_any_text_is_a_site_or_a_value_error(text: str) -> None:
    """No text of the admin's is a traceback."""
    try:
        site = parse_site(text)
    except ValueError:
        return
    assert parse_site(str(site)) == site


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=4, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_a_filter_of_ranges_lets_through_what_is_within(bounds: list[tuple[int, int]], number: int) -> None:
    """Each octet on its own, both ends included."""
    low_high = [(min(pair), max(pair)) for pair in bounds]
    text = ".".join(f"[{low}..{high}]" for low, high in low_high)
    octets = [number >> 24, number >> 16 & 255, number >> 8 & 255, number & 255]
    site = DnsblSite("bl.example", parse_filter(text), 1, "")
    within = all(low <= octet <= high for octet, (low, high) in zip(octets, low_high, strict=True))
    assert site.passes(".".join(map(str, octets))) == within


def test_a_list_of_sites_may_stand_as_it_does_in_main_cf() -> None:
    """Who comes from postscreen copies the value: commas, white space, line breaks."""
    text = "zen.spamhaus.org=127.0.0.[2..11]*3, bl.spamcop.net*2\n\tlist.dnswl.org=127.0.[0..255].[1..3]*-4"
    read = sites(text)
    assert [site.zone for site in read] == ["zen.spamhaus.org", "bl.spamcop.net", "list.dnswl.org"]
    assert read == sites(text.replace(",", "").split())
    assert (most_score(read), least_score(read)) == (5, -4)
    assert read[1].filter == ANY_REPLY


@pytest.mark.parametrize("value", [[], "", " , ", 3, [3], {"zone": "bl.example"}, True])
def test_what_is_no_list_of_sites_is_an_error(value: Any) -> None:
    """A check without a list would look as if it held the door."""
    with pytest.raises(ValueError, match=r"must be|no name|names no list"):
        sites(value)


SECRET = "abcdef123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"{SECRET}.zen.dq.spamhaus.net=127.0.0.2*x",
        f"{SECRET}.zen.dq.spamhaus.net=",
        f"{SECRET}.zen.dq.spamhaus.net=127.0.0",
        f"{SECRET}.zen.dq.spamhaus.net?a=1",
        f"{SECRET}.bl..example.net",
        f"{SECRET.upper()}.zen.dq.spamhaus.net=1.2*3*4",
    ],
)
def test_an_error_shows_no_key(text: str) -> None:
    """What is told of a malformed site may stand in a log or a mail to somebody who helps."""
    with pytest.raises(ValueError, match=r"spamhaus|example") as error:
        parse_site(text)
    assert SECRET not in str(error.value).lower()
