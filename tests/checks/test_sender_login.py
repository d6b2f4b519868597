"""A login sends as what is its own, and as what the admin gave it; nothing else, and nobody else is asked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.checks import Context
from policyd.checks.sender_login import Check, Options
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion
from policyd.request import Site
from policyd.steering import SenderRight, Steering, canonical_sender

SITE = Site(domains=frozenset({"example.org"}), default_domain="example.org")
NOW = 1_000


def read(**given: Any) -> Options:
    """The options as the configuration reads them."""
    readers = {name: field.metadata["read"] for name, field in Options.__dataclass_fields__.items()}
    return Options(**{name: readers[name](value) for name, value in given.items()})


def may(*senders: str, user: str = "alice@example.org", until: int = 0) -> Steering:
    steering = Steering()
    for sender in senders:
        steering.put("sender_right", SenderRight(user, canonical_sender(sender), "", "root", 1, until))
    return steering


def ask(
    sender: str,
    steering: Steering | None = None,
    options: Options | None = None,
    stage: str = "RCPT",
    **attributes: str,
) -> Opinion | None:
    request = SITE.request(
        {
            "protocol_state": stage,
            "client_address": "192.0.2.7",
            "sender": sender,
            "recipient": "bob@example.net",
            "sasl_method": "plain",
            "sasl_username": "alice",
            **attributes,
        }
    )
    check = Check(options or Options(), Context("sender_login", "submission", SITE))
    with pytest.raises(StopIteration) as stop:
        check.check(request, NOW, steering or Steering(), Inquiry()).send(None)
    opinion: Opinion | None = stop.value.value
    return opinion


OWN = [
    "alice@example.org",
    "Alice@EXAMPLE.org",
    "alice@example.org.",
    "alice+news@example.org",
    "alice+a+b@example.org",
]
FOREIGN = [
    "bob@example.org",
    "alice@example.net",
    "alice@sub.example.org",
    "alice",
    "alicia@example.org",
    "+alice@example.org",
    "alice-x@example.org",
    "bob+alice@example.org",
    "al+ice@example.org",
    "@example.org",
]


@pytest.mark.parametrize("sender", OWN)
def test_the_own_address_passes(sender: str) -> None:
    """In any spelling, with an extension."""
    assert ask(sender) is None


@pytest.mark.parametrize("sender", FOREIGN)
def test_any_other_is_refused(sender: str) -> None:
    """For good, with the code that Postfix's own restriction has."""
    opinion = ask(sender)
    assert opinion is not None
    assert opinion.answer.verb == "553"
    assert opinion.answer.text == (
        f"5.7.1 Sender address is not yours; login alice@example.org may not send as {sender}. ref {{ref}}"
    )
    assert opinion.reason == f"sender {sender} is not the login's"
    assert not opinion.final


@pytest.mark.parametrize("stage", ["RCPT", "END-OF-MESSAGE"])
def test_it_is_asked_where_submission_is(stage: str) -> None:
    """Also where only the end of a message is asked about."""
    assert stage in Check.stages


@pytest.mark.parametrize(
    "attributes",
    [
        {"sasl_method": "", "sasl_username": ""},
        {"sasl_method": ""},
        {
            "sasl_method": "",
            "sasl_username": "",
            "ccert_subject": "x",
            "ccert_fingerprint": "AA",
            "policy_context": "submission",
        },
        {"sasl_method": "", "sasl_username": "", "policy_context": "submission"},
    ],
)
def test_who_has_no_login_is_not_asked(attributes: dict[str, str]) -> None:
    """Mail from outside, a certificate, one's own network: there is no login to compare with."""
    assert ask("bob@example.org", **attributes) is None


def test_the_own_domain_by_choice() -> None:
    """Each address of exactly the login's domain."""
    options = read(own_domain=True)
    assert ask("bob@example.org", options=options) is None
    assert ask("bob@sub.example.org", options=options) is not None
    assert ask("bob@example.net", options=options) is not None


def test_a_login_without_a_domain_owns_nothing() -> None:
    """Without default_domain nobody knows which address is meant; the admin says which."""
    site = Site()
    check = Check(read(own_domain=True), Context("sender_login", "submission", site))
    for sender, refused in (("alice@example.org", True), ("bob", True), ("", False), ("alice", False)):
        request = site.request(
            {"protocol_state": "RCPT", "sender": sender, "sasl_method": "plain", "sasl_username": "alice"}
        )
        with pytest.raises(StopIteration) as stop:
            check.check(request, NOW, Steering(), Inquiry()).send(None)
        assert (stop.value.value is not None) == refused, sender


@pytest.mark.parametrize(
    ("extension", "sender", "passes"),
    [
        ("+-", "alice-news@example.org", True),
        ("+-", "alice+news@example.org", True),
        ("-", "alice+news@example.org", False),
        ("", "alice+news@example.org", False),
    ],
)
def test_the_extension_is_postfix_s(extension: str, sender: str, passes: bool) -> None:
    """As recipient_delimiter has it."""
    assert (ask(sender, options=read(extension=extension)) is None) == passes


@pytest.mark.parametrize("text", ["x", "++++++++++", "a+", "@", '"'])
def test_what_is_no_extension_is_an_error(text: str) -> None:
    """A letter would cut names in two."""
    with pytest.raises(ValueError, match="begins no extension"):
        read(extension=text)


def test_what_the_admin_allowed() -> None:
    """An address, with an extension, or exactly a domain; to that login alone, until its end."""
    steering = may("sales@example.org", "@lists.example.org")
    assert ask("sales@example.org", steering) is None
    assert ask("Sales+x@example.org", steering) is None
    assert ask("any@lists.example.org", steering) is None
    assert ask("any@sub.lists.example.org", steering) is not None
    assert ask("other@example.org", steering) is not None
    assert ask("sales@example.org", steering, sasl_username="bob") is not None
    assert ask("sales@example.org", may("sales@example.org", until=NOW + 1)) is None
    assert ask("sales@example.org", may("sales@example.org", until=NOW)) is not None


def test_the_null_sender() -> None:
    """Allowed unless the admin chose otherwise, and then to who got it by hand."""
    assert ask("") is None
    options = read(null_sender="refuse")
    opinion = ask("", options=options)
    assert opinion is not None
    assert "may not send as <>." in opinion.answer.text
    assert ask("", may("<>"), options) is None
    assert ask("", may("@example.org"), read(null_sender="refuse", own_domain=True)) is not None


def test_who_may_send_as_anybody() -> None:
    """A login or a domain of logins."""
    assert ask("x@example.net", options=read(except_users=["Alice@example.org"])) is None
    assert ask("x@example.net", options=read(except_users=["@example.org"])) is None
    assert ask("x@example.net", options=read(except_users=["bob@example.org"])) is not None
    assert ask("", options=read(except_users=["@example.org"], null_sender="refuse")) is None
    with pytest.raises(ValueError, match="is no login"):
        read(except_users=["alice"])


def test_it_is_for_submission() -> None:
    """With for = 'mx' it would do nothing, and says so."""
    with pytest.raises(ValueError, match="write for = 'submission'"):
        Check(Options(), Context("sender_login", "mx"))


@given(st.text(max_size=400), st.text(max_size=100))
def test_whatever_is_written_is_answered_in_the_grammar(sender: str, user: str) -> None:
    """A refusal is one printable ASCII line that names the sender escaped."""
    opinion = ask(sender, sasl_username=user or "x")
    if opinion is not None:
        assert opinion.answer.text.isascii()
        assert opinion.answer.text.isprintable()
        assert opinion.reason.isprintable()
        assert len(opinion.answer.text) <= 400
