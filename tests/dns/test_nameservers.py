"""Who is asked: nameservers as they are written, and those of the system."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.dns.nameservers import parse_nameserver, system_nameservers, write_nameserver


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", 53),
        ("127.0.0.1:5353", "127.0.0.1", 5353),
        ("[::1]", "::1", 53),
        ("[::1]:53", "::1", 53),
        ("[2001:DB8:0:0::1]:65535", "2001:db8::1", 65535),
        ("[fe80::1%lo]:53", "fe80::1%lo", 53),
    ],
)
def test_a_nameserver_is_an_address_and_a_port(text: str, host: str, port: int) -> None:
    """Port 53 unless it says otherwise."""
    assert parse_nameserver(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "ns.example.org:53", "::1", "::1:53", "[::1", "::1]", "[127.0.0.1]:53", "127.0.0.1:", "1.2.3", "[::1]53",
     "255.255.255.255", "127.0.0.1:x", "127.0.0.1:053:1", " 127.0.0.1", "udp:127.0.0.1", "127.0.0.1:-1", "0.0.0.0", "[::]:53",
     "[ff02::fb]"],
)  # fmt: skip
def test_what_is_none_is_refused_with_the_remedy(text: str) -> None:
    """The message quotes it and shows one that is right."""
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:53") as error:
        parse_nameserver(text)
    assert repr(text) in str(error.value)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_what_is_written_is_read(address: object, port: int) -> None:
    """One spelling, which the configuration shows and health names."""
    text = write_nameserver(str(address), port)
    with contextlib.suppress(ValueError):  # nobody's address
        assert parse_nameserver(text) == (str(address), port)


@given(st.text())
def test_any_text_is_one_or_refused(text: str) -> None:
    """Never another error."""
    with contextlib.suppress(ValueError):
        assert parse_nameserver(text)


def test_the_systems_nameservers(tmp_path: Path) -> None:
    """Those of resolv.conf(5), three as the C library takes; search domains and what is no address mean nothing."""
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# nameserver 192.0.2.9\nsearch corp.example\noptions ndots:5\nnameserver 192.0.2.1\nnameserver\n nameserver ::1 # me\n"
        "nameserver ns.example\nnameserver 192.0.2.1\nnameserver\tfe80::1%lo\nnameserver 192.0.2.4\n; nameserver 192.0.2.5\n"
    )
    assert system_nameservers(str(file)) == ("192.0.2.1:53", "[::1]:53", "[fe80::1%lo]:53")
    for each in system_nameservers(str(file)):
        parse_nameserver(each)


@pytest.mark.parametrize("content", [None, "", "search example.org\n", "nameserver \n", "\xff\xfe"])
def test_a_system_that_names_none_is_asked_itself(tmp_path: Path, content: str | None) -> None:
    """As resolver(3) does."""
    file = tmp_path / "resolv.conf"
    if content is not None:
        file.write_text(content, encoding="latin-1")
    assert system_nameservers(str(file)) == ("127.0.0.1:53",)
