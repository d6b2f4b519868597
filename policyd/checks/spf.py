"""Whether the sender's domain allows this client to send its mail (SPF, RFC 7208), with an action for each result.

Both identities are looked at: what the client says in HELO, and MAIL FROM; of the null sender it is the HELO name that counts.
The result is the check's finding (``when = ["spf = softfail"]``) and goes into the mail as a header. Mail of one's own
(a login, a certificate, an own network) is not checked, nor is any under stress, unless that is configured. What cannot be
found out within the deadline, or with 30 look-ups a mail, is temperror. Results are remembered as long as the DNS
allows, from a minute to an hour.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from policyd.answer import DUNNO, MAX_TEXT_BYTES, Answer, clip, escape, make_answer
from policyd.checks import Context
from policyd.inquiry import Inquiry
from policyd.match import Network, NetworkSet, fold, parse_address
from policyd.opinion import Opinion
from policyd.request import MX, RCPT, SUBMISSION, Request
from policyd.senderpolicy import (
    FAIL,
    HELO,
    NONE,
    PERMERROR,
    RESULTS,
    TEMPERROR,
    Claim,
    SpfResult,
    Verdicts,
    helo_claim,
    mail_from_claim,
    policy_domain,
)
from policyd.settings import Disagreement, boolean, fill, list_of, network, one_of, setting, string, template
from policyd.steering import Entry, Listing, Steering, canonical_value

REJECT, DEFER, PASS_ON = "reject", "defer", "dunno"
RECEIVED_SPF, AUTHENTICATION_RESULTS = "Received-SPF", "Authentication-Results"
TEXT_FIELDS = ("result", "identity", "domain", "address", "explanation", "ref")
ERROR_FIELDS = ("result", "identity", "domain", "address", "problem", "ref")

_action = one_of(REJECT, DEFER, PASS_ON)
#: What stands in a header without quotes (RFC 5322 3.2.3), and in a list of authentication results.
_DOT_ATOM = re.compile(r"[0-9A-Za-z!#$%&'*+/=?^_`{|}~-]+(?:\.[0-9A-Za-z!#$%&'*+/=?^_`{|}~-]+)*", re.ASCII)


def _receiver(value: Any) -> str:
    """A host name for headers, or nothing."""
    text = string(value)
    if text and not re.fullmatch(r"[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*", text, re.ASCII):
        raise ValueError(f"{text!r} is no host name; write one like 'mail.example.org'")
    if len(text) > 100:
        raise ValueError("is longer than 100 characters, which leaves no room in the header")
    return text


def _domain(value: Any) -> str:
    return canonical_value("domain", string(value))


def _host(value: Any) -> str:
    text = string(value)
    if parse_address(text) is not None or "/" in text:
        raise ValueError(f"{text!r} is no host name; addresses and networks stand in except_networks")
    return canonical_value("client", text)


@dataclass(frozen=True)
class Options:
    """The section of an ``spf`` check."""

    on_pass: str = setting(_action, PASS_ON, help="What to do when the domain permits the client.")
    on_fail: str = setting(_action, REJECT, help="What to do when the domain says that it does not.")
    on_softfail: str = setting(
        _action, PASS_ON, help="What to do when the domain says that it probably does not."
    )
    on_neutral: str = setting(_action, PASS_ON, help="What to do when the domain says nothing either way.")
    on_none: str = setting(_action, PASS_ON, help="What to do when the domain has no SPF record.")
    on_temperror: str = setting(
        _action, PASS_ON, help="What to do when the DNS gave no answer in time, or too many would be needed."
    )
    on_permerror: str = setting(_action, PASS_ON, help="What to do when the record cannot be understood.")
    helo: bool = setting(boolean, True, help="Look at the HELO name too, before MAIL FROM.")
    on_helo_fail: str = setting(
        _action, REJECT, help="What to do when the HELO name's owner says that it is not this client's."
    )
    header: str = setting(
        one_of(RECEIVED_SPF, AUTHENTICATION_RESULTS, ""),
        RECEIVED_SPF,
        help="The header with the result that the mail gets; empty: none.",
    )
    receiver: str = setting(
        _receiver, "", help="The name of this host in the header; empty: the system's name."
    )
    except_networks: tuple[Network, ...] = setting(
        list_of(network),
        (),
        help="Addresses and networks that are not checked: forwarders, own relays.",
    )
    except_hosts: tuple[str, ...] = setting(
        list_of(_host), (), help="Verified names of hosts that are not checked, with what is below them."
    )
    except_domains: tuple[str, ...] = setting(
        list_of(_domain), (), help="Sender domains that are not checked, with what is below them."
    )
    even_authenticated: bool = setting(
        boolean, False, help="Check mail of a login, a certificate or an own network too."
    )
    even_under_stress: bool = setting(boolean, False, help="Check also while Postfix is short of processes.")
    text: str = setting(
        template(*TEXT_FIELDS),
        "SPF validation failed; {domain} does not permit {address} to send its mail ({result}). ref {ref}",
        help="The text of the refusal.",
    )
    error_text: str = setting(
        template(*ERROR_FIELDS),
        "SPF validation error; {result} for {domain}: {problem}. ref {ref}",
        help="The text of the refusal when there is no verdict.",
    )


class Check:
    """Asks for the verdict, acts on it, and says it in a header."""

    stages: ClassVar[frozenset[str]] = frozenset({RCPT})
    steadfast: ClassVar[bool] = False

    def __init__(self, options: Options, context: Context) -> None:
        if context.direction == SUBMISSION and not options.even_authenticated:
            raise Disagreement(
                "for",
                "with for = 'submission' it would check nothing; write for = 'mx', or even_authenticated = true",
            )
        self._options = options
        self._spf = context.spf
        #: The same verdict on the same sender is put into the same words.
        self._opinion = lru_cache(maxsize=1024)(self._judge)
        self._receiver = options.receiver or context.spf.receiver
        self._actions = {result: str(getattr(options, f"on_{result}")) for result in RESULTS}
        self._excepted = NetworkSet(options.except_networks)
        self._exceptions = Listing()
        for kind, values in (("domain", options.except_domains), ("client", options.except_hosts)):
            for value in values:
                self._exceptions.put(Entry(kind, value, "configuration", "", 0, 0))
        directions = (MX, SUBMISSION) if options.even_authenticated else (MX,)
        self.needs: Mapping[str, frozenset[str]] = {
            each: frozenset({RCPT}) for each in directions if context.direction in ("any", each)
        }

    async def check(self, request: Request, now: int, steering: Steering, inquiry: Inquiry) -> Opinion | None:
        """The refusal or the header that the result calls for; ``None`` for what is not checked."""
        if not self._is_for(request):
            return None
        claim, helo = claims(request.client_address, request.sender, request.sender_domain, request.helo_name)
        if claim is None:
            return None
        verdicts = await self._spf.evaluate(claim, helo if self._options.helo else None, inquiry.due)
        return self._opinion(verdicts, claim, request.sender)

    def _judge(self, verdicts: Verdicts, claim: Claim, sender: str) -> Opinion:
        if verdicts.helo is not None and verdicts.helo.result == FAIL:
            if self._options.on_helo_fail != PASS_ON:
                return self._refusal(verdicts.helo, claim, self._options.on_helo_fail)
        result = verdicts.mail_from
        action = self._actions[result.result]
        if action != PASS_ON:
            return self._refusal(result, claim, action)
        return Opinion(self._header(verdicts, claim, sender), _reason(result), finding=result.result)

    def _is_for(self, request: Request) -> bool:
        options = self._options
        if request.is_submission and not options.even_authenticated:
            return False
        if request.stress and not options.even_under_stress:
            return False
        if request.client_address in self._excepted:
            return False
        exceptions = self._exceptions
        if not exceptions.entries:
            return True
        # Of the null sender the HELO name is what is judged, and anybody can say that.
        if request.sender_domain and exceptions.domain(request.sender_domain, 0) is not None:
            return False
        name = fold(request.client_name).rstrip(".")
        return name in ("", "unknown") or exceptions.domain(name, 0, kind="client") is None

    def _refusal(self, result: SpfResult, claim: Claim, action: str) -> Opinion:
        error = result.result in (TEMPERROR, PERMERROR)
        fields = {
            "result": result.result,
            "identity": "HELO" if result.identity == HELO else "MAIL FROM",
            "domain": result.domain or "the sender",
            "address": claim.ip,
            # Most records have none (RFC 7208 6.2).
            "explanation": escape(result.explanation.strip(), 150) or f"{claim.ip} may not send its mail",
            "problem": escape(result.problem.strip(), 100) or "no verdict",
            "ref": "{ref}",
        }
        text = fill(self._options.error_text if error else self._options.text, fields)
        # RFC 7372 3.2: 23 validation failed, 24 it could not be done.
        status = ("5.7." if action == REJECT else "4.7.") + ("24" if error else "23")
        answer = make_answer("550" if action == REJECT else "451", clip(f"{status} {text}"))
        return Opinion(answer, _reason(result), finding=result.result)

    def _header(self, verdicts: Verdicts, claim: Claim, sender: str) -> Answer:
        if not self._options.header:
            return DUNNO
        if self._options.header == RECEIVED_SPF:
            text = received_spf(verdicts.mail_from, claim, sender, self._receiver)
        else:
            text = authentication_results(verdicts, self._receiver)
        return make_answer("PREPEND", text)


def received_spf(result: SpfResult, claim: Claim, sender: str, receiver: str) -> str:
    """The header of RFC 7208 9.1; what does not fit into an answer any more is left out, the longest texts last."""
    pairs = [
        ("receiver", receiver),
        ("client-ip", claim.ip),
        ("identity", result.identity),
        ("envelope-from", escape(sender)),
        ("helo", escape(claim.helo)),
        ("mechanism", escape(result.mechanism, 60)),
        ("problem", escape(result.problem, 100)),
    ]
    header = f"{RECEIVED_SPF}: {result.result}"
    mark = " "
    for name, value in pairs:
        piece = f"{mark}{name}={_quoted(value)}"
        if value and len(header) + len(piece) <= MAX_TEXT_BYTES:
            header += piece
            mark = "; "
    return header


def authentication_results(verdicts: Verdicts, receiver: str) -> str:
    """The header of RFC 8601, with the domains that were judged."""
    header = f"{AUTHENTICATION_RESULTS}: {receiver}"
    for result in (verdicts.mail_from, verdicts.helo):
        if result is not None:
            piece = f"; spf={result.result}"
            if result.domain:
                piece += f" smtp.{result.identity}={result.domain}"
            if len(header) + len(piece) <= MAX_TEXT_BYTES:
                header += piece
    return header


@lru_cache(maxsize=1024)
def claims(address: str, sender: str, sender_domain: str, helo: str) -> tuple[Claim | None, Claim | None]:
    """What is judged: MAIL FROM, and the HELO name where it says more; nothing when there is no client's address."""
    client = parse_address(address)
    if client is None:
        return None, None
    if sender not in ("", "<>"):
        # With the domain that the other checks see: a local part that is far too long does not hide it.
        local, at, _ = sender.rpartition("@")
        sender = f"{local if at else sender}@{policy_domain(sender_domain)}"
    claim = mail_from_claim(str(client), sender, helo)
    greeting = helo_claim(claim.ip, helo)
    # One name in both says nothing more when it is asked twice.
    return claim, None if greeting.domain in ("", claim.domain) else greeting


def _reason(result: SpfResult) -> str:
    words = f"SPF {result.result}"
    if result.domain:
        words += f" of {'HELO' if result.identity == HELO else 'MAIL FROM'} {result.domain}"
    if result.result in (TEMPERROR, PERMERROR) and result.problem:
        words += f": {escape(result.problem, 150)}"
    elif result.result != NONE and result.mechanism:
        words += f" by {escape(result.mechanism, 60)}"
    return words


def _quoted(value: str) -> str:
    """``value``, printable ASCII, as a dot-atom or a quoted string (RFC 5322 3.2)."""
    if _DOT_ATOM.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
