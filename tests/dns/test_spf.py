"""The SPF evaluator keeps policyd's bounds whatever a zone says: questions, time, evaluations at once, work, memory."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import spf
from hypothesis import given
from hypothesis import strategies as st

from policyd.dns import spf as evaluating
from policyd.dns.spf import Evaluator
from policyd.dns.spf_bounds import AHEAD, AHEAD_IN_ALL, AT_ONCE
from policyd.dns.spf_limits import MOST_IN_ALL, MOST_OCTETS, MOST_TERMS, objection
from policyd.dns.spf_round import Memo, question_name, run
from policyd.lookup import FOUND, UNKNOWN, Found
from policyd.senderpolicy import (
    HELO_QUESTIONS,
    MOST_QUESTIONS,
    RESULTS,
    SpfResult,
    Verdicts,
    helo_claim,
    mail_from_claim,
)
from tests.dns.loops import LOOPS
from tests.dns.loops import run as run_on
from tests.dns.zones import Heart
from tests.fakes import on_loop

IP = "192.0.2.1"
PATIENCE = 30.0


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def records(*rows: tuple[str, str, Any]) -> dict[tuple[str, str], Any]:
    """Records by question; a text for TXT is one record, a list stays one."""
    found: dict[tuple[str, str], Any] = {}
    for name, rdtype, value in rows:
        if isinstance(value, bytes):
            found[name, rdtype] = [value]
        else:
            found[name, rdtype] = value
    return found


async def judge(
    evaluator: Evaluator,
    sender: str = "a@example.org",
    ip: str = IP,
    helo: str = "mail.example.net",
    *,
    due: float | None = None,
) -> SpfResult:
    due = time.monotonic() + PATIENCE if due is None else due
    return (await evaluator.evaluate(mail_from_claim(ip, sender, helo), None, due)).mail_from


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it is so."""
    while not condition():  # noqa: ASYNC110, the code under test has no event for a test to wait for
        await asyncio.sleep(0)


class Crowd:
    """Who waits at a gate, and how many there were at most."""

    def __init__(self, gate: asyncio.Future[None]) -> None:
        self._gate = gate
        self._there = self.most = 0

    async def wait(self) -> None:
        """Wait at the gate."""
        self._there += 1
        self.most = max(self.most, self._there)
        try:
            await asyncio.shield(self._gate)
        finally:
            self._there -= 1


def send(coroutine: Any) -> Any:
    """What it returns without waiting for anything."""
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    return stop.value.value


# --- what it says --------------------------------------------------------------------------------------------------------


@on_loop
async def test_the_result_comes_with_what_decided_it() -> None:
    """Who explains a decision needs the term, the identity and what it cost."""
    heart = Heart(records(("example.org", "TXT", b"v=spf1 ip4:192.0.2.0/24 -all")))
    result = await judge(Evaluator(heart))
    assert result == SpfResult("pass", "mailfrom", "example.org", "ip4:192.0.2.0/24", questions=1)
    result = await judge(Evaluator(heart), ip="2001:db8::1")
    assert (result.result, result.mechanism) == ("fail", "-all")


@on_loop
async def test_a_domain_in_two_spellings_is_one() -> None:
    """A sender picks between U-labels and A-labels; the record is that of the A-labels in each version of dnspython."""
    heart = Heart(records(("xn--bcher-kva.example", "TXT", b"v=spf1 -all")))
    for sender in ("a@b\u00fccher.example", "a@XN--Bcher-Kva.Example", "a@B\u00dcCHER.example."):
        assert (await judge(Evaluator(heart), sender)).result == "fail"


@pytest.mark.parametrize(
    "sender",
    [
        "a@localhost",
        "a@[192.0.2.1]",
        "a@192.0.2.1",
        "a@" + "a" * 64 + ".example",
        "a@a..example",
        "a@" + "a." * 127 + "example",
        "a@ex\\097mple.org",
        "a@exa mple.org",
        "a@\u3002.example",
        "a@\udcff.example",
        "a@" + "\u00fc" * 63 + ".example",
        "a@-\u2603-.example",
        "@",
        "a",
        "\x00@\x00.example",
    ],
)
def test_what_is_no_domain_has_no_record_and_costs_no_question(sender: str) -> None:
    """Each of these once was an exception in pyspf or dnspython; RFC 7208 4.3 says "none"."""
    heart = Heart({})
    verdicts = send(Evaluator(heart).evaluate(mail_from_claim(IP, sender, "x"), None, 1e9))
    assert (verdicts.mail_from.result, heart.questions) == ("none", 0)


@on_loop
async def test_the_null_sender_is_postmaster_at_the_helo_name() -> None:
    """RFC 7208 2.4: a bounce has no domain of its own."""
    heart = Heart(
        records(
            ("mail.example.net", "TXT", b"v=spf1 exists:%{l}.%{o} -all"),
            ("postmaster.mail.example.net", "A", ["127.0.0.2"]),
        )
    )
    assert (await judge(Evaluator(heart), "")).result == "pass"


@on_loop
async def test_both_identities_are_judged_side_by_side() -> None:
    """A HELO name that is slow on purpose must not use up the time of the other one's verdict."""
    gate = asyncio.get_running_loop().create_future()
    heart = Heart(
        records(("slow.example", "TXT", b"v=spf1 -all"), ("example.org", "TXT", b"v=spf1 -all")),
        holds=lambda name, rdtype: gate if name == "slow.example" else None,
    )
    evaluator = Evaluator(heart)
    claims = mail_from_claim(IP, "a@example.org", "slow.example"), helo_claim(IP, "slow.example")
    asked = asyncio.ensure_future(evaluator.evaluate(*claims, time.monotonic() + PATIENCE))
    await until(lambda: bool(evaluator._results))
    assert not asked.done()
    gate.set_result(None)
    verdicts = await asked
    assert (verdicts.mail_from.result, verdicts.mail_from.identity) == ("fail", "mailfrom")
    assert verdicts.helo is not None
    assert (verdicts.helo.result, verdicts.helo.identity) == ("fail", "helo")
    assert verdicts.helo.domain == "slow.example"


@on_loop
async def test_an_explanation_is_fetched_for_a_refusal_alone() -> None:
    """Mail that passes does not pay for a text that nobody reads."""
    heart = Heart(
        records(
            ("example.org", "TXT", b"v=spf1 ip4:192.0.2.1 -all exp=why.example.org"),
            ("why.example.org", "TXT", b"%{i} is not ours"),
        )
    )
    assert (await judge(Evaluator(heart))).questions == 1
    result = await judge(Evaluator(heart), ip="192.0.2.2")
    assert (result.explanation, result.questions) == ("192.0.2.2 is not ours", 2)


@on_loop
async def test_an_explanation_that_does_not_come_changes_nothing() -> None:
    """The refusal goes out without it: it is known, and somebody else's slow nameserver is no reason to lose it."""
    heart = Heart(
        records(
            ("example.org", "TXT", b"v=spf1 -all exp=why.example.org"), ("why.example.org", "TXT", "timeout")
        )
    )
    result = await judge(Evaluator(heart))
    assert (result.result, result.explanation) == ("fail", "")


@on_loop
async def test_no_answer_is_temperror_never_fail() -> None:
    """An error must never be taken for the domain's word, wherever in the record it happens."""
    for rdtype, term in (("A", "a:x.example"), ("MX", "mx:x.example"), ("TXT", "include:x.example")):
        for why in ("timeout", "servfail", "refused", "no nameserver answers"):
            heart = Heart(
                records(("example.org", "TXT", b"v=spf1 %s -all" % term.encode()), ("x.example", rdtype, why))
            )
            result = await judge(Evaluator(heart))
            assert result.result == "temperror"
            assert why in result.problem
    assert (await judge(Evaluator(Heart({("example.org", "TXT"): "servfail"})))).result == "temperror"


@on_loop
async def test_a_client_name_that_nobody_can_look_up_does_not_match() -> None:
    """RFC 7208 5.5: an error of the client's reverse zone makes ptr not match. But what only fails for that is no fail: it may
    as well be trouble of one's own, and no trouble of the DNS refuses mail."""
    zone = records(
        ("example.org", "TXT", b"v=spf1 ptr -all"),
        ("1.2.0.192.in-addr.arpa", "PTR", ["bad.example", "mail.example.org"]),
        ("bad.example", "A", "servfail"),
        ("mail.example.org", "A", [IP]),
    )
    assert (await judge(Evaluator(Heart(zone)))).result == "pass"
    zone["1.2.0.192.in-addr.arpa", "PTR"] = "timeout"
    for record, said in (
        (b"v=spf1 ptr -all", "temperror"),
        (b"v=spf1 exists:%{p}.x.example ~all", "temperror"),
        (b"v=spf1 ptr ?all", "neutral"),
        (b"v=spf1 ptr ip4:192.0.2.1 -all", "pass"),
    ):
        zone["example.org", "TXT"] = [record]
        result = await judge(Evaluator(Heart(zone)))
        assert result.result == said, record
        assert ("timeout" in result.problem) == (said == "temperror")


@on_loop
async def test_names_that_records_make_are_asked_as_they_are() -> None:
    """Macros put a sender's characters into names: what no name can hold matches nothing, and is no error."""
    heart = Heart(
        records(
            ("example.org", "TXT", b"v=spf1 exists:%{l}.x.example -all"),
            ('o"o\\o.x.example', "A", ["127.0.0.2"]),
        )
    )
    assert (await judge(Evaluator(heart), 'o"o\\o@example.org')).result == "pass"
    for local in ("\u00fc", "\udcff", "a" * 70, "a..b", "\x00"):
        result = await judge(Evaluator(heart), f"{local}@example.org")
        assert result.result == "fail", local


def test_a_name_that_is_too_long_loses_labels_from_the_left() -> None:
    """RFC 7208 7.3; all of them until it fits."""
    assert question_name("b" * 60 + ("." + "a" * 60) * 6) == ".".join(["a" * 60] * 4)
    assert question_name("A.Example.") == "a.example"
    assert question_name("a" * 254) == ""


# --- bounds --------------------------------------------------------------------------------------------------------------


def mail_exchangers() -> dict[tuple[str, str], Any]:
    """A record at the limits of RFC 7208: nine mx of ten hosts each, which is 100 questions."""
    zone = records(
        ("example.org", "TXT", b"v=spf1 " + b" ".join(b"mx:m%d.example" % i for i in range(9)) + b" -all")
    )
    for i in range(9):
        zone[f"m{i}.example", "MX"] = [(j, f"h{j}.m{i}.example") for j in range(10)]
        for j in range(10):
            zone[f"h{j}.m{i}.example", "A"] = [f"10.0.{i}.{j}"]
    return zone


def includes() -> dict[tuple[str, str], Any]:
    """Includes that are many and deep, each with mail exchangers."""
    zone: dict[tuple[str, str], Any] = {}
    for i in range(12):
        zone[f"i{i}.example", "TXT"] = [b"v=spf1 mx include:i%d.example -all" % (i + 1)]
        zone[f"i{i}.example", "MX"] = [(j, f"h{j}.i{i}.example") for j in range(10)]
        for j in range(10):
            zone[f"h{j}.i{i}.example", "A"] = [f"10.1.{i}.{j}"]
    zone["example.org", "TXT"] = [b"v=spf1 include:i0.example -all"]
    return zone


def pointers() -> dict[tuple[str, str], Any]:
    """The client's reverse zone with more names than may be asked for, in front of mail exchangers."""
    zone = mail_exchangers()
    zone["example.org", "TXT"] = [
        b"v=spf1 ptr exists:%{p}.example mx:m0.example mx:m1.example mx:m2.example -all"
    ]
    zone["1.2.0.192.in-addr.arpa", "PTR"] = [f"p{i}.example" for i in range(50)]
    for i in range(50):
        zone[f"p{i}.example", "A"] = ["10.2.0.1"]
    return zone


@pytest.mark.parametrize("zone", [mail_exchangers, includes, pointers])
@on_loop
async def test_one_mail_costs_thirty_questions_at_most(
    zone: Callable[[], dict[tuple[str, str], Any]],
) -> None:
    """Within RFC 7208's own limits it could be 100; then it is temperror."""
    heart = Heart(zone())
    result = await judge(Evaluator(heart))
    assert (result.result, heart.questions) == ("temperror", MOST_QUESTIONS)
    assert f"more than {MOST_QUESTIONS} look-ups" in result.problem


@on_loop
async def test_both_identities_together_cost_thirty_questions_at_most() -> None:
    """The HELO name takes its share, not a second thirty."""
    zone = mail_exchangers()
    zone["mail.example.net", "TXT"] = [b"v=spf1 mx:m7.example mx:m8.example -all"]
    heart = Heart(zone)
    evaluator = Evaluator(heart)
    claims = mail_from_claim(IP, "a@example.org", "mail.example.net"), helo_claim(IP, "mail.example.net")
    verdicts = await evaluator.evaluate(*claims, time.monotonic() + PATIENCE)
    assert verdicts.helo is not None
    assert (verdicts.mail_from.result, verdicts.helo.result) == ("temperror", "temperror")
    assert verdicts.helo.questions == HELO_QUESTIONS
    assert heart.questions == MOST_QUESTIONS
    # What the HELO identity could not find out is no verdict on mail from that domain, which has more.
    zone = {("example.org", "TXT"): [b"v=spf1 mx -all"], ("example.org", "MX"): []}
    zone["example.org", "MX"] = [(j, f"h{j}.example") for j in range(10)]
    zone |= {(f"h{j}.example", "A"): [f"192.0.2.{j}"] for j in range(10)}
    evaluator = Evaluator(Heart(zone))
    other = mail_from_claim("192.0.2.9", "a@example.com", "example.org")
    verdicts = await evaluator.evaluate(
        other, helo_claim("192.0.2.9", "example.org"), time.monotonic() + PATIENCE
    )
    assert verdicts.helo is not None
    assert verdicts.helo.result == "temperror"
    assert (await judge(evaluator, ip="192.0.2.9")).result == "pass"


@on_loop
async def test_questions_are_asked_side_by_side() -> None:
    """Eight includes cost two round trips, not nine."""
    zone = {
        ("example.org", "TXT"): [
            b"v=spf1 " + b" ".join(b"include:i%d.example" % i for i in range(8)) + b" -all"
        ]
    }
    zone |= {(f"i{i}.example", "TXT"): [b"v=spf1 ip4:10.0.0.%d -all" % i] for i in range(8)}
    all_asked = asyncio.get_running_loop().create_future()

    def hold(name: str, rdtype: str) -> asyncio.Future[None] | None:
        if heart.questions == 9:
            all_asked.set_result(None)
        return None if name == "example.org" else all_asked

    heart = Heart(zone, hold)
    assert (await judge(Evaluator(heart))).result == "fail"
    assert (heart.questions, heart.most_under_way) == (9, 8)


@on_loop
async def test_what_is_asked_ahead_of_need_is_not_waited_for() -> None:
    """A pass by the first include does not wait for the nameservers of the second."""
    never = asyncio.get_running_loop().create_future()
    heart = Heart(
        records(
            ("example.org", "TXT", b"v=spf1 include:fast.example include:dead.example -all"),
            ("fast.example", "TXT", b"v=spf1 ip4:192.0.2.1 -all"),
        ),
        holds=lambda name, rdtype: never if name == "dead.example" else None,
    )
    result = await judge(Evaluator(heart))
    assert (result.result, heart.asked["dead.example", "TXT"]) == ("pass", 1)
    await asyncio.sleep(0)
    assert heart._under_way == 0, "who gives up waiting says so"


@on_loop
async def test_what_is_asked_ahead_leaves_room_for_what_is_needed() -> None:
    """Terms behind the one that matches use up ten of the thirty at most."""
    zone = records(
        (
            "example.org",
            "TXT",
            b"v=spf1 mx:m0.example " + b" ".join(b"include:i%d.example" % i for i in range(7)) + b" -all",
        )
    )
    zone |= {
        (f"i{i}.example", "TXT"): [b"v=spf1 mx:m%d.example mx:n%d.example a -all" % (i, i)] for i in range(7)
    }
    for i in range(7):
        zone[f"m{i}.example", "MX"] = [(j, f"h{j}.m{i}.example") for j in range(10)]
        for j in range(10):
            zone[f"h{j}.m{i}.example", "A"] = [f"10.0.{i}.{j}"]
    zone["h9.m0.example", "A"] = [IP]
    heart = Heart(zone)
    result = await judge(Evaluator(heart))
    assert result.result == "pass"
    assert heart.questions <= 12 + AHEAD


@on_loop
async def test_a_flood_asks_nothing_ahead() -> None:
    """Fifty mails must not bring four hundred answers at one moment; what is needed is asked all the same."""
    never = asyncio.get_running_loop().create_future()
    zone = {
        (f"d{i}.example", "TXT"): [b"v=spf1 " + b" ".join(b"a:h%d.d%d.example" % (j, i) for j in range(9))]
        for i in range(50)
    }
    heart = Heart(zone, holds=lambda name, rdtype: never if rdtype == "A" else None)
    evaluator = Evaluator(heart)
    asked = [asyncio.ensure_future(judge(evaluator, f"a@d{i}.example")) for i in range(50)]
    await until(lambda: all(heart.asked[f"h0.d{i}.example", "A"] for i in range(50)))
    assert heart._under_way <= 50 + AHEAD_IN_ALL
    evaluator.close()
    await asyncio.gather(*asked)
    assert evaluator._headroom.free == AHEAD_IN_ALL


@on_loop
async def test_a_deadline_is_kept_and_nobody_else_loses_by_it() -> None:
    """Who has no more time gets temperror; who has, the verdict of the same evaluation."""
    gate = asyncio.get_running_loop().create_future()
    heart = Heart(records(("example.org", "TXT", b"v=spf1 -all")), holds=lambda *_: gate)
    evaluator = Evaluator(heart)
    patient = asyncio.ensure_future(judge(evaluator))
    await asyncio.sleep(0)
    hasty = await judge(evaluator, due=time.monotonic())
    assert (hasty.result, hasty.problem) == ("temperror", "no verdict in time")
    cancelled = asyncio.ensure_future(judge(evaluator))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    gate.set_result(None)
    assert (await patient).result == "fail"
    assert heart.questions == 1


@on_loop
async def test_a_late_answer_ends_the_evaluation_itself() -> None:
    """An evaluation that nobody waits for any more does not go on for ever."""
    never = asyncio.get_running_loop().create_future()
    heart = Heart(records(("example.org", "TXT", b"v=spf1 -all")), holds=lambda *_: never)
    evaluator = Evaluator(heart)
    result = await judge(evaluator, due=time.monotonic() + 0.01)
    assert result.result == "temperror"
    await until(lambda: not evaluator._running)
    assert heart._under_way == 0
    assert not evaluator._slots


@on_loop
async def test_a_domain_is_evaluated_twice_at_once_at_most() -> None:
    """A flood of one hostile domain waits in line, and gives up in time; other domains do not notice."""
    gate = asyncio.get_running_loop().create_future()
    crowd = Crowd(gate)
    slow = [(f"{IP[:-1]}{i}", f"a{i}@example.org") for i in range(20)]
    heart = Heart(
        records(
            ("example.org", "TXT", b"v=spf1 exists:%{l}.slow.example -all"),
            ("other.example", "TXT", b"v=spf1 -all"),
        ),
        holds=lambda name, rdtype: crowd.wait() if name.endswith("slow.example") else None,
    )
    evaluator = Evaluator(heart)
    asked = [asyncio.ensure_future(judge(evaluator, sender, ip)) for ip, sender in slow]
    hasty = asyncio.ensure_future(judge(evaluator, "z@example.org", due=time.monotonic() + 0.01))
    assert (await judge(evaluator, "a@other.example")).result == "fail"
    assert (await hasty).result == "temperror"
    await until(lambda: crowd.most == AT_ONCE)
    gate.set_result(None)
    assert {(await each).result for each in asked} == {"fail"}
    # The question of one that gave up may not have heard of it yet.
    assert crowd.most <= AT_ONCE + 1
    await until(lambda: not evaluator._running)
    assert not evaluator._slots


@on_loop
async def test_when_others_are_asked_nothing_of_the_former_ones_is_remembered() -> None:
    """Neither what was known, nor what was under way at that moment."""
    gate = asyncio.get_running_loop().create_future()
    heart = Heart(
        records(
            ("example.org", "TXT", b"v=spf1 -all"),
            ("late.example", "TXT", b"v=spf1 exists:held.example -all"),
        ),
        holds=lambda name, rdtype: gate if name == "held.example" else None,
    )
    evaluator = Evaluator(heart)
    assert (await judge(evaluator)).result == "fail"
    under_way = asyncio.ensure_future(judge(evaluator, "a@late.example"))
    await until(lambda: bool(heart.asked["held.example", "A"]))
    evaluator.forget()
    gate.set_result(None)
    assert (await under_way).result == "fail"
    before = heart.questions
    for sender in ("a@example.org", "a@late.example"):
        assert (await judge(evaluator, sender)).result == "fail"
        assert heart.questions > before
        before = heart.questions
    await until(lambda: not evaluator._running)


@on_loop
async def test_one_question_for_all_who_ask_the_same() -> None:
    """Fifty recipients of one mail cost what one does."""
    gate = asyncio.get_running_loop().create_future()
    heart = Heart(records(("example.org", "TXT", b"v=spf1 -all")), holds=lambda *_: gate)
    evaluator = Evaluator(heart)
    asked = [asyncio.ensure_future(judge(evaluator)) for _ in range(50)]
    await asyncio.sleep(0)
    gate.set_result(None)
    assert {(await each).result for each in asked} == {"fail"}
    assert heart.questions == 1


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (b"v=spf1 " + b"ip4:1.2.3.4 " * 400, f"more than {MOST_OCTETS} octets"),
        (b"v=spf1 " + b"a " * (MOST_TERMS + 1), f"more than {MOST_TERMS} terms"),
        (b"v=spf1 a:" + b"a." * 200 + b"example", "a term of the record has more than"),
        (b"v=spf1 a:" + b"%{i}" * 11 + b".example", "macros"),
        (b"v=spf1 a:%{i}" + b"." * 31 + b"example", "labels"),
        (b"v=spf1 a:" + b"a" * 129 + b".example", "a label in the record"),
    ],
)
@on_loop
async def test_a_record_that_is_too_much_is_permerror(record: bytes, why: str) -> None:
    """A run of pyspf holds the loop: what would hold it for long is not evaluated at all."""
    result = await judge(Evaluator(Heart(records(("example.org", "TXT", record)))))
    assert result.result == "permerror"
    assert why in result.problem


@on_loop
async def test_records_that_are_too_much_together_are_permerror() -> None:
    """The bound is on the whole tree: ten records of the largest size would be ten times the work."""
    big = b"v=spf1 " + b"ip4:10.2.3.4 " * 300
    zone = records(
        ("example.org", "TXT", b"v=spf1 " + b" ".join(b"include:i%d.example" % i for i in range(9)))
    )
    zone |= {(f"i{i}.example", "TXT"): [big] for i in range(9)}
    result = await judge(Evaluator(Heart(zone)))
    assert (result.result, f"{MOST_IN_ALL} octets" in result.problem) == ("permerror", True)


@on_loop
async def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time is counted, and more of it than an honest record ever needs ends the evaluation."""
    ticks = itertools.count(0, 0.06)
    monkeypatch.setattr(evaluating.time, "thread_time", lambda: next(ticks))
    heart = Heart(includes())
    result = await judge(Evaluator(heart))
    assert (result.result, result.problem) == ("temperror", "it takes too much work")
    assert heart.questions < MOST_QUESTIONS


@on_loop
async def test_one_long_run_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection of garbage that falls into a run must not turn an honest domain's verdict into temperror."""
    ticks = iter([0.0, 5.0])
    monkeypatch.setattr(evaluating.time, "thread_time", lambda: next(ticks, 5.0))
    zone = records(("example.org", "TXT", b"v=spf1 a -all"), ("example.org", "A", ["10.0.0.1"]))
    assert (await judge(Evaluator(Heart(zone)))).result == "fail"


@on_loop
async def test_other_txt_records_are_no_matter() -> None:
    """A domain has verification tokens and keys, some of them long or no text at all."""
    texts = [b"\xff\xfe", b"x" * 5000, b"google-site-verification=x", b"v=spf10 -all", b"v=spf1 -all"]
    assert (await judge(Evaluator(Heart({("example.org", "TXT"): texts})))).result == "fail"


@pytest.mark.parametrize("loop", LOOPS)
def test_both_loops_will_do(loop: str) -> None:
    """uvloop where there is one, Python's own elsewhere: waiting, giving up and closing are the same."""

    async def main() -> tuple[str, str]:
        never = asyncio.get_running_loop().create_future()
        zone = records(
            ("example.org", "TXT", b"v=spf1 include:a.example -all"), ("a.example", "TXT", b"v=spf1 a -all")
        )
        heart = Heart(zone, holds=lambda name, rdtype: never if name == "slow.example" else None)
        evaluator = Evaluator(heart)
        good = await judge(evaluator)
        late = await judge(evaluator, "a@slow.example", due=time.monotonic() + 0.01)
        evaluator.close()
        return good.result, late.result

    assert run_on(loop, main) == ("fail", "temperror")


# --- memory --------------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_result_is_remembered_and_answered_without_waiting() -> None:
    """The second recipient costs nothing; the time is that of the DNS, from a minute to an hour."""
    for ttl, kept in ((5, 60), (300, 300), (90_000, 3600)):
        clock = Clock()
        heart = Heart(records(("example.org", "TXT", b"v=spf1 -all")), ttl=ttl)
        evaluator = Evaluator(heart, clock=clock)
        await judge(evaluator, due=clock.now + PATIENCE)
        claim = mail_from_claim(IP, "other@example.org", "other.example")
        clock.now += kept - 1
        verdicts = send(evaluator.evaluate(claim, helo_claim(IP, "example.org"), 0.0))
        assert verdicts == Verdicts(
            SpfResult("fail", "mailfrom", "example.org", "-all"),
            SpfResult("fail", "helo", "example.org", "-all"),
        )
        assert heart.questions == 1
        clock.now += 2
        await judge(evaluator, due=clock.now + PATIENCE)
        assert heart.questions == 2


@pytest.mark.parametrize("macro", ["%{l}", "%{S}", "%{h}"])
@on_loop
async def test_a_result_that_depends_on_the_sender_is_for_that_sender(macro: str) -> None:
    """One sender's pass must not become everybody's."""
    heart = Heart(
        records(
            ("example.org", "TXT", b"v=spf1 exists:%s.x.example -all" % macro.encode()),
            ("good.x.example", "A", ["127.0.0.2"]),
            ("good%40example.org.x.example", "A", ["127.0.0.2"]),
        )
    )
    evaluator = Evaluator(heart)
    good = await judge(evaluator, "good@example.org", helo="good")
    bad = await judge(evaluator, "bad@example.org", helo="bad")
    assert (good.result, bad.result) == ("pass", "fail")
    before = heart.questions
    assert (await judge(evaluator, "good@example.org", helo="good")).result == "pass"
    assert heart.questions == before


@on_loop
async def test_trouble_is_remembered_briefly() -> None:
    """Fifty recipients must not cost fifty time-outs; a minute later all may be well."""
    clock = Clock()
    heart = Heart({("example.org", "TXT"): "timeout"})
    evaluator = Evaluator(heart, clock=clock)
    assert (await judge(evaluator, due=clock.now + PATIENCE)).result == "temperror"
    heart.records["example.org", "TXT"] = [b"v=spf1 -all"]
    assert (await judge(evaluator, due=clock.now + PATIENCE)).result == "temperror"
    clock.now += evaluating.TROUBLE_MEMORY
    assert (await judge(evaluator, due=clock.now + PATIENCE)).result == "fail"


@on_loop
async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of new clients and senders pushes the oldest out."""
    monkeypatch.setattr(evaluating, "MOST_REMEMBERED", 10)
    heart = Heart(records(("example.org", "TXT", b"v=spf1 exists:%{l}.x.example -all")))
    evaluator = Evaluator(heart)
    for i in range(50):
        await judge(evaluator, f"a{i}@example.org", f"192.0.2.{i}")
    assert len(evaluator._results) <= 10
    asked = heart.questions
    await judge(evaluator, "a49@example.org", "192.0.2.49")
    assert heart.questions == asked


@on_loop
async def test_a_resolver_that_breaks_its_word_is_contained(caplog: pytest.LogCaptureFixture) -> None:
    """A defect is logged and is temperror for that mail; nothing stays behind."""

    class Broken:
        async def ask(self, name: str, rdtype: str, due: float) -> Found:
            raise RuntimeError("defect")

    evaluator = Evaluator(Broken())
    result = await judge(evaluator)
    assert (result.result, result.problem) == ("temperror", "policyd failed to evaluate it")
    assert "SPF of example.org could not be evaluated" in caplog.text
    assert not evaluator._slots


@on_loop
async def test_closing_leaves_nobody_waiting() -> None:
    """At the end, and at a reload that brings other nameservers."""
    never = asyncio.get_running_loop().create_future()
    evaluator = Evaluator(Heart({}, holds=lambda *_: never))
    asked = asyncio.ensure_future(judge(evaluator))
    await until(lambda: bool(evaluator._running))
    evaluator.close()
    assert (await asked).result == "temperror"


@on_loop
async def test_closing_ends_those_who_wait_for_their_turn_too() -> None:
    """Nothing is left that would go on afterwards."""
    never = asyncio.get_running_loop().create_future()
    heart = Heart(
        records(("example.org", "TXT", b"v=spf1 exists:%{l}.x.example -all")), holds=lambda *_: never
    )
    evaluator = Evaluator(heart)
    asked = [asyncio.ensure_future(judge(evaluator, f"a{i}@example.org")) for i in range(6)]
    await until(lambda: heart._under_way == AT_ONCE)
    evaluator.close()
    assert {(await each).result for each in asked} == {"temperror"}
    assert (heart._under_way, evaluator._slots) == (0, {})


@on_loop
async def test_an_explanation_is_not_worth_a_question_too_many() -> None:
    """The verdict took all thirty: it stands, without the text."""
    zone = records(
        (
            "example.org",
            "TXT",
            (
                b"v=spf1 mx:a.example mx:b.example a a:c.example a:d.example a:e.example a:f.example"
                b" a:g.example -all exp=why.example"
            ),
        )
    )
    for name in ("a.example", "b.example"):
        zone[name, "MX"] = [(j, f"h{j}.{name}") for j in range(10)]
        zone |= {(f"h{j}.{name}", "A"): ["10.0.0.1"] for j in range(10)}
    zone |= {
        (f"{name}", "A"): ["10.0.0.1"]
        for name in ("example.org", "c.example", "d.example", "e.example", "f.example", "g.example")
    }
    zone["why.example", "TXT"] = [b"because"]
    heart = Heart(zone)
    result = await judge(Evaluator(heart))
    assert (result.result, heart.questions, result.explanation) == ("fail", 30, "because")
    zone["example.org", "TXT"] = [zone["example.org", "TXT"][0].replace(b" -all", b" a:h.example -all")]
    zone["h.example", "A"] = ["10.0.0.1"]
    heart = Heart(zone)
    result = await judge(Evaluator(heart))
    assert (result.result, heart.questions, result.explanation) == ("fail", 30, "")


def test_a_defect_of_pyspf_is_permerror(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it stumbles over: the record is at fault, the mail goes on, and no traceback is seen."""

    def stumble(*_: object) -> None:
        raise RuntimeError("stumbled")

    known = {("example.org", "TXT"): Found(FOUND, (b"v=spf1 a -all",), 60)}
    claim = mail_from_claim(IP, "a@example.org", "")
    monkeypatch.setattr(spf, "parse_mechanism", stumble)
    outcome = run(claim, "here", known, Memo())
    assert (outcome.result, outcome.problem) == ("permerror", "the record cannot be evaluated: RuntimeError")
    assert run(claim, "here", {}, Memo()).open == (("example.org", "TXT"),)


def test_this_host_has_a_name_for_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says, unless it could break a header."""
    for name, told in (
        ("mx1", "mx1"),
        ("mx.example.org", "mx.example.org"),
        ("a b", "localhost"),
        ("", "localhost"),
    ):
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)
        assert Evaluator(Heart({})).receiver == told
    assert Evaluator(Heart({}), "mail.example.org").receiver == "mail.example.org"


# --- one run -------------------------------------------------------------------------------------------------------------

TERMS = """
    a mx ptr -all ~all ?all all include:b.example redirect=b.example exp=b.example ip4:192.0.2.0/24 ip4:1.2.3
    ip4:192.0.2.1/33 ip6:::/0 ip6:::ffff:1.2.3.4 exists:%{ir}.%{l}.b.example a:%{d9} a:%{ a:%{z} %% a:%{p}.example = : /
    a/ a// a/24//64 mx/99 x=%{l-+r9} a:b.example:c exists: include: redirect= exists:%{l}%{o}%{h}%{t} unknown
    """.split()  # noqa: SIM905, one a line would be a page
NAMES = st.sampled_from(["b.example", "example.org", "1.2.0.192.in-addr.arpa"])
RECORDS: dict[str, tuple[Any, ...]] = {
    "A": (IP, "not an address"),
    "MX": ((5, "b.example"), (6, "")),
    "TXT": (b"v=spf1 a", b"\xff"),
    "PTR": ("b.example",),
}


@given(
    st.lists(
        st.sampled_from([*TERMS, "\u00fc", "a:" + "b." * 140])
        | st.text(st.characters(max_codepoint=0x2FF), max_size=40),
        max_size=8,
    ),
    st.dictionaries(st.tuples(NAMES, st.sampled_from(sorted(RECORDS))), st.sampled_from(["A", "?", ""])),
    st.text(max_size=20),
)
def test_no_record_brings_a_run_to_fall(
    terms: list[str], known: dict[tuple[str, str], str], local: str
) -> None:
    """Whatever strangers write, there is a verdict or a question that was not asked yet; and the next run says the same."""
    record = " ".join(["v=spf1", *terms]).encode("utf-8", "replace")
    answers = {
        question: Found(FOUND, RECORDS[question[1]], 60) if what == "A" else Found(UNKNOWN, why=what)
        for question, what in known.items()
    }
    answers["example.org", "TXT"] = Found(FOUND, (record,), 60)
    claim = mail_from_claim(IP, f"{local}@example.org", "helo.example")
    memo = Memo()
    outcome = run(claim, "here", answers, memo)
    assert outcome == run(claim, "here", answers, memo)
    if outcome.open:
        assert not set(outcome.open) & set(answers)
    else:
        assert outcome.result in RESULTS
    assert isinstance(objection(record), str)
