"""Known good ones pass: which entries match what, and when nothing is compared."""

from __future__ import annotations

from typing import Any

import pytest

from policyd.answer import DUNNO
from policyd.checks import Context
from policyd.checks.allow import Check, Options
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion
from policyd.request import Site
from policyd.steering import Entry, Steering, canonical_value


def read(**sections: list[str]) -> Options:
    """The options as the configuration reads them."""
    readers = {name: field.metadata["read"] for name, field in Options.__dataclass_fields__.items()}
    return Options(**{name: readers[name](values) for name, values in sections.items()})


def allowed(*entries: tuple[str, str], until: int = 0) -> Steering:
    steering = Steering()
    for kind, value in entries:
        steering.put("allow", Entry(kind, canonical_value(kind, value), "", "admin", 1, until))
    return steering


def ask(
    check: Check, steering: Steering | None = None, now: int = 5, stage: str = "RCPT", **attributes: str
) -> Opinion | None:
    request = Site().request(
        {
            "protocol_state": stage,
            "client_address": "203.0.113.9",
            "client_name": "mail.example.com",
            "sender": "Carol@Lists.Example.com",
            "recipient": "bob@example.org",
            **attributes,
        }
    )
    with pytest.raises(StopIteration) as stop:
        check.check(request, now, steering or Steering(), Inquiry()).send(None)
    opinion: Opinion | None = stop.value.value
    return opinion


def check(**sections: list[str]) -> Check:
    return Check(read(**sections), Context("allow", "any"))


MATCHES: list[tuple[str, str, dict[str, Any]]] = [
    ("client", "203.0.113.9", {}),
    ("client", "203.0.113.0/24", {}),
    ("client", "203.0.113.9", {"client_address": "::ffff:203.0.113.9"}),
    ("client", "2001:db8::/32", {"client_address": "2001:DB8::1"}),
    ("client", "mail.example.com", {}),
    ("client", "example.com", {}),
    ("client", ".example.com", {}),
    ("client", "mail.example.com", {"client_name": "MAIL.Example.com."}),
    ("sender", "carol@lists.example.com", {}),
    ("sender", "CAROL@lists.EXAMPLE.com", {"sender": "carol@lists.example.com."}),
    ("sender", "<>", {"sender": ""}),
    ("domain", "lists.example.com", {}),
    ("domain", "example.com", {}),
    ("domain", ".example.com", {}),
    ("recipient", "bob@example.org", {}),
    ("recipient", "Bob@Example.org", {"recipient": "BOB@example.org."}),
]
MISSES: list[tuple[str, str, dict[str, Any]]] = [
    ("client", "203.0.113.8", {}),
    ("client", "203.0.113.9", {"client_address": "unknown"}),
    ("client", "other.example.com", {}),
    ("client", ".mail.example.com", {}),
    # The name that the client's own DNS claims, and HELO, are no proof.
    (
        "client",
        "good.example",
        {"client_name": "unknown", "reverse_client_name": "good.example", "helo_name": "good.example"},
    ),
    ("sender", "dave@lists.example.com", {}),
    ("sender", "<>", {}),
    ("domain", "other.example", {}),
    ("domain", ".lists.example.com", {}),
    ("domain", "ample.com", {}),
    ("domain", "example.org", {}),  # the recipient's domain is no sender's
    ("recipient", "carol@lists.example.com", {}),
    ("recipient", "bob@example.org", {"recipient": ""}),
]


@pytest.mark.parametrize(("kind", "value", "attributes"), MATCHES)
def test_an_entry_that_matches_ends_the_chain_with_dunno(
    kind: str, value: str, attributes: dict[str, Any]
) -> None:
    """From the configuration and from policyctl alike; Postfix's own restrictions still decide."""
    for opinion in (
        ask(check(**{kind + "s": [value]}), **attributes),
        ask(check(), allowed((kind, value)), **attributes),
    ):
        assert opinion is not None
        assert opinion.final
        assert opinion.answer == DUNNO
        assert opinion.quota is None
        assert opinion.reason == f"allowed {kind} {canonical_value(kind, value) or '<>'}"


@pytest.mark.parametrize(("kind", "value", "attributes"), MISSES)
def test_what_does_not_match_is_no_opinion(kind: str, value: str, attributes: dict[str, Any]) -> None:
    """No opinion at all: the chain goes on."""
    assert ask(check(**{kind + "s": [value]}), **attributes) is None
    assert ask(check(), allowed((kind, value)), **attributes) is None


def test_without_entries_there_is_no_opinion() -> None:
    """The default section."""
    assert ask(check()) is None


@pytest.mark.parametrize("stage", ["CONNECT", "EHLO", "HELO", "VRFY", "ETRN"])
def test_the_null_sender_is_not_what_nobody_has_said_yet(stage: str) -> None:
    """An entry for <> does not let in every client before MAIL FROM."""
    assert ask(check(senders=["<>"]), stage=stage, sender="", recipient="") is None
    assert ask(check(clients=["203.0.113.9"]), stage=stage, sender="", recipient="") is not None


def test_an_entry_of_policyctl_ends_by_itself() -> None:
    """``--for 7d``, to the millisecond."""
    steering = allowed(("sender", "carol@lists.example.com"), until=100)
    assert ask(check(), steering, now=99) is not None
    assert ask(check(), steering, now=100) is None


def test_an_expired_entry_does_not_hide_another_kind() -> None:
    """The next that matches answers."""
    steering = allowed(("recipient", "bob@example.org"), until=100)
    steering.put("allow", Entry("client", "203.0.113.0/24", "", "", 1, 0))
    assert [ask(check(), steering, now=now).reason for now in (99, 100)] == [  # type: ignore[union-attr]
        "allowed recipient bob@example.org",
        "allowed client 203.0.113.0/24",
    ]


def test_the_most_specific_entry_is_named() -> None:
    """Recipient, sender, sender domain, client address, client name; the configuration's own first."""
    values = [
        ("recipient", "bob@example.org"),
        ("sender", "carol@lists.example.com"),
        ("domain", "lists.example.com"),
        ("client", "203.0.113.9"),
        ("client", "example.com"),
    ]
    for start, (kind, value) in enumerate(values):
        opinion = ask(check(), allowed(*values[start:]))
        assert opinion is not None
        assert opinion.reason == f"allowed {kind} {value}"
    opinion = ask(check(clients=["example.com"]), allowed(*values))
    assert opinion is not None
    assert opinion.reason == "allowed client example.com"


def test_bans_and_pause_aside_it_is_steadfast_at_every_stage() -> None:
    """``policyctl pause`` makes nothing stricter: who was allowed stays allowed."""
    assert Check.steadfast
    assert Check.stages == frozenset()


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("clients", "192.0.2.1/24"),
        ("clients", "a@example.org"),
        ("senders", "example.org"),
        ("domains", "a@example.org"),
        ("recipients", "bob"),
        ("senders", ""),
    ],
)
def test_an_entry_that_cannot_match_is_refused(section: str, value: str) -> None:
    """When the configuration is read, not silently never."""
    with pytest.raises(ValueError, match=r"is no|host bits|use 'domain"):
        read(**{section: [value]})
