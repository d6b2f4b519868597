"""The detectors over settle, in memory: exact at the line, only for logins, suspended at once, shadow does nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.accounts import COLUMNS, LEARNED, LOGS_LEARNED, PROMOTED, Account
from policyd.answer import make_answer
from policyd.decision import Settled
from policyd.detectors import Surroundings, load, names
from policyd.engine import Engine, Rule
from policyd.marks import above_usual, note
from policyd.match import NetworkSet, parse_network
from policyd.opinion import CounterKey, Opinion
from policyd.sentence import DISTINCT, Sentence, parse_sentence
from policyd.steering import CheckMode, Grant, Milestone
from policyd.suspending import PROBATION, Suspending
from policyd.tiers import Promote, Tier, Tiers
from policyd.units import DAY, HOUR, MINUTE, parse_limit
from policyd.watch import DELIVERIES, FAILURES, Detect, Watch
from tests.fakes import (
    SITE,
    FakeLedger,
    allow_rule,
    ask,
    ban_rule,
    end_of,
    from_outside,
    quota_rule,
    rcpt,
    says,
)

ALICE = "alice@example.org"
TIERS = Tiers(
    "new",
    {
        "new": Tier("new", (parse_limit("1000 recipients per 1d"),), promote=Promote("regular", 14 * DAY, 3)),
        "regular": Tier("regular", (parse_limit("5000 recipients per 1d"),)),
        "bulk": Tier("bulk", (), quiet=True),
    },
    "regular",
)


def detect(
    when: str,
    then: str = "suspend",
    mode: str = "enforce",
    name: str = "marks",
    around: Surroundings | None = None,
) -> Detect:
    sentence = parse_sentence(when)
    detector = load(sentence.noun)(around or Surroundings(SITE)) if sentence.kind == DISTINCT else None
    return Detect(name, sentence, then == "suspend", mode, detector)


def ledger(*detects: Detect, rules: tuple[Rule, ...] = (), tiers: Tiers = TIERS, **ladder: Any) -> FakeLedger:
    made = FakeLedger(Engine([ban_rule(), *rules], watch=Watch(detects, Suspending(**ladder), tiers)))
    made.steering.put("milestone", Milestone(LOGS_LEARNED, "", "root", 1, 0))
    return made


def sends(made: FakeLedger, *recipients: str, instance: str = "", **attributes: str) -> Settled:
    """One mail, at RCPT for each recipient and at its end."""
    instance = instance or f"m{len(made.rows)}"
    for recipient in recipients:
        settled = made.decide(rcpt(instance, recipient, **attributes))
        if settled.verdict == "refuse":
            return settled
    one = recipients[0] if len(recipients) == 1 else ""
    return made.decide(end_of(instance, len(recipients), one, **attributes))


def networks(count: int, first: int = 0) -> list[str]:
    return [f"198.51.{number}.7" for number in range(first, first + count)]


# --- the line ---------------------------------------------------------------------------------------------------------


def test_the_network_too_many_is_refused_and_suspends() -> None:
    """Up to the line all passes; the request that crosses it is refused, with what proves it, and all that follow are."""
    made = ledger(detect("more than 8 client networks per user in 10m"))
    for client in networks(8):
        assert sends(made, "bob@example.net", client_address=client).verdict == "pass"
    settled = sends(made, "bob@example.net", client_address="198.51.100.9")
    assert (settled.verdict, settled.by) == ("refuse", "marks")
    assert settled.reason == "suspended: 9 client networks, more than 8 in 10m"
    assert settled.answer.verb == "550"
    assert settled.ref is not None
    assert settled.ref in settled.answer.text
    row = made.steering.suspensions[ALICE]
    assert (row.detector, row.step, row.ref, row.expires_at) == ("marks", 1, settled.ref, made.now + HOUR)
    evidence = json.loads(row.evidence)
    assert evidence["values"][-1] == "198.51.100.0/24"
    assert len(evidence["decisions"]) == 9
    again = sends(made, "bob@example.net", client_address="198.51.0.7")
    assert (again.verdict, again.by) == ("refuse", "bans")
    assert [event[0] for event in made.events] == ["suspend"]
    assert made.history[0][:2] == ("suspend", ALICE)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=60),
    st.integers(0, 4),
    st.integers(1, 12),
)
def test_the_count_of_distinct_values_is_exact(
    steps: list[tuple[int, int]], amount: int, window: int
) -> None:
    """More than the line within the window is always known, however few values are kept, and never claimed wrongly."""
    sentence = Sentence(DISTINCT, "client networks", amount, window)
    marks: Mapping[str, Sequence[int]] = {}
    seen: list[tuple[int, str]] = []
    now = 0
    for value, passes in steps:
        now += passes
        seen.append((now, str(value)))
        marks, _ = note(marks, [str(value)], sentence, now, 1)
        after = len(marks)
        true = len({value for at, value in seen if at > now - window})
        assert (after > amount) == (true > amount)
        assert after == min(true, amount + 1)
        assert len(marks) <= amount + 1


def test_values_leave_the_window() -> None:
    """Eight networks now and eight more when the first are forgotten are a journey."""
    made = ledger(detect("more than 8 client networks per user in 10m"))
    for turn in range(3):
        for client in networks(8, 8 * turn):
            assert sends(made, "bob@example.net", client_address=client).verdict == "pass"
        made.now += 10 * MINUTE
    assert not made.steering.suspensions


# --- whom it is about -------------------------------------------------------------------------------------------------


def test_nobody_suspends_a_victim_from_outside() -> None:
    """A forged sender, a name without authentication, an own network: none of them is alice."""
    made = ledger(
        detect("more than 1 client network per user in 1h"),
        detect("more than 1 sender address per user in 1h", name="senders"),
    )
    for number in range(50):
        attributes = {"sender": ALICE, "client_address": f"203.0.{number}.9", "instance": f"x{number}"}
        made.decide(from_outside(**attributes))
        made.decide(from_outside(**attributes, sasl_username=ALICE))
        made.decide(
            ask(**{**attributes, "sasl_username": "", "sasl_method": "", "client_address": "127.0.0.1"})
        )
    assert not made.accounts
    assert not made.steering.suspensions


def test_own_and_excepted_networks_do_not_count() -> None:
    """The webmail is one host for all, a provider's pool is many hosts for one."""
    around = Surroundings(SITE, NetworkSet([parse_network("203.0.0.0/16")]))
    made = ledger(detect("more than 1 client network per user in 1h", around=around))
    for client in ["127.0.0.1", "203.0.1.1", "203.0.2.1", "203.0.3.1", "198.51.100.1"]:
        assert sends(made, "bob@example.net", client_address=client).verdict == "pass"


def test_an_ipv6_client_counts_by_its_48() -> None:
    """A host may have all addresses of its /64, a site all of its /48."""
    made = ledger(detect("more than 1 client network per user in 1h"))
    for client in ["2001:db8:1::1", "2001:db8:1:ffff::2"]:
        assert sends(made, "bob@example.net", client_address=client).verdict == "pass"
    assert sends(made, "bob@example.net", client_address="2001:db8:2::1").verdict == "refuse"


def test_who_never_is_suspended_is_alerted_about_once() -> None:
    """``never``: told when the line is crossed, not with each message beyond it."""
    made = ledger(detect("more than 2 client networks per user in 1h"), never=frozenset({"example.org"}))
    for client in networks(9):
        assert sends(made, "bob@example.net", client_address=client).verdict == "pass"
    assert [event[:2] for event in made.events] == [("detect", ALICE)]


def test_an_allow_is_not_looked_at() -> None:
    """Who passes without further checks passes without detectors."""
    made = ledger(
        detect("more than 1 client network per user in 1h"),
        rules=(allow_rule(clients=("198.51.0.0/16",)),),
    )
    for client in networks(5):
        assert sends(made, "bob@example.net", client_address=client).verdict == "pass"
    assert not made.steering.suspensions


# --- recipients -------------------------------------------------------------------------------------------------------


def test_strangers_are_counted_and_known_from_then_on() -> None:
    """Whom it has written to is no stranger; the message with one too many does not pass, whole."""
    made = ledger(detect("more than 5 new recipients per user in 1h"))
    assert sends(made, *[f"r{n}@example.net" for n in range(5)]).verdict == "pass"
    made.now += 2 * HOUR
    assert sends(made, *[f"r{n}@example.net" for n in range(5)]).verdict == "pass"
    assert sends(made, *[f"new{n}@example.net" for n in range(6)]).verdict == "refuse"
    assert (ALICE, "new0@example.net") not in made.met


def test_mail_among_us_and_refused_mail_teach_nothing_new() -> None:
    """Own domains are no strangers; what did not pass counts nothing."""
    made = ledger(
        detect("more than 5 new recipients per user in 1h"),
        rules=(quota_rule("3 recipients per 1h"),),
    )
    assert sends(made, *[f"r{n}@example.org" for n in range(30)]).verdict == "pass"
    for _ in range(3):
        assert sends(made, *[f"x{n}@example.net" for n in range(4)]).by == "quota"
    assert not made.steering.suspensions


def test_without_memory_it_only_alerts() -> None:
    """Until recipients were remembered for 30 days everybody is a stranger."""
    made = ledger(detect("more than 2 new recipients per user in 1h"))
    made.steering.drop("milestone", (LOGS_LEARNED,))
    assert sends(made, *[f"r{n}@example.net" for n in range(9)]).verdict == "pass"
    assert [event[:2] for event in made.events] == [("detect", ALICE)]
    made.steering.put("milestone", Milestone("memory", "", "policyd", made.now - 31 * DAY, 0))
    assert sends(made, "other@example.net").verdict == "refuse"


@pytest.mark.parametrize("quiet", ["grant", "bulk"])
def test_a_grant_and_bulk_quiet_what_looks_at_volume(quiet: str) -> None:
    """Not what looks at the marks of a thief."""
    made = ledger(
        detect("more than 2 new recipients per user in 1h"),
        detect("more than 2 client networks per user in 1h", name="thief"),
    )
    if quiet == "grant":
        made.steering.put("user_grant", Grant(1, ALICE, "recipients", 9, "", "", 1, 0))
    else:
        account = made.change(ALICE)
        account.tier, account.tier_by = "bulk", "hand"
    assert sends(made, *[f"r{n}@example.net" for n in range(9)]).verdict == "pass"
    sends(made, "bob@example.net", client_address="198.51.1.1")
    assert sends(made, "bob@example.net", client_address="198.51.2.1").by == "thief"


# --- breaches and refusals --------------------------------------------------------------------------------------------


def test_an_application_that_tries_again_is_no_criminal() -> None:
    """The same message is one breach, however often it comes; different ones count."""
    made = ledger(
        detect("more than 3 quota breaches per user in 1h"), rules=(quota_rule("0 messages per 1h"),)
    )
    for _ in range(50):
        assert made.decide(end_of("", 1, "bob@example.net", size="1000")).by == "quota"
    for number in range(2):
        assert made.decide(end_of("", 1, "bob@example.net", size=f"{number}")).by == "quota"
    assert made.decide(end_of("", 1, "bob@example.net", size="7")).by == "marks"


def test_what_other_checks_refuse_counts_quotas_and_bans_do_not() -> None:
    """A thief tries senders; each different mail is one."""
    forged = says(
        lambda request: Opinion(make_answer("550", "5.7.1 no")) if request.sender_key != ALICE else None
    )
    made = ledger(detect("more than 2 refused requests per user in 1h"), rules=(forged,))
    for _ in range(9):
        assert made.decide(rcpt("", "bob@example.net", sender="ceo@example.com")).by == "later"
    made.decide(rcpt("", "bob@example.net", sender="cfo@example.com"))
    assert made.decide(rcpt("", "bob@example.net", sender="cto@example.com")).by == "marks"


# --- the third form and the second ------------------------------------------------------------------------------------


def test_far_above_the_own_past() -> None:
    """A quiet account that sends fifty in an hour is told of; one that always does is not."""
    made = ledger(detect("more than 5 times the usual recipients per user in 1h, at least 20", then="alert"))
    for _ in range(10):
        sends(made, "a@example.net", "b@example.net", "c@example.net")
        made.now += DAY
    for number in range(7):
        sends(made, f"r{number}@example.net", f"s{number}@example.net")
    assert not made.events
    sends(made, *[f"r{n}@example.net" for n in range(6)])
    ((kind, user, facts),) = made.events
    assert (kind, user) == ("detect", ALICE)
    assert facts["reason"] == "20 recipients in 1h, more than 5 times the usual 3"


@pytest.mark.parametrize("left", ["192.0.2.0/24", "", "\u00b2", "9" * 256, str(DAY)])
def test_what_another_sentence_left_adds_nothing_up(left: str) -> None:
    """A detector may change its kind or window under one name: what the old one noted neither crashes nor counts."""
    account, now = Account(ALICE), 1000 * DAY
    account.marks = {"d": {left: (100, 1)}}
    account.past = {f"messages/{HOUR}": [(day, 1) for day in range(990, 1000)]}
    sentence = parse_sentence("more than 5 times the usual messages per user in 1h, at least 20")
    assert above_usual(account, "d", sentence, 1, now, 2) == (False, "")
    assert account.busiest()[f"messages/{HOUR}"][-1] == (1000, 1)


def test_failed_deliveries() -> None:
    """A share of enough deliveries; told once until it is well again."""
    made = ledger(detect("more than 30% failed of at least 20 deliveries per user in 1h", then="alert"))
    for unit, amount in ((DELIVERIES, 20), (FAILURES, 6)):
        made.charge(CounterKey("user", ALICE, unit), (MINUTE,), amount, made.now)
    sends(made, "bob@example.net")
    assert not made.events
    made.charge(CounterKey("user", ALICE, FAILURES), (MINUTE,), 1, made.now)
    for _ in range(3):
        sends(made, "bob@example.net")
    assert [event[2]["reason"] for event in made.events] == ["7 of 20 deliveries failed in 1h"]


# --- what follows -----------------------------------------------------------------------------------------------------


def test_each_suspension_is_longer_until_strikes_are_forgotten() -> None:
    """The ladder; after it, permanent. After a suspension the account is on probation, and its marks begin anew."""
    made = ledger(
        detect("more than 1 client network per user in 1h"),
        ladder=(HOUR, 24 * HOUR, 0),
        forget_after=30 * DAY,
    )
    account = made.change(ALICE)
    account.tier, account.tier_by = "regular", LEARNED

    def steals() -> None:
        for client in networks(2):
            sends(made, "bob@example.net", client_address=client)

    for step, lasts in ((1, HOUR), (2, 24 * HOUR), (3, 0)):
        steals()
        row = made.steering.suspensions[ALICE]
        assert (row.step, row.expires_at) == (step, made.now + lasts if lasts else 0)
        if lasts:
            made.now += lasts
            assert sends(made, "bob@example.net", client_address="198.51.0.7").verdict == "pass"
            account = made.account(ALICE)
            assert (account.tier, account.tier_of(TIERS, made.now)) == ("", "new")
            assert account.probation_until == row.expires_at + PROBATION
            made.now += 2 * HOUR
    made.steering.drop("suspension", (ALICE,))
    made.now += 30 * DAY
    steals()
    assert made.steering.suspensions[ALICE].step == 1


@pytest.mark.parametrize("how", ["mode", "paused", "set"])
def test_in_shadow_it_only_says_what_it_would_do(how: str) -> None:
    """Nothing is suspended, nobody is alerted; the record has it once."""
    made = ledger(
        detect("more than 1 client network per user in 1h", mode="shadow" if how == "mode" else "enforce")
    )
    if how != "mode":
        name = "*" if how == "paused" else "marks"
        made.steering.put("check_mode", CheckMode(name, "shadow", "", "", 1, 0))
    woulds = [sends(made, "bob@example.net", client_address=client).would for client in networks(4)]
    assert not any((made.steering.suspensions, made.events, made.history))
    assert [settled.would for _, settled, _ in made.rows if settled.would] == [
        "marks: suspend: 2 client networks, more than 1 in 1h"
    ]
    assert woulds[0] == ""


def test_a_repetition_is_not_looked_at_twice() -> None:
    """Postfix asks again when an answer was lost: nothing more is seen by it."""
    made = ledger(detect("more than 2 recipients per user in 1h"))
    for _ in range(5):
        assert sends(made, "a@example.net", "b@example.net", instance="same").verdict == "pass"
    assert made.account(ALICE).messages == 1


def test_clean_sending_leads_to_the_next_tier_and_a_finding_begins_anew() -> None:
    """Time and messages, both; by hand stays by hand."""
    made = ledger(detect("more than 3 client networks per user in 1h", then="alert"))
    for _ in range(3):
        sends(made, "bob@example.net")
    assert made.account(ALICE).tier_of(TIERS, made.now) == "new"
    made.now += 13 * DAY
    for client in networks(4):
        sends(made, "bob@example.net", client_address=client)
    made.now += 2 * DAY
    sends(made, "bob@example.net")
    assert made.account(ALICE).tier == ""
    made.now += 12 * DAY
    sends(made, "bob@example.net")
    account = made.account(ALICE)
    assert (account.tier, account.tier_by) == ("regular", PROMOTED)
    assert made.history[-1] == ("tier", ALICE, "new -> regular: clean sending for 14d")


def test_nearly_used_up_is_told_and_used_up_too() -> None:
    """Events for whoever wants to be alerted; mail that passed only."""
    made = ledger(rules=(quota_rule("10 messages per 1h"),))
    for _ in range(12):
        sends(made, "bob@example.net")
    assert [(kind, facts["used"]) for kind, _, facts in made.events] == [
        ("quota-80%", 8),
        ("quota-100%", 10),
        ("quota-100%", 10),
    ]


# --- the account as a row ---------------------------------------------------------------------------------------------


def test_an_account_is_read_as_it_was_written() -> None:
    """All columns; what is damaged is an error."""
    account = Account(ALICE)
    account.tier, account.tier_by, account.tier_since = "regular", LEARNED, 5
    account.marks, account.past, account.strikes = {"m": {"ä": [1, 2]}}, {"recipients/1": [(3, 4)]}, (7,)
    again = Account.of_row(account.row())
    assert again.row() == account.row()
    assert again.copy().row() == account.row()
    with pytest.raises(ValueError, match="damaged"):
        Account.of_row((*account.row()[:-1], "[]"))


def test_every_detector_has_a_line_for_the_manual() -> None:
    """And is found by its words."""
    for name in names():
        assert load(name).counts
    with pytest.raises(LookupError, match="it counts client networks"):
        load("hats")


step = st.tuples(
    st.sampled_from(["rcpt", "end", "refused"]),
    st.integers(0, 3),
    st.integers(0, 2),
    st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True),
    st.sampled_from([0, 1, MINUTE, 6 * MINUTE, 11 * MINUTE]),
)


@given(st.lists(step, max_size=40), st.sampled_from(["suspend", "alert"]))
def test_a_request_like_the_one_before_is_looked_at_as_any_other(
    steps: list[tuple[str, int, int, list[int], int]], then: str
) -> None:
    """Noting only that it came again leaves the same marks, findings and verdicts as looking at it."""
    whens = (
        "more than 2 client networks per user in 10m",
        "more than 1 sender address per user in 10m",
        "more than 3 recipients per user in 10m",
        "more than 3 new recipients per user in 10m",
    )
    refuses = says(
        lambda request: Opinion(make_answer("550", "5.7.1 no")) if request.helo_name == "no" else None
    )
    both = [
        ledger(*[detect(when, then, name=f"d{n}") for n, when in enumerate(whens)], rules=(refuses,))
        for _ in range(2)
    ]
    for number, (kind, client, sender, recipients, pause) in enumerate(steps):
        verdicts = []
        for made, slow in zip(both, (False, True), strict=True):
            made.now += pause
            account = made.change(ALICE)
            if slow:
                account.marks, account.asked, account.sent = account.seen(), None, None
            attributes = {
                "client_address": f"198.51.{client}.7",
                "sender": f"s{sender}@example.org",
                "helo_name": "no" if kind == "refused" else "host",
            }
            names = [f"r{recipient}@example.net" for recipient in recipients]
            if kind == "end":
                settled = sends(made, *names, instance=f"m{number}", **attributes)
            else:
                settled = made.decide(rcpt(f"m{number}", names[0], **attributes))
            verdicts.append((settled.verdict, settled.by, settled.reason))
        assert verdicts[0] == verdicts[1]
    held = [
        {
            name: {value: tuple(entry) for value, entry in marks.items() if entry[0] > made.now - 10 * MINUTE}
            for name, marks in made.change(ALICE).seen().items()
        }
        for made in both
    ]
    # What has left the window may stay a little longer, and counts no more.
    assert {name: marks for name, marks in held[0].items() if marks} == {
        name: marks for name, marks in held[1].items() if marks
    }
    assert both[0].events == both[1].events
    assert both[0].met == both[1].met


def test_a_reloaded_policy_sees_what_only_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that is added looks at the client that was there before, too: the second network is one too many."""
    made = ledger(detect("more than 9 sender addresses per user in 1h"))
    sends(made, "bob@example.net", client_address="198.51.1.1")
    added = ledger(detect("more than 1 client network per user in 1h"))
    made.chain = added.chain
    assert sends(made, "bob@example.net", client_address="198.51.1.1").verdict == "pass"
    assert sends(made, "bob@example.net", client_address="198.51.2.1").by == "marks"


def test_what_a_client_claims_has_no_bound_and_is_bounded() -> None:
    """Recipients that Postfix did not name are as many as can be told apart."""
    made = ledger(detect("more than 2000 recipients per user in 1h"))
    settled = made.decide(end_of("x", 2**53))
    assert settled.reason == "suspended: 2001 recipients, more than 2000 in 1h"


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("strikes", '["x"]'), ("strikes", "{}"), ("marks", '{"d": 5}'), ("marks", '{"d": {"v": [1]}}'), ("marks", "\0"),
        ("past", '{"recipients/1": [[1, "x"]]}'), ("past", "[" * 100_000),
    ],
)  # fmt: skip
def test_of_a_damaged_row_the_rest_holds(column: str, text: str) -> None:
    """A tier given by hand and a probation are not lost with the marks."""
    account = Account(ALICE)
    account.put_into("verified", "hand", 5)
    account.strikes, account.marks, account.past = (7,), {"d": {"v": [1, 2]}}, {"recipients/1": [[3, 4]]}
    row = [text if name == column else value for name, value in zip(COLUMNS, account.row(), strict=True)]
    read, damaged = Account.as_readable(row)
    assert damaged == [column]
    assert (read.tier, read.tier_by, read.tier_since) == ("verified", "hand", 5)
    assert [name for name in ("strikes", "marks", "past") if getattr(read, name)] == [
        name for name in ("strikes", "marks", "past") if name != column
    ]


def test_what_nobody_looks_for_any_more_leaves_the_row() -> None:
    """Detectors come and go with the years; an account does not carry what all of them have seen."""
    made = ledger(
        detect("more than 9 client networks per user in 1h", name="old"),
        detect("more than 5 times the usual recipients per user in 1h, at least 20", "alert", name="sums"),
    )
    sends(made, "bob@example.net")
    made.chain = ledger(detect("more than 9 sender addresses per user in 1h", name="new")).chain
    sends(made, "bob@example.net")
    assert list(made.account(ALICE).seen()) == ["new/sender addresses"]
