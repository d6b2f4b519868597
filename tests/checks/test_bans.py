"""Banned ones are refused at every stage; what is in `never` is not; nobody is refused for another's name."""

from __future__ import annotations

import re
from typing import Any

import pytest

from policyd.answer import DUNNO, MAX_TEXT_BYTES, make_answer
from policyd.checks import Context
from policyd.checks.bans import Check, Options
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion
from policyd.request import STAGES, Request, Site
from policyd.steering import Entry, Steering, canonical_value

ALICE = "alice@example.org"
LOGIN = {"sasl_method": "plain", "sasl_username": ALICE}


def banned(*entries: tuple[str, str], until: int = 0) -> Steering:
    steering = Steering()
    for kind, value in entries:
        steering.put("ban", Entry(kind, canonical_value(kind, value), "spam", "admin", 1, until))
    return steering


def request(stage: str = "RCPT", **attributes: str) -> Request:
    return Site(default_domain="example.org").request(
        {
            "protocol_state": stage,
            "client_address": "203.0.113.9",
            "client_name": "mail.example.com",
            "sender": "Carol@Lists.Example.com",
            "recipient": "bob@example.org",
            **attributes,
        }
    )


def check(**options: Any) -> Check:
    readers = {name: field.metadata["read"] for name, field in Options.__dataclass_fields__.items()}
    return Check(
        Options(**{name: readers[name](value) for name, value in options.items()}), Context("bans", "any")
    )


def ask(one: Check, of: Request, steering: Steering, now: int = 5) -> Opinion:
    with pytest.raises(StopIteration) as stop:
        one.check(of, now, steering, Inquiry()).send(None)
    opinion = stop.value.value
    assert isinstance(opinion, Opinion)
    assert opinion.standing is one, "settle asks again with what is in the database then"
    # What settle asks is the same question.
    judged = one.judge(of, steering, now)
    assert (judged is None) == (opinion.answer == DUNNO)
    assert judged is None or judged == opinion
    return opinion


def refused(of: Request, *entries: tuple[str, str], **options: Any) -> str:
    """The reason of the refusal; empty when there is none."""
    return ask(check(**options), of, banned(*entries)).reason


@pytest.mark.parametrize(
    ("kind", "value", "attributes"),
    [
        ("user", ALICE, LOGIN),
        ("user", ALICE, {"sasl_method": "login", "sasl_username": "Alice"}),
        ("user", "Alice@EXAMPLE.org", {"sasl_method": "plain", "sasl_username": "ALICE@example.org."}),
        (
            "user",
            "cert:ab:cd",
            {"ccert_subject": "x", "ccert_pubkey_fingerprint": "AB:CD", "policy_context": "submission"},
        ),
        ("sender", "carol@lists.example.com", {}),
        ("sender", "carol@lists.example.com", {"sender": "CAROL@lists.example.com."}),
        ("sender", "<>", {"sender": ""}),
        ("domain", "lists.example.com", {}),
        ("domain", "example.com", {}),
        ("domain", ".example.com", {}),
        ("domain", "example.com", {"sender": "x" * 1_000 + "@example.com"}),
        ("client", "203.0.113.9", {}),
        ("client", "203.0.113.9", {"client_address": "::ffff:203.0.113.9"}),
        ("client", "203.0.113.0/24", {}),
        ("client", "2001:db8::/32", {"client_address": "2001:db8::1"}),
        ("client", "mail.example.com", {}),
        ("client", "example.com", {"client_name": "Mail.EXAMPLE.com."}),
    ],
)
def test_a_ban_refuses(kind: str, value: str, attributes: dict[str, str]) -> None:
    """For good, with the kind in the text and the entry in the reason."""
    opinion = ask(check(), request(**attributes), banned((kind, value)))
    shown = "login" if kind == "user" else kind
    assert opinion.answer == make_answer(
        "550", f"5.7.1 Sending is not permitted for this {shown}; contact postmaster. ref {{ref}}"
    )
    assert opinion.reason == f"banned {kind} {canonical_value(kind, value) or '<>'}"
    assert not opinion.final


@pytest.mark.parametrize(
    ("kind", "value", "attributes"),
    [
        # A login's ban needs the login: who forges the name from outside is another matter.
        ("user", ALICE, {}),
        ("user", ALICE, {"sender": ALICE}),
        ("user", ALICE, {"sasl_username": ALICE}),
        ("user", ALICE, {"sasl_method": "plain", "sasl_username": "bob"}),
        ("sender", ALICE, LOGIN),
        ("sender", "<>", {}),
        ("domain", "lists.example.com", {"sender": ""}),
        ("domain", ".lists.example.com", {}),
        ("domain", "example.org", LOGIN),
        ("client", "203.0.113.8", {}),
        ("client", "203.0.113.9", {"client_address": "unknown"}),
        ("client", "unknown.example", {"client_name": "unknown"}),
        ("client", "bad.example", {"reverse_client_name": "bad.example", "helo_name": "bad.example"}),
    ],
)
def test_a_ban_of_something_else_does_not(kind: str, value: str, attributes: dict[str, str]) -> None:
    """No refusal, but the intent to ask again when the decision is settled."""
    opinion = ask(check(), request(**attributes), banned((kind, value)))
    assert (opinion.answer, opinion.reason, opinion.final) == (DUNNO, "", False)


def test_without_bans_nothing_is_looked_up() -> None:
    """The common case."""
    assert ask(check(), request(**LOGIN), Steering()).answer == DUNNO
    assert check().judge(request(**LOGIN), Steering(), 5) is None


@pytest.mark.parametrize("stage", [*STAGES, "NEW-STAGE"])
def test_it_is_asked_at_every_stage(stage: str) -> None:
    """Also within a session that is open; the null sender's ban waits until a sender was given."""
    assert Check.stages == frozenset()
    assert refused(request(stage, **LOGIN), ("user", ALICE))
    assert refused(request(stage, sender=""), ("client", "203.0.113.9"))
    said = stage in {"MAIL", "RCPT", "DATA", "END-OF-MESSAGE"}
    assert bool(refused(request(stage, sender=""), ("sender", "<>"))) is said


def test_pause_leaves_bans_in_force() -> None:
    """`policyctl pause` is for policies that went wrong, not for who was thrown out."""
    assert Check.steadfast


def test_the_most_specific_ban_answers() -> None:
    """Login, sender, sender domain or its nearest parent, client address, smallest network, client name."""
    entries = [
        ("user", ALICE),
        ("sender", "carol@lists.example.com"),
        ("domain", "lists.example.com"),
        ("domain", "example.com"),
        ("client", "203.0.113.9"),
        ("client", "203.0.113.0/24"),
        ("client", "203.0.0.0/16"),
        ("client", "mail.example.com"),
        ("client", "example.com"),
    ]
    for start, (kind, value) in enumerate(entries):
        assert refused(request(**LOGIN), *reversed(entries[start:])) == f"banned {kind} {value}"


def test_a_ban_ends_at_its_millisecond() -> None:
    """And a wider one then answers."""
    steering = banned(("user", ALICE), until=100)
    assert ask(check(), request(**LOGIN), steering, now=99).reason
    assert not ask(check(), request(**LOGIN), steering, now=100).reason
    steering.put("ban", Entry("client", "203.0.113.0/24", "", "", 1, 0))
    assert ask(check(), request(**LOGIN), steering, now=100).reason == "banned client 203.0.113.0/24"


def test_settle_sees_a_ban_that_came_meanwhile() -> None:
    """The opinion's standing asks the steering data of that moment, not of the first question."""
    opinion = ask(check(), request(**LOGIN), Steering())
    assert opinion.standing is not None
    judged = opinion.standing.judge(request(**LOGIN), banned(("user", ALICE)), 6)
    assert judged is not None
    assert judged.answer.verb == "550"


@pytest.mark.parametrize(
    ("never", "entry", "attributes"),
    [
        (ALICE, ("user", ALICE), LOGIN),
        ("Alice@Example.org", ("user", ALICE), LOGIN),
        ("example.org", ("user", ALICE), LOGIN),
        ("@example.org", ("user", ALICE), LOGIN),
        ("root", ("user", "root"), {"sasl_method": "plain", "sasl_username": "root"}),
        ("carol@lists.example.com", ("sender", "carol@lists.example.com"), {}),
        ("carol@lists.example.com", ("domain", "example.com"), {}),
        ("lists.example.com", ("domain", "example.com"), {}),
        ("203.0.113.9", ("client", "203.0.113.0/24"), {}),
        ("203.0.113.0/24", ("client", "203.0.113.9"), {}),
        ("203.0.113.9", ("client", "mail.example.com"), {}),
        ("2001:db8::/32", ("client", "2001:db8::1"), {"client_address": "2001:db8::1"}),
    ],
)
def test_never_holds_off_the_bans_of_its_kind(
    never: str, entry: tuple[str, str], attributes: dict[str, str]
) -> None:
    """Whoever wrote the ban: the admin's own address cannot be locked out."""
    of = request(**attributes)
    if never == "root":
        of = of._replace(account="root")
    assert refused(of, entry)
    assert refused(of, entry, never=[never]) == ""


@pytest.mark.parametrize(
    ("never", "entry", "attributes"),
    [
        # A sender can be forged: it opens no door to a banned client or login.
        (ALICE, ("client", "203.0.113.9"), {"sender": ALICE}),
        (ALICE, ("client", "203.0.113.9"), LOGIN),
        ("carol@lists.example.com", ("user", ALICE), LOGIN),
        # The webmail's address does not shield the logins that use it.
        ("203.0.113.9", ("user", ALICE), LOGIN),
        ("203.0.113.9", ("sender", "carol@lists.example.com"), {}),
        ("example.com", ("domain", "lists.example.com"), {}),
        ("203.0.113.8", ("client", "203.0.113.0/24"), {}),
    ],
)
def test_never_holds_off_nothing_else(never: str, entry: tuple[str, str], attributes: dict[str, str]) -> None:
    """Each value is about itself."""
    assert refused(request(**attributes), entry, never=[never]) == f"banned {entry[0]} {entry[1]}"


def test_the_refusal_can_be_for_now_and_in_other_words() -> None:
    """``action`` and ``text``; the reference is filled in when it is known."""
    opinion = ask(
        check(action="defer", text="Kein Versand ({kind}) {ref}"), request(**LOGIN), banned(("user", ALICE))
    )
    assert opinion.answer == make_answer("450", "4.7.1 Kein Versand (login) {ref}")


def test_the_longest_text_still_makes_an_answer() -> None:
    """Any text that the configuration takes."""
    for text in ("x" * 250, "\u00e9" * 125, "{kind}" * 41):
        answer = ask(check(text=text), request(), banned(("client", "203.0.113.9"))).answer
        assert make_answer(*answer) == answer
        assert len(answer.text.encode()) <= MAX_TEXT_BYTES


def test_a_hostile_value_is_escaped_in_the_reason() -> None:
    """The reason goes to the log."""
    sender = 'jos\u00e9"\\@example.com'
    assert re.fullmatch(r"[ -~]+", refused(request(sender=sender), ("sender", sender)))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"never": ["192.0.2.1/24"]}, "has host bits set"),
        ({"never": [""]}, "is no"),
        ({"action": "drop"}, "none of reject, defer"),
        ({"text": "{user}"}, "no field here"),
        ({"text": ""}, "one printable line"),
    ],
)
def test_wrong_options_say_why(options: dict[str, Any], why: str) -> None:
    """When the configuration is read."""
    with pytest.raises(ValueError, match=why):
        check(**options)
