"""The spf check acts on each result as configured, says why, and never puts a stranger's text into an answer as it is."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policyd.answer import DUNNO, MAX_TEXT_BYTES, make_answer
from policyd.checks import Context
from policyd.checks.spf import Check, Options
from policyd.inquiry import Inquiry
from policyd.opinion import Opinion
from policyd.request import DATA, MX, RCPT, SUBMISSION, Request, Site
from policyd.senderpolicy import (
    FAIL,
    HELO,
    MAIL_FROM,
    PASS,
    PERMERROR,
    RESULTS,
    TEMPERROR,
    Claim,
    SpfResult,
    Verdicts,
)
from policyd.steering import Steering

IP = "192.0.2.1"
LOGIN = {"sasl_method": "plain", "sasl_username": "alice"}


class Says:
    """An evaluator that knows the results beforehand, and what it was asked."""

    receiver = "mx.example.org"

    def __init__(self, result: str = PASS, helo: str = "none", **fields: Any) -> None:
        self.result, self.helo, self.fields = result, helo, fields
        self.asked: list[tuple[Claim, Claim | None, float]] = []

    async def evaluate(self, mail_from: Claim, helo: Claim | None, due: float) -> Verdicts:
        self.asked.append((mail_from, helo, due))
        result = SpfResult(self.result, MAIL_FROM, mail_from.domain, **self.fields)
        return Verdicts(result, helo and SpfResult(self.helo, HELO, helo.domain, **self.fields))


def request(**attributes: str) -> Request:
    return Site().request(
        {
            "protocol_state": RCPT,
            "client_address": IP,
            "client_name": "mail.example.net",
            "helo_name": "helo.example.net",
            "sender": "Bob@Example.COM",
            "recipient": "alice@example.org",
            **attributes,
        }
    )


def check(says: Says, direction: str = MX, **options: Any) -> Check:
    readers = {name: field.metadata["read"] for name, field in Options.__dataclass_fields__.items()}
    given = Options(**{name: readers[name](value) for name, value in options.items()})
    return Check(given, Context("spf", direction, spf=says))


def ask(one: Check, of: Request, due: float = 9.0) -> Opinion | None:
    with pytest.raises(StopIteration) as stop:
        one.check(of, 0, Steering(), Inquiry(due)).send(None)
    opinion = stop.value.value
    assert opinion is None or isinstance(opinion, Opinion)
    if opinion is not None:
        assert make_answer(*opinion.answer) == opinion.answer, "an answer that Postfix takes"
        assert opinion.reason.isascii()
        assert opinion.reason.isprintable()
    return opinion


def told(says: Says, of: Request | None = None, **options: Any) -> Opinion:
    opinion = ask(check(says, **options), of or request())
    assert opinion is not None
    return opinion


# --- results -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", RESULTS)
def test_each_result_is_the_finding_and_has_its_action(result: str) -> None:
    """RFC 7372's codes: .23 for a verdict, .24 where there is none; nothing but fail is refused unless configured."""
    plain = told(Says(result))
    assert plain.finding == result
    assert (plain.answer.verb == "550") == (result == FAIL)
    status = "24" if result in (TEMPERROR, PERMERROR) else "23"
    rejected = told(Says(result), **{f"on_{result}": "reject"})
    deferred = told(Says(result), **{f"on_{result}": "defer"})
    passed = told(Says(result), **{f"on_{result}": "dunno"})
    assert f"{rejected.answer}".startswith(f"550 5.7.{status} SPF validation ")
    assert f"{deferred.answer}".startswith(f"451 4.7.{status} SPF validation ")
    assert passed.answer.verb == "PREPEND"
    assert {rejected.finding, deferred.finding, passed.finding} == {result}
    # What passes is for the next check to judge.
    assert {rejected.final, deferred.final, passed.final} == {False}


def test_the_refusal_says_who_may_not_send_for_whom() -> None:
    """A sender who was refused can pass the line on to whoever keeps the record."""
    opinion = told(Says(FAIL, mechanism="-all"))
    assert str(opinion.answer) == (
        "550 5.7.23 SPF validation failed; example.com does not permit 192.0.2.1 to send its mail (fail). ref {ref}"
    )
    assert opinion.reason == "SPF fail of MAIL FROM example.com by -all"
    opinion = told(Says(TEMPERROR, problem="timeout for TXT of example.com"), on_temperror="defer")
    assert str(opinion.answer) == (
        "451 4.7.24 SPF validation error; temperror for example.com: timeout for TXT of example.com. ref {ref}"
    )
    assert opinion.reason == "SPF temperror of MAIL FROM example.com: timeout for TXT of example.com"


def test_the_text_is_the_admins() -> None:
    """All fields; the explanation of the domain's owner is shown where the admin wants it."""
    says = Says(FAIL, explanation="see https://example.com/spf?ip=192.0.2.1")
    text = "{result} {identity} {domain} {address}; {domain} explains: {explanation} {ref}"
    assert told(says, text=text).answer.text == (
        "5.7.23 fail MAIL FROM example.com 192.0.2.1; example.com explains: see https://example.com/spf?ip=192.0.2.1 {ref}"
    )
    assert "explains" not in told(says).answer.text


def test_a_domain_that_explains_nothing_leaves_no_hole_in_the_text() -> None:
    """Most records have no exp: a text of the admin's that gives the owner's reason still says what is wrong (RFC 7208 6.2)."""
    text = "SPF validation failed; {domain} explains: {explanation}. ref {ref}"
    assert told(Says(FAIL), text=text).answer.text == (
        "5.7.23 SPF validation failed; example.com explains: 192.0.2.1 may not send its mail. ref {ref}"
    )


@example(" ", "", PERMERROR)
@given(st.text(max_size=600), st.text(max_size=600), st.sampled_from([FAIL, PASS, PERMERROR]))
def test_what_strangers_wrote_cannot_break_an_answer(hostile: str, sender: str, result: str) -> None:
    """Explanation, problem, mechanism, sender and HELO name: one printable ASCII line that Postfix takes, whatever they hold."""
    says = Says(result, explanation=hostile, problem=hostile, mechanism=hostile)
    attributes = {"sender": sender, "helo_name": hostile}
    for options in (
        {"text": "{explanation}{domain}", "error_text": "{problem}", "on_permerror": "reject"},
        {"header": "Received-SPF", "on_fail": "dunno"},
        {"header": "Authentication-Results", "on_fail": "dunno"},
    ):
        opinion = told(says, request(**attributes), **options)
        text = opinion.answer.text
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= MAX_TEXT_BYTES
        assert "{" not in text or opinion.answer.verb == "PREPEND"


def test_a_field_in_a_strangers_text_is_no_field() -> None:
    """Settle fills in {ref} later: an explanation must not be able to ask for it."""
    assert told(Says(FAIL, explanation="{ref} {x}"), text="{explanation}").answer.text == "5.7.23 (ref) (x)"


# --- HELO ----------------------------------------------------------------------------------------------------------------


def test_a_forged_helo_name_is_refused() -> None:
    """The name's owner says that this client is not it; the text names the HELO name, not the sender."""
    opinion = told(Says(PASS, helo=FAIL))
    assert opinion.answer.verb == "550"
    assert "helo.example.net does not permit 192.0.2.1" in opinion.answer.text
    assert (opinion.finding, opinion.reason) == (FAIL, "SPF fail of HELO helo.example.net")
    assert told(Says(PASS, helo=FAIL), on_helo_fail="defer").answer.verb == "451"
    passed = told(Says(PASS, helo=FAIL), on_helo_fail="dunno")
    assert (passed.answer.verb, passed.finding) == ("PREPEND", PASS)


@pytest.mark.parametrize("result", [each for each in RESULTS if each != FAIL])
def test_no_other_result_of_helo_matters(result: str) -> None:
    """A HELO name that passes is no pass of the sender's (CVE-2019-20790), and its errors are no trouble of the mail's."""
    opinion = told(Says(FAIL, helo=result))
    assert (opinion.answer.verb, opinion.finding) == ("550", FAIL)
    assert "example.com" in opinion.answer.text
    assert told(Says(PASS, helo=result)).finding == PASS


def test_helo_is_asked_for_only_where_it_can_say_something() -> None:
    """Not when it is off, no domain, or the sender's domain itself: the null sender's is."""
    for attributes, options in (
        ({}, {"helo": False}),
        ({"helo_name": "localhost"}, {}),
        ({"helo_name": "[192.0.2.1]"}, {}),
        ({"helo_name": ""}, {}),
        ({"helo_name": "EXAMPLE.com"}, {}),
        ({"sender": ""}, {}),
    ):
        says = Says()
        told(says, request(**attributes), **options)
        assert says.asked[0][1] is None, attributes
    says = Says()
    told(says)
    assert says.asked == [
        (
            Claim(IP, MAIL_FROM, "Bob", "example.com", "helo.example.net"),
            Claim(IP, HELO, "postmaster", "helo.example.net", "helo.example.net"),
            9.0,
        )
    ]


def test_the_null_sender_is_judged_by_the_helo_name() -> None:
    """RFC 7208 2.4."""
    says = Says()
    told(says, request(sender=""))
    assert says.asked[0][0] == Claim(IP, MAIL_FROM, "postmaster", "helo.example.net", "helo.example.net")


def test_a_local_part_that_is_far_too_long_hides_no_domain() -> None:
    """A client could otherwise write its way past the domain's record."""
    says = Says()
    told(says, request(sender="a" * 600 + "@example.com"))
    assert says.asked[0][0].domain == "example.com"


# --- whom it is for --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "options"),
    [
        ({"client_address": "unknown"}, {}),
        (LOGIN, {}),
        ({"policy_context": SUBMISSION}, {}),
        ({"stress": "yes"}, {}),
        ({}, {"except_networks": ["192.0.2.0/24"]}),
        ({"client_address": "2001:db8::7"}, {"except_networks": ["2001:db8::/32"]}),
        ({"client_address": "::ffff:192.0.2.1"}, {"except_networks": ["192.0.2.0/24"]}),
        ({}, {"except_hosts": ["example.net"]}),
        ({}, {"except_hosts": ["MAIL.Example.net"]}),
        ({}, {"except_domains": ["example.com"]}),
        ({"sender": "a@sub.example.com"}, {"except_domains": ["example.com"]}),
        ({"sender": "a@b\u00fccher.example"}, {"except_domains": ["xn--bcher-kva.example"]}),
    ],
)
def test_some_mail_is_not_looked_at(attributes: dict[str, str], options: dict[str, Any]) -> None:
    """One's own, forwarders and excepted domains cost no look-up and no header."""
    says = Says(FAIL)
    assert ask(check(says, "any", **options), request(**attributes)) is None
    assert not says.asked


@pytest.mark.parametrize(
    ("attributes", "options"),
    [
        (LOGIN, {"even_authenticated": True}),
        ({"stress": "yes"}, {"even_under_stress": True}),
        ({}, {"except_networks": ["192.0.2.2"]}),
        ({"client_name": "unknown"}, {"except_hosts": ["unknown"]}),
        ({"client_name": "badexample.net"}, {"except_hosts": ["example.net"]}),
        ({"client_name": "unknown", "reverse_client_name": "example.net"}, {"except_hosts": ["example.net"]}),
        ({"helo_name": "example.net", "client_name": "x.example"}, {"except_hosts": ["example.net"]}),
        ({}, {"except_domains": [".example.com"]}),
        ({"sender": "", "helo_name": "x.example.com"}, {"except_domains": ["example.com"]}),
    ],
)
def test_other_mail_is(attributes: dict[str, str], options: dict[str, Any]) -> None:
    """An exception covers what it names; what a client merely says of itself opens nothing."""
    says = Says(FAIL)
    opinion = ask(check(says, "any", **options), request(**attributes))
    assert opinion is not None
    assert opinion.finding == FAIL


def test_it_is_asked_at_rcpt() -> None:
    """Once a recipient, where the sender is known and nothing is received yet."""
    assert Check.stages == {RCPT}
    assert DATA not in Check.stages
    assert check(Says(), MX).needs == {MX: frozenset({RCPT})}


# --- the header ----------------------------------------------------------------------------------------------------------


def test_received_spf_says_what_was_judged() -> None:
    """RFC 7208 9.1, as the tools behind read it."""
    opinion = told(Says(PASS, mechanism="ip4:192.0.2.0/24"))
    assert str(opinion.answer) == (
        "PREPEND Received-SPF: pass receiver=mx.example.org; client-ip=192.0.2.1; identity=mailfrom;"
        ' envelope-from="Bob@Example.COM"; helo=helo.example.net; mechanism="ip4:192.0.2.0/24"'
    )
    assert 'client-ip="2001:db8::1"' in told(Says(), request(client_address="2001:db8::1")).answer.text
    text = told(Says(PERMERROR, problem='more than 2 look-ups "found" nothing')).answer.text
    assert text.endswith(r'problem="more than 2 look-ups \"found\" nothing"')
    assert "envelope-from" not in told(Says(), request(sender="")).answer.text


def test_authentication_results_names_the_domains() -> None:
    """RFC 8601 2.7.2, with the name that the site's own filters look for."""
    text = told(
        Says(PASS, helo="softfail"), header="Authentication-Results", receiver="mail.example.org"
    ).answer.text
    assert text == (
        "Authentication-Results: mail.example.org; spf=pass smtp.mailfrom=example.com; spf=softfail smtp.helo=helo.example.net"
    )
    text = told(
        Says("none"), request(sender="a@localhost"), header="Authentication-Results", helo=False
    ).answer.text
    assert text == "Authentication-Results: mx.example.org; spf=none"


def test_no_header_is_possible() -> None:
    """A check that only refuses."""
    opinion = told(Says(PASS), header="")
    assert (opinion.answer, opinion.finding) == (DUNNO, PASS)


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=80))
def test_each_value_of_the_header_ends_where_it_should(sender: str, helo: str, mechanism: str) -> None:
    """A sender must not be able to write `; identity=...` of its own into the header: what is quoted stays quoted."""
    text = told(Says(PASS, mechanism=mechanism), request(sender=sender, helo_name=helo)).answer.text
    value = r'(?:"(?:[^"\\]|\\.)*"|[^\s";\\()]+)'
    assert re.fullmatch(rf"Received-SPF: pass(?:;? [a-z-]+={value})+", text), text
    names = re.findall(rf"[ ;]([a-z-]+)={value}", text)
    assert len(names) == len(set(names))


# --- configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_fail": "hold"}, "is none of reject, defer, dunno"),
        ({"header": "X-SPF"}, 'is none of Received-SPF, Authentication-Results, ""'),
        ({"helo": "yes"}, "must be true or false"),
        ({"receiver": "mx example"}, "no host name"),
        ({"receiver": "a" * 101}, "longer than 100 characters"),
        ({"except_hosts": ["192.0.2.0/24"]}, "stand in except_networks"),
        ({"except_networks": ["example.net"]}, "is no IP address or network"),
        ({"except_domains": ["a@example.net"]}, "is no domain"),
        ({"text": "{problem}"}, "{problem} is no field here"),
    ],
)
def test_a_wrong_option_says_what_is_right(options: dict[str, Any], words: str) -> None:
    """The admin learns of it from `config check`, not from refused mail."""
    with pytest.raises(ValueError, match=re.escape(words)):
        check(Says(), **options)


def test_for_submission_alone_it_would_do_nothing() -> None:
    """Unless it is told to check one's own users, too; then it waits for their RCPT."""
    with pytest.raises(ValueError, match="for = 'submission'"):
        Check(Options(), Context("spf", SUBMISSION))
    own = Check(Options(even_authenticated=True), Context("spf", SUBMISSION))
    assert own.needs == {SUBMISSION: frozenset({RCPT})}


def test_without_a_resolver_nothing_is_refused() -> None:
    """Where no DNS is to be had the result is temperror, and mail goes on."""
    opinion = ask(Check(Options(), Context("spf", MX)), request())
    assert opinion is not None
    assert (opinion.finding, opinion.answer.verb) == (TEMPERROR, "PREPEND")
