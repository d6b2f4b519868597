"""Whom a request is about: direction, account, folded values, and nothing forged."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.match import NetworkSet, parse_network
from policyd.request import (
    END_OF_MESSAGE,
    MAX_KEPT,
    MX,
    STAGES,
    SUBMISSION,
    Request,
    Site,
    number,
)
from policyd.units import MAX_AMOUNT

SITE = Site(
    domains=frozenset({"example.org", "example.net"}),
    networks=NetworkSet([parse_network("192.0.2.0/24"), parse_network("2001:db8::/32")]),
    default_domain="example.org",
)
OUTSIDE = "203.0.113.9"


def of(**attributes: str) -> Request:
    return SITE.request({"protocol_state": "RCPT", "client_address": OUTSIDE, **attributes})


# --- direction and account ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "direction", "account"),
    [
        ({}, MX, ""),
        ({"sasl_method": "plain", "sasl_username": "alice@example.org"}, SUBMISSION, "alice@example.org"),
        ({"sasl_method": "plain", "sasl_username": "Alice"}, SUBMISSION, "alice@example.org"),
        ({"sasl_method": "plain", "sasl_username": " alice "}, SUBMISSION, "alice@example.org"),
        ({"sasl_method": "plain", "sasl_username": "alice@"}, SUBMISSION, "alice@"),
        ({"sasl_method": "plain", "sasl_username": "alice@Example.org."}, SUBMISSION, "alice@example.org"),
        # A name without a method is a claim, not a login.
        ({"sasl_username": "alice@example.org"}, MX, ""),
        ({"sasl_method": "", "sasl_username": "alice@example.org"}, MX, ""),
        ({"sasl_method": "plain"}, MX, ""),
        # A login that is only blanks is nobody, but somebody authenticated.
        ({"sasl_method": "plain", "sasl_username": "  "}, SUBMISSION, "client:203.0.113.9"),
        # sasl_sender is what the client says in MAIL FROM AUTH=.
        ({"sasl_sender": "alice@example.org"}, MX, ""),
        # Strangers' servers have certificates that verify, too.
        ({"ccert_subject": "mx.example.net", "ccert_fingerprint": "12:34"}, MX, ""),
        # Where it is submission anyway, a verified one names the account; one that anybody can make does not.
        (
            {"ccert_subject": "alice", "ccert_pubkey_fingerprint": "AB:CD", "policy_context": "submission"},
            SUBMISSION,
            "cert:ab:cd",
        ),
        (
            {"ccert_fingerprint": "12:34", "policy_context": "submission"},
            SUBMISSION,
            "client:203.0.113.9",
        ),
        (
            {"sasl_method": "plain", "sasl_username": "bob@example.org", "ccert_subject": "alice"},
            SUBMISSION,
            "bob@example.org",
        ),
        ({"client_address": "192.0.2.7"}, SUBMISSION, "client:192.0.2.7"),
        ({"client_address": "::ffff:192.0.2.7"}, SUBMISSION, "client:192.0.2.7"),
        ({"client_address": "2001:db8:1:2::9"}, SUBMISSION, "client:2001:db8:1:2::/64"),
        ({"client_address": "unknown"}, MX, ""),
        ({"policy_context": "submission"}, SUBMISSION, "client:203.0.113.9"),
        ({"policy_context": "submission", "client_address": "unknown"}, SUBMISSION, "client:unknown"),
        ({"policy_context": "mx"}, MX, ""),
        # What a stranger says about himself proves nothing.
        (
            {"sender": "alice@example.org", "helo_name": "example.org", "client_name": "mail.example.org"},
            MX,
            "",
        ),
        ({"sender": "alice@example.org", "reverse_client_name": "localhost"}, MX, ""),
    ],
)
def test_who_is_asked_about(attributes: dict[str, str], direction: str, account: str) -> None:
    """Login with its method, verified certificate, own network, context; in this order."""
    request = of(**attributes)
    assert (request.direction, request.account) == (direction, account)
    assert request.is_submission == (direction == SUBMISSION)


@pytest.mark.parametrize(
    ("listed", "attributes", "account"),
    [
        ("12:34", {"ccert_fingerprint": "12:34"}, "cert:12:34"),
        ("ab:cd", {"ccert_fingerprint": "12:34", "ccert_pubkey_fingerprint": "AB:CD"}, "cert:ab:cd"),
        ("12:34", {"ccert_fingerprint": "12:34", "ccert_pubkey_fingerprint": "AB:CD"}, "cert:ab:cd"),
        ("12:34", {"ccert_subject": "x", "ccert_fingerprint": "12:35"}, ""),
        ("12:34", {"ccert_subject": "x"}, ""),
        ("any", {"ccert_subject": "x", "ccert_fingerprint": "12:35"}, "cert:12:35"),
        # Not verified: anybody can make one.
        ("any", {"ccert_fingerprint": "12:35"}, ""),
        ("any", {}, ""),
    ],
)
def test_the_certificates_that_mean_submission_are_the_admins(
    listed: str, attributes: dict[str, str], account: str
) -> None:
    """The key was proved in TLS, so its fingerprint is enough; what only verifies counts where the admin says so."""
    site = Site(certificates=frozenset({listed}))
    request = site.request({"client_address": OUTSIDE, **attributes})
    assert (request.account, request.is_submission) == (account, bool(account))


def test_a_listener_can_stand_for_submission() -> None:
    """For a Postfix before 3.1, which has no policy_context."""
    attributes = {"client_address": OUTSIDE}
    request = SITE.request(attributes, "port-587", SUBMISSION)
    assert (request.direction, request.account, request.listener) == (
        SUBMISSION,
        "client:203.0.113.9",
        "port-587",
    )
    assert SITE.request(attributes, "port-25", MX).direction == MX
    assert SITE.request(attributes, "port-25", "any").direction == MX


def test_the_contexts_that_mean_submission_are_the_admins() -> None:
    """The name in master.cf is free."""
    site = Site(submission_contexts=frozenset({"msa"}))
    assert site.request({"policy_context": "msa"}).is_submission
    assert not site.request({"policy_context": "submission"}).is_submission


def test_without_a_default_domain_a_login_stays_as_it_is() -> None:
    """Two servers name accounts differently; nothing is invented."""
    assert Site().login("Alice") == "alice"
    assert Site(default_domain="example.org").login("") == ""


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("change", [str, str.upper, str.title])
def test_one_account_has_one_name(form: str, change: object) -> None:
    """Case and Unicode form open no second counter, for logins, senders and recipients alike."""
    assert callable(change)
    text = unicodedata.normalize(form, change("jos\u00e9@b\u00fccher.example"))  # type: ignore[arg-type]
    request = of(sasl_method="plain", sasl_username=text, sender=text, recipient=text)
    expected = "jos\u00e9@xn--bcher-kva.example"
    assert (request.account, request.sender_key, request.recipient_key) == (expected,) * 3
    assert (request.sender_domain, request.recipient_domain, request.user_domain) == (
        "xn--bcher-kva.example",
    ) * 3
    assert request.sender == text
    assert request.sasl_username == text


# --- own and internal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "recipient", "internal"),
    [
        ("alice@example.org", "bob@example.net", True),
        ("Alice@EXAMPLE.org.", "bob@example.net.", True),
        ("", "bob@example.net", True),
        ("alice@example.org", "bob@example.com", False),
        ("alice@example.com", "bob@example.net", False),
        ("alice@sub.example.org", "bob@example.net", False),
        ("alice@example.org", "", False),
        ("alice", "bob@example.net", False),
    ],
)
def test_internal_is_mail_among_own_domains(sender: str, recipient: str, internal: bool) -> None:
    """Own sender or null sender, own recipient; unknown when the recipient is."""
    login = {"sasl_method": "plain", "sasl_username": "alice"}
    assert of(sender=sender, recipient=recipient, **login).internal is internal
    # From outside the sender is forged or a bounce: nothing that a limit may leave out.
    assert of(sender=sender, recipient=recipient).internal is False


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("12345", 12345),
        ("", 0),
        ("-1", 0),
        ("+1", 0),
        ("1e9", 0),
        (" 1", 0),
        ("1_000", 0),
        ("\u0663", 0),
        ("\u00b2", 0),
        (str(MAX_AMOUNT), MAX_AMOUNT),
        (str(MAX_AMOUNT + 1), MAX_AMOUNT),
        ("9" * 16, MAX_AMOUNT),
        ("9" * 8_000, MAX_AMOUNT),
    ],
)
def test_numbers(text: str, value: int) -> None:
    """Within 0 and 2^53; no number of digits makes it slow or large."""
    assert number(text) == value


def test_attributes_stand_in_their_fields() -> None:
    """Each under its name; what was not sent is empty."""
    request = SITE.request(
        {
            "protocol_state": "END-OF-MESSAGE",
            "instance": "1c2f.0.0.0",
            "queue_id": "4fXk2q",
            "sender": "Alice@example.org",
            "recipient": "",
            "recipient_count": "25",
            "size": "4096",
            "client_address": OUTSIDE,
            "client_name": "mail.example.com",
            "reverse_client_name": "ptr.example.com",
            "helo_name": "helo.example.com",
            "policy_context": "mx",
            "stress": "yes",
        },
        "label",
    )
    assert request.stage == END_OF_MESSAGE
    assert (request.instance, request.queue_id, request.listener) == ("1c2f.0.0.0", "4fXk2q", "label")
    assert (request.sender, request.sender_key) == ("Alice@example.org", "alice@example.org")
    assert (request.recipient_count, request.recipients, request.size) == (25, 25, 4096)
    assert (request.client_name, request.reverse_client_name) == ("mail.example.com", "ptr.example.com")
    assert (request.helo_name, request.policy_context) == ("helo.example.com", "mx")
    assert request.stress is True
    assert request.client_net == OUTSIDE
    empty = SITE.request({})
    assert (empty.stage, empty.sender, empty.size, empty.recipients, empty.stress) == ("", "", 0, 1, False)


def test_before_data_a_request_stands_for_one_recipient() -> None:
    """recipient_count is 0 until DATA."""
    assert of(recipient_count="0").recipients == 1
    assert of(recipient_count="3").recipients == 3


@pytest.mark.parametrize("stage", [*STAGES, "", "NEW-STAGE"])
def test_an_empty_sender_is_the_null_sender_only_after_mail(stage: str) -> None:
    """Before MAIL FROM nobody has said who writes; VRFY and ETRN may come without it."""
    known = stage in {"MAIL", "RCPT", "DATA", "END-OF-MESSAGE"}
    assert of(protocol_state=stage).knows_sender is known
    assert of(protocol_state=stage, sender="a@example.com").knows_sender


def test_a_long_local_part_does_not_hide_its_domain() -> None:
    """Postfix takes local parts far beyond RFC 5321's 64 octets; what is cut is the text, not the domain's ban."""
    request = of(sender="a" * 3_000 + "@evil.example", recipient="b" * 3_000 + "@example.org")
    assert (request.sender_domain, request.recipient_domain) == ("evil.example", "example.org")
    assert len(request.sender) == len(request.sender_key) == MAX_KEPT


values = st.text(
    st.characters(blacklist_characters="\n\0", blacklist_categories=("Cs",)), max_size=30
) | st.just("x" * 8_000)
attribute_names = st.sampled_from(
    [
        "protocol_state", "sender", "recipient", "recipient_count", "size", "instance", "queue_id", "client_address",
        "client_name", "reverse_client_name", "helo_name", "sasl_method", "sasl_username", "ccert_subject",
        "ccert_fingerprint", "policy_context", "stress",
    ]
)  # fmt: skip


@given(st.dictionaries(attribute_names, values))
def test_any_attributes_make_a_bindable_request(attributes: dict[str, str]) -> None:
    """Whatever a peer sends: bounded text without surrogates, numbers that every store can hold."""
    request = SITE.request(attributes)
    for value in request:
        if isinstance(value, str):
            assert len(value.encode()) <= 4 * 3 * MAX_KEPT
        else:
            assert 0 <= value <= MAX_AMOUNT
    assert request.direction in (SUBMISSION, MX)
    assert bool(request.account) == request.is_submission
