"""The decision: all limits together, all or nothing, once per request, and each refusal explained."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.answer import DUNNO, HOLD, REFUSE, Answer, make_answer, parse_action, with_ref
from policyd.opinion import CounterKey, Heard, Opinion, Proposal
from policyd.request import Request
from policyd.steering import UserLimit
from policyd.units import HOUR, MINUTE
from tests.fakes import (
    NOW,
    FakeLedger,
    allow_rule,
    ask,
    ban,
    ban_rule,
    charged,
    end_of,
    engine,
    from_outside,
    grant,
    quota_rule,
    rcpt,
    says,
)

REFUSES = Opinion(make_answer("550", "5.7.1 Listed; ref {ref}"), "listed")
DEFER = Answer("451", "4.3.0 Policy decision not possible now; try again later. ref 2ABCDEF")


def rows_of(ledger: FakeLedger) -> dict[CounterKey, int]:
    return charged((request, settled) for request, settled, _ in ledger.rows)


def numbers(settled: Any) -> list[list[Any]]:
    """The limits' numbers as ``policyctl explain`` reads them."""
    return json.loads(settled.detail)["limits"]


# --- all limits of all checks, all or nothing -------------------------------------------------------------------------


def test_every_limit_of_every_check_is_tested_and_the_first_that_breaks_keeps_all_from_counting() -> None:
    """A message refused by one of several checks is counted by none of them."""
    ledger = FakeLedger(
        engine(
            quota_rule("10 messages per 1h", "100 recipients per 1d", name="first"),
            quota_rule("3 messages per 1d", "1MB per 1d", per="server", name="second"),
        )
    )
    for _ in range(3):
        assert ledger.decide(ask()).verdict == "pass"
    counted = ledger.all_used()
    refused = ledger.decide(ask())
    assert (refused.verdict, refused.by) == ("refuse", "second")
    assert ledger.all_used() == counted
    assert {row[0] for row in numbers(refused)} == {"first", "second"}
    assert [row[-1] for row in numbers(refused)] == [1, 1, 0, 1]


def test_a_refusal_of_a_later_check_counts_nothing() -> None:
    """Whatever stands before it in the chain."""
    ledger = FakeLedger(engine(quota_rule("10 messages per 1h"), says(lambda request: REFUSES)))
    refused = ledger.decide(ask())
    assert (refused.verdict, refused.by) == ("refuse", "later")
    assert ledger.all_used() == {}
    assert refused.charges == ""


def test_a_counter_counts_once_however_many_checks_and_limits_look_at_it() -> None:
    """Counts are facts about mail, not property of a check."""
    ledger = FakeLedger(
        engine(
            quota_rule("50 messages per 1h", "90 messages per 1d", name="first"),
            quota_rule("70 messages per 1h", "10 messages per 7d", mode="shadow", name="second"),
            quota_rule("60 messages per 2h", name="third"),
        )
    )
    for turn in range(12):
        ledger.decide(ask())
        assert ledger.used("messages/external") == turn + 1


amounts = st.integers(0, 12)
mail = st.fixed_dictionaries(
    {
        "sasl_username": st.sampled_from(("alice", "Alice@Example.org", "carol@example.net")),
        "count": st.integers(1, 9),
        "size": st.integers(0, 5000),
        "instance": st.sampled_from(("", "i1", "i2", "i3")),
        "wait": st.sampled_from((0, 0, 1, MINUTE)),
        "refuse": st.booleans(),
    }
)


@given(
    first=st.tuples(amounts, amounts, st.integers(0, 9000)),
    second=st.tuples(amounts, amounts),
    modes=st.tuples(st.sampled_from(("enforce", "shadow")), st.sampled_from(("enforce", "shadow"))),
    mails=st.lists(mail, max_size=25),
)
def test_whatever_comes_counters_equal_what_passed_and_no_limit_is_exceeded(
    first: tuple[int, int, int],
    second: tuple[int, int],
    modes: tuple[str, str],
    mails: list[dict[str, Any]],
) -> None:
    """Counters equal the charges of accepted requests exactly, and no enforced window ever holds more than its limit."""
    limits = (f"{first[0]} messages per 1h", f"{first[1]} recipients per 10m", f"{first[2]} bytes per 1h")
    others = (f"{second[0]} messages per 1m", f"{second[1]} recipients per 1d")
    refusing: set[Request] = set()
    ledger = FakeLedger(
        engine(
            quota_rule(*limits, name="first", mode=modes[0]),
            quota_rule(*others, name="second", mode=modes[1], per="server"),
            says(lambda request: REFUSES if request in refusing else None),
        )
    )
    for each in mails:
        ledger.now += each["wait"]
        request = end_of(
            each["instance"],
            each["count"],
            "bob@example.net" if each["count"] == 1 else "",
            sasl_username=each["sasl_username"],
            size=str(each["size"]),
            queue_id="q",
        )
        if each["refuse"]:
            refusing.add(request)
        before = dict(ledger.total)
        settled = ledger.decide(request)
        if settled.verdict == "refuse":
            assert settled.ref is not None
            assert settled.ref in settled.answer.text
            assert ledger.total == before
        refusing.clear()
        for name, mode in (("first", modes[0]), ("second", modes[1])):
            if mode != "enforce" or settled.verdict == "refuse" or settled.mark:
                continue
            for check, *_rest, allowed, used, amount, fits in numbers(settled):
                if check == name:
                    assert fits
                    assert used + amount <= allowed or not amount
        assert make_answer(*settled.answer) == settled.answer
    assert {key: amount for key, amount in ledger.total.items() if amount} == rows_of(ledger)


# --- asked again ------------------------------------------------------------------------------------------------------


def test_asked_again_at_once_nothing_changes() -> None:
    """The answer was lost: the same answer, nothing counted, marked."""
    ledger = FakeLedger(engine(ban_rule(), quota_rule("1 messages per 1h")))
    request = ask()
    first = ledger.decide(request)
    again = ledger.decide(request)
    assert again.answer == first.answer == DUNNO
    assert (again.mark, again.charges) == ("repeat", first.charges)
    assert ledger.used("messages/external") == 1


@pytest.mark.parametrize("change", ["listener", "instance", "stage", "recipient"])
def test_what_differs_in_its_identity_is_another_request(change: str) -> None:
    """Listener, instance, stage, and at RCPT the recipient tell requests apart."""
    ledger = FakeLedger(engine(quota_rule("10 recipients per 1h", count_at="rcpt")))
    ledger.decide(rcpt("i1", "bob@example.net"))
    other = {
        "listener": rcpt("i1", "bob@example.net", listener="unix:/other"),
        "instance": rcpt("i2", "bob@example.net"),
        "stage": rcpt("i1", "bob@example.net", protocol_state="END-OF-MESSAGE"),
        "recipient": rcpt("i1", "eve@example.net"),
    }[change]
    assert ledger.decide(other).mark == ""


def test_an_empty_instance_is_never_a_duplicate() -> None:
    """Without an instance nothing tells two requests apart, so both count."""
    ledger = FakeLedger(engine(quota_rule("10 messages per 1h")))
    request = ask(instance="")
    assert [ledger.decide(request).mark for _ in range(3)] == ["", "", ""]
    assert ledger.used("messages/external") == 3


def test_what_was_refused_is_decided_afresh() -> None:
    """Refused for want of room, asked again when there is room: it passes and counts."""
    ledger = FakeLedger(engine(quota_rule("1 messages per 1h")))
    ledger.decide(ask())
    request = ask()
    assert ledger.decide(request).verdict == "refuse"
    again = ledger.decide(request)
    assert (again.verdict, again.mark) == ("refuse", "repeat")
    ledger.now += 2 * HOUR
    assert ledger.decide(ask(instance=request.instance)).verdict == "pass"
    assert ledger.used("messages/external", window=HOUR) == 1


def test_a_ban_in_between_refuses_and_returns_the_count_once() -> None:
    """Passed, banned, asked again: refused and the count returned; asked once more: nothing more is returned."""
    ledger = FakeLedger(engine(ban_rule(), quota_rule("10 messages per 1h", "99 recipients per 1d")))
    for _ in range(4):
        ledger.decide(ask())
    request = ask()
    ledger.decide(request)
    ledger.decide(request)
    ledger.steering.put("ban", ban("user", "alice@example.org"))
    for _ in range(3):
        refused = ledger.decide(request)
        assert (refused.verdict, refused.by) == ("refuse", "bans")
        assert ledger.used("messages/external") == 4
        assert ledger.used("recipients/external") == 4
    ledger.steering.drop("ban", ("user", "alice@example.org"))
    assert ledger.decide(request).verdict == "pass"
    assert ledger.used("messages/external") == 5


def test_a_ban_that_came_while_the_chain_ran_refuses() -> None:
    """The proposal knew no ban; settle asks again."""
    ledger = FakeLedger(engine(ban_rule(), quota_rule("10 messages per 1h")))
    request = ask()
    proposal = ledger.consult(request)
    ledger.steering.put("ban", ban("client", "192.0.2.0/24"))
    refused = ledger.decide(request, proposal=proposal)
    assert (refused.verdict, refused.by, refused.reason) == ("refuse", "bans", "banned client 192.0.2.0/24")
    assert ledger.all_used() == {}


def test_a_check_that_changed_its_mind_does_not_take_back_what_passed() -> None:
    """Only a ban does; a later refusal of the same message would have Postfix bounce what it has."""
    mind = [Opinion()]
    ledger = FakeLedger(engine(quota_rule("10 messages per 1h"), says(lambda request: mind[0])))
    request = ask()
    ledger.decide(request)
    mind[0] = REFUSES
    assert ledger.decide(request).answer is not None
    assert ledger.rows[-1][1].verdict == "pass"
    assert ledger.used("messages/external") == 1


def test_a_held_message_is_held_again() -> None:
    """The answer of the repetition is the one that was given."""
    ledger = FakeLedger(engine(quota_rule("1 messages per 1h", on_breach="hold")))
    ledger.decide(ask())
    request = ask()
    first = ledger.decide(request)
    assert first.verdict == "hold"
    again = ledger.decide(request)
    assert (again.verdict, again.answer) == ("hold", first.answer)
    assert ledger.used("messages/external") == 2


def test_beyond_an_hour_a_request_is_a_new_one() -> None:
    """Postfix's instances may come again after that."""
    ledger = FakeLedger(engine(quota_rule("10 messages per 1d")))
    request = ask()
    ledger.decide(request)
    ledger.now += HOUR
    assert ledger.decide(request).mark == ""
    assert ledger.used("messages/external") == 2


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_breach", ["defer", "reject", "hold"])
def test_a_message_alone_above_a_limit_is_refused_for_good(on_breach: str) -> None:
    """It can never fit, whatever on_breach says."""
    ledger = FakeLedger(engine(quota_rule("5 recipients per 1h", "9 messages per 1h", on_breach=on_breach)))
    refused = ledger.decide(end_of("i", 6))
    assert refused.answer.verb == "550"
    assert refused.reason == "more than the whole limit: 0+6 of 5 recipients per 1h"
    assert str(refused.answer) == (
        "550 5.7.1 Message too large for the sending limit; 6 of at most 5 recipients per hour. "
        f"ref {refused.ref}"
    )
    assert ledger.decide(end_of("j", 5)).verdict == "pass"


def test_a_message_of_too_many_bytes_is_told_its_size() -> None:
    """As people write sizes; what the window holds already does not matter."""
    ledger = FakeLedger(engine(quota_rule("2MB per 1d")))
    ledger.decide(ask(size="1000000"))
    refused = ledger.decide(ask(size="3000000"))
    assert "too large for the sending limit; 3MB of at most 2MB of mail per day. ref" in refused.answer.text


@pytest.mark.parametrize(("on_breach", "verb"), [("defer", "450"), ("reject", "550")])
def test_what_does_not_fit_now_is_told_so(on_breach: str, verb: str) -> None:
    """For now or for good, as configured, and the whole message or nothing."""
    ledger = FakeLedger(engine(quota_rule("5 recipients per 1h", on_breach=on_breach)))
    ledger.decide(end_of("i", 3))
    assert ledger.decide(end_of("j", 3)).answer.verb == verb
    assert ledger.used("recipients/external") == 3
    assert ledger.decide(end_of("k", 2)).verdict == "pass"


def test_hold_holds_up_to_the_limit_again_and_then_refuses() -> None:
    """A hold queue is not without end, and what is held counts."""
    ledger = FakeLedger(engine(quota_rule("3 messages per 1h", on_breach="hold")))
    verdicts = [ledger.decide(ask()).verdict for _ in range(9)]
    assert verdicts == ["pass"] * 3 + ["hold"] * 3 + ["refuse"] * 3
    assert ledger.used("messages/external") == 6


def test_hold_is_never_answered_at_rcpt() -> None:
    """At RCPT an account in its second room is asked on, and refused when that is gone too."""
    ledger = FakeLedger(engine(quota_rule("2 messages per 1h", on_breach="hold")))
    for turn in range(4):
        assert ledger.decide(rcpt(f"i{turn}", "bob@example.net")).answer == DUNNO
        ledger.decide(end_of(f"i{turn}", 1, "bob@example.net"))
    assert ledger.decide(rcpt("last", "bob@example.net")).answer.strength == REFUSE


def test_a_refusal_beats_a_hold() -> None:
    """One answer has one action, and what is refused is not counted by the check that would hold."""
    ledger = FakeLedger(
        engine(
            quota_rule("1 messages per 1h", on_breach="hold", name="first"),
            quota_rule("1 recipients per 1h", per="server", name="second"),
        )
    )
    ledger.decide(ask())
    assert (ledger.decide(ask()).by, ledger.used("messages/external")) == ("second", 1)


def test_rcpt_refuses_only_when_there_is_no_room_at_all() -> None:
    """Refusing recipient 21 of 25 would make people send twenty copies twice."""
    ledger = FakeLedger(engine(quota_rule("5 recipients per 1h", "10KB per 1h")))
    ledger.decide(end_of("i", 4))
    for number in range(25):
        assert ledger.decide(rcpt("j", f"r{number}@example.net")).verdict == "pass"
    assert ledger.used("recipients/external") == 4
    ledger.decide(end_of("k", 1, "bob@example.net"))
    refused = ledger.decide(rcpt("l", "bob@example.net"))
    assert refused.answer.verb == "450"
    # Mail among the own domains needs no room.
    assert ledger.decide(rcpt("l", "carol@example.org")).verdict == "pass"


def test_a_limit_of_nothing_refuses_for_good_at_once() -> None:
    """0 messages: no message ever fits."""
    ledger = FakeLedger(engine(quota_rule("0 messages per 1h")))
    assert ledger.decide(rcpt("i", "bob@example.net")).answer.verb == "550"
    assert ledger.decide(ask()).answer.verb == "550"


# --- what counts ------------------------------------------------------------------------------------------------------


def test_external_with_one_recipient() -> None:
    """One recipient is known at END-OF-MESSAGE: mail among the own domains is left out."""
    ledger = FakeLedger(engine(quota_rule("99 recipients per 1h", "99 messages per 1h", "9MB per 1h")))
    ledger.decide(end_of("i", 1, "carol@example.org"))
    assert ledger.all_used() == {}
    ledger.decide(end_of("j", 1, "bob@example.net"))
    ledger.decide(end_of("k", 1, "carol@example.org", sender="alice@elsewhere.example"))
    assert ledger.used("recipients/external") == 2


def test_external_with_several_recipients_is_joined_from_rcpt() -> None:
    """END-OF-MESSAGE names no recipient when there are several; what was asked at RCPT does."""
    ledger = FakeLedger(engine(quota_rule("99 recipients per 1h", "99 messages per 1h", "9MB per 1h")))
    for recipient in ("a@example.org", "b@example.org", "b@example.org", "c@example.net", "D@Example.Org."):
        ledger.decide(rcpt("i", recipient))
    ledger.decide(end_of("i", 4, size="700"))
    assert ledger.used("recipients/external") == 1
    assert ledger.used("messages/external") == 1
    assert ledger.used("bytes/external") == 700
    for recipient in ("a@example.org", "b@example.org"):
        ledger.decide(rcpt("j", recipient))
    ledger.decide(end_of("j", 2, size="700"))
    assert ledger.used("messages/external") == 1


def test_of_recipients_that_may_have_been_refused_elsewhere_the_most_is_assumed() -> None:
    """Five asked about, two of them own, three left: all three may be outsiders."""
    ledger = FakeLedger(engine(quota_rule("99 recipients per 1h")))
    for recipient in ("a@example.org", "b@example.org", "c@example.net", "d@example.net", "e@example.net"):
        ledger.decide(rcpt("i", recipient))
    ledger.decide(end_of("i", 3))
    assert ledger.used("recipients/external") == 3


def test_without_the_rcpt_hook_every_recipient_counts() -> None:
    """What is not known is not assumed to be own."""
    ledger = FakeLedger(engine(quota_rule("99 recipients per 1h")))
    ledger.decide(end_of("i", 7))
    assert ledger.used("recipients/external") == 7


def test_mail_from_outside_is_never_internal_however_many_recipients_it_has() -> None:
    """An outsider who writes an own sender, or the null sender, must not step past a client's limit."""
    ledger = FakeLedger(engine(quota_rule("99 recipients per 1h", per="client")))
    forged = {"sender": "carol@example.org", "sasl_method": "", "sasl_username": ""}
    for recipient in ("alice@example.org", "bert@example.org"):
        ledger.decide(rcpt("i", recipient, **forged))
    ledger.decide(end_of("i", 2, **forged))
    assert ledger.used("recipients/external", "192.0.2.7", "client") == 2


def test_count_all_counts_all() -> None:
    """And keeps its counter apart from the one of external mail."""
    ledger = FakeLedger(engine(quota_rule("99 recipients per 1h", count="all")))
    ledger.decide(end_of("i", 3))
    ledger.decide(end_of("j", 1, "carol@example.org"))
    assert ledger.used("recipients") == 4
    assert ledger.used("recipients/external") == 0


@pytest.mark.parametrize("count", ["all", "external"])
def test_counted_at_rcpt_a_message_counts_once_and_each_recipient(count: str) -> None:
    """Message and octets with the first recipient that counts; asked again, nothing."""
    unit = "" if count == "all" else "/external"
    ledger = FakeLedger(
        engine(
            quota_rule("9 messages per 1h", "9 recipients per 1h", "9MB per 1h", count_at="rcpt", count=count)
        )
    )
    for recipient in ("a@example.net", "a@example.net", "b@example.net", "c@example.net"):
        ledger.decide(rcpt("i", recipient, size="500"))
    ledger.decide(rcpt("j", "b@example.net", size="70"))
    ledger.decide(end_of("j", 1, "b@example.net", size="70"))
    assert ledger.used(f"recipients{unit}") == 4
    assert ledger.used(f"messages{unit}") == 2
    assert ledger.used(f"bytes{unit}") == 570


def test_counted_at_rcpt_external_the_message_counts_with_the_first_outsider() -> None:
    """An own recipient before it counts nothing."""
    ledger = FakeLedger(engine(quota_rule("9 messages per 1h", "9 recipients per 1h", count_at="rcpt")))
    ledger.decide(rcpt("i", "carol@example.org"))
    assert ledger.all_used() == {}
    ledger.decide(rcpt("i", "b@example.net"))
    ledger.decide(rcpt("i", "c@example.net"))
    assert (ledger.used("messages/external"), ledger.used("recipients/external")) == (1, 2)


def test_counted_at_rcpt_a_recipient_that_was_allowed_does_not_swallow_the_message() -> None:
    """An allow ends the chain before the quota: nothing was counted with it, so the next recipient counts the message."""
    ledger = FakeLedger(
        engine(
            allow_rule(recipients=("boss@example.net",)),
            quota_rule("9 messages per 1h", "9 recipients per 1h", count_at="rcpt"),
        )
    )
    ledger.decide(rcpt("i", "boss@example.net"))
    ledger.decide(rcpt("i", "b@example.net"))
    assert (ledger.used("messages/external"), ledger.used("recipients/external")) == (1, 1)


def test_counted_at_rcpt_what_a_ban_returned_is_counted_with_the_next_recipient() -> None:
    """The message went back with the recipient that it was counted with."""
    ledger = FakeLedger(
        engine(ban_rule(), quota_rule("9 messages per 1h", "9 recipients per 1h", count_at="rcpt"))
    )
    ledger.decide(rcpt("i", "a@example.net"))
    ledger.steering.put("ban", ban("user", "alice@example.org"))
    ledger.decide(rcpt("i", "a@example.net"))
    assert ledger.all_used() == {}
    ledger.steering.drop("ban", ("user", "alice@example.org"))
    ledger.decide(rcpt("i", "b@example.net"))
    assert (ledger.used("messages/external"), ledger.used("recipients/external")) == (1, 1)


# --- grants, own limits, shadow ---------------------------------------------------------------------------------------


def test_a_grant_widens_every_window_of_its_unit_and_ends_at_the_millisecond() -> None:
    """One-off, additive, and nothing is left of it afterwards."""
    chain = engine(quota_rule("2 messages per 1h", "3 messages per 1d", "50 recipients per 1h"))
    ledger = FakeLedger(chain)
    ledger.steering.put("user_grant", grant(1, "alice@example.org", "messages", 2, NOW + MINUTE))
    ledger.steering.put("user_grant", grant(2, "alice@example.org", "messages", 1, NOW + MINUTE))
    assert [ledger.decide(ask()).verdict for _ in range(6)] == ["pass"] * 5 + ["refuse"]
    ledger = FakeLedger(chain)
    ledger.steering.put("user_grant", grant(1, "alice@example.org", "messages", 2, NOW + MINUTE))
    assert [ledger.decide(ask()).verdict for _ in range(2)] == ["pass"] * 2
    ledger.now = NOW + MINUTE - 1
    assert ledger.decide(ask()).verdict == "pass"
    ledger.now = NOW + MINUTE
    assert ledger.decide(ask()).verdict == "refuse"
    assert ledger.decide(ask(sasl_username="bert")).verdict == "pass"


def test_an_own_limit_stands_in_the_place_of_the_same_unit_and_window() -> None:
    """Set replaces, -1 takes away, both end at the millisecond."""
    from policyd.checks import Context, quota
    from policyd.tiers import Tier, Tiers
    from policyd.units import parse_limit
    from tests.fakes import SITE, rule

    tiers = Tiers("standard", {"standard": Tier("standard", (parse_limit("2 messages per 1h"),))})
    ledger = FakeLedger(
        engine(rule("quota", quota.Check(quota.Options(), Context("quota", "submission", SITE, tiers))))
    )
    own = UserLimit("alice@example.org", "messages", HOUR, 4, "", "root", 0, NOW + MINUTE)
    ledger.steering.put("user_limit", own)
    assert [ledger.decide(ask()).verdict for _ in range(5)] == ["pass"] * 4 + ["refuse"]
    ledger.now = NOW + MINUTE
    assert numbers(ledger.decide(ask()))[0][5] == 2
    ledger.steering.put("user_limit", own._replace(amount=-1, expires_at=0))
    assert ledger.decide(ask()).verdict == "pass"


def test_a_limit_in_shadow_counts_and_records_and_refuses_nothing() -> None:
    """What would have been answered is told; mail that passed counts."""
    ledger = FakeLedger(
        engine(quota_rule("1 messages per 1h", mode="shadow"), says(lambda r: REFUSES, mode="shadow"))
    )
    ledger.decide(ask())
    settled = ledger.decide(ask())
    assert (settled.answer, settled.verdict, settled.ref) == (DUNNO, "pass", None)
    assert "quota: 450 4.7.1 Sending limit reached; 1 of 1 messages per hour" in settled.would
    assert "later: 550 5.7.1 Listed; ref -----" in settled.would
    assert "{ref}" not in settled.would
    assert ledger.used("messages/external") == 2


def test_a_ban_in_shadow_refuses_nothing_and_is_recorded() -> None:
    """The same code decides, and nothing else happens."""
    chain = engine(ban_rule()._replace(mode="shadow"), quota_rule("9 messages per 1h"))
    ledger = FakeLedger(chain)
    ledger.steering.put("ban", ban("user", "alice@example.org"))
    settled = ledger.decide(ask())
    assert (settled.verdict, settled.would[:9]) == ("pass", "bans: 550")
    assert ledger.used("messages/external") == 1


# --- answers that were given already ----------------------------------------------------------------------------------


def test_a_deferred_answer_counts_nothing() -> None:
    """The deadline answered for the ledger: the sender will try again."""
    ledger = FakeLedger(engine(quota_rule("9 messages per 1h")))
    settled = ledger.decide(ask(), forced=DEFER)
    assert (settled.answer, settled.verdict, settled.mark, settled.ref) == (
        DEFER,
        "refuse",
        "late",
        "2ABCDEF",
    )
    assert ledger.all_used() == {}


def test_a_dunno_that_was_answered_is_counted_late_whatever_the_limits_say() -> None:
    """The mail is through: counters are facts."""
    ledger = FakeLedger(engine(quota_rule("1 messages per 1h")))
    ledger.decide(ask())
    settled = ledger.decide(ask(), forced=DUNNO)
    assert (settled.answer, settled.verdict, settled.mark) == (DUNNO, "pass", "late")
    assert ledger.used("messages/external") == 2


def test_a_dunno_that_was_answered_counts_even_for_a_banned_one() -> None:
    """The ban came too late for this message, and its count is as true as any."""
    ledger = FakeLedger(engine(ban_rule(), quota_rule("9 messages per 1h")))
    request = ask()
    proposal = ledger.consult(request)
    ledger.steering.put("ban", ban("user", "alice@example.org"))
    settled = ledger.decide(request, forced=DUNNO, proposal=proposal)
    assert settled.verdict == "pass"
    assert ledger.used("messages/external") == 1


@pytest.mark.parametrize("instance", ["i1", ""])
def test_the_answer_went_out_while_the_writer_decided_otherwise(instance: str) -> None:
    """The correction makes the ledger follow what was answered: a pass is taken back, a refusal is counted late."""
    ledger = FakeLedger(engine(quota_rule("3 messages per 1h")))
    request = ask(instance=instance)
    ledger.decide(request)
    corrected = ledger.decide(request, forced=DEFER, previous=ledger.rows[-1][2])
    assert (corrected.verdict, corrected.mark, corrected.ref) == ("refuse", "late", "2ABCDEF")
    assert ledger.all_used() == {}

    for _ in range(3):
        ledger.decide(ask())
    refused = ask(instance=f"{instance}x" if instance else "")
    assert ledger.decide(refused).verdict == "refuse"
    corrected = ledger.decide(refused, forced=DUNNO, previous=ledger.rows[-1][2])
    assert corrected.verdict == "pass"
    assert ledger.used("messages/external") == 4


def test_a_repetition_that_was_deferred_returns_the_count() -> None:
    """Passed, asked again, and then the deadline deferred it: the client keeps the mail."""
    ledger = FakeLedger(engine(quota_rule("3 messages per 1h")))
    request = ask()
    ledger.decide(request)
    ledger.decide(request, forced=DEFER)
    assert ledger.all_used() == {}
    assert ledger.decide(request).verdict == "pass"
    assert ledger.used("messages/external") == 1


def test_a_repetition_answered_late_keeps_what_a_ban_would_return() -> None:
    """Passed, asked again and let through by the deadline, banned, asked again: the one count goes back."""
    ledger = FakeLedger(engine(ban_rule(), quota_rule("3 messages per 1h")))
    request = ask()
    ledger.decide(request)
    ledger.decide(request, forced=DUNNO)
    assert ledger.used("messages/external") == 1
    ledger.steering.put("ban", ban("user", "alice@example.org"))
    ledger.decide(request)
    assert ledger.all_used() == {}


answers = st.sampled_from((None, None, None, DUNNO, DEFER))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("", "i1", "i2")), answers, st.sampled_from(("", "ban", "unban", "correct"))
        ),
        max_size=20,
    )
)
def test_any_mixture_of_repeats_bans_and_deadlines_counts_what_was_answered(
    steps: list[tuple[str, Answer | None, str]],
) -> None:
    """The counters hold exactly the newest fate of each request."""
    ledger = FakeLedger(engine(ban_rule(), quota_rule("3 messages per 1h", "5 recipients per 1h")))
    fate: dict[object, int] = {}
    for number, (instance, given_answer, event) in enumerate(steps):
        request = ask(instance=instance)
        proposal = ledger.consult(request)
        # A chain that refuses is never answered with DUNNO.
        forced = DEFER if given_answer and proposal.answer.strength == REFUSE else given_answer
        if event == "ban":
            ledger.steering.put("ban", ban("user", "alice@example.org"))
        elif event == "unban":
            ledger.steering.drop("ban", ("user", "alice@example.org"))
        settled = ledger.decide(request, forced, proposal=proposal)
        if event == "correct" and forced is None:
            other = DUNNO if settled.verdict == "refuse" and proposal.answer.strength != REFUSE else DEFER
            settled = ledger.decide(request, other, ledger.rows[-1][2], proposal)
        fate[instance or number] = settled.verdict != "refuse"
        assert ledger.used("messages/external") == sum(fate.values())
        assert ledger.used("recipients/external") == sum(fate.values())


# --- texts, references, what is written down --------------------------------------------------------------------------


def test_the_text_says_everything_and_carries_the_reference() -> None:
    """Each field is filled in, with the grant in the limit."""
    text = "{unit}|{used}|{limit}|{window}|{until}|{user}|{ref}"
    ledger = FakeLedger(engine(quota_rule("2 messages per 10m", text=text)))
    ledger.steering.put("user_grant", grant(1, "alice@example.org", "messages", 1))
    for _ in range(3):
        ledger.decide(ask())
    settled = ledger.decide(ask())
    until = ledger.counters[CounterKey("user", "alice@example.org", "messages/external")].room_at(
        10 * MINUTE, NOW, 1
    )
    assert settled.answer == Answer(
        "450", f"4.7.1 messages|3|3|10 minutes|{until}|alice@example.org|{settled.ref}"
    )
    ledger.now = until
    assert ledger.decide(ask()).verdict == "pass"


def test_a_text_without_a_reference_gets_one_at_its_end() -> None:
    """So that every refusal can be found."""
    ledger = FakeLedger(engine(quota_rule("1 messages per 10m", text="Too much")))
    ledger.decide(ask())
    settled = ledger.decide(ask())
    assert settled.answer.text == f"4.7.1 Too much ref {settled.ref}"


@given(
    st.lists(
        st.sampled_from(("{user}", "{ref}", "{until}", "x", "\u00e4\u00f6", " and ", "{window}", "{unit}")),
        min_size=1,
        max_size=40,
    ),
    st.text(
        st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\n"), min_size=1, max_size=90
    ),
)
def test_whatever_the_text_and_the_user_the_answer_obeys_the_grammar_and_has_its_reference(
    pieces: list[str], user: str
) -> None:
    """Long names may cut the text, never the reference."""
    text = "".join(pieces)[:250].strip() or "x"
    ledger = FakeLedger(engine(quota_rule("1 messages per 10m", "1KB per 10m", text=text)))
    for size in ("500", "500", "2000"):
        settled = ledger.decide(ask(sasl_username=user, size=size, instance=""))
        assert make_answer(*settled.answer) == settled.answer
        if settled.verdict == "refuse":
            assert settled.ref is not None
            assert settled.ref in settled.answer.text
    assert settled.verdict == "refuse"


def test_a_reference_is_never_cut_off() -> None:
    """The text before it gives way."""
    for text in ("x" * 400, "x" * 398 + "{ref}", "\u00e4" * 200, "{ref}" + "x" * 395):
        answer = with_ref(Answer("550", text), "7F3K2")
        assert "7F3K2" in answer.text
        assert make_answer(*answer) == answer


hostile = st.text(st.characters(blacklist_categories=("Cs",)), max_size=60)


@given(st.dictionaries(st.sampled_from(("sasl_username", "sender", "recipient", "client_address")), hostile))
def test_what_is_written_down_is_json_and_bindable_whatever_was_sent(attributes: dict[str, str]) -> None:
    """Detail and charges are read back as what was counted; no text holds what SQLite cannot bind."""
    ledger = FakeLedger(
        engine(
            quota_rule("9 messages per 1h", "9KB per 1d"),
            quota_rule("9 messages per 1h", name="sender", per="sender"),
            quota_rule("9 messages per 1h", name="domain", per="sender-domain"),
        )
    )
    settled = ledger.decide(ask(**attributes))
    for text in (settled.detail, settled.charges, settled.would, settled.reason, str(settled.answer)):
        text.encode()
    counted = {CounterKey(*row[:3]): row[3] for row in json.loads(settled.charges or "[]")}
    assert counted == ledger.all_used()
    assert set(json.loads(settled.detail)) == {"checks", "limits"}


def test_a_failed_check_is_told_in_the_detail() -> None:
    """With its error, escaped."""
    heard = Heard("dnsbl", "enforce", None, 7, 'Timeout: "x"\n')
    ledger = FakeLedger(engine())
    settled = ledger.decide(ask(), proposal=Proposal((heard,), DUNNO, "", "", "p0"))
    assert json.loads(settled.detail)["checks"] == [["dnsbl", "enforce", "failed", 7, 'Timeout: "x"\n']]


@pytest.mark.parametrize(
    "action", ["DUNNO", "HOLD sending limit reached", "450 4.7.1 Later; ref X", "PREPEND A: b c"]
)
def test_an_action_is_read_back(action: str) -> None:
    """As it was written down."""
    assert str(parse_action(action)) == action
    assert parse_action("HOLD x").strength == HOLD


def test_mail_from_outside_counts_for_its_client_only() -> None:
    """An outsider who forges alice's address must not use up her quota."""
    ledger = FakeLedger(
        engine(
            quota_rule("9 messages per 1h", name="user"),
            quota_rule("9 messages per 1h", name="sender", per="sender"),
            quota_rule("9 messages per 1h", name="client", per="client"),
        )
    )
    ledger.decide(from_outside(sender="alice@example.org"))
    assert set(ledger.all_used()) == {CounterKey("client", "192.0.2.7", "messages/external")}
