"""`policyctl dnsbl`: which list is sick or useless, one taken out at night, and what all of them say of an address."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from policyd.blocklists import reversed_address
from tests.cli.place import CONFIG, Place
from tests.dns.server import DnsServer

SECRET = "abcdef.zen.dq.spamhaus.net"
LISTS = f"""
[[check]]
use = "dnsbl"
for = "mx"
sites = ["{SECRET}=127.0.0.[2..11]*3", "bl.example*2", "wl.example*-4"]
untested = ["wl.example"]
threshold = 3

[[check]]
use = "dnsbl"
name = "by-sender"
for = "mx"
lookup = "sender"
sites = ["dbl.example"]
"""
HEALTH = (
    "CREATE TABLE IF NOT EXISTS health "
    "(subject TEXT PRIMARY KEY, state TEXT, since INTEGER, figures TEXT, at INTEGER)"
)


class Beside(Place):
    """Runs policyctl in a thread: the tests' own event loop runs in this one, and policyctl has its own."""

    def run(self, *words: str, **more: Any) -> Result:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(super().run, *words, **more).result()

    def well(self, public: str, state: str = "well", since: int = 0, ago: int = 0, **figures: Any) -> None:
        """The daemon wrote this so many ms ago."""
        at = int(time.time() * 1000) - ago
        self.write(HEALTH)
        self.write(
            "INSERT OR REPLACE INTO health (subject, state, since, figures, at) VALUES (?, ?, ?, ?, ?)",
            f"dnsbl/{public}",
            state,
            since or at,
            json.dumps({"lists": "addresses", "why": ""} | figures),
            at,
        )


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, dns: DnsServer) -> Beside:
    return Beside(tmp_path, CONFIG + LISTS + f'\n[dns]\nnameservers = ["{dns.nameserver}"]\ntimeout = "1s"\n')


def modes(place: Place) -> list[Any]:
    return place.ask("SELECT name, mode, reason, expires_at > 0 FROM check_mode")


# --- off, on -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SECRET, "zen.dq.spamhaus.net", "ZEN.dq.spamhaus.net."])
def test_a_list_is_taken_out_and_put_back(place: Beside, name: str) -> None:
    """By the zone or by its public name; the key goes nowhere: not into the database, the history or the output."""
    result = place.run("dnsbl", "off", name, "--for", "24h", "--reason", "lists the world")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("zen.dq.spamhaus.net is off, until")
    assert modes(place) == [("dnsbl/zen.dq.spamhaus.net", "off", "lists the world", 1)]
    listed = {each["list"]: each for each in place.json("dnsbl", "list")}
    assert listed["zen.dq.spamhaus.net"]["state"] == "off"
    assert "lists the world" in listed["zen.dq.spamhaus.net"]["why"]
    assert listed["bl.example"]["state"] == "unknown"
    result = place.run("dnsbl", "on", name)
    assert "zen.dq.spamhaus.net counts again" in result.output
    assert modes(place) == []
    assert [each["action"] for each in place.json("history")] == ["dnsbl on", "dnsbl off"]
    assert "was not off" in place.run("dnsbl", "on", name).output
    assert "abcdef" not in f"{place.everything()}"


def test_a_list_that_nobody_asks_is_not_found(place: Beside) -> None:
    """A mistyped zone must not look as if it were out; the near one is proposed."""
    result = place.run("dnsbl", "off", "bl.exampel")
    assert result.exit_code == 3
    assert "did you mean bl.example?" in result.output
    assert place.run("dnsbl", "on", "nobody.invalid").exit_code == 3
    assert place.run("dnsbl", "show", "nobody.invalid").exit_code == 3
    assert modes(place) == []


def test_a_list_that_is_no_longer_asked_can_be_put_back(place: Beside) -> None:
    """What was set by hand for a list that has left the file is not stuck for ever."""
    place.write("INSERT INTO check_mode VALUES ('dnsbl/gone.example', 'off', '', 'root', 1, 0)")
    assert place.run("dnsbl", "on", "gone.example").exit_code == 0
    assert modes(place) == []


def test_a_dry_run_changes_nothing(place: Beside) -> None:
    """--dry-run means the same everywhere."""
    assert place.run("dnsbl", "off", "bl.example", "--dry-run").output.startswith("dry run")
    assert modes(place) == []


# --- list, show ----------------------------------------------------------------------------------------------------------


def test_the_figures_of_the_daemon_are_shown(place: Beside) -> None:
    """Health, hits, hits that no other list had, the list that is most like it, latency; without the key."""
    place.well(
        "zen.dq.spamhaus.net",
        hits=100,
        alone=10,
        overlap={"bl.example": 80},
        errors=2,
        latency_ms=12.5,
        ipv6=True,
    )
    place.well(
        "bl.example", "sick", since=1_780_000_000_000, why="lists 127.9.9.9 as 127.0.0.2", hits=80, alone=0
    )
    result = place.run("dnsbl")
    assert result.exit_code == 0
    assert "abcdef" not in result.output
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert "well" in lines["zen.dq.spamhaus.net"]
    assert "bl.example 80%" in lines["zen.dq.spamhaus.net"]
    assert "12.5 ms" in lines["zen.dq.spamhaus.net"]
    assert "sick" in lines["bl.example"]
    assert "lists 127.9.9.9 as 127.0.0.2" in lines["bl.example"]
    assert "by-sender" in lines["dbl.example"]
    (shown,) = [each for each in place.json("dnsbl", "list") if each["list"] == "bl.example"]
    assert shown["since"] == "2026-05-28T20:26:40.000+00:00"
    assert (shown["state"], shown["checks"], shown["lists"]) == ("sick", ["dnsbl"], "addresses")
    shown = place.run("dnsbl", "show", "zen.dq.spamhaus.net").output
    assert "hits: 100" in shown
    assert "hits of no other list: 10" in shown
    assert "hits of bl.example, too: 80" in shown
    assert "test entry for IPv6: yes" in shown
    assert place.json("dnsbl", "show", SECRET)[0]["figures"]["hits"] == 100


def test_old_figures_are_told_to_be_old(place: Beside) -> None:
    """The daemon writes every few seconds: what is older is not how the lists do now."""
    place.well("bl.example", hits=1, ago=3_600_000)
    assert "policyd does not run" in place.run("dnsbl", "list").output
    place.well("bl.example", hits=1)
    assert "policyd does not run" not in place.run("dnsbl", "list").output


def test_without_lists_that_is_said(tmp_path: Path) -> None:
    """No empty table."""
    bare = Beside(tmp_path)
    assert "no check of this configuration asks blocklists" in bare.run("dnsbl", "list").output
    result = bare.run("dnsbl", "check", "192.0.2.1")
    assert result.exit_code == 3
    assert "no dnsbl check of" in result.output


# --- check ---------------------------------------------------------------------------------------------------------------


def listed(dns: DnsServer, zone: str, name: str, code: str = "127.0.0.2", text: str = "") -> None:
    dns.add(f"{name}.{zone}", "A", code)
    if text:
        dns.add(f"{name}.{zone}", "TXT", text)


def test_what_every_list_says_of_an_address(place: Beside, dns: DnsServer) -> None:
    """Each list, its answer, code and time, and what the check makes of it; a stranger's text is escaped, the key left out."""
    name = reversed_address("192.0.2.66")
    listed(dns, SECRET, name, "127.0.0.4", "see \x1b[31mhttps://example.net/abcdef")
    listed(dns, "wl.example", name)
    dns.behave("bl.example", rcode="SERVFAIL")
    result = place.run("dnsbl", "check", "192.0.2.66")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.output.splitlines() if line}
    assert "127.0.0.4" in lines["zen.dq.spamhaus.net"]
    assert " ms" in lines["zen.dq.spamhaus.net"]
    assert r"see \x1b[31mhttps://example.net/..." in lines["zen.dq.spamhaus.net"]
    assert "does not count: servfail" in lines["bl.example"]
    assert (
        "check dnsbl: score -1: zen.dq.spamhaus.net 127.0.0.4 +3, wl.example 127.0.0.2 -4; "
        "refused from 3 on: 192.0.2.66 is not refused" in result.output
    )
    assert "abcdef" not in result.output
    assert "dbl.example" not in result.output
    told = place.json("dnsbl", "check", "::ffff:192.0.2.66")
    assert [each["codes"] for each in told["lists"]] == [["127.0.0.4"], [], ["127.0.0.2"]]
    assert told["checks"] == [{"check": "dnsbl", "score": -1, "threshold": 3, "listed": False}]


@pytest.mark.parametrize("what", ["bad.example", "Bob@Bad.Example."])
def test_what_the_lists_of_domains_say(place: Beside, dns: DnsServer, what: str) -> None:
    """A domain, or the one of an address."""
    listed(dns, "dbl.example", "bad.example", "127.0.1.2")
    result = place.run("dnsbl", "check", what)
    assert result.exit_code == 0
    assert "127.0.1.2" in result.output
    assert "is listed" in result.output


def test_a_script_learns_it_from_the_exit_code(place: Beside, dns: DnsServer) -> None:
    """3: none has it; 1: none could be asked; 2: that is nothing that could be asked about."""
    result = place.run("dnsbl", "check", "2001:db8::1")
    assert result.exit_code == 3
    assert result.output.count("not listed") == 3
    dns.behave(rcode="REFUSED")
    assert place.run("dnsbl", "check", "192.0.2.7").exit_code == 1
    for wrong in ("laptop", "[192.0.2.7]", "192.0.2", ""):
        assert place.run("dnsbl", "check", wrong).exit_code == 2


def test_a_list_that_is_off_is_told_to_be(place: Beside, dns: DnsServer) -> None:
    """It is asked here all the same; but what policyd does with it is said, too."""
    listed(dns, "bl.example", reversed_address("192.0.2.66"))
    place.run("dnsbl", "off", "bl.example")
    output = place.run("dnsbl", "check", "192.0.2.66").output
    assert "bl.example is off: policyd counts nothing for it until 'policyctl dnsbl on bl.example'" in output
    assert "off: policyd" not in place.run("dnsbl", "check", "bad.example").output


def test_a_list_that_is_off_adds_nothing(place: Beside, dns: DnsServer) -> None:
    """The score is the daemon's: whom only a list that is off has is not said to be refused."""
    listed(dns, SECRET, reversed_address("192.0.2.66"))
    assert "192.0.2.66 is listed" in place.run("dnsbl", "check", "192.0.2.66").output
    place.run("dnsbl", "off", SECRET)
    output = place.run("dnsbl", "check", "192.0.2.66").output
    assert "check dnsbl: score 0: on none of 2; off: zen.dq.spamhaus.net; refused from 3 on" in output
    assert "192.0.2.66 is not refused" in output
    told = place.json("dnsbl", "check", "192.0.2.66")
    assert told["checks"] == [{"check": "dnsbl", "score": 0, "threshold": 3, "listed": False}]
    assert [each["off"] for each in told["lists"]] == [True, False, False]
    for zone in ("bl.example", "wl.example"):
        place.run("dnsbl", "off", zone)
    output = place.run("dnsbl", "check", "192.0.2.66").output
    assert "check dnsbl: score 0: all its lists are off; refused from 3 on" in output


def test_a_list_that_is_sick_for_the_daemon_is_told_to_be(place: Beside, dns: DnsServer) -> None:
    """Asked from here it may look well, as one that the breaker took out; then nobody is refused by it, and here stands why."""
    listed(dns, "bl.example", reversed_address("192.0.2.66"))
    told = "bl.example is sick for policyd, which counts nothing for it now: lists 46 of the last 50"
    place.well("bl.example", "sick", why="lists 46 of the last 50 different clients")
    assert told in place.run("dnsbl", "check", "192.0.2.66").output
    assert "is sick for policyd" not in place.run("dnsbl", "check", "bad.example").output
    place.well("bl.example", "sick", ago=600_000, why="lists 46 of the last 50 different clients")
    assert "is sick for policyd" not in place.run("dnsbl", "check", "192.0.2.66").output
    place.well("bl.example")
    assert "is sick for policyd" not in place.run("dnsbl", "check", "192.0.2.66").output


def test_a_list_that_lists_everybody_is_told_to(place: Beside, dns: DnsServer) -> None:
    """The admin who asks why a client was refused must see it at once."""
    dns.add("*.bl.example", "A", "127.0.0.2")
    result = place.run("dnsbl", "check", "192.0.2.7")
    assert result.exit_code == 3
    assert result.output.count("sick: lists 127.") == 1
    assert "does not count: sick: lists 127." in result.output
    dns.clear()
    dns.add("*.bl.example", "A", "127.255.255.254")
    assert "asked through a public resolver" in place.run("dnsbl", "check", "192.0.2.7").output


def test_why_asks_the_lists_too(place: Beside, dns: DnsServer) -> None:
    """Whoever rings up because of a refusal is told by which list, also after the list has let go of the client."""
    dns.add(f"2.0.0.127.{SECRET}", "A", "127.0.0.2")
    listed(dns, SECRET, reversed_address("192.0.2.66"))
    output = place.run("why", "192.0.2.66").output
    assert "client 192.0.2.66 cannot send now: score 3: zen.dq.spamhaus.net 127.0.0.2 +3" in output
    assert "client 192.0.2.7 can send now" in place.run("why", "192.0.2.7").output


def test_try_asks_as_the_daemon_does(place: Beside, dns: DnsServer) -> None:
    """What a listed client would be told can be seen beforehand, with what each list said; and that nobody else is."""
    dns.add(f"2.0.0.127.{SECRET}", "A", "127.0.0.2")
    dns.add(f"7.2.0.192.{SECRET}", "A", "127.0.0.2")
    words = ("try", "client=192.0.2.7", "stage=RCPT", "sender=bob@example.net", "recipient=alice@example.org")
    result = place.run(*words)
    assert result.exit_code == 0, result.output
    assert "550 5.7.1" in result.output
    assert SECRET not in result.output
    words = ("try", "client=192.0.2.8", *words[2:])
    result = place.run(*words)
    assert result.exit_code == 0, result.output
    assert "550" not in result.output


def test_options_that_do_not_agree_are_told_at_the_key(tmp_path: Path) -> None:
    """The line of the key that is wrong, not that of the check."""
    text = CONFIG + LISTS.replace("threshold = 3", "threshold = 9")
    line = text.split("\n").index("threshold = 9") + 1
    result = Beside(tmp_path, text).run("config", "check")
    assert result.exit_code == 1
    assert f"policyd.toml:{line}: check 'dnsbl': no sum of weights reaches threshold = 9" in result.output


def test_options_that_do_not_agree_are_one_line(tmp_path: Path) -> None:
    """And a list can be taken out nevertheless: that is what one needs at night."""
    place = Beside(tmp_path, CONFIG + LISTS.replace("threshold = 3", "threshold = 9"))
    result = place.run("dnsbl", "check", "192.0.2.7")
    assert result.exit_code == 1
    assert "no sum of weights reaches threshold = 9" in result.output
    assert place.run("dnsbl", "off", "bl.example", "--for", "1h").exit_code == 0
    assert len(modes(place)) == 1
