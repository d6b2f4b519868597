"""Greylisting: a stranger waits, what tries again passes, and no sequence of tries breaks that."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.answer import DUNNO, REFUSE
from policyd.checks import Context
from policyd.checks.greylist import Asked, Check, Options
from policyd.greylisting import CLIENT, PASSED, WAITING
from policyd.inquiry import Finding, Inquiry
from policyd.opinion import Memory, MemoryKey, Opinion, Recalled
from policyd.request import Request, Site
from policyd.steering import Entry, Steering, canonical_value
from policyd.units import DAY, HOUR, MINUTE, SECOND

SITE = Site(domains=frozenset({"example.org"}))
NOW = 1_000 * DAY
DELAY = 5 * MINUTE


def read(**given: Any) -> Options:
    """The options as the configuration reads them."""
    readers = {name: field.metadata["read"] for name, field in Options.__dataclass_fields__.items()}
    return Options(**{name: readers[name](value) for name, value in given.items()})


def request(stage: str = "RCPT", **attributes: str) -> Request:
    return SITE.request(
        {
            "protocol_state": stage,
            "client_address": "192.0.2.7",
            "client_name": "mail.example.net",
            "sender": "alice@example.net",
            "recipient": "bob@example.org",
            **attributes,
        }
    )


def asked(
    check: Check,
    of: Request,
    steering: Steering | None = None,
    findings: dict[str, Finding] | None = None,
) -> Opinion | None:
    inquiry = Inquiry()
    inquiry.findings.update(findings or {})
    with pytest.raises(StopIteration) as stop:
        check.check(of, NOW, steering or Steering(), inquiry).send(None)
    opinion: Opinion | None = stop.value.value
    return opinion


class Server:
    """A greylist with its memory, as settle and the store keep it."""

    def __init__(self, **options: Any) -> None:
        self.check = Check(read(**options), Context("greylist", "mx"))
        self.memory: dict[MemoryKey, Memory] = {}

    def judge(
        self, now: int, of: Request | None = None, findings: dict[str, Finding] | None = None
    ) -> Recalled | None:
        opinion = asked(self.check, of or request(), findings=findings)
        assert opinion is not None
        if opinion.recall is None:
            return None
        known = {
            key: self.memory[key]
            for key in opinion.recall.keys
            if key in self.memory and self.memory[key].expires_at > now
        }
        return opinion.recall.judge(of or request(), now, known)

    def tries(self, now: int, of: Request | None = None, **findings: Finding) -> str:
        """Try at ``now``; the verb that is answered."""
        recalled = self.judge(now, of, findings)
        if recalled is None:
            return "DUNNO"
        self.memory.update(recalled.remember)
        return recalled.opinion.answer.verb if recalled.opinion is not None else "DUNNO"


# --- whom it looks at ----------------------------------------------------------------------------------------------------


def test_it_asks_for_the_triplet() -> None:
    """The keys are those of the network, the normalised sender and the recipient."""
    opinion = asked(
        Check(Options(), Context("greylist", "mx")), request(sender="prvs=0123abcdef=Alice+x@Example.net")
    )
    assert opinion is not None
    assert opinion.answer is DUNNO
    assert isinstance(opinion.recall, Asked)
    key = "192.0.2.0/24 alice@example.net bob@example.org"
    assert opinion.recall.keys == (
        MemoryKey(WAITING, key),
        MemoryKey(PASSED, key),
        MemoryKey(CLIENT, "192.0.2.0/24"),
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {"sasl_method": "plain", "sasl_username": "carol"},
        {"ccert_subject": "x", "ccert_fingerprint": "AA:BB", "policy_context": "submission"},
        {"policy_context": "submission"},
        {"stress": "yes"},
        {"client_address": "unknown"},
        {"client_address": ""},
    ],
)
def test_it_delays_none_of_our_own_and_nobody_without_an_address(attributes: dict[str, str]) -> None:
    """Submission in every form, Postfix under stress, and a client of which nothing could be remembered."""
    assert asked(Check(Options(), Context("greylist", "any")), request(**attributes)) is None


def test_under_stress_by_choice() -> None:
    """Who wants it delays then, too."""
    check = Check(read(even_under_stress=True), Context("greylist", "mx"))
    assert asked(check, request(stress="yes")) is not None


def test_the_null_sender_is_a_sender() -> None:
    """Bounces have a triplet; they come back like other mail."""
    server = Server()
    assert server.tries(NOW, request(sender="")) == "DEFER_IF_PERMIT"
    assert server.tries(NOW + DELAY, request(sender="")) == "PREPEND"
    assert [key.key for key in server.memory if key.kind == PASSED] == ["192.0.2.0/24 <> bob@example.org"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("client", "192.0.2.0/25"),
        ("client", ".example.net"),
        ("sender", "Alice@example.net"),
        ("domain", "net"),
        ("recipient", "bob@example.org"),
    ],
)
def test_who_is_excepted_is_not_delayed(kind: str, value: str) -> None:
    """By the file or by hand, and the opinion says which entry; it does not end the chain."""
    check = Check(read(**{f"except_{kind}s": [value]}), Context("greylist", "mx"))
    steering = Steering()
    steering.put("greylist_allow", Entry(kind, canonical_value(kind, value), "", "root", 1, 0))
    by_hand = asked(Check(Options(), Context("greylist", "mx")), request(), steering)
    for opinion in (asked(check, request()), by_hand):
        assert opinion is not None
        assert opinion.recall is None
        assert not opinion.final
        assert opinion.reason == f"not greylisted: {kind} {canonical_value(kind, value)}"
    stranger = request(
        client_address="198.51.100.1",
        client_name="unknown",
        sender="x@example.com",
        recipient="y@example.org",
    )
    looked_at = asked(check, stranger)
    assert looked_at is not None
    assert looked_at.recall is not None


def test_an_allow_by_hand_ends() -> None:
    """At its end, to the millisecond."""
    steering = Steering()
    steering.put("greylist_allow", Entry("domain", "example.net", "", "root", 1, NOW))
    opinion = asked(Check(Options(), Context("greylist", "mx")), request(), steering)
    assert opinion is not None
    assert opinion.recall is not None


def test_what_cannot_work_is_an_error_of_the_configuration() -> None:
    """No delay can end after its window; mail of one's own is never delayed."""
    with pytest.raises(ValueError, match="retry_window = '5m' is not longer than delay = '5m'"):
        Check(read(retry_window="5m"), Context("greylist", "mx"))
    with pytest.raises(ValueError, match="'0s' is no delay; write 1s or more"):
        read(delay="0s")
    with pytest.raises(ValueError, match="write for = 'mx'"):
        Check(Options(), Context("greylist", "submission"))


# --- the course of a triplet ---------------------------------------------------------------------------------------------


def test_the_course_of_a_mail() -> None:
    """Deferred, too early, passed with the header, known without one."""
    server = Server()
    first = server.judge(NOW)
    assert first is not None
    assert first.opinion is not None
    assert (
        str(first.opinion.answer) == "DEFER_IF_PERMIT 4.2.0 Greylisted; try again in 300 seconds. ref {ref}"
    )
    assert first.opinion.answer.strength == REFUSE
    assert first.opinion.reason == "greylisted: first seen"
    server.memory.update(first.remember)
    early = server.judge(NOW + 88_500)
    assert early is not None
    assert early.opinion is not None
    assert (
        str(early.opinion.answer) == "DEFER_IF_PERMIT 4.2.0 Greylisted; try again in 212 seconds. ref {ref}"
    )
    assert early.opinion.reason == "greylisted: too early, 1m28s after the first"
    assert not early.remember
    passes = server.judge(NOW + 312_400)
    assert passes is not None
    assert passes.opinion is not None
    assert str(passes.opinion.answer) == "PREPEND X-Greylist: delayed 312 seconds by policyd"
    assert passes.opinion.reason == "passes, 5m12s after the first"
    server.memory.update(passes.remember)
    known = server.judge(NOW + DAY)
    assert known is not None
    assert known.opinion == Opinion(reason="known, mail 2")


def test_texts_can_be_changed() -> None:
    """The header can be left out, the text has the seconds and the reference."""
    server = Server(header="", text="Later: {seconds} s, {ref}")
    recalled = server.judge(NOW)
    assert recalled is not None
    assert recalled.opinion is not None
    assert str(recalled.opinion.answer) == "DEFER_IF_PERMIT 4.2.0 Later: 300 s, {ref}"
    server.memory.update(recalled.remember)
    assert server.tries(NOW + DELAY) == "DUNNO"


@pytest.mark.parametrize(
    ("attributes", "verb"),
    [
        ({"client_address": "192.0.2.200"}, "PREPEND"),
        ({"client_address": "198.51.100.7"}, "DEFER_IF_PERMIT"),
        ({"sender": "alice+tag@example.net"}, "PREPEND"),
        ({"sender": "carol@example.net"}, "DEFER_IF_PERMIT"),
        ({"recipient": "Bob@Example.org"}, "PREPEND"),
        ({"recipient": "dave@example.org"}, "DEFER_IF_PERMIT"),
    ],
)
def test_each_part_of_the_triplet_counts(attributes: dict[str, str], verb: str) -> None:
    """Another address of the network is the same client; another sender or recipient is another triplet."""
    server = Server()
    server.tries(NOW)
    assert server.tries(NOW + DELAY, request(**attributes)) == verb


def test_too_late_begins_anew() -> None:
    """After the retry window the triplet is a stranger's again."""
    server = Server()
    server.tries(NOW)
    assert server.tries(NOW + 2 * DAY) == "DEFER_IF_PERMIT"
    assert server.tries(NOW + 2 * DAY + DELAY) == "PREPEND"


def test_it_is_known_as_long_as_it_writes() -> None:
    """Each mail makes it known anew; after `expire` without one it is forgotten."""
    server = Server(auto_allow=0)
    server.tries(NOW)
    last = NOW + DELAY
    server.tries(last)
    for _ in range(3):
        last += 35 * DAY - 1
        assert server.tries(last) == "DUNNO"
    assert server.tries(last + 35 * DAY) == "DEFER_IF_PERMIT"


def test_a_longer_delay_of_a_second_check_holds() -> None:
    """Two greylist checks share what they remember; that the first let it pass is nothing to the second."""
    quick, slow = Server(delay="1m"), Server(delay="1h")
    slow.memory = quick.memory
    quick.tries(NOW)
    assert quick.tries(NOW + 2 * MINUTE) == "PREPEND"
    assert slow.tries(NOW + 2 * MINUTE) == "DEFER_IF_PERMIT"
    assert slow.tries(NOW + HOUR) == "DUNNO"


def test_a_time_of_another_clock_begins_anew() -> None:
    """What is remembered from the future delays nobody for years."""
    server = Server()
    key = "192.0.2.0/24 alice@example.net bob@example.org"
    server.memory[MemoryKey(WAITING, key)] = Memory(NOW + DAY, NOW + DAY, 0, NOW + 3 * DAY)
    assert server.tries(NOW) == "DEFER_IF_PERMIT"
    assert server.tries(NOW + DELAY) == "PREPEND"


# --- clients and pools ---------------------------------------------------------------------------------------------------


def test_a_client_is_not_delayed_any_more_after_so_many_successes() -> None:
    """At most one an hour counts; then strangers from there pass at once, as long as it sends."""
    server = Server()
    now = NOW
    client = MemoryKey(CLIENT, "192.0.2.0/24")
    for number in range(5):
        mails = [request(sender=f"{name}{number}@example.net") for name in ("a", "b", "c")]
        assert [server.tries(now, mail) for mail in mails] == ["DEFER_IF_PERMIT"] * 3
        now += HOUR
        verbs = [server.tries(now, mail) for mail in mails]
        assert verbs == (["PREPEND"] * 3 if number < 4 else ["PREPEND", "DUNNO", "DUNNO"])
        assert server.memory[client].hits == number + 1
    assert server.tries(now, request(sender="new@example.com")) == "DUNNO"
    for _ in range(3):
        now += 35 * DAY - 1
        assert server.tries(now, request(sender="newer@example.com")) == "DUNNO"
    assert server.tries(now + 36 * DAY, request(sender="newest@example.com")) == "DEFER_IF_PERMIT"


def test_without_auto_allow_nothing_of_a_client_is_remembered() -> None:
    """auto_allow = 0: the triplet alone, however often it passes; and what waited has served once it passed."""
    server = Server(auto_allow=0)
    assert server.tries(NOW) == "DEFER_IF_PERMIT"
    assert server.tries(NOW + HOUR) == "PREPEND"
    assert server.tries(NOW + 2 * HOUR) == "DUNNO"
    key = "192.0.2.0/24 alice@example.net bob@example.org"
    assert set(server.memory) == {MemoryKey(WAITING, key), MemoryKey(PASSED, key)}
    assert server.memory[MemoryKey(WAITING, key)].expires_at == NOW + HOUR


def test_an_allowed_client_is_written_down_once_an_hour() -> None:
    """Its mail costs no row each."""
    server = Server(auto_allow=1)
    client = MemoryKey(CLIENT, "192.0.2.0/24")
    server.memory[client] = Memory(NOW, NOW, 1, NOW + DAY)
    soon, later = server.judge(NOW + HOUR - 1), server.judge(NOW + HOUR)
    assert soon is not None
    assert later is not None
    assert not soon.remember
    assert later.remember == {client: Memory(NOW, NOW + HOUR, 1, NOW + HOUR + 35 * DAY)}
    assert soon.opinion == Opinion(reason="client passed 1 times")


def test_a_pool_passes_by_spf() -> None:
    """The next try comes from another network: with SPF pass for the domain it is the same sender, without it is not."""
    server = Server()
    other = request(client_address="198.51.100.7")
    assert server.tries(NOW, spf="pass") == "DEFER_IF_PERMIT"
    assert server.tries(NOW + DELAY, other, spf="softfail") == "DEFER_IF_PERMIT"
    assert server.tries(NOW + DELAY, other, spf="pass") == "PREPEND"
    assert MemoryKey(CLIENT, "@example.net") in server.memory


def test_spf_of_the_null_sender_makes_no_pool() -> None:
    """The result is the HELO name's then; it says nothing of a sender's domain."""
    opinion = asked(Check(Options(), Context("greylist", "mx")), request(sender=""), findings={"spf": "pass"})
    assert opinion is not None
    assert opinion.recall is not None
    assert opinion.recall.keys[0].key.startswith("192.0.2.0/24 <> ")


def test_spf_under_another_name_or_not_at_all() -> None:
    """The check is named in `spf`; empty asks none."""
    for name, found in (("spf-mx", "@example.net"), ("", "192.0.2.0/24")):
        check = Check(read(spf=name), Context("greylist", "mx"))
        opinion = asked(check, request(), findings={"spf-mx": "pass", "spf": "fail"})
        assert opinion is not None
        assert opinion.recall is not None
        assert opinion.recall.keys[0].key.startswith(found + " ")


# --- whatever comes ------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(("a", "b")),
        st.one_of(
            st.integers(0, 2 * DELAY),
            st.sampled_from((DELAY, DELAY - 1, 2 * DAY, 2 * DAY - 1, 35 * DAY, 35 * DAY - 1, HOUR)),
        ),
    ),
    max_size=40,
)


@given(steps, st.integers(0, 3))
def test_no_course_of_tries_breaks_the_rules(steps: list[tuple[str, int]], auto_allow: int) -> None:
    """Against a model that keeps every try: nobody passes early, nobody who kept the window is deferred for ever."""
    server = Server(auto_allow=auto_allow)
    now = NOW
    begun: dict[str, int] = {}
    passed: dict[str, int] = {}
    client: tuple[int, int] | None = None
    for sender, pause in steps:
        now += pause
        mail = request(sender=f"{sender}@example.net")
        free = (
            bool(auto_allow) and client is not None and client[0] >= auto_allow and now < client[1] + 35 * DAY
        )
        if client is not None and now >= client[1] + 35 * DAY:
            client = None
        if sender in passed and now >= passed[sender] + 35 * DAY:
            del passed[sender]
            begun.pop(sender, None)
        if sender not in passed and sender in begun and now >= begun[sender] + 2 * DAY:
            del begun[sender]
        expected = "DUNNO"
        if free and client is not None:
            # Seen once an hour: what is written down may lag by that.
            client = (client[0], now if now - client[1] >= HOUR else client[1])
        elif sender in passed:
            passed[sender] = now
        elif sender not in begun:
            begun[sender], expected = now, "DEFER_IF_PERMIT"
        elif now - begun[sender] < DELAY:
            expected = "DEFER_IF_PERMIT"
        else:
            passed[sender], expected = now, "PREPEND"
            if client is None:
                client = (1, now)
            elif now - client[1] >= HOUR:
                client = (client[0] + 1, now)
        assert server.tries(now, mail) == expected


facts = st.builds(
    Memory,
    st.integers(NOW - 3 * DAY, NOW + DAY),
    st.integers(NOW - 3 * DAY, NOW + DAY),
    st.integers(0, 10),
    st.integers(NOW + 1, NOW + 40 * DAY),
)


@given(st.booleans(), st.booleans(), st.booleans(), facts, facts, facts, st.integers(0, 3))
def test_judge_is_pure_and_remembers_only_its_own(
    waits: bool,
    has_passed: bool,
    proved: bool,
    waiting: Memory,
    passed: Memory,
    client: Memory,
    auto_allow: int,
) -> None:
    """Whatever is remembered: the same twice, only its own keys, times within bounds, and never an answer but these."""
    opinion = asked(Check(read(auto_allow=auto_allow), Context("greylist", "mx")), request())
    assert opinion is not None
    recall = opinion.recall
    assert recall is not None
    rows = zip(recall.keys, (waits, has_passed, proved), (waiting, passed, client), strict=False)
    known = {key: fact for key, there, fact in rows if there}
    first, second = (recall.judge(request(), NOW, dict(known)) for _ in range(2))
    assert first == second
    assert set(first.remember) <= set(recall.keys)
    assert first.opinion is not None
    assert first.opinion.answer.verb in ("DUNNO", "PREPEND", "DEFER_IF_PERMIT")
    for fact in first.remember.values():
        assert fact.first_at <= NOW <= fact.expires_at <= NOW + 35 * DAY or fact.first_at > NOW
        assert fact.last_at >= 0
    if first.opinion.answer.verb == "DEFER_IF_PERMIT":
        seconds = int(first.opinion.answer.text.split("try again in ")[1].split(" ")[0])
        assert 1 <= seconds <= DELAY // SECOND
