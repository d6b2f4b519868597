"""`policyctl spf check` says what the daemon would find out, and shows each look-up, so that a refused sender can be helped."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.cli.place import CONFIG, Place
from tests.dns.server import DnsServer


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        server.add(
            "example.com", "TXT", "v=spf1 mx include:spf.example.com -all exp=why.example.com", "other \x07"
        )
        server.add("example.com", "MX", (10, "mx.example.com"))
        server.add("mx.example.com", "A", "192.0.2.10")
        server.add("spf.example.com", "TXT", "v=spf1 ip4:198.51.100.0/24 ~all")
        server.add("why.example.com", "TXT", "%{i} is not \x1b[31mours")
        server.add("mail.example.net", "TXT", "v=spf1 a -all")
        server.behave("silent.example", rcode="SERVFAIL")
        yield server


class Beside(Place):
    """Runs policyctl in a thread: the tests' own event loop runs in this one, and policyctl has its own."""

    def run(self, *words: str, **more: Any) -> Result:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(super().run, *words, **more).result()


@pytest.fixture
def place(tmp_path: Path, dns: DnsServer) -> Place:
    return Beside(tmp_path, CONFIG + f'\n[dns]\nnameservers = ["{dns.nameserver}"]\ntimeout = "1s"\n')


def test_a_refusal_is_explained(place: Place) -> None:
    """Result, the term that decided, the owner's text and each look-up; nothing of a stranger's reaches the terminal as it is."""
    result = place.run("spf", "check", "192.0.2.77", "bob@example.com", "mail.example.net")
    assert result.exit_code == 0
    assert "MAIL FROM example.com: fail;" in result.output
    assert "decided by: -all" in result.output
    assert r"the domain explains: 192.0.2.77 is not \x1b[31mours" in result.output
    assert "HELO mail.example.net: fail;" in result.output
    for name in ("example.com", "spf.example.com", "mx.example.com", "why.example.com", "mail.example.net"):
        assert f" {name} " in result.output
    assert "7 look-ups" in result.output
    assert "\x1b" not in result.output
    assert "\x07" not in result.output


def test_a_program_gets_the_same(place: Place) -> None:
    """JSON with both identities and the look-ups."""
    told = place.json("spf", "check", "::ffff:192.0.2.10", "bob@example.com")
    assert told["client_address"] == "192.0.2.10"
    assert (told["mail_from"]["result"], told["mail_from"]["mechanism"]) == ("pass", "mx")
    assert told["helo"] is None
    assert told["mail_from"]["questions"] == len(told["look_ups"])
    first = told["look_ups"][0]
    assert (first["name"], first["type"], first["status"], first["ttl"]) == (
        "example.com",
        "TXT",
        "found",
        300,
    )
    assert len(first["records"]) == 2


@pytest.mark.parametrize(
    ("sender", "helo", "said"),
    [
        ("example.com", (), "MAIL FROM example.com: pass"),
        ("<>", ("mail.example.net",), "MAIL FROM mail.example.net: fail"),
        ("a@localhost", (), "MAIL FROM -: none; this is no domain that could have a record"),
        ("a@nothing.example", (), "no such name"),
    ],
)
def test_what_may_stand_for_a_sender(place: Place, sender: str, helo: tuple[str, ...], said: str) -> None:
    """An address, a domain, the null sender; what is no domain costs no look-up."""
    result = place.run("spf", "check", "192.0.2.10", sender, *helo)
    assert result.exit_code == 0
    assert said in result.output


def test_what_the_configured_checks_answer(place: Place) -> None:
    """Each spf check, by its own settings: a refusal with its text, the header, or that it does not look at such mail."""
    with place.config.open("a") as file:
        file.write(
            """
[[check]]
use = "spf"
for = "mx"
receiver = "mx.example.org"
on_helo_fail = "dunno"

[[check]]
use = "spf"
name = "lenient"
for = "mx"
on_fail = "dunno"
helo = false
header = ""
except_domains = ["example.net"]

[[check]]
use = "spf"
name = "own"
for = "submission"
even_authenticated = true
"""
        )
    told = place.run("spf", "check", "192.0.2.77", "bob@example.com", "mail.example.net").output
    assert (
        "check spf answers 550 5.7.23 SPF validation failed; example.com does not permit 192.0.2.77 to send its mail "
        "(fail). ref REF\n" in told
    )
    assert "check lenient answers DUNNO\n" in told
    assert "check own answers nothing: this mail is none that it looks at\n" in told
    told = place.run("spf", "check", "192.0.2.10", "bob@example.com", "mail.example.net").output
    assert "check spf answers PREPEND Received-SPF: pass receiver=mx.example.org;" in told
    answers = place.json("spf", "check", "192.0.2.10", "carol@www.example.net")["checks"]
    assert [each["check"] for each in answers] == ["spf", "lenient", "own"]
    assert [each["answer"] is None for each in answers] == [False, True, True]


def test_a_check_that_does_not_take_its_options_is_one_line(place: Place) -> None:
    """The daemon would not start with it either."""
    with place.config.open("a") as file:
        file.write('\n[[check]]\nuse = "spf"\nfor = "submission"\n')
    result = place.run("spf", "check", "192.0.2.10", "bob@example.com")
    assert result.exit_code == 1
    assert "check 'spf': with for = 'submission' it would check nothing" in result.output


def test_no_answer_is_told_apart(place: Place) -> None:
    """A script must not take trouble of the DNS for a verdict."""
    result = place.run("spf", "check", "192.0.2.10", "a@silent.example")
    assert result.exit_code == 1
    assert "temperror; the DNS gave no answer" in result.output
    assert "no answer: servfail" in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("mail.example.com", "bob@example.com"),
            "'mail.example.com' is no IP address; write one like 192.0.2.1",
        ),
        (("192.0.2.1", "<>"), "of the null sender the HELO name is judged"),
        (("192.0.2.1",), "SENDER"),
    ],
)
def test_wrong_usage_says_what_is_right(place: Place, words: tuple[str, ...], said: str) -> None:
    """Exit code 2 and one line."""
    result = place.run("spf", "check", *words)
    assert result.exit_code == 2
    assert said in result.output
