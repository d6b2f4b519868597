"""`policyctl status` and `explain` on what the DNS says: which part is in trouble, and what lists and SPF said of a mail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest

from policyd.engine import Engine, Rule
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion
from policyd.request import RCPT, Request
from policyd.steering import Steering
from policyd.store.clock import wall
from policyd.store.health import write_health
from policyd.store.locks import DaemonLock
from policyd.units import MINUTE
from tests.cli.conftest import Run
from tests.sample_database import Sample

#: In summer 2026, wherever the test runs.
SINCE = 1_780_000_000_000
OTHER = ("nameserver/127.0.0.2:53", "up", SINCE, {"latency_ms": 1.5})


@pytest.fixture(autouse=True)
def _running(sample: Sample) -> Iterator[None]:
    lock = DaemonLock(sample.path)
    yield
    lock.release()


def written(sample: Sample, resolver: str, nameserver: str, blocklist: str, ago: int = 0) -> None:
    """What a daemon wrote of its parts so many ms ago."""
    parts = [
        ("resolver", resolver, SINCE, {}),
        ("nameserver/127.0.0.1:53", nameserver, SINCE, {"latency_ms": 2.0}),
        OTHER,
        ("dnsbl/bl.example", blocklist, SINCE, {"why": "lists everybody", "lists": "addresses"}),
    ]
    write_health(sample.connection, parts, wall() - ago)


def warned(policyctl: Run) -> list[str]:
    words = ("nameserver", "blocklist")
    return [each for each in policyctl("status", "--json").json["warnings"] if any(w in each for w in words)]


def test_what_is_well_is_one_line_without_a_warning(sample: Sample, policyctl: Run) -> None:
    """Nameservers with their pace, lists counted; without a check that asks there is no such line."""
    assert policyctl("status", "--json").json["dns"] is None
    assert "dns:" not in policyctl("status").out
    written(sample, "up", "up", "well")
    assert (
        "dns: up; 127.0.0.1:53 up 2 ms, 127.0.0.2:53 up 1.5 ms; blocklists: 1 well, 0 sick"
        in policyctl("status").out
    )
    assert warned(policyctl) == []


def test_a_nameserver_that_is_down_is_named(sample: Sample, policyctl: Run) -> None:
    """With another one that answers: which, and since when; nothing is lost."""
    written(sample, "up", "down", "well")
    (warning,) = warned(policyctl)
    assert warning.startswith("nameserver 127.0.0.1:53 does not answer since 2026-05-2")


def test_no_nameserver_at_all_says_what_follows(sample: Sample, policyctl: Run) -> None:
    """One warning for all of them: mail goes on without."""
    written(sample, "down", "down", "well")
    (warning,) = warned(policyctl)
    assert (
        warning
        == "no nameserver answers (127.0.0.1:53, 127.0.0.2:53), so mail goes on without blocklists and SPF; "
        "see [dns] nameservers"
    )
    assert "dns: down" in policyctl("status").out


def test_a_sick_list_is_named_with_its_reason(sample: Sample, policyctl: Run) -> None:
    """The alarm, where an admin looks first."""
    written(sample, "up", "up", "sick")
    (warning,) = warned(policyctl)
    assert warning.startswith("blocklist bl.example is sick and counts nothing since 2026-05-2")
    assert warning.endswith(": lists everybody; see 'policyctl dnsbl list'")


def test_what_was_written_long_ago_is_not_told_as_of_now(sample: Sample, policyctl: Run) -> None:
    """A daemon that asks no DNS any more leaves no warning behind."""
    written(sample, "down", "down", "sick", ago=2 * MINUTE)
    assert policyctl("status", "--json").json["dns"] is None
    assert warned(policyctl) == []


def test_a_list_that_is_off_is_called_a_list(sample: Sample, policyctl: Run) -> None:
    """Not a check, of which the file has none of that name."""
    sample.connection.execute(
        "INSERT INTO check_mode (name, mode, reason, author, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
        ("dnsbl/bl.example", "off", "", "root", wall(), 0),
    )
    assert "blocklist bl.example: off, by root" in policyctl("status").out


class Score:
    """What a blocklist check is to explain: an opinion at RCPT, none at the end."""

    stages: ClassVar[frozenset[str]] = frozenset({RCPT})
    steadfast: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, frozenset[str]]] = {}

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        return Opinion(reason="score 1: bl.example 127.0.0.2 +1", finding=1)


def test_explain_of_a_mail_that_passed_has_what_was_said_at_its_first_recipient(
    sample: Sample, policyctl: Run
) -> None:
    """By queue id it is the end of the mail that is shown, and lists are asked before; the score is there once."""
    rules = [*sample.engine.rules, Rule("lists", "dnsbl", "any", "enforce", "skip", Score())]
    sample.engine = Engine(rules, "p0")
    one_mail = {"instance": "1a2b.1.2.0"}
    for recipient in ("bob@example.net", "carol@example.net"):
        sample.ask(protocol_state="RCPT", queue_id="", recipient=recipient, recipient_count="0", **one_mail)
    sample.ask(queue_id="4F3A1BFFFF", recipient="", recipient_count="2", **one_mail)
    told = policyctl("explain", "4F3A1BFFFF").out
    shown, _, before = told.partition("Before that, of the same mail:")
    assert "let pass" in shown
    assert "END-OF-MESSAGE" in shown
    assert "score 1" not in shown
    assert before.count("score 1: bl.example 127.0.0.2 +1") == 1
    assert "bob@example.net" in before
